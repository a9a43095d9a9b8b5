"""Conditions of a status: each with who said it, since when it is so, and when it was last heard.

Pure; called by `views.py`. What has not been heard of within its interval has the status None: it
is unknown, since the time at which it was last heard. Times are unix milliseconds; 0: not known.
"""

from collections.abc import Sequence
from typing import Any

from polder.statuses import condition

Status = dict[str, Any]


def of_replica(
    status: Status, placed_ms: int, ready_ms: int, leader: str, mirror_ms: int
) -> list[Status]:
    """Of a replica that has a node. `placed_ms`: when it was placed; `ready_ms`: since when it is
    ready, or not; `mirror_ms`: of what age the knowledge of its place is."""
    heard_ms, source = status["observedAt"], status["source"]
    unknown = status["phase"] == "Unknown"
    reason, message = status["reason"], status["message"]
    running = None if unknown else status["phase"] == "Running"
    return [
        condition("Placed", True, leader, since_ms=placed_ms, heard_ms=mirror_ms),
        condition(
            "Running",
            running,
            source,
            reason="" if running else reason,
            message="" if running else message,
            since_ms=status["startedAt"] if running else 0,
            heard_ms=heard_ms,
        ),
        condition(
            "Ready",
            None if unknown else bool(status["ready"]),
            source,
            reason=reason,
            message=message,
            since_ms=0 if unknown else ready_ms,
            heard_ms=heard_ms,
        ),
    ]


def of_unplaced(status: Status) -> list[Status]:
    """Of a replica without a node."""
    told = None if status["phase"] == "Unknown" else False
    return [
        condition(
            "Placed",
            told,
            status["source"],
            reason=status["reason"],
            message=status["message"],
            heard_ms=status["observedAt"],
        )
    ]


def of_workload(
    counts: Status, statuses: Sequence[Status], trouble: tuple[str, str], leader: str, told_ms: int
) -> list[Status]:
    """`trouble`: reason and message of the first thing that is not as asked. `told_ms`: when the
    leader last said how many there shall be and why they are not placed."""
    desired = counts["replicas"]
    reason, message = trouble
    heard_ms = min((status["observedAt"] for status in statuses), default=told_ms)
    ready: bool | None = counts["ready"] >= desired
    if not ready and counts["ready"] + counts["unknown"] >= desired:
        ready = None  # it depends on those of which nobody knows
    placed = counts["placed"] >= desired
    return [
        condition(
            "Placed",
            placed,
            leader,
            reason="" if placed else reason,
            message="" if placed else message,
            heard_ms=told_ms,
        ),
        condition(
            "Ready",
            ready,
            "agents",
            reason="" if ready else reason,
            message="" if ready else message,
            heard_ms=heard_ms,
        ),
    ]
