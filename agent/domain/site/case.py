"""One shared replica as it is now, and what is to be done about it: the values of a judgement.

Part of `machine.py`. `cases.py` puts a Case together, `takeover.py` and `exclusive.py` give the
Verdict, `operators.py` says what operators' decisions change about it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum

from agent.domain.roster import Group, Key
from agent.domain.site.claims import Heard, TheirClaims
from agent.domain.site.messages import Stay, Tell
from agent.domain.site.overrides import Decisions
from agent.domain.site.peers import Peers
from polder.succession import Contender


class Standing(Enum):
    RUNNING = "running"
    LISTENING = "listening"
    DEFERRING = "deferring"
    STANDBY = "standby"
    WAITING = "waiting"
    DOUBTING = "doubting"
    QUEUING = "queuing"
    UNABLE = "unable"
    TAKING = "taking"
    ASKING = "asking"  # these three of exclusive replicas
    HOLDING = "holding"
    STOPPING = "stopping"
    STOPPED = "stopped"  # by an operator


@dataclass(frozen=True, slots=True)
class Own:
    """A stay at this node. `planned`: the plan assigns it. `ready_since` None: it is not ready.
    `told_epoch`: the one that stands on the disk; None: none does. `present`: something of it is
    here; `runs`: and a process of it runs."""

    uid: str
    epoch: int
    planned: bool
    present: bool
    ready_since: float | None
    takes_over: str = ""
    told_epoch: int | None = None
    leased: bool = False
    runs: bool = False

    def contender(self, node: str, now: float) -> Contender:
        since = self.ready_since
        ready_for_s = 0.0 if since is None else max(0.0, now - since)
        return Contender(node, self.uid, self.epoch, since is not None, ready_for_s)


@dataclass(frozen=True, slots=True)
class Case:
    """One replica as it is now. `own`: without stays that stopped for another; `stopped` are those.
    `primary`: who has it by the plan; empty: it does not say. `last_uid`, `last_epoch`: of the
    plan's stay. `startable`: the plan says what to run. `node`: this one. `leaving`: something of a
    stay that stops is still here. `barred`: stays that the plan stops, of any replica."""

    node: str
    key: Key
    group: Group | None
    own: tuple[Own, ...]
    stopped: tuple[Stay, ...]
    theirs: tuple[Heard, ...]
    primary: str = ""
    last_uid: str = ""
    last_epoch: int = 0
    startable: bool = False
    leaving: bool = False
    barred: Collection[str] = ()

    @property
    def exclusive(self) -> bool:
        """Also of one that the plan knows no more: then as it was."""
        if self.group is not None:
            return self.group.exclusive
        leased = [own.leased for own in self.own] + [stay.leased for stay in self.stopped]
        return any(leased)


@dataclass(frozen=True, slots=True)
class Scene:
    """All that is common. `able`: why this node cannot take it over; empty: it can; None: not yet
    known. `decided`: what operators did."""

    node: str
    now: float
    began_at: float
    settled: bool
    peers: Peers
    theirs: TheirClaims
    able: Callable[[Key], str | None]
    decided: Decisions


@dataclass(slots=True)
class Verdict:
    """`changed` are to be saved; `waits` are not. `surplus`: a lease is held and of no use."""

    standing: Standing
    changed: list[Stay] = field(default_factory=list)
    waits: list[Stay] = field(default_factory=list)
    tells: list[Tell] = field(default_factory=list)
    due: float | None = None
    surplus: bool = False

    def attend(self, at: float) -> None:
        if self.due is None or at < self.due:
            self.due = at


@dataclass(slots=True)
class Memory:
    """Of one replica."""

    missed_since: float | None = None
    free_since: float | None = None  # nobody doubts that it is missed
    unclaimed_since: float | None = None  # its holder is heard, and knows nothing of it
    vacant_since: float | None = None  # it is claimed, and nobody has its lease
    reserved_since: float | None = None  # another is to take it over by an operator's word
    told_unable: str = ""
    told_stopped: str = ""  # by whom
    raised: set[str] = field(default_factory=set)  # stays of others that we outbid once
    begun: set[str] = field(default_factory=set)  # stays of ours that were let run

    def forget_times(self) -> None:
        """Somebody has it."""
        self.missed_since = self.free_since = self.unclaimed_since = None
        self.told_unable = ""
