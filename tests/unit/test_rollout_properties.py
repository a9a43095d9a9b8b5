"""What no sequence of events may lead a rollout to, checked by counting apart from the machine."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.rollout import (
    Health,
    Progress,
    Step,
    Tally,
    Wanted,
    admitted,
    begin,
    step,
)
from orchestrator.domain.rollout_state import (
    HISTORY_MAX,
    TRANSITIONS,
    Event,
    Phase,
    RolloutState,
    Standing,
    from_dict,
)
from polder.manifest.update import Canary, Update

REGIONS = {"a1": "a", "a2": "a", "b1": "b"}
PROVEN_AFTER_S = 30.0


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    reachable = draw(st.integers(0, 3))
    updated = draw(st.integers(0, reachable))
    gone = st.integers(0, 1)
    return Tally(reachable, updated, draw(st.integers(0, updated)), draw(gone), draw(gone))


@st.composite
def healths(draw: st.DrawFn) -> Health:
    stays = draw(st.integers(0, 4))
    some = st.integers(0, stays) if draw(st.integers(0, 3)) == 0 else st.just(0)
    crashing = draw(some)
    unready = min(stays - crashing, draw(some))
    return Health(stays, crashing, unready, draw(some))


GOOD = Progress({"a1": Tally(3, 3, 3)}, REGIONS, Health(3))
WAVES = Progress({"a1": Tally(2, 2, 2), "a2": Tally(1), "b1": Tally(1)}, REGIONS, Health(2))
LOST = Progress({"a1": Tally(lost=2), "b1": Tally(2, 1, 0)}, REGIONS, Health(1), Health(1))
CRASHING = Progress({"a1": Tally(3, 3, 0)}, REGIONS, Health(3, crashing=3))
STUCK = Progress({"a1": Tally(3, 1, 0)}, REGIONS, Health(1), Health(2))
ANYTHING = st.builds(
    Progress,
    st.dictionaries(st.sampled_from(sorted(REGIONS)), tallies(), max_size=3),
    st.just(REGIONS),
    healths(),
    healths(),
)
SEEN = st.one_of(st.sampled_from([GOOD, GOOD, WAVES, LOST, CRASHING, STUCK]), ANYTHING)
CHAPTERS: dict[str, list[tuple[str, Any]]] = {
    "crashes late": [("sees", GOOD), ("waits", 0.0), ("waits", 5.0), ("sees", CRASHING)],
    "crashes at once": [("sees", CRASHING)],
    "never comes": [("sees", STUCK), ("waits", 60.0)],
    "is well again": [("sees", GOOD), ("waits", 0.0), ("waits", 0.0)],
}
# What happens often stands several times.
ACTIONS = st.one_of(
    st.tuples(st.just("sees"), SEEN),
    st.tuples(st.just("sees"), st.just(GOOD)),
    st.tuples(st.just("waits"), st.just(0.0)),
    st.tuples(st.just("waits"), st.sampled_from([5.0, 15.0, 30.0])),
    st.tuples(st.just("waits"), st.sampled_from([0.0, 1.0, 10.0, 29.0, 60.0])),
    st.tuples(st.just("changes"), st.sampled_from(["one", "two", "two*", "three"])),
    st.tuples(st.just("is told"), st.sampled_from(sorted(CHAPTERS))),
    st.tuples(st.just("is told"), st.sampled_from(sorted(CHAPTERS))),
    st.one_of(
        st.tuples(st.just("jumps"), st.sampled_from([86_400.0, -86_400.0])),
        st.tuples(st.just("pauses"), st.sampled_from([False, False, True])),
        st.tuples(st.just("rolls back"), st.booleans()),
        st.tuples(st.just("counts"), st.sampled_from([0, 3, 3])),
        st.tuples(st.just("loses"), st.integers(1, 9)),
    ),
)


@dataclass
class Fate:
    """Plays actions, and keeps its own account of what it saw."""

    update: Update
    templates: list[str] = field(default_factory=lambda: ["one"])
    lost: set[int] = field(default_factory=set)
    count: int = 3
    seen: Progress = GOOD
    now: float = 1e6
    state: RolloutState | None = None
    held_s: float = 0.0  # while the target was everywhere and enough of it was available
    failed_late: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Most stories begin with something that is proven."""
        for elapsed_s in (0.0, 0.0, self.update.proven_after, 0.0):
            self.step(elapsed_s)

    def play(self, action: str, value: Any) -> None:
        elapsed_s = 0.0
        match action:
            case "is told":
                for part in CHAPTERS[value]:
                    self.play(*part)
            case "sees":
                self.seen = value
            case "waits":
                elapsed_s = value
            case "jumps":
                self.now += value
            case "changes" if value != self.templates[-1]:
                self.templates.append(value)
            case "pauses":
                self.update = replace(self.update, paused=value)
            case "rolls back":
                self.update = replace(self.update, auto_rollback=value)
            case "counts":
                self.count = value
            case "loses":
                self.lost.add(value)
        self.step(elapsed_s)

    @property
    def wanted(self) -> Wanted:
        number, text = len(self.templates), self.templates[-1]
        stored = frozenset(range(1, number + 1)) - self.lost
        return Wanted(number, text, text.removesuffix("*"), stored, self.update, self.count)

    def step(self, elapsed_s: float) -> None:
        if self.state is None:
            self.state = begin(self.wanted, self.seen, self.now)
        before = self.state
        self.now += elapsed_s
        self.account(before, elapsed_s)
        taken = step(before, self.wanted, self.seen, elapsed_s, self.now)
        self.check(before, taken)
        self.state = from_dict(json.loads(json.dumps(taken.state.to_dict())))
        assert self.state == taken.state, "it survives the Store"

    def account(self, before: RolloutState, elapsed_s: float) -> None:
        if before.phase is not Phase.PROVING or self.wanted.newest != before.newest:
            return
        everywhere = self.seen.at(None)
        if everywhere.available >= 1:
            self.held_s += elapsed_s

    def check(self, before: RolloutState, taken: Step) -> None:
        after, event = taken.state, taken.event
        if event is None:
            assert after.phase is before.phase and not taken.said
        else:
            assert TRANSITIONS[(before.phase, event)] is after.phase
        if after.phase is Phase.PROVING and before.phase is not Phase.PROVING:
            self.held_s = 0.0
        if before.phase is Phase.PROVING and event in (Event.ROLL_BACK, Event.GIVE_UP):
            self.failed_late.add(before.target)
        self.check_proof(before, after, event)
        self.check_ways(before, after)

    def check_proof(self, before: RolloutState, after: RolloutState, event: Event | None) -> None:
        if after.proven != before.proven:
            assert event is Event.HELD and after.proven == before.target == after.target
            assert self.held_s >= self.update.proven_after
            assert self.seen.at(None).available >= 1
        assert after.proven not in self.failed_late
        for past in after.history:
            if past.standing is Standing.PROVEN:
                assert past.number not in self.failed_late

    def check_ways(self, before: RolloutState, after: RolloutState) -> None:
        target = after.past(after.target)
        assert target is not None, "the target is never forgotten"
        if after.target != after.newest:
            changed = len(self.templates) != before.newest
            assert target.standing is Standing.PROVEN or changed
        assert after.proven == 0 or after.past(after.proven) is not None
        assert len(after.history) <= HISTORY_MAX + len(after.needed)
        sites = admitted(after, REGIONS)
        assert sites is None or sites, "a wave has somewhere to go"
        assert after.held_s >= 0 and after.stalled_s >= 0


UPDATES = st.builds(
    Update,
    max_unavailable=st.sampled_from(["0", "1", "50%"]),
    progress_deadline=st.just(60.0),
    proven_after=st.sampled_from([PROVEN_AFTER_S, 100.0]),
    canary=st.sampled_from([None, Canary(sites=1, soak=10.0), Canary(sites=2, soak=0.0)]),
)


@settings(max_examples=400, deadline=None)
@given(UPDATES, st.lists(ACTIONS, min_size=10, max_size=60))
def test_no_sequence_of_events_proves_what_did_not_hold(
    update: Update, actions: list[tuple[str, Any]]
) -> None:
    fate = Fate(update)
    for action, value in actions:
        fate.play(action, value)


@settings(max_examples=150, deadline=None)
@given(UPDATES, st.lists(ACTIONS, min_size=5, max_size=40))
def test_when_all_goes_well_at_last_it_comes_to_rest(
    update: Update, actions: list[tuple[str, Any]]
) -> None:
    fate = Fate(update)
    for action, value in actions:
        fate.play(action, value)
    fate.update = replace(fate.update, paused=False, auto_rollback=True)
    fate.count, fate.seen = 3, GOOD
    for _ in range(60):
        fate.step(10.0)
    assert fate.state is not None
    assert fate.state.phase in (Phase.PROVEN, Phase.ROLLED_BACK, Phase.FAILED)
    if fate.state.phase is Phase.FAILED:
        assert fate.state.late or fate.state.target != fate.state.newest or fate.state.sites
