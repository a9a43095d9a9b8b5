"""The rollouts' part of a tick: which revision each workload's replicas are led to now.

Called by `steer.py` before the plan, with the snapshot as the machines before it left it. A state
per workload is kept under `keys.rollout`. Workloads that are at rest cost a look-up each; the
others are gone through replica by replica.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from orchestrator.domain.rollout import (
    Progress,
    Wanted,
    admitted,
    begin,
    step,
)
from orchestrator.domain.rollout_state import (
    SETTLED,
    Phase,
    RolloutState,
    from_dict,
)
from orchestrator.domain.rollout_words import Said
from orchestrator.records import KeptRecord, TemplateRevision
from orchestrator.scheduling.holdings import Holdings, Stay
from orchestrator.scheduling.rollout_progress import Watches, progress, ripens_s, watched
from orchestrator.scheduling.snapshot import Node, Snapshot, Workload
from orchestrator.scheduling.tick import Batch, Moment, Tell, World, Write
from orchestrator.store import keys
from polder.manifest import InvalidManifest, digest

SAVE_EVERY_S = 10.0
"""How far a clock may be ahead of its record."""
SAVED_AT_ONCE_MAX = 20
"""Records that are written in one tick only because time passed."""
WATCH_GAP_MAX_S = 15.0
"""A pause between two ticks that is longer was not watched beyond this."""
LOOK_EVERY_S = (1.0, 10.0)
"""What runs everywhere and is only watched is looked at so often: the more there are, the less."""
WATCHED_PER_S = 200
STAYS_PER_S = 20_000
"""Nor is a workload looked at more often than this allows for its size: the plan gates each replica
by itself, and waves can wait for seconds."""
_WATCHED = (Phase.PROVING, Phase.FAILED)
_TRANSACTION_RECORDS = 50
_TRANSACTION_BYTES = 1_000_000

_NOTHING: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Followed:
    """One rollout between two ticks. `written`: the record's body that goes with `state`, None
    when there is none yet; `record`: the record in which it was found again. Steady seconds:
    `looked_at`, up to which its time is counted, and `due_at`, when a clock may be over. `stays`:
    how many there were."""

    state: RolloutState
    written: Mapping[str, Any] | None
    looked_at: float
    saved_at: float
    due_at: float = 0.0
    stays: int = 0
    record: KeptRecord | None = None
    watches: Watches = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True)
class RolloutMemory:
    """`followed` is by workload uid."""

    followed: Mapping[str, Followed] = field(default_factory=lambda: _NOTHING)
    unreadable: frozenset[str] = frozenset()
    holdings: Holdings = Holdings()


@dataclass(frozen=True, slots=True)
class RolloutSteering:
    """`snapshot`: with the workloads as their rollouts want them now. `tells` go with no write."""

    snapshot: Snapshot
    batches: tuple[Batch, ...]
    tells: tuple[Tell, ...]
    memory: RolloutMemory
    due_s: float


def steer_rollouts(
    world: World, memory: RolloutMemory, moment: Moment, leaving: frozenset[str] = frozenset()
) -> RolloutSteering:
    """One step of every rollout that is under way. `leaving`: replica uids that stop as soon as
    an operator approves, or that operators of their site hold back. Nobody waits for those."""
    if not world.snapshot.complete:
        return RolloutSteering(world.snapshot, (), (), memory, float("inf"))
    return _Rollouts(world, memory, moment, leaving).steered()


def as_rolled_out(snapshot: Snapshot, kept: Mapping[str, KeptRecord]) -> Snapshot:
    """The workloads as their rollouts stand by the records alone: for those who only ask."""
    regions = _regions(snapshot.nodes)
    changed: dict[str, Workload] = {}
    for workload in snapshot.workloads:
        record = kept.get(keys.rollout(workload.uid))
        if record is None or workload.once or workload.deleting:
            continue
        try:
            state = from_dict(record.body)
        except (ValueError, KeyError, TypeError):
            changed[workload.uid] = replace(workload, paused=True)
            continue
        if state.newest == workload.revision:
            changed[workload.uid] = _led(workload, state, regions, snapshot.templates)
    return _with_workloads(snapshot, changed)


class _Rollouts:
    """One tick."""

    def __init__(
        self, world: World, memory: RolloutMemory, moment: Moment, leaving: frozenset[str]
    ) -> None:
        self._world = world
        self._leaving = leaving
        self._before = memory
        self._moment = moment
        self._active: list[tuple[Workload, Followed | None]] = []
        self._changed: dict[str, Workload] = {}
        self._followed: dict[str, Followed] = {}
        self._unreadable: set[str] = set()
        self._writes: list[tuple[Write, tuple[Tell, ...]]] = []
        self._tells: list[Tell] = []
        self._due_s = float("inf")

    def steered(self) -> RolloutSteering:
        snapshot, before = self._world.snapshot, self._before
        for workload in snapshot.workloads:
            self._sort(workload)
        holdings = before.holdings
        if self._active:
            holdings = holdings.at(snapshot.placements)
            self._step_all(holdings)
        known = {workload.uid for workload in snapshot.workloads}
        followed = {**before.followed, **self._followed}
        if len(followed) > len(known):
            followed = {uid: item for uid, item in followed.items() if uid in known}
        return RolloutSteering(
            snapshot=_with_workloads(snapshot, self._changed),
            batches=tuple(_in_transactions(self._writes)),
            tells=tuple(self._tells),
            memory=RolloutMemory(followed, frozenset(self._unreadable), holdings),
            due_s=self._due_s,
        )

    def _sort(self, workload: Workload) -> None:
        """At rest, or to be stepped."""
        if workload.once or workload.deleting:
            return
        record = self._world.kept.get(keys.rollout(workload.uid))
        try:
            followed = self._known(workload.uid, record)
        except (ValueError, KeyError, TypeError) as error:
            self._cannot_read(workload, error)
            return
        if followed is None:
            if (workload.uid, workload.revision) in self._world.revisions:
                self._active.append((workload, None))
        elif followed.state.phase in SETTLED and followed.state.newest == workload.revision:
            if followed.state.target != workload.revision or workload.update.paused:
                self._changed[workload.uid] = replace(
                    workload, revision=followed.state.target, paused=workload.update.paused
                )
        else:
            self._active.append((workload, followed))

    def _known(self, uid: str, record: KeptRecord | None) -> Followed | None:
        """What was followed, if the record still says so; otherwise what the record says."""
        followed = self._before.followed.get(uid)
        if followed is not None:
            if record is None and followed.written is None:
                return followed
            if record is not None and followed.record is record:
                return followed
            if record is not None and followed.written == record.body:
                self._followed[uid] = replace(followed, record=record)
                return self._followed[uid]
        if record is None:
            return None
        steady = self._moment.steady
        found = Followed(from_dict(record.body), record.body, steady, steady, record=record)
        self._followed[uid] = found
        return found

    def _cannot_read(self, workload: Workload, error: Exception) -> None:
        """It is of a newer version, or broken: nothing changes until somebody looks at it."""
        self._changed[workload.uid] = replace(workload, paused=True)
        self._unreadable.add(workload.uid)
        if workload.uid not in self._before.unreadable:
            text = f"its rollout record is not understood; nothing of it is updated: {error!r:.200}"
            self._tells += _tells(workload, [Said(True, "RolloutUnreadable", text)])

    def _step_all(self, holdings: Holdings) -> None:
        snapshot = self._world.snapshot
        nodes = {node.name: node for node in snapshot.nodes}
        regions = _regions(snapshot.nodes)
        active = [item for item in self._active if not self._may_wait(*item, regions)]
        stays = holdings.of(frozenset(workload.uid for workload, _ in active))
        aged: list[tuple[float, Workload, Followed]] = []
        for workload, followed in active:
            try:
                stepped = self._step(workload, followed, stays[workload.uid], nodes, regions)
            except Exception as error:  # one broken record must not stop all the others
                self._cannot_read(workload, error)
                continue
            if stepped is None:
                continue
            self._lead(workload, stepped.state, regions)
            self._followed[workload.uid] = stepped
            if self._is_aged(stepped):
                aged.append((stepped.saved_at, workload, stepped))
        for _, workload, stepped in sorted(aged, key=lambda item: item[0])[:SAVED_AT_ONCE_MAX]:
            self._followed[workload.uid] = self._saved(workload, stepped)

    def _may_wait(
        self, workload: Workload, followed: Followed | None, regions: Mapping[str, str]
    ) -> bool:
        """Whether it is only watched, or large, and was looked at just now."""
        if followed is None or followed.state.newest != workload.revision:
            return False
        every_s = min(WATCH_GAP_MAX_S, followed.stays / STAYS_PER_S)
        if followed.state.phase in _WATCHED:
            least_s, most_s = LOOK_EVERY_S
            every_s = max(every_s, least_s, min(most_s, len(self._active) / WATCHED_PER_S))
        wait_s = min(followed.due_at, followed.looked_at + every_s) - self._moment.steady
        if wait_s <= every_s / 2:
            return False  # soon anyway: so those that are watched come to be looked at together
        self._due_s = min(self._due_s, wait_s)
        self._lead(workload, followed.state, regions)
        return True

    def _lead(self, workload: Workload, state: RolloutState, regions: Mapping[str, str]) -> None:
        led = _led(workload, state, regions, self._world.revisions)
        if led is not workload:
            self._changed[workload.uid] = led

    def _step(
        self,
        workload: Workload,
        followed: Followed | None,
        stays: list[Stay],
        nodes: Mapping[str, Node],
        regions: Mapping[str, str],
    ) -> Followed | None:
        """None: it cannot be begun yet."""
        observed, steady = self._world.snapshot.observed, self._moment.steady
        if workload.frozen:
            return replace(followed, looked_at=steady) if followed is not None else None
        if self._leaving:
            stays = [stay for stay in stays if stay[1].replica_uid not in self._leaving]
        watches = followed.watches if followed is not None else _NOTHING
        now_watched = watched(stays, nodes, observed, watches, steady)
        target = followed.state.target if followed is not None else workload.revision
        seen = progress(
            stays,
            target,
            nodes,
            observed,
            (watches, now_watched),
            steady,
            workload.update.min_ready,
        )
        seen = replace(seen, regions=regions)
        wanted = self._wanted(workload, followed.state if followed is not None else None)
        if wanted is None:
            return followed
        if followed is None:
            return self._begun(workload, wanted, seen)
        elapsed_s = min(max(0.0, steady - followed.looked_at), WATCH_GAP_MAX_S)
        taken = step(followed.state, wanted, seen, elapsed_s, self._moment.now)
        due_s = min(taken.due_s, ripens_s(stays, observed, workload.update.min_ready))
        self._due_s = min(self._due_s, due_s)
        after = replace(
            followed,
            state=taken.state,
            watches=now_watched,
            looked_at=steady,
            due_at=steady + due_s,
            stays=len(stays),
        )
        if taken.event is not None:
            return self._saved(workload, after, _tells(workload, taken.said))
        return after

    def _begun(self, workload: Workload, wanted: Wanted, seen: Progress) -> Followed:
        """A workload's first revision needs no record before something has happened: what would
        be read back is what is begun here."""
        state = begin(wanted, seen, self._moment.now)
        followed = Followed(state, None, self._moment.steady, self._moment.steady)
        self._due_s = min(self._due_s, wanted.update.progress_deadline)
        if state.newest == 1 and not seen.in_use:
            return followed
        return self._saved(workload, followed)

    def _wanted(self, workload: Workload, state: RolloutState | None) -> Wanted | None:
        """None: its newest template is not in the mirror, or not readable by this version."""
        revisions = self._world.revisions
        past = state.past(workload.revision) if state is not None else None
        if past is not None:
            fingerprints = (past.digest, past.plain)
        else:
            newest = revisions.get((workload.uid, workload.revision))
            if newest is None:
                return None
            try:
                fingerprints = (newest.digest, plain_digest(newest))
            except InvalidManifest:
                return None
        history = state.history if state is not None else ()
        return Wanted(
            newest=workload.revision,
            digest=fingerprints[0],
            plain=fingerprints[1],
            stored=frozenset(
                item.number for item in history if (workload.uid, item.number) in revisions
            ),
            update=workload.update,
            count=workload.count,
        )

    # --- records ---------------------------------------------------------------------------------

    def _is_aged(self, followed: Followed) -> bool:
        """Whether only time has passed, and enough of it to be worth a write."""
        written = followed.written
        if written is None or self._moment.steady - followed.saved_at < SAVE_EVERY_S:
            return False
        return any(written.get(name) != now for name, now in followed.state.clocks.items())

    def _saved(
        self, workload: Workload, followed: Followed, tells: tuple[Tell, ...] = ()
    ) -> Followed:
        key, body = keys.rollout(workload.uid), followed.state.to_dict()
        found = self._world.kept.get(key)
        expected = found.store_revision if found is not None else 0
        self._writes.append((Write(key, KeptRecord(key, body).to_bytes(), expected), tells))
        return replace(followed, written=body, saved_at=self._moment.steady, record=None)


def plain_digest(revision: TemplateRevision) -> str:
    """Of the template without what only asks for a restart. Raises InvalidManifest."""
    template = revision.decoded
    return digest(replace(template, restarted_at="")) if template.restarted_at else revision.digest


def _led(
    workload: Workload,
    state: RolloutState,
    regions: Mapping[str, str],
    stored: Mapping[tuple[str, int], object],
) -> Workload:
    """The workload as `plan()` is to see it."""
    base = state.base if state.phase is not Phase.ROLLING_BACK else 0
    has_base = base != state.target and (workload.uid, base) in stored
    stable, sites = base if has_base else 0, admitted(state, regions)
    paused = workload.update.paused or state.phase in (Phase.PAUSED, Phase.FAILED)
    led = (state.target, stable, sites, paused)
    if led == (workload.revision, workload.stable, workload.admitted, workload.paused):
        return workload
    return replace(workload, revision=state.target, stable=stable, admitted=sites, paused=paused)


def _regions(nodes: Iterable[Node]) -> dict[str, str]:
    return {node.site: node.region for node in nodes}


def _with_workloads(snapshot: Snapshot, changed: Mapping[str, Workload]) -> Snapshot:
    if not changed:
        return snapshot
    return replace(snapshot, workloads=tuple(changed.get(w.uid, w) for w in snapshot.workloads))


def _tells(workload: Workload, said: Iterable[Said]) -> tuple[Tell, ...]:
    return tuple(
        Tell("Workload", workload.namespace, workload.name, s.warning, s.reason, s.message)
        for s in said
    )


def _in_transactions(writes: list[tuple[Write, tuple[Tell, ...]]]) -> Iterable[Batch]:
    """A canary of many sites makes a large record: they are counted by number and by size."""
    some: list[tuple[Write, tuple[Tell, ...]]] = []
    size = 0
    for write, tells in writes:
        added = len(write.value or b"")
        if some and (len(some) == _TRANSACTION_RECORDS or size + added > _TRANSACTION_BYTES):
            yield _batch(some)
            some, size = [], 0
        some.append((write, tells))
        size += added
    if some:
        yield _batch(some)


def _batch(some: list[tuple[Write, tuple[Tell, ...]]]) -> Batch:
    return Batch(tuple(write for write, _ in some), tuple(t for _, tells in some for t in tells))
