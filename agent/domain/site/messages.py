"""What happens at a site and what is to be done about it: the words of its state machines.

`machine.py` takes an event and gives instructions, like the reconciler: it neither waits nor
speaks. `agent/site/` brings the events and does what is asked; `tests/sim/site.py` does both in
virtual time. What peers say to each other is the same here as in `proto/polder/v1/site.proto`.

All times are seconds of CLOCK_BOOTTIME (`now`), which goes on in a suspended box and never jumps;
durations are seconds. No wall clock is ever compared with another box's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.domain.plan import ParsedPlan
from agent.domain.roster import Electorate, Key
from agent.domain.view import ReplicaView
from polder.overrides import Override

# ---- what peers say ----


@dataclass(frozen=True, slots=True)
class Beat:
    """Every second. `silent`: whom the sender does not hear. `isolated_s`: for how long it has
    heard no orchestrator."""

    silent: tuple[str, ...] = ()
    isolated_s: float = 0.0
    plan_generation: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """One stay of a shared replica at the sender. `ready_for_s` by the sender's own clock.
    `granted_by`: of an exclusive one that it holds, who granted that ballot."""

    key: Key
    uid: str
    epoch: int
    ready: bool
    ready_for_s: float = 0.0
    granted_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ability:
    """Whether the sender could take a replica over. `reason` as in StandbyStatus."""

    key: Key
    able: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Claims:
    """All of them, as far as they concern the receiver."""

    claims: tuple[Claim, ...] = ()
    abilities: tuple[Ability, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepare:
    """May I have it?"""


@dataclass(frozen=True, slots=True)
class Propose:
    """I have it for so long; the same ballot again renews. `bounded`: and nothing of it runs here
    for longer by what was granted before."""

    length_s: float
    bounded: bool = False


@dataclass(frozen=True, slots=True)
class Release:
    """I do not run it any more."""


@dataclass(frozen=True, slots=True)
class Seal:
    """No group below `next` votes any more; that one follows, and has these before it."""

    next: int
    voters: tuple[str, ...]
    before: tuple[Electorate, ...] = ()


@dataclass(frozen=True, slots=True)
class Open:
    """The group may vote: no ballot up to `floor`, and none before `wait_s` is over. If `holder`
    is set, it has that wait as a lease of ballot `floor`, which goes on."""

    voters: tuple[str, ...]
    floor: int
    wait_s: float
    holder: str = ""
    before: tuple[Electorate, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """`ballot` is the epoch of the holder that the sender would be."""

    id: int
    key: Key
    group: int
    ballot: int
    step: Prepare | Propose | Release | Seal | Open


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """See site.proto. `remaining_s`: for how long what was accepted holds yet."""

    id: int
    key: Key
    group: int
    granted: bool
    reason: str = ""
    promised: int = 0
    accepted: int = 0
    holder: str = ""
    remaining_s: float = 0.0
    next: int = 0
    next_voters: tuple[str, ...] = ()
    next_before: tuple[Electorate, ...] = ()


@dataclass(frozen=True, slots=True)
class Goodbye:
    """`Restarting`: be patient for that long; `Stopping`; `Excluded`."""

    reason: str
    patience_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Overrides:
    """All that operators decided at the site, as far as the sender knows."""

    overrides: tuple[Override, ...] = ()


Said = Beat | Claims | LeaseRequest | LeaseAnswer | Goodbye | Overrides

# ---- events ----


@dataclass(frozen=True, slots=True)
class Booted:
    """The first event. `kept`: what was saved, by name. `same_boot`: only the agent began anew.
    `isolated_s`: for how long no orchestrator has been heard, with the time that the box was off
    as far as its clock knows that. `damaged`: part of what was saved cannot be read."""

    node: str
    kept: Mapping[str, Any] = field(default_factory=dict)
    same_boot: bool = False
    isolated_s: float = 0.0
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class PlanInUse:
    """A plan was accepted, or read from disk."""

    plan: ParsedPlan


@dataclass(frozen=True, slots=True)
class PeerOpened:
    """A stream with a peer is open, both hellos were said. `instance`: of its agent's process."""

    node: str
    instance: str


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """Its stream ended; it is silent from when it was last heard."""

    node: str


@dataclass(frozen=True, slots=True)
class PeerSaid:
    node: str
    said: Said


@dataclass(frozen=True, slots=True)
class RunsHere:
    """Every replica on this node, as it is now. `settled`: the runtime was seen, so that what is
    not named does not run. `steady`: the clock of the views' `ready_since`; None: as `now`."""

    views: tuple[ReplicaView, ...]
    settled: bool
    steady: float | None = None


@dataclass(frozen=True, slots=True)
class AbleTo:
    """Of every role of the plan, whether it could be started here."""

    abilities: tuple[Ability, ...]


@dataclass(frozen=True, slots=True)
class OrchestratorHeard:
    """A session lives, with a member that is not itself cut off; comes with each sign of it, about
    every five seconds."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What `Save` asked for stands on the disk, or does not."""

    token: int
    ok: bool


@dataclass(frozen=True, slots=True)
class SwitchChanged:
    """The dead-man's switch is there, or it is not: without it nothing exclusive may start.
    `deadlines` by uid, as it has them, also from an agent before this one."""

    alive: bool
    deadlines: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Armed:
    """The switch has what an Arm with `tell` said."""

    uid: str


@dataclass(frozen=True, slots=True)
class OperatorDecided:
    """An operator at this node wants it; `wanted` has no stamp yet. Followed by an Answer, once it
    is on the disk or refused."""

    wanted: Override


@dataclass(frozen=True, slots=True)
class Stopping:
    """The agent ends and is meant to begin anew soon, as for an upgrade; replicas run on. What is
    sent because of this goes out yet, what is saved is on the disk before it ends."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; see `next_due`."""


Event = (
    Booted
    | PlanInUse
    | PeerOpened
    | PeerClosed
    | PeerSaid
    | RunsHere
    | AbleTo
    | OrchestratorHeard
    | Saved
    | SwitchChanged
    | Armed
    | OperatorDecided
    | Stopping
    | Tick
)

# ---- instructions ----


@dataclass(frozen=True, slots=True)
class Send:
    """To one peer; lost when there is no stream."""

    node: str
    said: Said


@dataclass(frozen=True, slots=True)
class Save:
    """Write `body` (JSON) under `name`, durably, then say Saved with the token. What follows from
    it is only said after that."""

    token: int
    name: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stay:
    """One replica that runs here, or stops, by the site's own decision.

    `epoch` may rise while it runs. `takes_over`: uid of the stay before it, empty when the plan
    assigned this one. `stop`: CamelCase cause; empty: it runs. `message`: why, for people. `waits`:
    with `stop`, it only must not start: if it runs after all, it runs on. `leased`: the epoch is
    the ballot of its lease, and without that it must not run.
    """

    key: Key
    uid: str
    epoch: int
    takes_over: str = ""
    stop: str = ""
    message: str = ""
    waits: bool = False
    leased: bool = False


@dataclass(frozen=True, slots=True)
class Decide:
    """What differs from the plan, all of it; see `overlay.py`. Of a replica that the plan assigns
    and that must not start yet there is a Stay with `stop`. Follows every PlanInUse, and whenever
    anything changed: only what was laid over the plan goes to the runtime."""

    stays: tuple[Stay, ...]


@dataclass(frozen=True, slots=True)
class Arm:
    """The switch kills the stay at `deadline` unless it is armed again. Said before it starts.
    `tell`: Armed is to follow."""

    uid: str
    deadline: float
    tell: bool = False


@dataclass(frozen=True, slots=True)
class Disarm:
    """Nothing of the stay is left, or it needs no lease any more."""

    uid: str


@dataclass(frozen=True, slots=True)
class Tell:
    """An event for operators: about a replica, or about this node when `key` is None."""

    reason: str
    message: str
    key: Key | None = None
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    """Of this node: true with a message, or over."""

    type: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an operator's change is not made. `reason`: CamelCase."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of the change of that id: what stands on the disk now, or why it was refused."""

    id: str
    override: Override | None
    refusal: Refusal | None = None


Instruction = Send | Save | Decide | Arm | Disarm | Tell | Condition | Answer
