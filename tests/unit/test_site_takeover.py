"""Replicas of which at least one runs: who takes over, and which of two stays."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from agent.domain.site import takeover
from agent.domain.site.case import Standing
from agent.domain.site.identifying import stay_uid
from agent.domain.site.messages import Beat, Claims, Decide, Goodbye, PeerSaid, RunsHere, Tick
from polder import epochs
from tests.unit.site_lab import E1, KEY, Lab, group, lab, planned, view

ABC = group("a", "b", "c")


def taken_by(node: str, epoch: int) -> str:
    return stay_uid(KEY, node, epoch)


def healthy(lab: Lab) -> Lab:
    lab.start()
    lab.run(10)
    assert lab.runs() == {"a": ["p1"]}
    return lab


def test_a_dead_node_is_taken_over_within_seconds_by_the_first_standby() -> None:
    site = healthy(lab(ABC))
    site.kill("a")
    site.run(3)
    uid = taken_by("b", E1 + 1)
    assert site.runs() == {"b": [uid]}, "missed after 2.4 s, and saved before it starts"
    assert site.boxes["b"].running[uid].takes_over == "p1"
    assert "TakenOver" in site.boxes["b"].told()
    site.run(60)
    assert site.runs() == {"b": [uid]}, "the second standby keeps out of it"


def test_nothing_starts_before_it_stands_on_the_disk() -> None:
    site = healthy(lab(ABC))
    site.boxes["b"].writable = False
    site.kill("a")
    site.run(4)
    assert "b" not in site.runs() and "NotWritable" in site.boxes["b"].told()
    site.run(6)
    assert site.runs() == {"c": [taken_by("c", E1 + 1)]}, "who cannot write is passed over"


def test_a_standby_that_is_unable_is_passed_over_at_once() -> None:
    site = healthy(lab(ABC))
    site.set_unable("b", "ImageMissing")
    site.kill("a")
    site.run(3)
    assert site.runs() == {"c": [taken_by("c", E1 + 1)]}
    assert "StandbyUnable" in site.boxes["b"].told()


def test_of_two_standbys_the_second_waits_five_seconds_for_the_first() -> None:
    site = healthy(lab(ABC))
    # The first one hears, says it is able, and never acts.
    stuck = site.boxes["b"]
    real = stuck.machine.handle

    def idle(event: object, now: float) -> list[object]:
        return [i for i in real(event, now) if not isinstance(i, Decide) and not is_save(i)]

    stuck.machine.handle = idle  # type: ignore[assignment,method-assign]
    site.kill("a")
    site.run(6.0)
    assert site.boxes["c"].machine.standings()[KEY] is Standing.QUEUING and not site.runs()
    site.run(2.5)
    assert site.runs() == {"c": [taken_by("c", E1 + 1)]}


def is_save(instruction: object) -> bool:
    return type(instruction).__name__ == "Save"


def test_a_peer_that_hears_the_holder_is_believed_for_ten_seconds() -> None:
    site = healthy(lab(ABC))
    site.part("a", "b")
    site.run(11.0)
    assert site.runs() == {"a": ["p1"]}
    assert site.boxes["b"].machine.standings()[KEY] is Standing.DOUBTING
    site.run(4.0)
    assert "b" in site.runs(), "at least one: then it believes itself"


def test_a_holder_that_is_cut_off_keeps_running_and_a_standby_starts_too() -> None:
    site = healthy(lab(ABC))
    site.part("a", "b")
    site.part("a", "c")
    site.run(5)
    assert site.runs() == {"a": ["p1"], "b": [taken_by("b", E1 + 1)]}


@pytest.mark.parametrize(("on_return", "stays"), [("older", "a"), ("newer", "b")])
def test_after_a_partition_one_of_two_stays_and_nobody_stops_before_it_said_so(
    on_return: str, stays: str
) -> None:
    site = healthy(lab(group("a", "b", "c", on_return=on_return)))
    site.part("a", "b")
    site.part("a", "c")
    site.run(10)
    assert len(site.runs()) == 2
    site.mend()
    site.run(5)
    assert list(site.runs()) == [stays]
    (stay,) = site.boxes[stays].running.values()
    if stays == "a":
        assert stay.epoch == E1 + 2, "it raised its epoch above the other's"
    assert "Superseded" in site.boxes["b" if stays == "a" else "a"].told()
    site.run(60)
    assert list(site.runs()) == [stays], "and that is the end of it"


def test_a_node_that_cannot_write_leaves_it_to_the_other() -> None:
    """It would stay, but must not say so before its risen epoch is on the disk."""
    site = healthy(lab(ABC))
    site.part("a", "b")
    site.part("a", "c")
    site.run(10)
    site.boxes["a"].writable = False
    site.mend()
    site.run(5)
    assert list(site.runs()) == ["b"]
    said = [s for _, _, s in site.boxes["a"].said if isinstance(s, Claims)]
    assert {claim.epoch for claims in said for claim in claims.claims} == {E1}


def test_an_orchestrators_later_decision_wins_whoever_ran_for_longer() -> None:
    """A move: the new stay is ready, and the old one goes although it is older."""
    site = healthy(lab(ABC))
    e2 = epochs.decided_at(2)
    moved = planned("b", ABC, primary="b", uid="p2", epoch=e2, generation=2)
    site.give("b", moved)
    site.run(0.5)
    assert site.runs() == {"a": ["p1"], "b": ["p2"]}, "it does not go before the other is ready"
    site.run(3)
    assert site.runs() == {"b": ["p2"]}
    assert site.boxes["b"].running["p2"].epoch == e2


def test_a_node_that_comes_back_asks_first_and_starts_nothing() -> None:
    site = healthy(lab(ABC))
    site.kill("a")
    site.run(20)
    site.start("a")
    site.run(30)
    assert list(site.runs()) == ["b"]
    hold = site.boxes["a"].effective
    assert hold is not None and hold.held["p1"].cause == "Superseded"


def test_and_takes_it_over_again_as_a_new_stay_when_the_standby_dies() -> None:
    """The plan may already hold a stop for the stay that it had."""
    site = healthy(lab(ABC))
    site.kill("a")
    site.run(20)
    site.start("a")
    site.run(10)
    site.kill("b")
    site.run(4)
    assert site.runs() == {"a": [taken_by("a", E1 + 2)]}
    site.give("a", planned("a", ABC, primary="b", stops=["p1"], generation=2))
    site.run(5)
    assert site.runs() == {"a": [taken_by("a", E1 + 2)]}, "that stop is not about this one"


def test_a_node_that_comes_back_alone_runs_what_it_is_to_run() -> None:
    site = healthy(lab(ABC))
    for name in "abc":
        site.kill(name)
    site.start("a")
    site.run(2)
    assert not site.runs()
    site.run(1)
    assert site.runs() == {"a": ["p1"]}


def test_after_a_power_cut_of_the_site_the_one_that_had_it_has_it_again() -> None:
    site = healthy(lab(ABC))
    site.kill("a")
    site.run(20)
    for name in "bc":
        site.kill(name)
    site.start()
    site.run(15)
    assert site.runs() == {"b": [taken_by("b", E1 + 1)]}


def test_boxes_that_share_a_power_line_are_waited_for() -> None:
    site = healthy(lab(ABC))
    for name in "abc":
        site.kill(name)
    site.start("b", "c")
    site.run(5)
    site.start("a")
    site.run(10)
    assert site.runs() == {"a": ["p1"]}


def test_a_restart_of_the_agent_disturbs_nobody() -> None:
    site = healthy(lab(ABC))
    site.feed("b", PeerSaid("a", Goodbye("Restarting", 15.0)))
    site.feed("c", PeerSaid("a", Goodbye("Restarting", 15.0)))
    site.stop_agent("a")
    site.run(10)
    assert site.runs() == {"a": ["p1"]}
    site.start("a", same_boot=True)
    site.run(10)
    assert site.runs() == {"a": ["p1"]}
    assert all(box.told().count("TakenOver") == 0 for box in site.boxes.values())


def test_patience_has_an_end() -> None:
    site = healthy(lab(ABC))
    for name in "bc":
        site.feed(name, PeerSaid("a", Goodbye("Restarting", 3600.0)))
    site.kill("a")
    site.run(14)
    assert not site.runs()
    site.run(5)
    assert list(site.runs()) == ["b"]


def test_a_stop_in_the_plan_ends_a_stay_that_the_site_began() -> None:
    site = healthy(lab(ABC))
    site.kill("a")
    site.run(5)
    uid = taken_by("b", E1 + 1)
    e2 = epochs.decided_at(2)
    site.give("b", planned("b", ABC, primary="c", epoch=e2, stops=[uid], generation=2))
    assert site.runs() == {} and not site.boxes["b"].decided


def test_a_plan_that_names_a_stay_takes_it_over_as_it_is() -> None:
    site = healthy(lab(ABC))
    site.kill("a")
    site.run(5)
    uid = taken_by("b", E1 + 1)
    began = site.boxes["b"].running[uid].ready_at
    site.give("b", planned("b", ABC, primary="b", uid=uid, epoch=E1 + 1, generation=2))
    site.run(5)
    assert site.runs() == {"b": [uid]} and site.boxes["b"].running[uid].ready_at == began
    assert site.boxes["b"].decided == () and site.boxes["b"].disk["stays"]["stays"] == []


def test_a_plan_that_knows_nothing_of_a_stay_leaves_it_running() -> None:
    site = healthy(lab(ABC))
    site.kill("a")
    site.run(5)
    uid = taken_by("b", E1 + 1)
    nothing = planned("b", ABC, generation=2)
    site.give("b", type(nothing)(**{**fields(nothing), "roles": {}}))
    site.run(30)
    assert site.runs() == {"b": [uid]}


def fields(plan: object) -> dict[str, object]:
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}  # type: ignore[attr-defined]


def test_a_node_that_returns_after_a_week_with_its_old_plan_gives_way() -> None:
    """It ran all the time and is the older one: what was decided since comes first."""
    site = healthy(lab(ABC))
    for peer in "bc":
        site.part("a", peer)
    e9 = epochs.decided_at(9)
    for name in "bc":
        later = planned(name, ABC, primary="b", uid="p9", epoch=e9, generation=9)
        site.give(name, later)
    site.run(7 * 86_400 / 1000)
    assert site.runs()["a"] == ["p1"] and site.runs()["b"] == ["p9"]
    site.mend()
    site.run(5)
    assert site.runs() == {"b": ["p9"]}
    site.run(60)
    assert site.runs() == {"b": ["p9"]}, "and its old plan starts nothing again"


def test_without_a_group_everything_is_as_it_was() -> None:
    """Replicas that nobody takes over start at once, whatever peers there are."""
    from tests.unit.site_lab import assigned

    site = lab(ABC)
    plan = planned("a", ABC)
    site.boxes["a"].plan = type(plan)(**{**fields(plan), "assignments": {"p1": assigned(None)}})
    site.start("a")
    assert site.runs() == {"a": ["p1"]}


def test_a_holder_that_the_roster_does_not_name_is_never_missed() -> None:
    """Its silence says nothing: nobody here could hear it."""
    site = Lab({"b": planned("b", ABC, roster=["c"]), "c": planned("c", ABC, roster=["b"])})
    site.start()
    site.run(60)
    assert not site.runs()
    assert [a.reason for a in site.boxes["b"].machine.abilities()] == ["PeerUnknown"]


def test_two_that_see_different_keepers_do_not_outbid_each_other_for_ever() -> None:
    """What was measured on the way differs by a little, at the edge of a tie."""
    site = healthy(lab(group("a", "b")))
    site.part("a", "b")
    site.run(8)
    site.mend()
    site.boxes["b"].running[taken_by("b", E1 + 1)].ready_at = (
        site.boxes["a"].running["p1"].ready_at + 2.0
    )
    site.run(30)
    assert len(site.runs()) == 1
    (stay,) = next(iter(b.running for b in site.boxes.values() if b.running)).values()
    assert stay.epoch <= E1 + 4


def test_two_that_took_it_over_by_different_plans_hear_of_each_other() -> None:
    """A node that missed a change of the group took it over, too: neither is in the other's."""
    plans = {n: planned(n, group("d", n), primary="d", roster=("a", "b", "d")) for n in "ab"}
    site = Lab(plans)
    site.start()
    site.part("a", "b")
    site.run(40)
    assert len(site.runs()) == 2, "each misses the one that had it"
    site.mend()
    site.run(5)
    assert len(site.runs()) == 1


def test_a_node_that_missed_a_move_hears_of_it_from_the_one_that_has_it_now() -> None:
    old = planned("a", group("a", "d"), roster=("b", "d"))
    moved = planned("b", group("b", "d"), primary="b", uid="p2", epoch=E1 + (1 << 16), roster="ad")
    item = replace(moved.assignments["p2"], replaces="p1")
    site = Lab({"a": old, "b": replace(moved, assignments={"p2": item})})
    site.start()
    site.run(20)
    assert site.runs() == {"b": ["p2"]}


def test_a_stay_that_is_not_ready_supersedes_nobody() -> None:
    site = healthy(lab(group("a", "b", on_return="newer"), warm_s=1.0))
    site.warm_s = 1e6
    site.part("a", "b")
    site.run(10)
    site.mend()
    site.run(30)
    assert "a" in site.runs()


def test_where_the_older_is_wanted_one_that_never_becomes_ready_gives_way() -> None:
    site = healthy(lab(group("a", "b"), warm_s=1.0))
    site.warm_s = 1e6
    site.part("a", "b")
    site.run(10)
    assert len(site.runs()) == 2
    site.mend()
    site.run(5)
    assert list(site.runs()) == ["a"]


def test_beats_that_say_nothing_new_cause_no_work() -> None:
    site = healthy(lab(ABC))
    site.run(10)  # that no orchestrator is heard any more was news
    machine = site.boxes["b"].machine
    found = machine.standings()  # whoever looks makes them anew
    site.run(60)
    assert machine.standings() is found


def test_a_claim_is_told_again_only_when_it_changed() -> None:
    site = healthy(lab(ABC))
    site.boxes["a"].said.clear()
    site.run(60)
    assert not [s for _, _, s in site.boxes["a"].said if isinstance(s, Claims)]
    beats = [s for _, to, s in site.boxes["a"].said if isinstance(s, Beat) and to == "b"]
    assert 59 <= len(beats) <= 61


def test_time_in_which_this_process_slept_is_nobodys_silence() -> None:
    site = healthy(lab(ABC))
    b = site.boxes["b"]
    site.now += 60.0  # a suspended box: the others slept too
    site.feed("b", Tick())
    assert b.machine.standings()[KEY] is Standing.STANDBY
    site.run(30)
    assert site.runs() == {"a": ["p1"]}


def test_what_is_seen_of_other_replicas_changes_nothing() -> None:
    site = healthy(lab(ABC))
    foreign = view("x", workload_uid="other", replica="other-0")
    site.feed("b", RunsHere((foreign,), settled=True, steady=site.now))
    site.run(5)
    assert site.boxes["b"].decided == ()


def test_the_table_of_the_documentation_names_every_situation() -> None:
    text = str(takeover.__doc__)
    rows = re.findall(r"^    ([A-Z]{5,})\s", text, re.MULTILINE)
    exclusive = {Standing.ASKING, Standing.HOLDING, Standing.STOPPING}
    assert sorted(rows) == sorted(s.name for s in Standing if s not in exclusive)
    from agent.domain.site import exclusive as module

    rows = re.findall(r"^    ([A-Z]{5,})\s", str(module.__doc__), re.MULTILINE)
    assert set(rows) == {s.name for s in exclusive}
    assert Path(str(takeover.__file__)).exists()
