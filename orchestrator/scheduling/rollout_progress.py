"""How far a rollout is and how its replicas fare, from placements and what agents say. Pure.

Called by `rollouts.py` for each workload whose rollout is not at rest. A stay is a replica on a
node; it is watched from when it is first seen with its revision, since restarts and lost readiness
mean something only in comparison with before.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from orchestrator.domain.liveness import Liveness
from orchestrator.domain.rollout import Health, Progress, Tally
from orchestrator.records import AssignmentRecord
from orchestrator.scheduling.holdings import Stay
from orchestrator.scheduling.snapshot import Node, Observed

UNREADY_S = 15.0
"""A replica that was ready, and is not for so long, counts against its revision."""
CRASH_LOOP_S = 10.0
"""Waiting in a crash loop for so long is no accident of the start."""
RESTARTS_MAX = 3
RESTARTS_WITHIN_S = 1200.0
"""So many restarts within so long are a crash loop in slow motion."""
_CRASH_LOOP = "CrashLoop"


@dataclass(frozen=True, slots=True)
class Watch:
    """One stay since it was first seen with `revision`. Times are steady seconds.

    `restarts`: as last seen; `restarted_at`: the last of them that happened under watch.
    """

    revision: int
    restarts: int
    first_restarts: int
    restarted_at: tuple[float, ...] = ()
    was_ready: bool = False
    unready_since: float | None = None
    crashing_since: float | None = None

    @property
    def is_quiet(self) -> bool:
        """Whether nothing speaks against it, or did lately."""
        return self.unready_since is None and self.crashing_since is None and not self.restarted_at


Watches = Mapping[str, Watch]
"""By replica uid, which is of one stay."""


def is_reachable(node: Node | None) -> bool:
    """Whether what runs there says something about what runs."""
    return node is not None and node.liveness is Liveness.LIVE and not node.not_ready


def is_available(record: AssignmentRecord, seen: Observed | None, min_ready_s: float) -> bool:
    """Ready for long enough, with the revision that it is assigned."""
    return (
        seen is not None
        and seen.ready
        and not seen.terminating
        and seen.revision == record.revision
        and seen.ready_for_s >= min_ready_s
    )


def ripens_s(
    stays: Sequence[Stay], observed: Mapping[tuple[str, str], Observed], min_ready_s: float
) -> float:
    """Until the next one that is ready has been so for long enough; infinite: none is about to."""
    if not min_ready_s:
        return math.inf
    seen = (observed.get((node, record.replica_uid)) for node, record in stays)
    left = (min_ready_s - item.ready_for_s for item in seen if item is not None and item.ready)
    return min((s for s in left if s > 0), default=math.inf)


def watched(
    stays: Sequence[Stay],
    nodes: Mapping[str, Node],
    observed: Mapping[tuple[str, str], Observed],
    before: Watches,
    steady: float,
) -> dict[str, Watch]:
    """The watches of these stays now. What its agent does not tell now stays as it was.

    On a node that cannot be reached nothing is watched, and what comes back begins anew: that it
    was away, or started again there, is not its revision's doing.
    """
    found = {}
    for node, record in stays:
        if not is_reachable(nodes.get(node)):
            continue
        uid = record.replica_uid
        known, seen = before.get(uid), observed.get((node, uid))
        if known is not None and known.revision != record.revision:
            known = None
        if seen is not None and seen.revision == record.revision:
            known = _seen(known, seen, steady)
        if known is not None:
            found[uid] = known
    return found


def _seen(before: Watch | None, seen: Observed, steady: float) -> Watch:
    known = before or _begun(seen.revision, seen.restarts, seen.ready)
    if known.is_quiet and seen.ready and known.was_ready and seen.restarts == known.restarts:
        return known  # as nearly always
    restarted_at = known.restarted_at
    if seen.restarts > known.restarts:
        restarted_at = (*restarted_at, steady)[-RESTARTS_MAX:]
    crashing = seen.reason == _CRASH_LOOP and not seen.ready
    return replace(
        known,
        restarts=seen.restarts,
        restarted_at=restarted_at,
        was_ready=known.was_ready or seen.ready,
        unready_since=_since(known.unready_since, known.was_ready and not seen.ready, steady),
        crashing_since=_since(known.crashing_since, crashing, steady),
    )


@lru_cache(maxsize=256)
def _begun(revision: int, restarts: int, ready: bool) -> Watch:
    """Shared by the many that are alike: a workload may have a million stays."""
    return Watch(revision, restarts, restarts, was_ready=ready)


def _since(before: float | None, holds: bool, steady: float) -> float | None:
    if not holds:
        return None
    return steady if before is None else before


def progress(
    stays: Sequence[Stay],
    target: int,
    nodes: Mapping[str, Node],
    observed: Mapping[tuple[str, str], Observed],
    watches: tuple[Watches, Watches],
    steady: float,
    min_ready_s: float,
) -> Progress:
    """`watches`: of the last tick and of this one. `regions` of the answer is left empty."""
    names: dict[str, list[Stay]] = {}
    counts = {True: _Count(), False: _Count()}
    reasons: Counter[str] = Counter()
    available: set[tuple[str, str]] = set()
    reachable = {name: is_reachable(nodes.get(name)) for name in {name for name, _ in stays}}
    for stay in stays:
        name, record = stay
        names.setdefault(record.replica, []).append(stay)
        if not reachable[name]:
            continue
        key, mine = (name, record.replica_uid), record.revision == target
        uid = record.replica_uid
        counts[mine].add(watches[0].get(uid), watches[1].get(uid), steady)
        if mine:
            seen = observed.get(key)
            if is_available(record, seen, min_ready_s):
                available.add(key)
            else:
                reasons[_why(seen)] += 1
    sites: dict[str, _Sum] = {}
    for holders in names.values():
        newest = holders[0] if len(holders) == 1 else max(holders, key=lambda s: s[1].epoch)
        node = nodes.get(newest[0])
        found = sites.setdefault(node.site if node is not None else "", _Sum())
        there = [stay for stay in holders if reachable[stay[0]]]
        if there:
            keys = [(name, r.replica_uid) for name, r in there if r.revision == target]
            found.reachable += 1
            found.updated += bool(keys)
            found.available += not available.isdisjoint(keys)
        elif node is None or node.liveness in (Liveness.LOST, Liveness.NEVER_SEEN):
            found.lost += 1
        else:
            found.away += 1
    return Progress(
        sites={site: found.tally() for site, found in sites.items()},
        target=counts[True].health(),
        others=counts[False].health(),
        reasons=tuple(reasons.most_common(3)),
        in_use=frozenset(record.revision for _, record in stays),
    )


@dataclass(slots=True)
class _Sum:
    """Replicas at one site, while they are counted."""

    reachable: int = 0
    updated: int = 0
    available: int = 0
    away: int = 0
    lost: int = 0

    def tally(self) -> Tally:
        return Tally(self.reachable, self.updated, self.available, self.away, self.lost)


@dataclass(slots=True)
class _Count:
    """Health, while it is counted."""

    stays: int = 0
    crashing: int = 0
    unready: int = 0
    restarted: int = 0

    def add(self, before: Watch | None, now: Watch | None, steady: float) -> None:
        self.stays += 1
        if now is None or (before is now and now.is_quiet):
            return
        if _is_crashing(now, steady):
            self.crashing += 1
        elif now.unready_since is not None and steady - now.unready_since >= UNREADY_S:
            self.unready += 1
        same = before is not None and before.revision == now.revision
        self.restarted += same and before is not None and now.restarts > before.restarts

    def health(self) -> Health:
        return Health(self.stays, self.crashing, self.unready, self.restarted)


def _why(seen: Observed | None) -> str:
    if seen is None:
        return "NotStarted"
    return seen.reason or ("NotReadyLongEnough" if seen.ready else "NotReady")


def _is_crashing(watch: Watch, steady: float) -> bool:
    recent = watch.restarted_at
    if len(recent) >= RESTARTS_MAX and steady - recent[0] <= RESTARTS_WITHIN_S:
        return True
    if watch.crashing_since is None:
        return False
    return (
        watch.restarts - watch.first_restarts >= RESTARTS_MAX
        or steady - watch.crashing_since >= CRASH_LOOP_S
    )
