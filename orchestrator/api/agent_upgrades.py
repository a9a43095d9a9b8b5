"""UpgradeAgents and AgentUpgrades: an operator begins, steers and watches an upgrade of the fleet.

Only records are written here; the leader goes on with them (`orchestrator/domain/upgrades.py`), and
any member answers. What is shown is judged by the same rules, from the leader's picture of the
world.
"""

import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import grpc

from orchestrator.api.thinking import Thinking
from orchestrator.authz import Caller
from orchestrator.cache import Cache
from orchestrator.catching_up import catch_up
from orchestrator.domain.freezes import freezes_in
from orchestrator.domain.releases import OLDER_RELEASE, Releases, obstacle, releases_in
from orchestrator.domain.upgrade_state import (
    FAILURES_BY_SHARE,
    FAILURES_LIMIT,
    PATIENCE_S,
    WHOLE,
    Phase,
    Upgrade,
    told_in,
    upgrades_in,
)
from orchestrator.domain.upgrades import Box, Judged, Standing, in_order, judge
from orchestrator.domain.upgrades_step import Agent, boxes_of
from orchestrator.events import Recorder
from orchestrator.fleet import Fleet
from orchestrator.leader_upgrades import known_agents
from orchestrator.records import MemberRecord
from orchestrator.refusals import Refused, conflict, in_use, invalid, not_found
from orchestrator.scheduling.snapshot import Node, Snapshot
from orchestrator.scheduling.tick import Moment, World
from orchestrator.store import keys
from orchestrator.store.port import Compare, CompareTarget, Delete, Op, Put, Store
from polder.manifest.quantity import format_duration
from polder.release import version_order
from polder.skew import minor_of, supported
from polder.v1 import common_pb2, operator_pb2

WAVES_MAX = 20
NAMED_MAX = 500
"""Sites and nodes that an upgrade may name."""
SOAK_S_MAX = 7 * 86_400
PATIENCE_S_MIN, PATIENCE_S_MAX = 10, 3600
HISTORY_MAX = 10
SHOWN_MAX = 50
_NAMED_IN_TEXT = 3
_ATTEMPTS = 8
_WARNING = common_pb2.EVENT_TYPE_WARNING


@dataclass(frozen=True, slots=True)
class AgentUpgrades:
    """Serves both RPCs. `thinking` has the picture of the world."""

    store: Store
    cache: Cache
    fleet: Fleet
    thinking: Thinking
    events: Recorder
    clock: Callable[[], float]

    async def upgrade(
        self, caller: Caller, request: operator_pb2.UpgradeAgentsRequest
    ) -> operator_pb2.UpgradeAgentsResponse:
        """Raises Refused and StoreError."""
        action = request.WhichOneof("action")
        if action == "begin":
            return await self._begin(caller, request.begin, dry_run=request.dry_run)
        if action is None:
            raise invalid("nothing is asked: begin, pause, resume or abort")
        identifier = str(getattr(request, action))
        for _ in range(_ATTEMPTS):
            before = self._steered(identifier, action)
            after, said = self._changed(before, action, caller)
            if request.dry_run or after == before:
                return operator_pb2.UpgradeAgentsResponse(state=self._state(after, self._look()))
            if await self._commit(before, after):
                self._record(caller, f"upgrade {after.id} to {after.version}: {said}")
                return operator_pb2.UpgradeAgentsResponse(state=self._state(after, self._look()))
        raise conflict("the upgrade kept changing", "edgectl agent status, and try again")

    async def upgrades(self) -> operator_pb2.AgentUpgradesResponse:
        """Newest first. Raises Refused (Busy; NotReady while nothing was read from the Store)."""
        known = upgrades_in(self.cache.kept(keys.UPGRADES))[: HISTORY_MAX + 1]
        look = self._look() if any(u.is_active for u in known) else None

        def states() -> list[operator_pb2.AgentUpgradeState]:
            return [self._state(upgrade, look) for upgrade in known]

        found = await self.thinking.ask(states) if look is not None else states()
        return operator_pb2.AgentUpgradesResponse(upgrades=found)

    # --- steering --------------------------------------------------------------------------------

    def _steered(self, identifier: str, action: str) -> Upgrade:
        known = upgrades_in(self.cache.kept(keys.UPGRADES))
        found = next((upgrade for upgrade in known if upgrade.id == identifier), None)
        if found is None:
            raise not_found(f"there is no upgrade {identifier[:80]!r}", "edgectl agent status")
        again = action == "abort" and found.phase is Phase.ABORTED
        if not found.is_active and not again:
            raise in_use(f"upgrade {found.id} has ended: {found.phase}", "edgectl agent status")
        return found

    def _changed(self, before: Upgrade, action: str, caller: Caller) -> tuple[Upgrade, str]:
        """What becomes of it, and what is told of that."""
        if before.phase is Phase.ABORTED:
            return before, ""  # the request was repeated
        if action == "pause":
            if before.phase is Phase.PAUSED:
                return before, ""
            return before.paused("Paused", f"by {caller.source}"), "paused"
        if action == "resume":
            if before.phase is Phase.RUNNING:
                return before, ""
            failed = f"; {len(before.failed)} failed nodes try once more" if before.failed else ""
            return before.resumed(self.clock()), f"resumed{failed}"
        ended = replace(
            before,
            phase=Phase.ABORTED,
            reason="Aborted",
            message=f"by {caller.source}",
            ended_at_ms=int(self.clock() * 1000),
            ended=_counted(self._look().judged(before)),
        )
        return ended, "aborted; what was upgraded stays so"

    # --- beginning -------------------------------------------------------------------------------

    async def _begin(
        self, caller: Caller, begin: operator_pb2.BeginUpgrade, *, dry_run: bool
    ) -> operator_pb2.UpgradeAgentsResponse:
        for _ in range(_ATTEMPTS):
            known = upgrades_in(self.cache.kept(keys.UPGRADES))
            active = next((upgrade for upgrade in known if upgrade.is_active), None)
            if active is not None and not dry_run:
                raise in_use(
                    f"upgrade {active.id} to {active.version} is {active.phase.lower()}",
                    f"edgectl agent status; edgectl agent abort {active.id}",
                )
            number = max((upgrade.number for upgrade in known), default=0) + 1
            upgrade = self._asked(begin, number, caller)
            look = self._look()
            warnings = self._check(upgrade, look)
            if active is not None:
                warnings.append(f"upgrade {active.id} to {active.version} is {active.phase} still")
            state = self._state(upgrade, look)
            if dry_run:
                return operator_pb2.UpgradeAgentsResponse(state=state, warnings=warnings)
            former = [u for u in known if not u.is_active][HISTORY_MAX - 1 :]
            if await self._commit(None, upgrade, forget=former):
                self._record(caller, f"upgrade {upgrade.id} to {upgrade.version} begins")
                return operator_pb2.UpgradeAgentsResponse(state=state, warnings=warnings)
        raise conflict("upgrades kept changing", "edgectl agent status, and try again")

    def _asked(self, begin: operator_pb2.BeginUpgrade, number: int, caller: Caller) -> Upgrade:
        """Raises Refused for what none may ask."""
        waves = tuple(begin.waves_permille)
        rising = all(a < b for a, b in pairwise(waves))
        if not (0 < len(waves) <= WAVES_MAX and waves[0] > 0 and rising and waves[-1] == WHOLE):
            raise invalid(
                f"waves are up to {WAVES_MAX} rising shares, and the last is 100%",
                "--waves 1%,10%,100%",
            )
        if not 0 <= begin.at_once_permille <= WHOLE:
            raise invalid("a share is 0% to 100%", "--at-once 5%")
        if not 0 <= begin.soak_s <= SOAK_S_MAX:
            raise invalid(f"a soak lasts up to {format_duration(SOAK_S_MAX)}", "--soak 10m")
        patience_s = begin.patience_s or PATIENCE_S
        if not PATIENCE_S_MIN <= patience_s <= PATIENCE_S_MAX:
            least, most = format_duration(PATIENCE_S_MIN), format_duration(PATIENCE_S_MAX)
            raise invalid(f"the patience for one box is {least} to {most}", "--patience 5m")
        if not FAILURES_BY_SHARE <= begin.failures_max <= FAILURES_LIMIT:
            raise invalid(f"up to {FAILURES_LIMIT} nodes may fail", "--failures 0")
        sites, nodes = tuple(dict.fromkeys(begin.sites)), tuple(dict.fromkeys(begin.nodes))
        if len(sites) + len(nodes) > NAMED_MAX:
            raise invalid(f"an upgrade names up to {NAMED_MAX} sites and nodes")
        for kind, names in (("Site", sites), ("Node", nodes)):
            for name in names:
                if self.cache.resource(kind, "", name) is None:
                    raise not_found(f"there is no {kind.lower()} {name[:80]!r}")
        now_ms = int(self.clock() * 1000)
        return Upgrade(
            number=number,
            id=f"{number}-{secrets.token_hex(2)}",
            version=begin.version,
            waves=waves,
            at_once=begin.at_once_permille,
            soak_s=begin.soak_s,
            patience_s=patience_s,
            failures_max=begin.failures_max,
            by=caller.source,
            started_at_ms=now_ms,
            sites=sites,
            nodes=nodes,
            wave_began_ms=now_ms,
        )

    def _check(self, upgrade: Upgrade, look: "_Look") -> list[str]:
        """Warnings. Raises Refused unless each box that is heard can become it, and go back."""
        known = look.releases
        if upgrade.version not in known:
            have = ", ".join(sorted(known, key=version_order)) or "none"
            raise not_found(
                f"there is no release {upgrade.version[:80]!r}; there are: {have}",
                "edgectl agent upload FILE --deb PACKAGE",
            )
        chosen = look.chosen(upgrade)
        if not chosen:
            raise invalid("no node is chosen", "edgectl get nodes")
        code = grpc.StatusCode.FAILED_PRECONDITION
        missing = _missing(upgrade, chosen, look)
        if missing:
            text = "; ".join(missing)
            hint = f"edgectl agent upload FILE --deb PACKAGE; {_FOR_THE_WAY_BACK}"
            raise Refused(code, "MissingPackages", text, hint)
        older = _older(upgrade, chosen, look)
        if older:
            raise Refused(code, OLDER_RELEASE, "; ".join(older), _FOR_A_DOWNGRADE)
        return list(_warnings(upgrade, chosen, look, self.cache.members()))

    async def _commit(
        self, before: Upgrade | None, after: Upgrade, forget: Iterable[Upgrade] = ()
    ) -> bool:
        """Whether it was still as the mirror showed it. The mirror is then not behind."""
        record = after.record()
        expected = before.store_revision if before is not None else 0
        compare = Compare(record.key, CompareTarget.MOD_REVISION, expected)
        ops: list[Op] = [Put(record.key, record.to_bytes())]
        ops += [Delete(keys.upgrade(old.number)) for old in forget][:HISTORY_MAX]
        result = await self.store.txn([compare], ops)
        await catch_up(self.cache, result.revision)
        return result.committed

    # --- showing ---------------------------------------------------------------------------------

    def _look(self) -> "_Look":
        snapshot = self.thinking.snapshot()
        agents = known_agents(self.cache, self.fleet, snapshot.nodes)
        return _Look(snapshot, agents, self.cache, self.clock())

    def _state(self, upgrade: Upgrade, look: "_Look | None") -> operator_pb2.AgentUpgradeState:
        """`look`: needed while it is active."""
        state = operator_pb2.AgentUpgradeState(
            id=upgrade.id,
            version=upgrade.version,
            phase=upgrade.phase,
            reason=upgrade.reason,
            message=upgrade.message,
            by=upgrade.by,
            started_at_ms=upgrade.started_at_ms,
            ended_at_ms=upgrade.ended_at_ms,
            waves_permille=upgrade.waves,
            wave=upgrade.wave,
        )
        if not upgrade.is_active or look is None:
            _count(state, Counter({Standing(name): n for name, n in upgrade.ended.items()}))
            state.shown.extend(_failed_in(upgrade))
            return state
        judged = look.judged(upgrade)
        _count(state, Counter(item.standing for item in judged))
        state.shown.extend(_node_of(item, upgrade) for item in _worth_showing(judged))
        if upgrade.settled_at_ms:
            state.wave_over_at_ms = upgrade.settled_at_ms + upgrade.soak_s * 1000
        if look.freezes and not state.reason:
            state.reason, state.message = "Frozen", "a freeze stands: edgectl thaw"
        return state

    def _record(self, caller: Caller, text: str) -> None:
        name = "everything"
        reason = "UpgradeSteered"
        self.events.record("Installation", "", name, _WARNING, reason, text, caller.source)


_FOR_THE_WAY_BACK = "a box goes back to the version that it runs, so that package must be here, too"
_FOR_A_DOWNGRADE = (
    "edge-orchestrator ca sign-release --downgrade, where the root's key is, and edgectl agent "
    "upload; or leave those nodes out by --site and --node"
)


class _Look:
    """The world at one moment, as far as upgrades go."""

    def __init__(
        self, snapshot: Snapshot, agents: dict[str, Agent], cache: Cache, now: float
    ) -> None:
        releases = cache.kept(keys.RELEASES)
        self._world = World(snapshot, kept={record.key: record for record in releases})
        self._agents = agents
        self._told = {
            record.key.removeprefix(keys.AGENT_VERSIONS): told_in(record)
            for record in cache.kept(keys.AGENT_VERSIONS)
        }
        self._now = now
        self.releases: Releases = releases_in(releases)
        self.freezes = "" in freezes_in(cache.kept(keys.FREEZES))
        self.nodes: dict[str, Node] = {node.name: node for node in snapshot.nodes}

    def chosen(self, upgrade: Upgrade) -> list[Box]:
        moment = Moment(self._now, 0.0)
        boxes = boxes_of(self._world, upgrade.version, self._agents, self._told, moment)
        return in_order(upgrade, boxes)

    def judged(self, upgrade: Upgrade) -> list[Judged]:
        return judge(upgrade, self.chosen(upgrade), self._now)


def _missing(upgrade: Upgrade, chosen: Iterable[Box], look: _Look) -> list[str]:
    """Packages without which a box could not become the version, or not go back; with the nodes."""
    lacking: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for box in chosen:
        arch = look.nodes[box.name].arch
        if not box.version or not arch or box.version == upgrade.version:
            continue
        for version in (upgrade.version, box.version):
            stored = look.releases.get(version)
            if stored is None or stored.package_for(arch) is None:
                lacking[version, arch].append(box.name)
    return [
        f"no package of {version} for {arch} is here, for {_listed(names)}"
        for (version, arch), names in sorted(lacking.items())
    ]


def _older(upgrade: Upgrade, chosen: Iterable[Box], look: _Look) -> list[str]:
    """Why boxes would refuse the version, since they run a later one; with the nodes."""
    refusing: defaultdict[str, list[str]] = defaultdict(list)
    for box in chosen:
        if box.version == upgrade.version:
            continue
        arch = look.nodes[box.name].arch
        found = obstacle(look.releases, upgrade.version, box.version, arch)
        if found is not None and found[0] == OLDER_RELEASE:
            refusing[found[1]].append(box.name)
    return [f"{why}, for {_listed(names)}" for why, names in sorted(refusing.items())]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:_NAMED_IN_TEXT])
    more = len(names) - _NAMED_IN_TEXT
    return f"{shown} and {more} more" if more > 0 else shown


def _warnings(
    upgrade: Upgrade, chosen: list[Box], look: _Look, members: Iterable[MemberRecord]
) -> Iterable[str]:
    if all(box.version == upgrade.version for box in chosen):
        yield f"all {len(chosen)} nodes run {upgrade.version} already"
    unknown = [box.name for box in chosen if not box.version]
    if unknown:
        yield f"{len(unknown)} nodes have not said what they run, and wait: {unknown[0]}"
    later = [
        box.name
        for box in chosen
        if box.version and version_order(box.version) > version_order(upgrade.version)
    ]
    if later:
        yield (
            f"{len(later)} nodes run a later version and go back to {upgrade.version}, such as "
            f"{later[0]}; a box refuses that whose state the older version cannot read"
        )
    fits = supported(member.version for member in members).agents
    version = minor_of(upgrade.version)
    if fits is not None and version is not None and version not in fits:
        yield f"agents of {upgrade.version} are not supported beside these members: {fits} are"
    if look.freezes:
        yield "a freeze stands: nothing begins until edgectl thaw"


def _counted(judged: Iterable[Judged]) -> dict[str, int]:
    return {str(name): count for name, count in Counter(i.standing for i in judged).items()}


def _count(state: operator_pb2.AgentUpgradeState, counts: Counter[Standing]) -> None:
    state.nodes = counts.total()
    state.done = counts[Standing.DONE]
    state.under_way = counts[Standing.UNDER_WAY]
    state.failed = counts[Standing.FAILED]
    state.waiting = counts[Standing.WAITING]


def _worth_showing(judged: Iterable[Judged]) -> list[Judged]:
    """Failed ones first, then those on their way, then those that wait."""
    order = (Standing.FAILED, Standing.UNDER_WAY, Standing.WAITING)
    found = [item for item in judged if item.standing in order]
    found.sort(key=lambda item: (order.index(item.standing), item.box.name))
    return found[:SHOWN_MAX]


def _failed_in(upgrade: Upgrade) -> Iterable[operator_pb2.UpgradeNode]:
    """Of one that has ended."""
    for name, failure in sorted(upgrade.failed.items())[:SHOWN_MAX]:
        yield operator_pb2.UpgradeNode(
            node=name,
            phase=Standing.FAILED,
            reason=failure.reason,
            message=failure.message,
            at_ms=failure.at_ms,
        )


def _node_of(item: Judged, upgrade: Upgrade) -> operator_pb2.UpgradeNode:
    box = item.box
    failure = upgrade.failed.get(box.name)
    told_ms = box.told.at_ms if box.told is not None else 0
    return operator_pb2.UpgradeNode(
        node=box.name,
        site=box.site,
        version=box.version,
        phase=item.standing,
        reason=item.reason,
        message=item.message,
        at_ms=failure.at_ms if failure is not None else told_ms,
    )
