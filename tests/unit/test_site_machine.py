"""The site's machine as a whole: plans, saves, beats, the promised time, bad input."""

from dataclasses import replace
from typing import Any

from agent.domain.roster import Neighbourhood
from agent.domain.site.case import Standing
from agent.domain.site.machine import SiteMachine
from agent.domain.site.messages import (
    Beat,
    Booted,
    Claim,
    Claims,
    Condition,
    Decide,
    Event,
    Goodbye,
    OrchestratorHeard,
    PeerClosed,
    PeerOpened,
    PeerSaid,
    PlanInUse,
    RunsHere,
    Save,
    Saved,
    Send,
    Stopping,
    Tell,
    Tick,
)
from tests.unit.site_lab import E1, KEY, TEMPLATE, assigned, group, lab, planned, view

ABC = group("a", "b", "c")


def machine(node: str = "b", plan: Any = None, **booted: Any) -> SiteMachine:
    found = SiteMachine(node)
    found.handle(Booted(node, **booted), 0.0)
    if plan is not None:
        found.handle(PlanInUse(plan), 0.0)
    return found


def of(kind: type, found: list[Any]) -> list[Any]:
    return [i for i in found if isinstance(i, kind)]


def test_before_the_first_plan_nothing_is_decided() -> None:
    fresh = SiteMachine("b")
    assert not of(Decide, fresh.handle(Booted("b"), 0.0))
    assert not of(Decide, fresh.handle(RunsHere((), settled=True), 1.0))
    assert fresh.next_due() is None and fresh.abilities() == ()


def test_every_plan_is_followed_by_a_decision_also_when_it_changes_nothing() -> None:
    site = machine(plan=planned("b", ABC))
    for generation in (2, 3):
        found = site.handle(PlanInUse(planned("b", ABC, generation=generation)), 1.0)
        assert of(Decide, found) == [Decide(())]
    assert not of(Decide, site.handle(Tick(), 2.0))


def test_a_node_without_peers_does_not_wait_for_anything() -> None:
    site = machine("a", planned("a", ABC, roster=[]))
    assert site.next_due() is None
    assert of(Decide, site.handle(PlanInUse(planned("a", ABC, roster=[])), 1.0)) == [Decide(())]


def test_a_beat_each_second_to_those_with_a_stream() -> None:
    site = machine(plan=planned("b", ABC))
    site.handle(PeerOpened("a", "i"), 0.5)
    said = []
    for tenth in range(6, 56):
        said += of(Send, site.handle(Tick(), tenth / 10))
    beats = [s for s in said if isinstance(s.said, Beat)]
    assert {s.node for s in beats} == {"a"} and 5 <= len(beats) <= 7


def test_a_beat_goes_with_what_is_said_anyway_and_none_sooner_than_that() -> None:
    site = machine(plan=planned("b", ABC))
    site.handle(PeerOpened("a", "i"), 0.0)
    site.handle(PeerOpened("c", "i"), 0.0)
    site.handle(Tick(), 1.0)

    def beats(event: Event, now: float) -> set[str]:
        found = of(Send, site.handle(event, now))
        return {one.node for one in found if isinstance(one.said, Beat)}

    assert beats(PeerSaid("a", Beat()), 1.4) == set(), "half a second lies between two of them"
    assert beats(Tick(), 1.6) == set(), "nobody is awake for it"
    assert beats(PeerSaid("a", Beat()), 1.7) == {"a", "c"}
    assert beats(PeerSaid("c", Beat()), 1.7) == set()
    due = site.next_due()
    assert due is not None and due <= 2.7
    assert beats(Tick(), 2.7) == {"a", "c"}, "it does not wait for others"


def test_others_hear_at_once_whom_this_node_misses() -> None:
    site = machine(plan=planned("b", ABC))
    site.handle(PeerOpened("a", "i"), 0.0)
    site.handle(PeerOpened("c", "i"), 0.0)
    for second in (1.0, 2.0, 2.3):
        site.handle(PeerSaid("c", Beat()), second)
    due = site.next_due()
    assert due == 2.4, "not only with the next beat"
    found = site.handle(Tick(), 2.4)
    assert Send("c", Beat(("a",), 0.0, 1)) in found


def test_the_beat_says_for_how_long_no_orchestrator_was_heard() -> None:
    site = machine(plan=planned("b", ABC), isolated_s=500.0)
    (opened,) = [
        s.said
        for s in of(Send, site.handle(PeerOpened("a", "i"), 1.0))[:1]
        if isinstance(s.said, Beat)
    ]
    assert opened.isolated_s == 501.0
    site.handle(OrchestratorHeard(), 2.0)
    again = of(Send, site.handle(PeerOpened("a", "i"), 3.0))[0].said
    assert again.isolated_s == 0.0
    late = of(Send, site.handle(PeerOpened("a", "i"), 30.0))[0].said
    assert late.isolated_s == 28.0, "signs come every five seconds; two may get lost"


def test_past_the_promised_time_it_says_so_and_takes_nothing_over() -> None:
    site = lab(ABC, autonomy_s=60.0)
    site.start()
    site.run(61)
    b = site.boxes["b"]
    assert b.conditions["AutonomyOver"] and "AutonomyOver" in b.told()
    assert [a.reason for a in b.machine.abilities()] == ["AutonomyOver"]
    site.kill("a")
    site.run(30)
    assert not site.runs()
    site.feed("b", OrchestratorHeard())
    site.run(5)
    assert list(site.runs()) == ["b"] and b.conditions["AutonomyOver"] == ""


def test_what_runs_runs_on_past_the_promised_time() -> None:
    site = lab(ABC, autonomy_s=60.0)
    site.start()
    site.run(600)
    assert site.runs() == {"a": ["p1"]}


def test_isolation_before_the_start_counts() -> None:
    found = machine(plan=None, isolated_s=8 * 86_400.0).handle(PlanInUse(planned("b", ABC)), 1.0)
    assert [c.type for c in of(Condition, found)] == ["AutonomyOver"]


def test_a_damaged_memory_is_left_out_line_by_line() -> None:
    good = [list(KEY), "s1", E1 + 1, "p1", "", "", False]
    kept = {"stays": {"stays": [["nonsense"], good, 7, [None] * 7], "heard": ["a"]}}
    site = machine(plan=planned("b", ABC), kept=kept, same_boot=True)
    found = site.handle(RunsHere((view("s1", E1 + 1),), settled=True), 0.1)
    assert of(Decide, found) and [s.uid for s in of(Decide, found)[-1].stays] == ["s1"]


def test_a_stay_that_nothing_describes_and_that_does_not_run_is_forgotten() -> None:
    kept = {"stays": {"stays": [[list(KEY), "s1", E1 + 1, "p1", "", "", False]], "heard": []}}
    plan = replace(planned("b", ABC), roles={})
    site = machine(plan=plan, kept=kept)
    found = site.handle(RunsHere((), settled=True), 0.1)
    (save,) = of(Save, found)
    assert save.body["stays"] == []


def test_before_the_runtime_was_seen_nothing_is_claimed() -> None:
    site = machine("a", planned("a", ABC))
    sent = of(Send, site.handle(PeerOpened("b", "i"), 0.1))
    assert not [s for s in sent if isinstance(s.said, Claims)]
    sent = of(Send, site.handle(RunsHere((view("p1"),), settled=True), 0.2))
    (claims,) = [s.said for s in sent if isinstance(s.said, Claims)]
    assert [(c.uid, c.epoch, c.ready) for c in claims.claims] == [("p1", E1, True)]


def test_a_peer_hears_only_of_what_it_shares() -> None:
    alone = assigned(group("a", "c"), "p2")
    other = replace(alone, replica="db-0", workload_uid="wu2")
    plan = planned("a", group("a", "b"), roster=["b", "c"])
    plan = replace(plan, assignments={**plan.assignments, "p2": other})
    site = machine("a", plan)
    site.handle(PeerOpened("b", "i"), 0.1)
    site.handle(PeerOpened("c", "i"), 0.1)
    sent = of(Send, site.handle(RunsHere((view("p1"),), settled=True), 0.2))
    told = {s.node: {c.key[1] for c in s.said.claims} for s in sent if isinstance(s.said, Claims)}
    assert told == {"b": {"web-0"}, "c": {"db-0"}}


def test_strangers_are_not_listened_to() -> None:
    """A node that the plan does not name: the links let none in, and the machine hears none."""
    site = machine("a", planned("a", ABC))
    site.handle(RunsHere((view("p1"),), settled=True), 0.1)
    lie = Claims((Claim(KEY, "s1", E1 + 99, True, 1e6),))
    site.handle(PeerOpened("stranger", "i"), 1.0)
    assert not of(Decide, site.handle(PeerSaid("stranger", lie), 1.0))
    assert site.standings()[KEY] is Standing.RUNNING
    site.handle(PeerSaid("stranger", Beat()), 1.1)
    site.handle(PeerSaid("stranger", Goodbye("Restarting", 9.0)), 1.1)
    site.handle(PeerClosed("stranger"), 1.2)


def test_epochs_that_are_used_up_are_told_and_nothing_starts() -> None:
    last = E1 + (1 << 16) - 1
    site = machine(plan=planned("b", group("a", "b"), epoch=last))
    for second in range(40):
        found = site.handle(Tick(), float(second))
        assert not of(Save, found)


def test_a_roster_that_was_complained_of_is_told_once() -> None:
    plan = planned("b", ABC)
    faulty = replace(plan, site=replace(plan.site, complaints=("the roster names a twice",)))
    site = machine(plan=plan)
    assert [t.reason for t in of(Tell, site.handle(PlanInUse(faulty), 1.0))] == ["RosterFaulty"]
    assert not of(Tell, site.handle(PlanInUse(replace(faulty, generation=2)), 2.0))


def test_stopping_says_goodbye() -> None:
    site = machine(plan=planned("b", ABC))
    site.handle(PeerOpened("a", "i"), 0.1)
    found = site.handle(Stopping(), 0.2)
    assert Send("a", Goodbye("Restarting", 15.0)) in found


def test_a_job_is_never_taken_over() -> None:
    """What runs once and ended would be run again."""
    plan = planned("b", group("a", "b"))
    role = plan.roles[KEY]
    once = replace(role, assignment=replace(role.assignment, run_once=True))
    site = lab(group("a", "b"))
    site.boxes["b"].plan = replace(plan, roles={KEY: once})
    site.start()
    site.run(10)
    site.kill("a")
    site.run(30)
    assert not site.runs()


def test_a_template_that_cannot_be_read_is_not_taken_over() -> None:
    plan = planned("b", group("a", "b"))
    role = plan.roles[KEY]
    broken = replace(role, assignment=replace(role.assignment, template=None, error="bad"))
    site = lab(group("a", "b"))
    site.boxes["b"].plan = replace(plan, roles={KEY: broken})
    site.start()
    site.run(10)
    site.kill("a")
    site.run(30)
    assert not site.runs() and TEMPLATE is not None


def test_a_saved_answer_to_nobodys_question_changes_nothing() -> None:
    site = machine(plan=planned("b", ABC))
    assert not of(Decide, site.handle(Saved(999_999, True), 1.0))
    assert not of(Decide, site.handle(Saved(999_999, False), 1.0))


def test_peers_of_an_earlier_roster_are_forgotten() -> None:
    site = machine(plan=planned("b", ABC))
    site.handle(PeerOpened("a", "i"), 0.5)
    assert site.heard(0.6) == {"a": True, "c": False}
    site.handle(PlanInUse(replace(planned("b", ABC), site=Neighbourhood())), 1.0)
    assert site.heard(1.0) == {} and site.next_due() is None
