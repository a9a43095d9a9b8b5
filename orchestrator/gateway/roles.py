"""Keeps what every node's plan says of its site: whom it speaks to, and what it may take over.

One per member, over the mirror. The gateway composes from it; the leader asks which plans say
something else than holds now, and gives those nodes a new generation. What changed is noted when
the mirror says so: nothing here walks over all nodes in every tick.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from orchestrator.cache import Cache, Change
from orchestrator.domain.inventory import site_access
from orchestrator.domain.overrides import LocalOverride, overrides_in, read
from orchestrator.domain.roles import (
    NOBODY,
    Neighbourhood,
    SitePeer,
    named_by,
    peers_of,
    roles_of,
    shared,
)
from orchestrator.fact_book import FactBook
from orchestrator.gateway.compose import CannotCompose, compose_roles
from orchestrator.gateway.role_prints import RolePrints
from orchestrator.gateway.signed_facts import SignedFacts
from orchestrator.records import (
    AssignmentRecord,
    IdentityRecord,
    KeptRecord,
    NodePlacement,
    NodeStatusRecord,
    StoredResource,
)
from orchestrator.scheduling.groups import forgets
from orchestrator.store import keys
from polder.v1 import plan_pb2

log = logging.getLogger(__name__)

LOOKS_MAX = 500
"""Nodes that are looked at again in one tick of the leader; each takes about 0.1 ms."""
_NODES = keys.spec_prefix("Node")
_IDENTITIES = keys.identity("node", "")
_NAMED = tuple(keys.spec_prefix(kind) for kind in ("Secret", "Config"))
_DEMANDING = {keys.spec_prefix("Workload"): "sovereignty", keys.spec_prefix("Namespace"): "floor"}
_FACTS = tuple(keys.spec_prefix(kind) for kind in ("Site", "Provider"))


@dataclass(frozen=True, slots=True)
class _Shares:
    """Of one node's placement: who has a part in its replicas, and of which namespaces they are."""

    nodes: frozenset[str]
    namespaces: frozenset[str]


class RoleBook:
    """Make it before or after the mirror starts."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._facts = SignedFacts(cache, FactBook(cache))
        self._prints = RolePrints(cache, self._facts)
        self._peers: dict[str, tuple[NodeStatusRecord, SitePeer | None]] = {}
        self._shares: dict[str, _Shares] = {}
        self._naming: defaultdict[str, set[str]] = defaultdict(
            set
        )  # node: whose placements name it
        self._spaces: defaultdict[str, set[str]] = defaultdict(set)  # namespace: nodes that share
        self._due: dict[str, None] = {}
        self._outdated: set[str] = set()
        self._unreadable: dict[str, str] = {}
        self._overrides: defaultdict[str, dict[str, LocalOverride]] = defaultdict(dict)  # by site
        for override in overrides_in(cache.kept(keys.OVERRIDES)):
            self._overrides[override.site][override.key] = override
        for placement in cache.placements():
            self._take(placement.node, placement)
            self._due[placement.node] = None
        cache.subscribe(self._on_changes)

    # --- reading ---------------------------------------------------------------------------------

    def neighbourhood(self, node: str) -> Neighbourhood:
        """As the mirror has it. What was decided at its site is told to all there, also of what no
        node has any more: who decided it is to see what became of it."""
        found, decided = self._neighbours(node), self._overrides.get(self._site(node))
        if not decided:
            return found
        return replace(found, overrides=tuple(decided[key] for key in sorted(decided)))

    def _neighbours(self, node: str) -> Neighbourhood:
        """There is no role where the primary cannot be heard: the node would take it for dead. Nor
        is there one in an exclusive group that began before the node's box joined: what it granted
        there is forgotten, and the leader makes the next group."""
        holders = self._naming.get(node, set())
        if (not holders and node not in self._shares) or self._peer(node) is None:
            return NOBODY
        site = self._site(node)
        placements = [self._cache.placement(name) for name in sorted(self.holders_around(node))]
        names = [name for name in peers_of(node, placements) if self._site(name) == site]
        roster = tuple(peer for name in names if (peer := self._peer(name)) is not None)
        here = {peer.node for peer in roster}
        joined = self._joined_epoch(node)
        roles = tuple(
            role
            for role in roles_of(node, placements)
            if role.primary in here and not _forgets(joined, role.assignment)
        )
        return Neighbourhood(roster, roles)

    def without_forgotten(self, placement: NodePlacement) -> NodePlacement:
        """As its node gets it: the same of its own exclusive replicas, which it would vote on."""
        joined = self._joined_epoch(placement.node)
        kept = tuple(item for item in placement.assignments if not _forgets(joined, item))
        return (
            placement
            if len(kept) == len(placement.assignments)
            else replace(placement, assignments=kept)
        )

    def shared_by(self, node: str) -> Iterable[AssignmentRecord]:
        """Replicas of others in which the node has a role."""
        placements = [self._cache.placement(name) for name in sorted(self.holders_around(node))]
        return (role.assignment for role in roles_of(node, placements))

    def holders_around(self, node: str) -> frozenset[str]:
        """Whose replicas the node has a part in, and itself."""
        return frozenset({node, *self._naming.get(node, ())})

    def add_to(self, plan: plan_pb2.NodePlan, node: str) -> None:
        """Writes it into the node's plan, with the Secrets, Configs and facts that it names."""
        found = self.neighbourhood(node)
        if found.is_empty:
            return
        site = self._site(node)
        left_out = compose_roles(
            plan,
            found,
            self._cache.revision_of,
            partial(self._cache.resource, "Secret"),
            self._facts.demands_at(site),
            partial(self._cache.resource, "Config"),
            self._facts.of_node(node, site),
        )
        self._note(node, left_out)

    def digest(self, node: str) -> str:
        """Of all that `add_to` writes; empty when that is nothing."""
        return self._prints.of(self.neighbourhood(node), node, self._site(node))

    def outdated(self) -> frozenset[str]:
        """Nodes whose plan says something else. Looks at LOOKS_MAX of those about which something
        changed; `pending` says whether there are more."""
        for node in list(self._due)[:LOOKS_MAX]:
            del self._due[node]
            if not self._exists(node) or self.digest(node) == self._stored(node):
                self._outdated.discard(node)
            else:
                self._outdated.add(node)
        return frozenset(self._outdated)

    @property
    def pending(self) -> bool:
        return bool(self._due)

    def _stored(self, node: str) -> str:
        return self._cache.placement(node).roles_digest

    def _exists(self, node: str) -> bool:
        found = self._cache.resource("Node", "", node)
        return found is not None and not found.deletion_requested_at_ms

    def _joined_epoch(self, node: str) -> int:
        return _joined(self._cache.identity("node", node))

    def _site(self, node: str) -> str:
        """Empty for a node without a record: it has no peers, and is nobody's."""
        found = self._cache.resource("Node", "", node)
        return str(found.spec.get("site", "")) if found is not None else ""

    def _peer(self, node: str) -> SitePeer | None:
        """None while it has not said how it is reached, and of one that was revoked: whoever has
        its box must not be listened to."""
        status = self._cache.node_status(node)
        if status is None or _is_revoked(self._cache.identity("node", node)):
            return None
        known = self._peers.get(node)
        if known is None or known[0] is not status:
            endpoints, certificate = _access(status)
            peer = SitePeer(node, endpoints, certificate) if endpoints else None
            known = self._peers[node] = (status, peer)
        return known[1]

    def _note(self, node: str, left_out: CannotCompose | None) -> None:
        """What cannot be composed costs a role and not the plan; it is logged when it begins."""
        if left_out is None:
            self._unreadable.pop(node, None)
        elif self._unreadable.get(node) != str(left_out):
            self._unreadable[node] = str(left_out)
            log.warning("a role is left out: %s", left_out, extra={"node": node})

    # --- following -------------------------------------------------------------------------------

    def _on_changes(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if change.key.startswith(keys.PLACEMENTS):
                self._placement(change.key.removeprefix(keys.PLACEMENTS), change)
            elif change.key.startswith(keys.NODE_STATUS):
                self._status(change.key.removeprefix(keys.NODE_STATUS), change)
            elif change.key.startswith(_IDENTITIES):
                if _is_revoked(change.previous) != _is_revoked(change.value) or _joined(
                    change.previous
                ) != _joined(change.value):
                    node = change.key.removeprefix(_IDENTITIES)
                    self._mark([node, *self._around(node)])
            elif change.key.startswith(keys.OVERRIDES):
                self._override(change)
            elif change.key.startswith(keys.SPECS):
                self._prints.forget()
                self._resource(change)
            elif change.key.startswith(keys.REVISIONS):
                self._prints.forget()

    def _placement(self, node: str, change: Change) -> None:
        before = change.previous if isinstance(change.previous, NodePlacement) else None
        after = change.value if isinstance(change.value, NodePlacement) else None
        former = self._shares.get(node)
        self._mark([node])
        if (shared(before) if before else ()) == (shared(after) if after else ()):
            return
        self._take(node, after)
        now = self._shares.get(node)
        for shares in (former, now):
            if shares is not None:
                self._mark(shares.nodes)

    def _take(self, node: str, placement: NodePlacement | None) -> None:
        former = self._shares.pop(node, None)
        for name in former.nodes if former else ():
            _drop(self._naming, name, node)
        for namespace in former.namespaces if former else ():
            _drop(self._spaces, namespace, node)
        items = shared(placement) if placement is not None else ()
        if placement is None or not items:
            return
        now = _Shares(named_by(placement), frozenset(item.namespace for item in items))
        self._shares[node] = now
        for name in now.nodes:
            self._naming[name].add(node)
        for namespace in now.namespaces:
            self._spaces[namespace].add(node)

    def _status(self, node: str, change: Change) -> None:
        """How it is reached: by others, and so whether it has any part in this at all."""
        before, after = (
            item if isinstance(item, NodeStatusRecord) else None
            for item in (change.previous, change.value)
        )
        if after is None:
            self._peers.pop(node, None)
        if _access(before) != _access(after):
            self._mark([node, *self._around(node)])

    def _override(self, change: Change) -> None:
        """Told to all nodes of its site."""
        site = change.key.removeprefix(keys.OVERRIDES).partition("/")[0]
        found = read(change.value) if isinstance(change.value, KeptRecord) else None
        if found is not None:
            self._overrides[site][change.key] = found
        else:
            self._overrides[site].pop(change.key, None)
        if not self._overrides[site]:
            del self._overrides[site]
        nodes = self._cache.resources("Node")
        self._mark(node.name for node in nodes if node.spec.get("site") == site)

    def _resource(self, change: Change) -> None:
        before, after = (
            item if isinstance(item, StoredResource) else None
            for item in (change.previous, change.value)
        )
        some = after or before
        if some is None:
            return
        field = next((f for prefix, f in _DEMANDING.items() if change.key.startswith(prefix)), "")
        if field:
            if _said(before, field) != _said(after, field):
                self._mark_space(some.namespace or some.name)
        elif change.key.startswith(_NAMED):
            self._mark_space(some.namespace)
        elif change.key.startswith(_NODES):
            self._mark([some.name, *self._around(some.name)])
        elif change.key.startswith(_FACTS):
            self._mark([*self._naming])

    def _around(self, node: str) -> set[str]:
        """Everybody whose roster may name it."""
        holders = self._naming.get(node, set())
        found = set(holders)
        for name in (*holders, node):
            shares = self._shares.get(name)
            if shares is not None:
                found |= shares.nodes
        return found - {node}

    def _mark_space(self, namespace: str) -> None:
        for holder in self._spaces.get(namespace, ()):
            self._mark(self._shares[holder].nodes)

    def _mark(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            self._due[node] = None


def _drop(index: defaultdict[str, set[str]], key: str, item: str) -> None:
    index[key].discard(item)
    if not index[key]:
        del index[key]


def _said(record: StoredResource | None, field: str) -> Any:
    return record.spec.get(field) if record is not None else None


def _is_revoked(identity: object | None) -> bool:
    return isinstance(identity, IdentityRecord) and identity.revoked_at_ms > 0


def _joined(identity: object | None) -> int:
    return identity.joined_epoch if isinstance(identity, IdentityRecord) else 0


def _forgets(joined_epoch: int, item: AssignmentRecord) -> bool:
    return item.group is not None and forgets(joined_epoch, item.group)


def _access(status: NodeStatusRecord | None) -> tuple[tuple[str, ...], bytes]:
    if status is None or "siteCertificate" not in status.inventory_text:
        return (), b""
    return site_access(status.inventory)
