"""What this box does about an upgrade of its own agent: events in, the next state out. Pure.

`agent/upgrade/desk.py` carries out what each phase asks for; see ADR 31.

    phase        what is done in it         Told  Withdrawn  Verified     Fetched     Failed  Ended
    idle         nothing                    (0)   -          -            -           -       -
    verifying    signatures are checked     (1)   idle       downloading  -           ended   -
    downloading  both packages are fetched  (1)   idle       -            installing  ended   -
    installing   the box's installer works  (2)   -          -            -           ended   ended
    ended        nothing: it has an outcome (3)   -          -            -           -       -

(0) verifying; ended on a box that cannot be upgraded by itself. (1) The same telling changes
nothing; another one takes its place. (2) Another one waits for the installer. (3) The same one has
had its outcome; another one begins anew.

Until `installing` nothing was touched, and whatever is wrong ends as Refused. From then on it is
the installer's word that counts, which works outside of the agent and may end this very process.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from polder.release import Package, Release, SignedRelease
from polder.release_floor import Floor

MAX_MESSAGE = 500


class Phase(StrEnum):
    IDLE = "idle"
    VERIFYING = "verifying"
    DOWNLOADING = "downloading"
    INSTALLING = "installing"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Telling:
    """What an orchestrator said; not yet verified. The same upgrade is told again with a higher
    `attempt` after it failed here and an operator said so."""

    id: str
    attempt: int
    wanted: SignedRelease
    present: SignedRelease
    patience_s: int

    @property
    def key(self) -> tuple[str, int]:
        return self.id, self.attempt


@dataclass(frozen=True, slots=True)
class Here:
    """This box. `state_schema`: of the state on its disk; `unfit`: why it cannot be upgraded by
    itself; empty: it can. `floor`: what it remembers of releases that ran."""

    version: str
    arch: str
    state_schema: int
    unfit: str = ""
    floor: Floor = Floor()


@dataclass(frozen=True, slots=True)
class Outcome:
    """`phase`: Done, RolledBack or Refused. `reason` is CamelCase, and empty when it is done."""

    id: str
    attempt: int
    version: str
    phase: str
    reason: str
    message: str
    at_ms: int

    @property
    def key(self) -> tuple[str, int]:
        return self.id, self.attempt


@dataclass(frozen=True, slots=True)
class Told:
    telling: Telling


@dataclass(frozen=True, slots=True)
class Withdrawn:
    id: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What the two signed releases say."""

    wanted: Release
    present: Release


@dataclass(frozen=True, slots=True)
class Fetched:
    """Both packages are here, and are what the releases say."""


@dataclass(frozen=True, slots=True)
class Failed:
    """For good: trying again needs another telling."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The installer's word."""

    outcome: Outcome


Event = Told | Withdrawn | Verified | Fetched | Failed | Ended


@dataclass(frozen=True, slots=True)
class State:
    """`waiting`: came while the installer works on `telling`. `wanted` and `present` from
    downloading on, the packages for this box."""

    phase: Phase = Phase.IDLE
    telling: Telling | None = None
    version: str = ""
    wanted: Package | None = None
    present: Package | None = None
    outcome: Outcome | None = None
    waiting: Telling | None = None


def step(state: State, event: Event, here: Here, now_ms: int) -> State:
    """The state after the event. What does not fit the phase changes nothing."""
    match event:
        case Told(telling):
            return _told(state, telling, here, now_ms)
        case Withdrawn(id_):
            return _withdrawn(state, id_)
        case Verified(wanted, present) if state.phase is Phase.VERIFYING:
            return _verified(state, wanted, present, here, now_ms)
        case Fetched() if state.phase is Phase.DOWNLOADING:
            return replace(state, phase=Phase.INSTALLING)
        case Failed(reason, message) if state.phase not in (Phase.IDLE, Phase.ENDED):
            return _then(_refused(state, reason, message, now_ms), here, now_ms)
        case Ended(outcome) if state.phase is Phase.INSTALLING:
            return _then(_ended(state, outcome), here, now_ms)
        case _:
            return state


def _told(state: State, telling: Telling, here: Here, now_ms: int) -> State:
    known = state.telling.key if state.telling is not None else None
    if state.phase is Phase.ENDED and state.outcome is not None:
        known = state.outcome.key
    if telling.key == known:
        return state
    if state.phase is Phase.INSTALLING:
        return replace(state, waiting=telling)
    fresh = State(Phase.VERIFYING, telling)
    if here.unfit:
        return _refused(fresh, "NotPackaged", here.unfit, now_ms)
    return fresh


def _withdrawn(state: State, id_: str) -> State:
    if state.waiting is not None and state.waiting.id == id_:
        state = replace(state, waiting=None)
    begun = state.phase in (Phase.VERIFYING, Phase.DOWNLOADING)
    return State() if begun and state.telling is not None and state.telling.id == id_ else state


def _verified(state: State, wanted: Release, present: Release, here: Here, now_ms: int) -> State:
    state = replace(state, version=wanted.version)
    package, way_back = wanted.package_for(here.arch), present.package_for(here.arch)
    reason = message = ""
    if wanted.version == here.version:
        return _ended(state, _outcome(state, "Done", "", "it runs already", now_ms))
    if present.version != here.version:
        reason = "OtherPresent"
        message = f"this box runs {here.version}; the way back that came is {present.version}"
    elif package is None or way_back is None:
        lacking = wanted if package is None else present
        reason = "OtherArchitecture"
        message = f"{lacking.version} has no package for {here.arch}"
    elif refused := here.floor.refuses(wanted, present):
        reason, message = "OlderRelease", refused
    elif wanted.state_schema < here.state_schema:
        reason = "OlderState"
        message = (
            f"{wanted.version} reads the agent's state up to form {wanted.state_schema}; on this "
            f"box it has form {here.state_schema}, since a later version ran"
        )
    if reason:
        return _refused(state, reason, message, now_ms)
    return replace(state, phase=Phase.DOWNLOADING, wanted=package, present=way_back)


def _refused(state: State, reason: str, message: str, now_ms: int) -> State:
    return _ended(state, _outcome(state, "Refused", reason, message, now_ms))


def _ended(state: State, outcome: Outcome) -> State:
    return State(Phase.ENDED, version=outcome.version, outcome=outcome, waiting=state.waiting)


def _then(state: State, here: Here, now_ms: int) -> State:
    """What was told meanwhile comes next."""
    if state.waiting is None:
        return state
    return _told(replace(state, waiting=None), state.waiting, here, now_ms)


def _outcome(state: State, phase: str, reason: str, message: str, now_ms: int) -> Outcome:
    assert state.telling is not None
    telling = state.telling
    cut = message[:MAX_MESSAGE]
    return Outcome(telling.id, telling.attempt, state.version, phase, reason, cut, now_ms)
