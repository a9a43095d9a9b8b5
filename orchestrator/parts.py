"""Every part of one orchestrator process and who is given what. Built by `server.py` and by tests.

Nothing here listens or runs yet: `server.py` does that. The order is that of dependence: the Store,
then what mirrors it, then identity, then the operator API on top.
"""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.api.access import Access
from orchestrator.api.apply import Applier
from orchestrator.api.catalog import Catalog
from orchestrator.api.deletion import Deleter
from orchestrator.api.explaining import Explaining
from orchestrator.api.index import PlacementIndex
from orchestrator.api.losing import Losing
from orchestrator.api.reading import Reading
from orchestrator.api.watching import WatchHub
from orchestrator.cache import Cache
from orchestrator.calls import LiveCalls
from orchestrator.config import Config
from orchestrator.domain.liveness import Periods
from orchestrator.events import EventRecorder
from orchestrator.fleet import Fleet
from orchestrator.freshness import Freshness
from orchestrator.gateway.roles import RoleBook
from orchestrator.identity.authority import Authority
from orchestrator.identity.join_tokens import JoinTokens
from orchestrator.identity.member import MemberIdentity
from orchestrator.identity.nodes import JoinSettings, NodeIdentities
from orchestrator.identity.operators import OperatorIdentities
from orchestrator.identity.peers import Peers
from orchestrator.members import SETTLE_S, Registry
from orchestrator.metrics import Metrics
from orchestrator.records import MemberRecord
from orchestrator.settling import SettlingStore
from orchestrator.store.port import Store
from polder.identity import MemberId

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the listeners, the gateway and the leader are made from."""

    config: Config
    clock: Clock
    store: Store
    cache: Cache
    roles: RoleBook
    fleet: Fleet
    events: EventRecorder
    metrics: Metrics
    authority: Authority
    member: MemberIdentity
    nodes: NodeIdentities
    tokens: JoinTokens
    peers: Peers
    calls: LiveCalls
    catalog: Catalog
    explaining: Explaining
    applier: Applier
    reading: Reading
    deleter: Deleter
    hub: WatchHub
    access: Access
    periods: Periods
    registry: Registry
    freshness: Freshness
    writes: SettlingStore  # what operators write to


def build_parts(
    config: Config,
    store: Store,
    authority: Authority,
    metrics: Metrics,
    clock: Clock,
    version: str,
) -> Parts:
    """Raises UnusableFile when the region's CA has expired. Start `cache` and `events` after."""
    cache = Cache(store, clock)
    writes = SettlingStore(store)
    index = PlacementIndex(cache)
    fleet = Fleet(started_at=clock(), lost_after_s=config.lost_after)
    events = EventRecorder(store, clock, cache.uid_of)
    member_id = MemberId(authority.trust_domain, config.region, config.member_name)
    member = MemberIdentity(
        authority, member_id, clock, life_s=config.member_certificate_life, hosts=config.hosts
    )
    join = JoinSettings(config.endpoints, member_id.member, config.node_certificate_life)
    nodes = NodeIdentities(store, cache, authority, events, clock, join)
    tokens = JoinTokens(writes, cache, authority, clock, config.join_endpoints)
    operators = OperatorIdentities(writes, authority, clock, config.operator_certificate_life)
    calls = LiveCalls(cache, clock)
    explaining = Explaining(index)
    freshness = Freshness(store, cache)
    periods = Periods(config.silent_after, config.lost_after)
    catalog = Catalog(cache, fleet, index, clock, explaining, periods)
    access = Access(
        writes, cache, authority, tokens, operators, calls, events, clock, member_id, version
    )
    metrics.observe_fleet(fleet, cache, config.silent_after)
    metrics.authority_ends(authority.ends_at)
    return Parts(
        config=config,
        clock=clock,
        store=store,
        cache=cache,
        roles=RoleBook(cache),
        fleet=fleet,
        events=events,
        metrics=metrics,
        authority=authority,
        member=member,
        nodes=nodes,
        tokens=tokens,
        peers=Peers(store, cache, authority.trust_domain, clock),
        calls=calls,
        catalog=catalog,
        explaining=explaining,
        applier=Applier(writes, cache, index, clock),
        reading=Reading(catalog, clock),
        deleter=Deleter(writes, cache, index, clock),
        hub=WatchHub(
            catalog,
            clock,
            explaining.fingerprints,
            Losing(lambda: freshness.behind_s, config.member_name),
        ),
        access=access,
        periods=periods,
        registry=build_registry(config, store, clock, version),
        freshness=freshness,
        writes=writes,
    )


def build_registry(config: Config, store: Store, clock: Clock, version: str) -> Registry:
    """Who this member is to the others."""
    record = MemberRecord(
        name=config.member_name,
        region=config.region,
        version=version,
        endpoints=config.endpoints,
        join_endpoints=config.join_endpoints,
        peer_endpoint=config.peer_endpoint,
        coordinates=config.coordinates,
    )
    exclusive = not config.shares_store
    return Registry(store, record, clock, exclusive=exclusive, settle_s=SETTLE_S)
