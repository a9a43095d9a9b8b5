"""The guard rails as steps of a tick: before the plan, and after it.

Before: whether the Store's answer can be true (census), whether silent nodes are lost (nodes,
silence), what is frozen (freezes). After: what would stop too much (guard). Called by `steer.py`;
the rules are in `orchestrator/domain/`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from orchestrator.domain import silence
from orchestrator.domain.census import Census, hold_for, missing, take
from orchestrator.domain.freezes import Freezes, freezes_in, frozen, without_frozen
from orchestrator.domain.guard import DEFAULT, GuardSettings, hold_back
from orchestrator.domain.holds import Hold, HoldKind, Scope, holds_in
from orchestrator.domain.liveness import FLAP_WINDOW_S, Liveness
from orchestrator.domain.nodes import Announce, NodeMemory, Word, first, heard, step
from orchestrator.domain.silence import Quiet, ScopeKey, Suspicion
from orchestrator.domain.site_freezes import marked, without_frozen_sites
from orchestrator.scheduling.decisions import Explanation, Plan
from orchestrator.scheduling.snapshot import Node, Snapshot
from orchestrator.scheduling.tick import Batch, Moment, Tell, World, Write

_KINDS = {Scope.SITE: "Site", Scope.NAMESPACE: "Namespace", Scope.REGION: "Region"}
_UNTOLD: Mapping[str, Tell] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class GuardMemory:
    """What was seen of nodes, scopes and the Store. `doubted`: why a silence proves nothing.
    `held`: replica uids that the last plan would have stopped, and that wait for an approval."""

    nodes: Mapping[str, NodeMemory] = field(default_factory=dict)
    suspicions: Mapping[ScopeKey, Suspicion] = field(default_factory=dict)
    doubted: Mapping[str, str] = field(default_factory=dict)
    census: Census | None = None
    held: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Guarded:
    """The world as the other machines are to see it. `tells` go with no write. `refused`: nothing
    follows from it."""

    world: World
    memory: GuardMemory
    holds: Mapping[str, Hold] = field(default_factory=dict)
    freezes: Freezes = field(default_factory=dict)
    batches: tuple[Batch, ...] = ()
    tells: tuple[Tell, ...] = ()
    refused: bool = False


def before_plan(
    world: World, memory: GuardMemory, moment: Moment, settings: GuardSettings = DEFAULT
) -> Guarded:
    """What may be believed, and what is frozen."""
    if not world.snapshot.complete:
        return Guarded(world, memory, refused=True)
    holds = holds_in(world.kept)
    freezes = freezes_in(world.kept.values())
    doubt = _doubt_of_store(world.snapshot, memory, holds, moment, settings)
    if doubt is not None:
        return replace(doubt, world=world, holds=holds, freezes=freezes, refused=True)
    watched = _watch(world.snapshot, memory, holds, moment, settings)
    seen = take(world.snapshot)
    kept_store = [hold for hold in holds.values() if hold.kind is HoldKind.STORE]
    return Guarded(
        world=replace(world, snapshot=marked(frozen(watched.snapshot, freezes))),
        memory=replace(watched.memory, census=seen),
        holds=holds,
        freezes=freezes,
        batches=(*watched.batches, *_batches((), kept_store)),
        tells=watched.tells,
    )


def after_plan(
    plan: Plan, guarded: Guarded, moment: Moment, settings: GuardSettings = DEFAULT
) -> tuple[Plan, tuple[Batch, ...], GuardMemory]:
    """The plan without what waits for an operator, and what to write, tell and know of that."""
    world, snapshot = guarded.world, guarded.world.snapshot
    plan = without_frozen_sites(without_frozen(plan, snapshot, guarded.freezes), snapshot)
    generations = {r.uid: r.generation for r in world.workloads} if plan.stop else {}
    held = hold_back(plan, snapshot, guarded.holds, generations, moment.now, settings)
    stored = [hold for hold in guarded.holds.values() if hold.kind is HoldKind.STOPS]
    until = "they run on until `edgectl approve"
    tells = {
        hold.id: _tell(hold, "StopsHeld", f"{hold.message}; {until} {hold.id}`")
        for hold in held.begun
    }
    explained = (*held.plan.explanations, *_doubts(snapshot, guarded.memory.doubted))
    memory = replace(guarded.memory, held=_uids(plan) - _uids(held.plan))
    decided = replace(held.plan, explanations=explained)
    return decided, _batches(held.holds, stored, tells), memory


def _uids(plan: Plan) -> frozenset[str]:
    return frozenset(stop.assignment.replica_uid for stop in plan.stop)


def as_seen(snapshot: Snapshot, freezes: Freezes, doubted: Mapping[str, str]) -> Snapshot:
    """As the leader lets the scheduler see it: for those who only ask what would be planned."""
    if doubted:
        nodes = tuple(_doubted(node, doubted.get(node.name, "")) for node in snapshot.nodes)
        snapshot = replace(snapshot, nodes=nodes)
    return marked(frozen(snapshot, freezes))


def _doubted(node: Node, why: str) -> Node:
    """Silent, and not lost."""
    if not why or node.liveness is not Liveness.LOST:
        return node
    return replace(node, liveness=Liveness.SILENT, suspect=why)


# --- the store --------------------------------------------------------------------------------


def _doubt_of_store(
    snapshot: Snapshot,
    memory: GuardMemory,
    holds: Mapping[str, Hold],
    moment: Moment,
    settings: GuardSettings,
) -> Guarded | None:
    """None when what the Store says can be true, or an operator said that it is."""
    if memory.census is None:
        return None
    what = missing(memory.census, snapshot, settings.stops_max, settings.share_max)
    if not what:
        return None
    hold = hold_for(what, moment.now)
    before = holds.get(hold.id)
    if before is not None and before.approved_lately(moment.now):
        return None
    others = [h for h in holds.values() if h.kind is HoldKind.STORE]
    world = World(snapshot)
    if before is not None:
        return Guarded(world, memory, batches=_batches((before,), others))
    text = f"{hold.message}: nothing is changed until they are back, or `edgectl approve {hold.id}`"
    tells = {hold.id: _tell(hold, "StoreImplausible", text)}
    return Guarded(world, memory, batches=_batches((hold,), others, tells))


# --- nodes ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Watched:
    snapshot: Snapshot
    memory: GuardMemory
    batches: tuple[Batch, ...] = ()
    tells: tuple[Tell, ...] = ()


def _watch(
    snapshot: Snapshot,
    memory: GuardMemory,
    holds: Mapping[str, Hold],
    moment: Moment,
    settings: GuardSettings,
) -> _Watched:
    judged = silence.judge(
        _quiets(snapshot, memory, holds, moment.steady),
        memory.suspicions,
        holds,
        moment.now,
        moment.steady,
        settings.suspicion_s,
    )
    nodes: dict[str, NodeMemory] = {}
    doubted: dict[str, str] = {}
    seen: list[Node] = []
    told: list[Announce] = []
    for node in snapshot.nodes:
        before = memory.nodes.get(node.name)
        if before is not None and node.liveness is Liveness.LIVE and before.at_rest:
            nodes[node.name] = before
            seen.append(node)
            continue
        before = _spared(node, before, judged, moment.steady, settings.spared_s)
        why = node.suspect or judged.doubted.get(node.name, "")
        if not why and before is not None and moment.steady < before.spared_until:
            why = f"node {node.name} was silent with many that are heard again, and has a bit more"
        word = heard(node.liveness, doubted=bool(why))
        before = before or first(word, moment.steady)
        nodes[node.name], said = step(node.name, before, word, moment.steady)
        told += said
        if word is Word.DOUBTED or node.suspect:
            doubted[node.name] = why
        seen.append(_doubted(node, why))
    stored = [hold for hold in holds.values() if hold.kind is HoldKind.SILENCE]
    return _Watched(
        snapshot if not doubted else replace(snapshot, nodes=tuple(seen)),
        GuardMemory(nodes, judged.suspicions, doubted, memory.census, memory.held),
        _batches(judged.holds, stored, _silences(judged, stored)),
        tuple(map(_announced, told)),
    )


def _quiets(
    snapshot: Snapshot, memory: GuardMemory, holds: Mapping[str, Hold], steady: float
) -> Iterable[Quiet]:
    """Nothing, as nearly always, when nobody is lost and nothing is suspected."""
    silences = any(hold.kind is HoldKind.SILENCE for hold in holds.values())
    if not (memory.suspicions or silences) and all(
        node.liveness is not Liveness.LOST for node in snapshot.nodes
    ):
        return
    for node in snapshot.nodes:
        if node.liveness is Liveness.NEVER_SEEN or node.deleting:
            continue
        before = memory.nodes.get(node.name)
        lost = node.liveness is Liveness.LOST
        since = before.changed_at if before and before.state is Liveness.LOST else steady
        settled = lost and steady - since >= FLAP_WINDOW_S
        quiet = lost or node.liveness is Liveness.SILENT
        yield Quiet(node.name, node.site, node.region, quiet, lost, settled)


def _spared(
    node: Node, before: NodeMemory | None, judged: silence.Judged, steady: float, spared_s: float
) -> NodeMemory | None:
    """Others that were silent with it are heard again: it gets a full period to follow."""
    if before is None or node.name not in judged.spared:
        return before
    return replace(before, spared_until=steady + spared_s)


def _doubts(snapshot: Snapshot, doubted: Mapping[str, str]) -> Iterable[Explanation]:
    """For each workload whose replicas would have moved."""
    for node, why in sorted(doubted.items()):
        placement = snapshot.placements.get(node)
        # A replica that is updated on its node has two stays there, and one name.
        names: dict[tuple[str, str], dict[str, None]] = {}
        for item in placement.assignments if placement is not None else ():
            names.setdefault((item.namespace, item.workload), {})[item.replica] = None
        for (namespace, workload), replicas in sorted(names.items()):
            yield Explanation(namespace, workload, "NodeSuspect", why, tuple(replicas))


def _silences(judged: silence.Judged, stored: Iterable[Hold]) -> dict[str, Tell]:
    """By the hold's id: what begins, and what is over."""
    found = {}
    for hold in judged.begun:
        text = f"{hold.message}; nothing moves off them until then, or `edgectl approve {hold.id}`"
        found[hold.id] = _tell(hold, "MassSilence", text)
    stands = {hold.id for hold in judged.holds}
    for hold in stored:
        if hold.id not in stands and not hold.approved:
            over = _tell(hold, "MassSilenceOver", "nodes that stay silent are lost again")
            found[hold.id] = replace(over, warning=False)
    return found


# --- words ------------------------------------------------------------------------------------


def _announced(said: Announce) -> Tell:
    return Tell("Node", "", said.node, said.warning, said.reason, said.message)


def _tell(hold: Hold, reason: str, message: str) -> Tell:
    kind = _KINDS.get(hold.scope, "Installation")
    return Tell(kind, "", hold.name or hold.scope.value, True, reason, message)


def _batches(
    wanted: Iterable[Hold], stored: Iterable[Hold], tells: Mapping[str, Tell] = _UNTOLD
) -> tuple[Batch, ...]:
    """What makes `stored` as `wanted`, each in a transaction of its own. `tells` by hold."""
    stands = {hold.id: hold for hold in stored}
    wants = {hold.id: hold for hold in wanted}

    def batch(hold: Hold, value: bytes | None) -> Batch:
        told = (tells[hold.id],) if hold.id in tells else ()
        return Batch((Write(hold.key, value, hold.store_revision),), told)

    gone = [batch(hold, None) for hold in stands.values() if hold.id not in wants]
    changed = [hold for hold in wants.values() if stands.get(hold.id) != hold]
    return (*gone, *(batch(hold, hold.record().to_bytes()) for hold in changed))
