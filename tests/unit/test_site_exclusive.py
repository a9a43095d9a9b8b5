"""Exclusive replicas at a site: when a node asks for the lease, what runs by it, what is armed."""

from dataclasses import replace

from agent.domain.plan import ParsedPlan
from agent.domain.site.case import Standing
from agent.domain.site.identifying import stay_uid
from agent.domain.site.messages import (
    Decide,
    LeaseRequest,
    Propose,
    Stopping,
    SwitchChanged,
    Tick,
)
from polder import epochs
from tests.unit.site_lab import E1, KEY, Box, Lab, group, lab, planned

ABC = group("a", "b", "c", exclusive=True)
FIRST_S = 30.0  # voters that remember nothing grant nothing for twenty seconds


def healthy(who: object = ABC) -> Lab:
    site = lab(who)  # type: ignore[arg-type]
    site.start()
    site.run(FIRST_S)
    assert site.runs() == {"a": ["p1"]}
    return site


def the_stay(box: Box) -> tuple[str, int]:
    ((uid, running),) = box.running.items()
    return uid, running.epoch


def test_it_runs_with_its_ballot_as_epoch_and_is_armed_before_it_starts() -> None:
    site = lab(ABC)
    order: list[str] = []
    real = site._do

    def note(box: Box, instruction: object) -> None:
        if box.name == "a":
            order.append(type(instruction).__name__)
            if isinstance(instruction, Decide) and any(not s.stop for s in instruction.stays):
                order.append("runs")
        real(box, instruction)

    site._do = note  # type: ignore[method-assign]
    site.start()
    site.run(FIRST_S)
    uid, epoch = the_stay(site.boxes["a"])
    assert uid == "p1" and epoch > E1
    assert order.index("Arm") < order.index("runs")
    assert site.boxes["a"].machine.standings()[KEY] is Standing.HOLDING
    assert {site.boxes[n].machine.standings()[KEY] for n in "bc"} == {Standing.STANDBY}


def test_the_switch_is_armed_anew_with_every_renewal() -> None:
    site = healthy()
    deadline = site.boxes["a"].armed["p1"]
    site.run(2)
    assert site.boxes["a"].armed["p1"] > deadline
    assert site.now < site.boxes["a"].armed["p1"] <= site.now + 3.0


def test_a_dead_holder_is_followed_within_seconds_by_one_with_a_higher_epoch() -> None:
    site = healthy()
    _, before = the_stay(site.boxes["a"])
    site.kill("a")
    site.run(5)
    assert list(site.runs()) == ["b"]
    uid, epoch = the_stay(site.boxes["b"])
    assert epoch > before and uid == stay_uid(KEY, "b", epoch)
    assert site.boxes["b"].running[uid].takes_over == "p1"


def test_a_holder_that_is_cut_off_stops_before_its_lease_ends() -> None:
    site = healthy()
    deadline = site.boxes["a"].armed["p1"]
    for peer in "bc":
        site.part("a", peer)
    site.run(deadline + 1.0 - site.now)
    assert "a" not in site.runs() and "LeaseLost" in site.boxes["a"].told()
    site.run(3)
    assert list(site.runs()) == ["b"]
    site.run(20)
    assert list(site.runs()) == ["b"]
    site.mend()
    site.run(20)
    assert list(site.runs()) == ["b"], "a comes back as a standby"


def test_at_no_moment_do_two_run() -> None:
    site = healthy()
    for step in range(200):
        if step % 20 == 0:
            site.part("a", "bc"[step % 40 // 20])
        if step % 30 == 0:
            site.mend()
        site.run(0.25)
        assert sum(map(len, site.runs().values())) <= 1


def test_a_tenure_that_ended_does_not_come_back_under_its_name() -> None:
    site = healthy()
    for peer in "bc":
        site.part("a", peer)
        site.set_unable(peer, "NoRoom")
    site.run(8)
    assert not site.runs()
    site.mend()
    site.run(8)
    uid, _ = the_stay(site.boxes["a"])
    assert uid != "p1", "the plan may hold a stop for that by now"
    held = site.boxes["a"].effective
    assert held is not None and held.held["p1"].cause == "LeaseLost"


def test_a_restart_of_the_agent_keeps_it_running() -> None:
    site = healthy()
    site.save_s = 0.1  # our own vote for longer has to be written down, and comes last
    site.feed("a", Stopping())
    site.run(0.3)
    assert site.boxes["a"].armed["p1"] > site.now + 10.0, "renewed for as long as that may take"
    _, before = the_stay(site.boxes["a"])
    site.stop_agent("a")
    site.run(8)
    assert site.runs() == {"a": ["p1"]}
    site.start("a", same_boot=True)
    site.run(0.0)
    assert site.runs() == {"a": ["p1"]}
    site.run(20)
    uid, after = the_stay(site.boxes["a"])
    assert (uid, after > before) == ("p1", True), "the same stay, by a later ballot"


def restarted(site: Lab, name: str) -> None:
    """As in an upgrade."""
    site.feed(name, Stopping())
    site.run(0.5)
    site.stop_agent(name)
    site.run(3)
    site.start(name, same_boot=True)


def test_who_dies_soon_after_a_restart_of_its_agent_is_succeeded_as_soon_as_any_other() -> None:
    site = healthy()
    restarted(site, "a")
    site.run(2)
    assert site.boxes["a"].armed["p1"] < site.now + 3.0
    site.kill("a")
    site.run(6)
    assert list(site.runs()) == ["b"]
    site.stop_agent("b")
    site.stop_agent("c")
    site.boxes["b"].running.clear()
    site.start("b", "c")
    site.run(8)
    assert len(site.runs()) == 1, "nor do voters that began anew count what was granted for it"


def test_voters_keep_to_what_they_granted_until_the_switch_has_it() -> None:
    site = healthy()
    box = site.boxes["a"]
    box.switch_answers = False
    restarted(site, "a")
    site.run(4)
    assert box.armed["p1"] < site.now + 3.0, "it was asked to"
    assert not bounded(site, "a")
    box.switch_answers = True
    site.run(2)
    assert {node for _, node, _ in bounded(site, "a")} == {"b", "c"}


def test_voters_are_freed_also_of_what_did_not_reach_the_switch_any_more() -> None:
    """They had granted it for the restart when the agent ended, and the switch was not armed."""
    site = healthy()
    until = site.boxes["a"].armed["p1"]
    site.feed("a", Stopping())
    site.run(0.002)
    site.stop_agent("a")
    site.run(0.5)
    assert site.boxes["a"].armed["p1"] == until
    site.start("a", same_boot=True)
    site.run(1)
    site.kill("a")
    site.run(6)
    assert list(site.runs()) == ["b"]


def test_nobody_is_freed_while_something_else_of_the_replica_may_run_for_long() -> None:
    """The switch has a stay that this agent knows nothing of, from the one before it."""
    site = healthy()
    site.boxes["a"].armed["lost"] = site.now + 30.0
    restarted(site, "a")
    site.run(5)
    assert list(site.runs()) == ["a"] and not bounded(site, "a")


def bounded(site: Lab, name: str) -> list[tuple[float, str, object]]:
    """What it said that frees voters: (when, to whom, what)."""
    return [
        (at, to, said)
        for at, to, said in site.boxes[name].said
        if isinstance(said, LeaseRequest) and isinstance(said.step, Propose) and said.step.bounded
    ]


def test_without_a_switch_nothing_starts_and_the_next_one_may() -> None:
    site = lab(ABC)
    site.start()
    site.feed("a", SwitchChanged(False))
    site.run(60)
    assert len(site.runs()) == 1 and "a" not in site.runs()
    assert site.boxes["a"].machine.standings()[KEY] is Standing.UNABLE


def test_a_lease_that_is_renewed_is_not_looked_at_in_between() -> None:
    site = healthy()
    site.run(5)
    machine = site.boxes["a"].machine
    found = machine.standings()  # whoever looks makes them anew
    site.run(20)
    assert site.runs() == {"a": ["p1"]} and machine.standings() is found
    site.feed("a", SwitchChanged(True))
    assert machine.standings() == found and machine.standings() is not found
    site.part("a", "b")
    site.part("a", "c")
    site.run(3)
    assert "LeaseLost" in site.boxes["a"].told(), "one that is not ends in time"


def test_a_switch_that_dies_for_good_ends_the_tenure() -> None:
    site = healthy()
    site.feed("a", SwitchChanged(False))
    site.run(1)
    assert site.runs() == {"a": ["p1"]}, "it is started again at once, as a rule"
    site.feed("a", SwitchChanged(True))
    site.boxes["a"].armed.clear()
    site.run(2)
    assert "p1" in site.boxes["a"].armed, "a new switch knows of no deadline"
    site.feed("a", SwitchChanged(False))
    site.run(20)
    assert list(site.runs()) == ["b"] and "NoSwitch" in site.boxes["a"].told()


def test_a_stop_in_the_plan_gives_the_lease_back() -> None:
    """A move: the node that the plan names now gets it as soon as nothing is left."""
    site = healthy()
    e2 = epochs.decided_at(2)
    site.give("b", planned("b", ABC, primary="b", uid="p2", epoch=e2, generation=2))
    site.run(3)
    assert site.runs() == {"a": ["p1"]}, "not while the other one has it"
    site.give("a", planned("a", ABC, primary="b", uid="p2", epoch=e2, stops=["p1"], generation=2))
    site.run(3)
    assert site.runs() == {"b": ["p2"]}
    assert the_stay(site.boxes["b"])[1] > e2
    assert not site.boxes["a"].armed


def test_alone_without_a_majority_nobody_takes_over_and_it_is_said() -> None:
    site = healthy()
    site.kill("a")
    site.kill("c")
    site.run(60)
    assert not site.runs()
    assert [a.reason for a in site.boxes["b"].machine.abilities()] == ["NoVoters"]
    assert site.boxes["b"].conditions["NoVoters"]
    site.start("c")
    site.run(10)
    assert list(site.runs()) == ["b"] and not site.boxes["b"].conditions["NoVoters"]


def test_two_nodes_can_not_replace_each_other_and_know_it_beforehand() -> None:
    site = healthy(group("a", "b", exclusive=True))
    assert "web-0" in site.boxes["b"].conditions["NoVoters"]
    assert [a.reason for a in site.boxes["b"].machine.abilities()] == ["NoVoters"]


def test_a_node_of_its_own_holds_by_its_own_vote() -> None:
    site = healthy(group("a", exclusive=True))
    site.run(60)
    assert site.runs() == {"a": ["p1"]}


def test_a_witness_votes_and_never_runs_it() -> None:
    site = healthy(group("a", "b", witnesses=("w",), exclusive=True))
    site.kill("a")
    site.run(6)
    assert list(site.runs()) == ["b"]
    site.kill("b")
    site.run(30)
    assert not site.runs()


def test_after_a_power_cut_it_runs_again_and_once() -> None:
    site = healthy()
    for name in "abc":
        site.kill(name)
    site.run(3)
    site.start()
    for _ in range(60):
        site.run(0.25)
        assert sum(map(len, site.runs().values())) <= 1
    assert sum(map(len, site.runs().values())) == 1, "within 15 s of the agents' start"


def test_stop_after_isolation_stops_it_and_starts_it_nowhere_else() -> None:
    site = healthy(group("a", "b", "c", exclusive=True, stop_after_s=60.0))
    site.run(90)
    assert not site.runs() and "Isolated" in site.boxes["a"].told()


def test_what_becomes_exclusive_while_it_runs_is_not_stopped_for_that() -> None:
    site = lab(group("a", "b", "c"))
    site.start()
    site.run(30)
    began = site.boxes["a"].running["p1"].ready_at
    for name in "abc":
        site.give(name, planned(name, ABC, generation=2))
    site.run(4)
    assert site.boxes["a"].running["p1"].ready_at == began


def test_and_what_is_exclusive_no_more_is_no_longer_killed() -> None:
    site = healthy()
    began = site.boxes["a"].running["p1"].ready_at
    for name in "abc":
        site.give(name, planned(name, group("a", "b", "c"), generation=2))
    site.run(10)
    assert not site.boxes["a"].armed
    assert site.boxes["a"].running["p1"].ready_at == began


def test_a_plan_that_says_nothing_of_it_any_more_ends_it_in_time() -> None:
    """Nobody could renew its lease: it stops gracefully, and is not killed."""
    site = healthy()
    plan: ParsedPlan = planned("a", ABC, generation=2)
    site.give("a", replace(plan, assignments={}))
    site.run(10)
    assert not site.boxes["a"].running or "a" not in site.runs()


def test_an_agent_that_overslept_stops_at_once() -> None:
    site = healthy()
    site.now += 5.0
    site.boxes["a"].running.clear()  # the switch
    site.feed("a", Tick())
    assert all(s.stop for s in site.boxes["a"].decided)


def test_a_standby_that_may_not_any_more_asks_for_nothing() -> None:
    """Past the promised time the holder goes on, and nobody follows it."""
    site = Lab({n: planned(n, ABC, autonomy_s=100.0) for n in "abc"})
    site.start()
    site.run(FIRST_S)
    site.run(100)
    assert site.runs() == {"a": ["p1"]} and "AutonomyOver" in site.boxes["b"].conditions
    site.kill("a")
    site.run(20)
    assert not site.runs()


def five(*dead: str) -> Lab:
    site = lab(group(*"abcde", exclusive=True))
    site.start(*(name for name in "abcde" if name not in dead))
    return site


def test_a_holder_that_is_heard_and_lost_its_majority_is_followed_by_one_that_has_one() -> None:
    """Two are dead, and the link of the holder to one of the others breaks: c reaches both."""
    site = five()
    site.run(FIRST_S)
    site.kill("d")
    site.kill("e")
    site.run(10)
    assert list(site.runs()) == ["a"]
    site.part("a", "b")
    site.run(20)
    assert list(site.runs()) == ["c"]
    site.mend()
    site.run(30)
    assert list(site.runs()) == ["c"], "and nobody moves it back"


def test_who_asks_in_vain_from_the_start_is_waited_for_and_then_no_more() -> None:
    site = five("d", "e")
    site.part("a", "b")
    site.run(FIRST_S)
    assert not site.runs()
    site.run(20)
    assert list(site.runs()) == ["c"]


def test_one_that_holds_it_and_is_slow_to_start_is_not_asked_after() -> None:
    """Whoever gave it the lease knows."""
    site = lab(ABC, warm_s=120.0)
    site.start()
    site.run(100)
    assert list(site.runs()) == ["a"]
    asked = [s for _, _, s in site.boxes["b"].said if isinstance(s, LeaseRequest)]
    assert not asked, "it is claimed, and this node's voter knows by whom it is held"


# ---- what it waits for is said ----


def waiting_text(box: Box) -> str:
    """Of what is assigned here and must not start yet."""
    (stay,) = (stay for stay in box.decided if stay.waits)
    assert stay.stop == "WaitingForLease"
    return stay.message


def test_voters_that_remember_nothing_are_named_while_they_are_waited_for() -> None:
    site = lab(ABC)
    site.start()
    site.run(3)
    text = waiting_text(site.boxes["a"])
    assert text == (
        "it waits for its lease: a, b, c, which vote on it, cannot know yet what ran before: they "
        "grant nothing for up to 20 s"
    )
    site.run(FIRST_S)
    assert site.runs() == {"a": ["p1"]}


def test_voters_that_are_not_heard_are_named() -> None:
    site = lab(ABC)
    site.start("a")
    site.run(5)
    text = waiting_text(site.boxes["a"])
    assert text.endswith("of a, b, c, which vote on it, these are not heard: b, c")
    site.start("b", "c")
    site.run(2)
    assert "cannot know yet" in waiting_text(site.boxes["a"]), "it is not stale"
