"""Whether a node is there: one rule for the gateway's marks, the leader's plans and `get nodes`.

    LIVE   -- no word for silent_after_s -->  SILENT  -- no word for lost_after_s -->  LOST
    any word from the agent leads back to LIVE.

Nobody can have heard a node before it started to listen: after a start, or a new leader's election,
silence counts from there. So a restart of the orchestrator never makes a node lost at once.
"""

from dataclasses import dataclass
from enum import Enum

SILENT_AFTER_S = 10.0
LOST_AFTER_S = 30.0


class Liveness(Enum):
    LIVE = "Live"
    SILENT = "Silent"
    LOST = "Lost"
    NEVER_SEEN = "NeverSeen"  # joined, and never had a session


@dataclass(frozen=True, slots=True)
class NodeLiveness:
    """`since`: unix seconds of the last word, or of the moment at which listening began."""

    state: Liveness
    since: float


@dataclass(frozen=True, slots=True)
class Periods:
    """Seconds of silence."""

    silent_after_s: float = SILENT_AFTER_S
    lost_after_s: float = LOST_AFTER_S


DEFAULT_PERIODS = Periods()


def liveness(
    last_seen: float,
    ever_seen: bool,
    listening_since: float,
    now: float,
    periods: Periods = DEFAULT_PERIODS,
) -> NodeLiveness:
    """`last_seen` 0: not since this process started. `ever_seen`: it reported at some time before.

    A clock that was set back makes silence look negative: the node then counts as live.
    """
    if not last_seen and not ever_seen:
        return NodeLiveness(Liveness.NEVER_SEEN, 0.0)
    if last_seen and now - last_seen <= periods.silent_after_s:
        return NodeLiveness(Liveness.LIVE, last_seen)
    since = max(last_seen, listening_since)
    silence = now - since
    if silence > periods.lost_after_s:
        return NodeLiveness(Liveness.LOST, last_seen or since)
    return NodeLiveness(Liveness.SILENT, last_seen or since)
