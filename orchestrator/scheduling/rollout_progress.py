"""How far a rollout is and how its replicas fare, from placements and what agents say. Pure.

Called by `rollouts.py` for each workload whose rollout is not at rest. A stay is a replica on a
node; it is watched from when it is first seen with its revision, since restarts and lost readiness
mean something only in comparison with before.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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


Watches = Mapping[tuple[str, str], Watch]
"""By (node, replica uid)."""


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


def watched(
    stays: Sequence[Stay],
    observed: Mapping[tuple[str, str], Observed],
    before: Watches,
    steady: float,
) -> dict[tuple[str, str], Watch]:
    """The watches of these stays now. What its agent does not tell now stays as it was."""
    found = {}
    for node, record in stays:
        key = (node, record.replica_uid)
        known, seen = before.get(key), observed.get(key)
        if known is not None and known.revision != record.revision:
            known = None
        if seen is not None and seen.revision == record.revision:
            known = _seen(known, seen, steady)
        if known is not None:
            found[key] = known
    return found


def _seen(before: Watch | None, seen: Observed, steady: float) -> Watch:
    known = before or Watch(seen.revision, seen.restarts, seen.restarts)
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
    health = {True: Health(), False: Health()}
    reasons: Counter[str] = Counter()
    for node, record in stays:
        names.setdefault(record.replica, []).append((node, record))
        if not is_reachable(nodes.get(node)):
            continue
        key, mine = (node, record.replica_uid), record.revision == target
        health[mine] = _counted(health[mine], key, watches, steady)
        seen = observed.get(key)
        if mine and not is_available(record, seen, min_ready_s):
            reasons[_why(seen)] += 1
    sites: dict[str, Tally] = {}
    for holders in names.values():
        site, tally = _tally(holders, target, nodes, observed, min_ready_s)
        sites[site] = sites.get(site, Tally()) + tally
    return Progress(
        sites=sites,
        target=health[True],
        others=health[False],
        reasons=tuple(reasons.most_common(3)),
        in_use=frozenset(record.revision for _, record in stays),
    )


def _why(seen: Observed | None) -> str:
    if seen is None:
        return "NotStarted"
    return seen.reason or ("NotReadyLongEnough" if seen.ready else "NotReady")


def _counted(
    health: Health, key: tuple[str, str], watches: tuple[Watches, Watches], steady: float
) -> Health:
    before, now = watches[0].get(key), watches[1].get(key)
    if now is None:
        return replace(health, stays=health.stays + 1)
    crashing = _is_crashing(now, steady)
    unready = now.unready_since is not None and steady - now.unready_since >= UNREADY_S
    same = before is not None and before.revision == now.revision
    restarted = same and before is not None and now.restarts > before.restarts
    return Health(
        stays=health.stays + 1,
        crashing=health.crashing + crashing,
        unready=health.unready + (unready and not crashing),
        restarted=health.restarted + restarted,
    )


def _is_crashing(watch: Watch, steady: float) -> bool:
    recent = watch.restarted_at
    if len(recent) >= RESTARTS_MAX and steady - recent[0] <= RESTARTS_WITHIN_S:
        return True
    if watch.crashing_since is None:
        return False
    return (
        watch.restarts - watch.first_restarts >= RESTARTS_MAX - 1
        or steady - watch.crashing_since >= CRASH_LOOP_S
    )


def _tally(
    holders: list[Stay],
    target: int,
    nodes: Mapping[str, Node],
    observed: Mapping[tuple[str, str], Observed],
    min_ready_s: float,
) -> tuple[str, Tally]:
    """One replica name, at the site of its newest stay."""
    newest = nodes.get(max(holders, key=lambda stay: stay[1].epoch)[0])
    site = newest.site if newest is not None else ""
    there = [(n, r) for n, r in holders if is_reachable(nodes.get(n))]
    if not there:
        lost = newest is None or newest.liveness in (Liveness.LOST, Liveness.NEVER_SEEN)
        return site, Tally(lost=1) if lost else Tally(away=1)
    mine = [(n, r) for n, r in there if r.revision == target]
    available = any(
        is_available(record, observed.get((node, record.replica_uid)), min_ready_s)
        for node, record in mine
    )
    return site, Tally(reachable=1, updated=int(bool(mine)), available=int(available))
