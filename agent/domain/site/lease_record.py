"""What a desk knows of one replica, under what name it keeps that, and refusals; for `lease.py`."""

from collections import deque
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from agent.domain.roster import Electorate, Group, Key
from agent.domain.site.holder import Holder
from agent.domain.site.messages import LeaseAnswer, LeaseRequest
from agent.domain.site.voter import LEASE_MAX_S, Voter

NAME = "lease"  # what the desk saves has names that are this, or begin with this and a dot
STOP_S = 1.0  # before the end a holder that is not renewed begins to stop gracefully
FORGET_S = 86_400.0  # after that an idle replica that no plan names is forgotten


@dataclass(frozen=True, slots=True)
class Held:
    """This node holds the replica. `epoch`: the ballot, new for each tenure and rising.

    `until`: nothing of it may run any more; what the switch is armed with. `stop_at`: unless
    renewed by then, a graceful stop begins.
    """

    epoch: int
    until: float

    @property
    def stop_at(self) -> float:
        return self.until - STOP_S


@dataclass(slots=True)
class Waiting:
    """Answers that go out when a save is done."""

    token: int
    answers: list[tuple[str, LeaseAnswer]]


@dataclass(slots=True)
class Record:
    """What is known of one replica. `saved`: what the disk was last asked to hold, None when that
    is not known. `overdue`: the generation of the plan in use when its stopAfter was over."""

    voter: Voter
    holder: Holder
    saved: Mapping[str, Any] | None = None
    waiting: deque[Waiting] = field(default_factory=deque)
    group: Group | None = None
    overdue: int | None = None
    unnamed_since: float | None = None

    def body(self, key: Key) -> dict[str, Any]:
        return {"key": list(key), "overdue": self.overdue, **self.voter.body()}

    def idle(self, now: float) -> bool:
        """No plan has named it for long, and nothing of it runs by its word."""
        return (
            self.unnamed_since is not None
            and now - self.unnamed_since > FORGET_S
            and self.voter.lease.until <= now
            and self.holder.tenure is None
            and not self.waiting
        )

    def obstacle(self, group: Electorate, live: Set[str], now: float) -> str:
        """What keeps this node from getting the lease that it asks for, for people."""
        if len(live) < group.majority:
            lacks = ", ".join(v for v in group.voters if v not in live)
            return f"of {', '.join(group.voters)}, which vote on it, these are not heard: {lacks}"
        blank = [v for v in group.voters if self.holder.blank_until.get(v, 0.0) > now]
        if len(group.voters) - len(blank) < group.majority:
            why = f"what ran before: they grant nothing for up to {LEASE_MAX_S:g} s"
            return f"{', '.join(blank)}, which vote on it, cannot know yet {why}"
        return ""


def name_of(key: Key) -> str:
    workload_uid, replica = key
    return f"{NAME}.{workload_uid}.{replica}"


def refused(request: LeaseRequest, reason: str) -> LeaseAnswer:
    return LeaseAnswer(request.id, request.key, request.group, granted=False, reason=reason)


def not_writable(answer: LeaseAnswer) -> LeaseAnswer:
    return replace(answer, granted=False, reason="NotWritable")
