"""Whether a box that connects as a node is the one that the node was, or has a copy of its disk.

Certificate, key and machine id are on the disk, the name of the board is not. The gateway
(`orchestrator/gateway/superseding.py`) asks when a session begins. Pure.
"""

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What to make of the newcomer."""

    SAME = "Same"  # the same box; or nobody can tell
    COPY = "Copy"  # another box, and the former one is heard: there are two
    MOVED = "Moved"  # another box, and the former one is not heard any more


@dataclass(frozen=True, slots=True)
class Former:
    """The box that the node was last.

    `hardware_id` is empty when it told none, or nobody knows; `instance_id` is that of its agent
    process, empty when this member has not heard of it. `silent_s`: for how long it was not heard
    while somebody listened.
    """

    hardware_id: str
    instance_id: str
    silent_s: float


@dataclass(frozen=True, slots=True)
class Patience:
    """For how long a former box must be silent before another one is taken for it, in seconds.

    `unknown_s`: nobody has seen the two at once: the disk may have moved. `proven_s`: the former
    was heard after the newcomer had knocked, so there are two disks. A true box whose uplink breaks
    for a while would else find its copy in its place.
    """

    unknown_s: float
    proven_s: float

    def of(self, knocked_s: float | None, silent_s: float) -> float:
        """`knocked_s`: how long ago the newcomer was first refused; None: it was not. What is known
        of the former's last word may be some seconds too late."""
        proven = knocked_s is not None and silent_s + self.unknown_s < knocked_s
        return self.proven_s if proven else self.unknown_s


def judge(hardware_id: str, instance_id: str, former: Former, patience_s: float) -> Verdict:
    """Of who connects with these two. A former box that is silent for `patience_s` is gone.

    Without the names of both boards, and for the process that the node had all along, it is as if
    there were no such names.
    """
    if not hardware_id or not former.hardware_id or hardware_id == former.hardware_id:
        return Verdict.SAME
    if instance_id and instance_id == former.instance_id:
        return Verdict.SAME
    return Verdict.COPY if former.silent_s < patience_s else Verdict.MOVED
