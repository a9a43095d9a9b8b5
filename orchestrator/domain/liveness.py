"""Whether a node is there, by how long nothing was heard of it: one rule for everybody who asks.

    LIVE   -- no word for silent_after_s -->  SILENT  -- no word for lost_after_s -->  LOST
    any word from the agent leads back to LIVE.

Silence is measured on a steady clock: a wall clock that jumps by a day makes no node silent, and
none live. Nobody can have heard a node before it started to listen: after a start, or a new
leader's election, silence counts from there. So a restart of the orchestrator never makes a node
lost at once. Called through `orchestrator/fleet.py`; what the leader makes of it is
`orchestrator/domain/nodes.py`.
"""

from dataclasses import dataclass
from enum import Enum

SILENT_AFTER_S = 8.5
"""A node that dies right after a heartbeat is known to be silent everywhere within ten seconds:
this, the second between two looks (`gateway/monitor.py`), and what messages take. A heartbeat, due
each five seconds, may be three and a half late."""
LOST_AFTER_S = 30.0
FLAP_WINDOW_S = 600.0
"""What went to and fro within so long is damped."""
FLAP_PATIENCE = 4
"""A replica that was moved for loss within the window waits so many times `lost_after_s`."""


class Liveness(Enum):
    LIVE = "Live"
    SILENT = "Silent"
    LOST = "Lost"
    NEVER_SEEN = "NeverSeen"  # joined, and never had a session


@dataclass(frozen=True, slots=True)
class NodeLiveness:
    """`since`: unix seconds of the last word, or of the moment at which listening began.

    `silence_s`: how long nobody has said anything while somebody listened.
    """

    state: Liveness
    since: float
    silence_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Periods:
    """Seconds of silence."""

    silent_after_s: float = SILENT_AFTER_S
    lost_after_s: float = LOST_AFTER_S


DEFAULT_PERIODS = Periods()


def liveness(
    silence_s: float | None,
    ever_seen: bool,
    listened_s: float,
    periods: Periods = DEFAULT_PERIODS,
) -> Liveness:
    """All in seconds of a clock that never jumps.

    `silence_s`: since the last word; None: there was none since this process started. `ever_seen`:
    it reported at some time before. `listened_s`: how long the asker has been listening.
    """
    if silence_s is None and not ever_seen:
        return Liveness.NEVER_SEEN
    if silence_s is not None and silence_s <= periods.silent_after_s:
        return Liveness.LIVE
    heard_nothing_s = listened_s if silence_s is None else min(silence_s, listened_s)
    return Liveness.LOST if heard_nothing_s > periods.lost_after_s else Liveness.SILENT
