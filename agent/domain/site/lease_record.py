"""What a desk knows of one replica, under what name it keeps that, and refusals; for `lease.py`."""

from collections import deque
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from agent.domain.plan import Assignment
from agent.domain.roster import Electorate, Group, Key
from agent.domain.site.holder import Holder
from agent.domain.site.messages import LeaseAnswer, LeaseRequest
from agent.domain.site.voter import LEASE_MAX_S, NONE, Voter

NAME = "lease"  # what the desk saves has names that are this, or begin with this and a dot
STOP_S = 1.0  # before the end a holder that is not renewed begins to stop gracefully
FORGET_S = 86_400.0  # after that an idle replica that no plan names is forgotten
JOINED: Mapping[str, Any] = {"starts": 0, "forgets": True, "new": True}
"""What a node that has just joined has saved under NAME; see `Blank`."""


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

    def may_have_granted(self, item: Assignment) -> Collection[str]:
        """The voters that this node has it by, if the holder that a plan tells of needed those."""
        tenure, group = self.holder.tenure, item.group
        if tenure is None or group is None or group.forced or item.epoch <= group.number:
            return ()
        return group.voters if group.number == tenure.lineage.number else ()

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


@dataclass(slots=True)
class Blank:
    """What a voter has lost of its memory, as far as it can tell.

    `gone`: it may have granted what it does not know of, and so grants nothing before `until`; this
    is so over a restart. `new`: its memory is as whole as its join left it, empty. A node has votes
    in no group that is older than its join (ADR 24), so that in the first group of a replica there
    is nothing that it can have granted, or another of its name before it: there it need not wait.
    """

    gone: bool = False
    new: bool = False
    until: float = 0.0

    def begin(self, kept: Mapping[str, Any] | None, *, lost: bool, now: float) -> None:
        """`kept`: what the desk saved of itself; `lost`: some of what was saved cannot be read."""
        lost = lost or not kept
        self.gone = lost or bool(kept and kept.get("forgets"))
        self.new = not lost and bool(kept and kept.get("new"))
        self.until = now + LEASE_MAX_S if self.gone else 0.0

    def is_over(self, now: float) -> bool:
        """Whether it was until now; then it is to be saved that it is not any more."""
        over = self.gone and now >= self.until
        self.gone = self.gone and not over
        return over

    def voter(self, now: float) -> Voter:
        """Of a replica of which nothing is known."""
        voter = Voter()
        if now < self.until:
            voter.forgot(now, self.until)
        return voter

    def excuse(self, voter: Voter, group: Group) -> None:
        """The plan in use names that group for it."""
        first = not group.before and not group.forced
        if self.new and first and voter.newest is None and not voter.lease.ballot:
            voter.lease = NONE

    def body(self) -> dict[str, Any]:
        return {"forgets": self.gone, "new": self.gone and self.new}


def name_of(key: Key) -> str:
    workload_uid, replica = key
    return f"{NAME}.{workload_uid}.{replica}"


def refused(request: LeaseRequest, reason: str) -> LeaseAnswer:
    return LeaseAnswer(request.id, request.key, request.group, granted=False, reason=reason)


def not_writable(answer: LeaseAnswer) -> LeaseAnswer:
    return replace(answer, granted=False, reason="NotWritable")
