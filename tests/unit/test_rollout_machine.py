"""The rollout machine, phase by phase: what was seen goes in, state and events come out."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from orchestrator.domain import rollout_state
from orchestrator.domain.rollout import (
    Health,
    Progress,
    Tally,
    Wanted,
    admitted,
    begin,
    step,
)
from orchestrator.domain.rollout_state import (
    TRANSITIONS,
    Event,
    Past,
    Phase,
    RolloutState,
    Standing,
    Wave,
    from_dict,
)
from orchestrator.domain.rollout_words import Said
from polder.manifest.update import Canary, Update

QUICK = Update(progress_deadline=60.0, proven_after=30.0)
REGIONS = {"a1": "a", "a2": "a", "b1": "b"}


def all_ready(count: int = 3, site: str = "a1") -> Progress:
    return Progress(
        {site: Tally(count, count, count)}, REGIONS, Health(count), in_use=frozenset({1})
    )


@dataclass
class Story:
    """One workload; time passes when told to."""

    update: Update = QUICK
    templates: list[str] = field(default_factory=lambda: ["one"])
    count: int = 3
    state: RolloutState | None = None
    seen: Progress = field(default_factory=all_ready)
    said: list[Said] = field(default_factory=list)
    now: float = 1_000_000.0

    @property
    def wanted(self) -> Wanted:
        number, text = len(self.templates), self.templates[-1]
        stored = frozenset(range(1, number + 1))
        return Wanted(number, text, text.removesuffix("*"), stored, self.update, self.count)

    def passes(self, seconds: float = 0.0) -> RolloutState:
        """One step, and those that follow at once."""
        if self.state is None:
            self.state = begin(self.wanted, self.seen, self.now)
        self.now += seconds
        for elapsed in (seconds, 0.0, 0.0, 0.0):
            before = self.state
            taken = step(self.state, self.wanted, self.seen, elapsed, self.now)
            self.state = from_dict(taken.state.to_dict())
            self.said += taken.said
            if taken.event is None:
                break
            assert TRANSITIONS[(before.phase, taken.event)] is taken.state.phase
            if taken.event is Event.ROLL_BACK:
                break  # what is seen is of another target then
        return self.state

    def proven(self) -> "Story":
        self.seen = all_ready(self.count)
        self.passes()
        self.passes(self.update.proven_after)
        assert self.state is not None and self.state.phase is Phase.PROVEN, self.state
        return self

    def changes(self, text: str) -> RolloutState:
        self.templates.append(text)
        return self.passes()

    def standing(self, number: int) -> Standing | None:
        assert self.state is not None
        past = self.state.past(number)
        return past.standing if past is not None else None

    @property
    def reasons(self) -> list[str]:
        return [item.reason for item in self.said]


def test_a_first_revision_goes_everywhere_at_once_and_is_proven_when_it_held() -> None:
    story = Story(Update(proven_after=30.0, canary=Canary()), seen=Progress())
    state = story.passes()
    assert state.phase is Phase.PROGRESSING and state.wave is Wave.EVERYWHERE
    assert admitted(state, REGIONS) is None
    story.seen = all_ready()
    assert story.passes(1.0).phase is Phase.PROVING
    assert story.passes(29.0).phase is Phase.PROVING
    state = story.passes(1.0)
    assert state.phase is Phase.PROVEN and state.proven == 1
    assert story.standing(1) is Standing.PROVEN
    assert story.reasons == ["RolloutProven"]


def test_one_that_was_changed_before_it_had_a_record_has_its_canary() -> None:
    """Such as in a freeze that came right after it was made. (tests.sim rollouts, seed 424)"""
    sites = {"a1": Tally(2, 0, 0), "b1": Tally(1, 0, 0)}
    seen = Progress(sites, REGIONS, in_use=frozenset({1}))
    story = Story(replace(QUICK, canary=Canary(soak=10.0)), seen=seen)
    state = story.changes("two")
    assert (state.target, state.base, state.sites) == (2, 1, ("a1",))


def test_a_new_revision_goes_in_waves_and_each_of_the_first_two_is_watched() -> None:
    sites = {"a1": Tally(2, 0, 0), "a2": Tally(1, 0, 0), "b1": Tally(2, 0, 0)}
    story = Story(replace(QUICK, canary=Canary(sites=1, soak=10.0)), count=5).proven()
    story.seen = Progress(sites, REGIONS)
    state = story.changes("two")
    assert (state.phase, state.wave, state.sites) == (Phase.PROGRESSING, Wave.CANARY, ("a1",))
    assert admitted(state, REGIONS) == frozenset({"a1"}) and state.base == 1 and state.target == 2
    story.seen = Progress({**sites, "a1": Tally(2, 2, 2)}, REGIONS, Health(2), Health(3))
    assert story.passes(5.0).phase is Phase.SOAKING
    assert story.passes(9.0).phase is Phase.SOAKING
    state = story.passes(1.0)
    assert (state.phase, state.wave) == (Phase.PROGRESSING, Wave.REGION)
    assert admitted(state, REGIONS) == frozenset({"a1", "a2"})
    story.seen = Progress({**story.seen.sites, "a2": Tally(1, 1, 1)}, REGIONS, Health(3), Health(2))
    assert story.passes(1.0).phase is Phase.SOAKING
    state = story.passes(10.0)
    assert (state.phase, state.wave) == (Phase.PROGRESSING, Wave.EVERYWHERE)
    assert admitted(state, REGIONS) is None
    story.seen = Progress({"a1": Tally(5, 5, 5)}, REGIONS, Health(5))
    assert story.passes(1.0).phase is Phase.PROVING
    assert story.passes(30.0).phase is Phase.PROVEN
    assert story.reasons == [
        "RolloutProven",
        "RolloutStarted",
        "RolloutSoaking",
        "RolloutWave",
        "RolloutSoaking",
        "RolloutWave",
        "RolloutProving",
        "RolloutProven",
    ]


def test_a_wave_that_would_reach_nobody_new_is_left_out() -> None:
    story = Story(replace(QUICK, canary=Canary(sites=1, soak=10.0))).proven()
    story.changes("two")
    assert story.passes(10.0).phase is Phase.PROVING


def test_a_revision_that_no_node_takes_fails_with_that_for_a_cause() -> None:
    """Not one word of why stood in the history of a workload whose replicas had no node."""
    story = Story(seen=Progress())
    state = story.passes(60.0)
    assert state.phase is Phase.FAILED and "no node takes any" in state.message


def test_an_image_that_never_becomes_ready_rolls_back_at_the_deadline() -> None:
    story = Story().proven()
    story.seen = Progress(
        {"a1": Tally(3, 1, 0)}, REGIONS, Health(1), Health(2), reasons=(("ImagePull", 1),)
    )
    story.changes("bad")
    assert story.passes(59.0).phase is Phase.PROGRESSING
    state = story.passes(1.0)
    assert (state.phase, state.target, state.newest) == (Phase.ROLLING_BACK, 1, 2)
    assert "1 ImagePull" in state.message and story.standing(2) is Standing.FAILED
    assert admitted(state, REGIONS) is None
    story.seen = all_ready()
    state = story.passes(1.0)
    assert (state.phase, state.target, state.proven) == (Phase.ROLLED_BACK, 1, 1)
    assert "ImagePull" in state.message, "why it was rolled back stays"
    assert story.passes(1e6).phase is Phase.ROLLED_BACK
    assert story.reasons[-2:] == ["RolloutFailed", "RolledBack"]


def test_a_crash_loop_rolls_back_at_once_unless_the_others_crash_too() -> None:
    story = Story().proven()
    bad = Progress({"a1": Tally(3, 1, 0)}, REGIONS, Health(1, crashing=1), Health(2, crashing=2))
    story.seen = bad
    assert story.changes("two").phase is Phase.PROGRESSING
    story.seen = replace(bad, others=Health(2))
    assert story.passes(1.0).phase is Phase.ROLLING_BACK


def test_a_few_bad_boxes_of_many_are_not_the_revisions_fault() -> None:
    story = Story(count=100).proven()
    story.seen = Progress({"a1": Tally(100, 100, 96)}, REGIONS, Health(100, crashing=4))
    assert story.changes("two").phase is Phase.PROVING
    story.seen = replace(story.seen, target=Health(100, crashing=6))
    assert story.passes(1.0).phase is Phase.ROLLING_BACK


def test_a_revision_that_fails_after_minutes_rolls_back_and_is_never_proven() -> None:
    story = Story(replace(QUICK, proven_after=600.0)).proven()
    assert story.changes("late").phase is Phase.PROVING
    story.passes(300.0)
    story.seen = Progress({"a1": Tally(3, 3, 1)}, REGIONS, Health(3, unready=2))
    state = story.passes(1.0)
    assert (state.phase, state.target, state.late) == (Phase.ROLLING_BACK, 1, True)
    story.seen = all_ready()
    for _ in range(100):
        state = story.passes(3600.0)
    assert state.phase is Phase.ROLLED_BACK and state.proven == 1
    assert story.standing(2) is Standing.FAILED


def test_what_restarts_now_and_then_never_holds() -> None:
    story = Story(replace(QUICK, proven_after=600.0)).proven()
    story.changes("two")
    for _ in range(10):
        story.seen = all_ready()
        story.passes(300.0)
        story.seen = replace(story.seen, target=Health(3, restarted=1))
        state = story.passes(1.0)
    assert state.phase is Phase.PROVING and state.held_s < 300.0


def test_a_single_replica_that_is_not_ready_again_fails_its_revision() -> None:
    story = Story(count=1).proven()
    story.changes("two")
    story.seen = Progress({"a1": Tally(1, 1, 0)}, REGIONS, Health(1, unready=1))
    assert story.passes(1.0).phase is Phase.ROLLING_BACK


def test_after_the_proof_nothing_rolls_back_by_itself() -> None:
    story = Story().proven()
    story.changes("two")
    story.passes(30.0)
    story.seen = Progress({"a1": Tally(3, 3, 0)}, REGIONS, Health(3, crashing=3))
    state = story.passes(1e5)
    assert state.phase is Phase.PROVEN and state.target == 2


def test_without_auto_rollback_what_serves_is_kept_until_it_is_turned_on() -> None:
    story = Story(replace(QUICK, auto_rollback=False)).proven()
    story.seen = Progress({"a1": Tally(3, 1, 0)}, REGIONS, Health(1, crashing=1), Health(2))
    state = story.changes("bad")
    assert (state.phase, state.target) == (Phase.FAILED, 2)
    assert "autoRollback is off" in story.said[-1].message
    story.update = QUICK
    state = story.passes(1.0)
    assert (state.phase, state.target) == (Phase.ROLLING_BACK, 1)
    assert story.standing(2) is Standing.FAILED


def test_a_first_revision_that_fails_has_nowhere_to_return_to() -> None:
    story = Story(seen=Progress({"a1": Tally(3, 3, 0)}, REGIONS, Health(3, crashing=3)))
    state = story.passes()
    assert (state.phase, state.target) == (Phase.FAILED, 1)
    assert "no proven revision" in story.said[-1].message


def test_what_was_only_late_recovers() -> None:
    story = Story(seen=Progress())
    story.passes()
    assert story.passes(60.0).phase is Phase.FAILED, "no node for an hour"
    story.seen = all_ready()
    assert story.passes(1.0).phase is Phase.PROVING
    assert story.passes(30.0).phase is Phase.PROVEN


def test_what_failed_late_does_not_recover() -> None:
    story = Story()
    story.passes()
    story.seen = Progress({"a1": Tally(3, 3, 0)}, REGIONS, Health(3, crashing=3))
    assert story.passes(1.0).phase is Phase.FAILED
    story.seen = all_ready()
    assert story.passes(1e6).phase is Phase.FAILED


def test_a_way_back_whose_image_is_gone_fails_and_says_so() -> None:
    story = Story().proven()
    story.seen = Progress({"a1": Tally(3, 3, 0)}, REGIONS, Health(3, crashing=3))
    assert story.changes("bad").phase is Phase.ROLLING_BACK
    story.seen = Progress(
        {"a1": Tally(3, 1, 0)}, REGIONS, Health(1), Health(2), reasons=(("ImagePull", 1),)
    )
    state = story.passes(60.0)
    assert (state.phase, state.target) == (Phase.FAILED, 1)
    assert "way back to revision 1 failed" in state.message and "ImagePull" in state.message
    assert story.standing(1) is Standing.PROVEN and story.standing(2) is Standing.FAILED
    assert story.passes(1e6).phase is Phase.FAILED


def test_an_undo_to_a_revision_whose_image_is_gone_returns_to_the_last_proven_one() -> None:
    story = Story().proven()
    story.changes("two")
    assert story.passes(30.0).proven == 2
    story.seen = Progress({"a1": Tally(3, 1, 0)}, REGIONS, Health(1), Health(2))
    state = story.changes("one")
    assert state.wave is Wave.EVERYWHERE and state.target == 3
    state = story.passes(60.0)
    assert (state.phase, state.target) == (Phase.ROLLING_BACK, 2)


def test_undo_and_restart_of_what_was_proven_need_no_canary() -> None:
    story = Story(replace(QUICK, canary=Canary(soak=10.0))).proven()
    story.seen = Progress({"a1": Tally(2, 0, 0), "b1": Tally(1, 0, 0)}, REGIONS)
    assert story.changes("two").wave is Wave.CANARY
    assert story.changes("one").wave is Wave.EVERYWHERE
    assert story.changes("one*").wave is Wave.EVERYWHERE, "only restartedAt differs"
    assert story.changes("two*").wave is Wave.CANARY


def test_a_restart_that_fails_returns_to_what_ran_before_it() -> None:
    story = Story().proven()
    story.changes("two")
    story.passes(30.0)
    story.seen = Progress({"a1": Tally(3, 1, 0)}, REGIONS, Health(1, crashing=1), Health(2))
    state = story.changes("two*")
    assert (state.phase, state.target) == (Phase.ROLLING_BACK, 2)


def test_ten_changes_in_mid_rollout_end_at_the_last_one() -> None:
    story = Story(replace(QUICK, canary=Canary(soak=10.0))).proven()
    story.seen = Progress({"a1": Tally(2, 1, 0), "b1": Tally(1, 0, 0)}, REGIONS, Health(1))
    for number in range(2, 12):
        state = story.changes(f"change {number}")
        story.passes(5.0)
        assert (state.target, state.base, state.proven) == (number, 1, 1)
        assert state.held_s == 0.0
    assert [story.standing(n) for n in range(3, 11)] == [Standing.SUPERSEDED] * 8
    assert story.standing(1) is Standing.PROVEN and story.standing(11) is Standing.CURRENT
    story.seen = Progress({"a1": Tally(2, 2, 2), "b1": Tally(1, 1, 1)}, REGIONS, Health(3))
    story.passes(1.0)
    story.passes(10.0)
    assert story.passes(30.0).proven == 11


def test_what_ran_everywhere_stays_at_the_other_sites_when_it_is_superseded() -> None:
    story = Story(replace(QUICK, canary=Canary(soak=10.0))).proven()
    story.changes("two")
    assert story.passes(10.0).phase is Phase.PROVING
    state = story.changes("three")
    assert (state.base, state.proven, state.wave) == (2, 1, Wave.CANARY)
    assert story.standing(2) is Standing.SUPERSEDED


def test_scaled_to_zero_nothing_is_gated_and_nothing_becomes_proven() -> None:
    story = Story().proven()
    story.count, story.seen = 0, Progress()
    assert story.changes("two").phase is Phase.PROVING
    state = story.passes(1e6)
    assert state.phase is Phase.PROVING and state.held_s == 0.0 and state.proven == 1
    story.count, story.seen = 3, Progress({"a1": Tally(3, 3, 0)}, REGIONS, Health(3))
    assert story.passes(10.0).phase is Phase.PROVING
    story.seen = all_ready()
    assert story.passes(30.0).proven == 2


def test_scaled_to_zero_and_back_a_canary_goes_on_where_it_was() -> None:
    story = Story(replace(QUICK, canary=Canary(soak=10.0))).proven()
    seen = Progress({"a1": Tally(2, 2, 2), "b1": Tally(1, 0, 0)}, REGIONS, Health(2))
    story.seen = seen
    assert story.changes("two").phase is Phase.SOAKING
    story.passes(5.0)
    story.count, story.seen = 0, Progress(regions=REGIONS)
    state = story.passes(1e6)
    assert (state.phase, state.wave, state.held_s) == (Phase.SOAKING, Wave.CANARY, 5.0)
    story.count, story.seen = 3, seen
    assert story.passes(4.0).phase is Phase.SOAKING
    assert story.passes(1.0).wave is Wave.EVERYWHERE


def test_a_lost_node_neither_fails_nor_holds_up_a_rollout() -> None:
    story = Story().proven()
    story.seen = Progress({"a1": Tally(2, 2, 2, lost=1)}, REGIONS, Health(2))
    assert story.changes("two").phase is Phase.PROVING
    story.seen = Progress({"a1": Tally(away=1, lost=2)}, REGIONS)
    state = story.passes(1e6)
    assert state.phase is Phase.PROVING and state.held_s == 0.0


def test_what_waits_for_a_lost_node_does_not_count_as_a_failure() -> None:
    story = Story().proven()
    story.seen = Progress({"a1": Tally(2, 1, 1, lost=1)}, REGIONS, Health(1), Health(1))
    story.changes("two")
    assert story.passes(1e6).phase is Phase.PROGRESSING


def test_a_canary_whose_site_is_lost_goes_on_elsewhere() -> None:
    story = Story(replace(QUICK, canary=Canary(soak=10.0))).proven()
    sites = {"a1": Tally(2, 2, 2), "b1": Tally(1, 0, 0)}
    story.seen = Progress(sites, REGIONS, Health(2))
    assert story.changes("two").sites == ("a1",)
    story.seen = Progress({**sites, "a1": Tally(away=2)}, REGIONS)
    assert story.passes(1e6).sites == ("a1",), "silent is not lost"
    story.seen = Progress({**sites, "a1": Tally(lost=2)}, REGIONS)
    state = story.passes(1.0)
    assert (state.phase, state.sites, state.held_s) == (Phase.PROGRESSING, ("b1",), 0.0)


def test_a_change_that_comes_while_nobody_is_heard_has_its_canary_all_the_same() -> None:
    """A new leader has heard nobody yet. (tests.sim rollouts, seed 174)"""
    story = Story(replace(QUICK, canary=Canary(soak=10.0))).proven()
    story.seen = Progress({"a1": Tally(away=2), "b1": Tally(away=1)}, REGIONS)
    state = story.changes("two")
    assert (state.wave, state.sites) == (Wave.CANARY, ("a1",))


def test_pause_holds_everything_and_resume_goes_on() -> None:
    story = Story(replace(QUICK, canary=Canary(soak=10.0))).proven()
    story.seen = Progress({"a1": Tally(2, 2, 2), "b1": Tally(1, 0, 0)}, REGIONS, Health(2))
    story.changes("two")
    story.passes(6.0)
    story.update = replace(story.update, paused=True)
    assert story.passes().phase is Phase.PAUSED
    story.seen = replace(story.seen, target=Health(2, crashing=2))
    state = story.passes(1e6)
    assert state.phase is Phase.PAUSED and state.held_s == 6.0
    story.seen = replace(story.seen, target=Health(2))
    story.update = replace(story.update, paused=False)
    assert story.passes().phase is Phase.SOAKING
    assert story.passes(4.0).wave is Wave.EVERYWHERE


def test_a_pause_holds_the_way_back_too() -> None:
    story = Story().proven()
    story.update = replace(story.update, paused=True)
    story.seen = Progress({"a1": Tally(3, 0, 0)}, REGIONS)
    assert story.changes("two").phase is Phase.PAUSED


def test_wall_clock_jumps_change_nothing() -> None:
    story = Story().proven()
    story.changes("two")
    for jump in (86_400.0, -2 * 86_400.0, 86_400.0):
        story.now += jump
        assert story.passes(5.0).phase is Phase.PROVING
    state = story.passes(15.0)
    assert state.phase is Phase.PROVEN


def test_an_installation_without_records_starts_to_prove_what_runs() -> None:
    story = Story(templates=["a", "b", "c"], seen=all_ready())
    story.seen = replace(story.seen, in_use=frozenset({3}))
    state = story.passes()
    assert (state.phase, state.target, state.base) == (Phase.PROVING, 3, 0)
    assert story.passes(30.0).proven == 3


def test_the_history_keeps_ten_and_what_is_needed() -> None:
    story = Story().proven()
    story.seen = Progress({"a1": Tally(3, 0, 0)}, REGIONS)
    for number in range(2, 31):
        state = story.changes(str(number))
    assert [past.number for past in state.history] == [1, *range(21, 31)]
    assert state.needed == {1, 30}


def table_of(rows: list[list[str]]) -> dict[tuple[Phase, Event], Phase]:
    found: dict[tuple[Phase, Event], Phase] = {}
    for before, event, after, *_ in rows:
        phases = list(Phase) if before == "(any)" else [Phase(before)]
        found |= {(phase, Event(event)): Phase(after) for phase in phases}
    return found


def test_the_docstring_shows_the_table() -> None:
    text = rollout_state.__doc__ or ""
    rows = [line.split() for line in text.splitlines() if line.startswith("    ")][1:]
    assert table_of(rows) == dict(TRANSITIONS)


def test_the_guide_shows_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text()
    part = text.partition("## Transitions")[2].partition("##")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    assert table_of(rows[2:]) == dict(TRANSITIONS)


def test_unknown_fields_of_a_newer_version_are_left_out() -> None:
    state = RolloutState(2, 2, history=(Past(2, "d", "d"),))
    body = {**state.to_dict(), "mood": "good"}
    body["history"][0]["colour"] = "blue"
    assert from_dict(body) == state


@pytest.mark.parametrize("body", [{}, {"newest": 1}, {"newest": 1, "target": 1, "phase": "?"}])
def test_what_is_no_record_is_refused(body: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError, KeyError)):
        from_dict(body)
