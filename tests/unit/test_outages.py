"""Each guard rail against the outage that it comes from: what happened there, replayed here.

What needs a real Store or session (a late leader's write, a plan too large to send) is in
tests/integration/test_outages_written.py. Sources are the operators' own reports.
"""

import pytest

from agent.domain.plan import Accepted, Refused, consider
from orchestrator.domain.freezes import Freeze
from orchestrator.domain.holds import Scope
from orchestrator.domain.liveness import Liveness
from orchestrator.domain.revisions import KEEP_LAST, collectable
from orchestrator.store import keys
from polder.manifest import Taint
from tests.sim.agent_plans import IDENTITY, assignment, node_plan, plan, stop
from tests.unit.guard_world import GuardedWorld


def running(count: int, **sites: int) -> GuardedWorld:
    made = GuardedWorld().sites(**sites)
    made.want("app", count=count)
    made.settle()
    assert len(made.world.where()) == count
    return made


def test_aws_2025_10_20_a_plan_that_was_applied_late() -> None:
    """In us-east-1 a delayed DNS enactor applied a plan that was much older than the one in use,
    since its check for staleness had been made long before it wrote. Here the check is where the
    plan is applied: an agent that uses generation 9 refuses 8, however valid it was.
    https://aws.amazon.com/message/101925/
    """
    in_use = plan(9, [assignment("a"), assignment("b")])
    late = node_plan(8, [assignment("a")], [stop("b")]).SerializeToString()
    answer = consider(in_use, IDENTITY, late)
    assert isinstance(answer, Refused) and answer.reason == "Stale"


def test_aws_2025_10_20_the_plan_in_use_was_cleaned_up_as_obsolete() -> None:
    """Then the clean-up of the enactor that was up to date deleted that older plan, because it was
    many generations old: it was the one in use, and the endpoint had no address left. Here age is
    no reason: a revision that any node runs, or that a rollout may return to, is never collected.
    https://aws.amazon.com/message/101925/
    """
    newest = 10 * KEEP_LAST
    numbers = range(1, newest + 1)
    gone = collectable(numbers, needed={newest, 2}, in_use={1, 7})
    assert not {1, 2, 7, newest} & set(gone) and len(gone) > KEEP_LAST


@pytest.mark.parametrize("length", [0, 1, 10, 40])
def test_google_cloud_2025_06_12_blank_fields_in_a_policy(length: int) -> None:
    """A policy with unintended blank fields was replicated to every region within seconds, and the
    binaries that read it crashed in a loop. Here a plan that is empty, cut or blank is refused with
    a reason, the agent goes on with the one that it has, and the orchestrator tells of it.
    https://status.cloud.google.com/incidents/ow5i3PPK96RduMcb1SsW
    """
    in_use = plan(9, [assignment("a")])
    whole = node_plan(10, [assignment("a"), assignment("b")]).SerializeToString()
    assert isinstance(consider(in_use, IDENTITY, whole), Accepted)
    assert isinstance(consider(in_use, IDENTITY, whole[:length]), Refused)
    blank = node_plan(10).SerializeToString()
    answer = consider(in_use, IDENTITY, blank)
    assert isinstance(answer, Accepted) and answer.dropped == ("a",)  # it runs on, and is told of


def test_gitlab_2017_01_31_a_database_that_suddenly_was_empty() -> None:
    """The data directory of the primary database was removed by accident. An orchestrator over
    such a store sees nothing where there were a hundred workloads: it stops nothing, places nothing
    anew, says so, and goes on by itself when the data is back.
    https://about.gitlab.com/blog/postmortem-of-database-outage-of-january-31/
    """
    home = running(4, a=10, b=10)
    for number in range(100):
        home.want(f"w{number}")
    home.settle()
    before, workloads = home.world.where(), dict(home.world.workloads)
    placements = dict(home.world.placements)
    home.world.workloads.clear()
    home.world.placements.clear()
    assert all(home.tick().changes_nothing for _ in range(10))
    assert home.reasons() == ["StoreImplausible"]
    home.world.workloads, home.world.placements = workloads, placements
    home.settle()
    assert home.world.where() == before and not home.holds


def test_amazon_s3_2017_02_28_an_input_that_took_away_more_than_was_meant() -> None:
    """A command was to remove a small number of servers; one of its inputs was wrong, and it took
    away so many that two subsystems had to be restarted. Here a count with digits missing is held:
    nothing stops until somebody says that it was meant.
    https://aws.amazon.com/message/41926/
    """
    home = running(40, a=5)
    home.want("app", count=4)  # 40, and a finger that slipped
    home.run(30)
    assert len(home.world.where()) == 40
    (hold,) = home.holds
    assert "36 of 40 replicas" in hold.message
    home.approve(hold)
    home.settle()
    assert len(home.world.where()) == 4


def test_meta_2021_10_04_one_command_for_everything_and_an_audit_that_let_it_through() -> None:
    """A command that was to assess the backbone's capacity took all of it down; the audit tool that
    should have stopped it had a bug. Here a taint that lands on every node is held by what it would
    do, whoever checked it before, and nodes of other sites are not touched either.
    https://engineering.fb.com/2021/10/05/networking-traffic/outage-details/
    """
    home = running(30, a=5, b=5)
    for name in list(home.world.nodes):
        home.world.change(name, taints=(Taint("maintenance", "true", "NoExecute"),))
    home.run(30)
    assert len(home.world.where()) == 30


def test_meta_2021_10_04_name_servers_that_judged_themselves_by_a_link_they_had_lost() -> None:
    """With the backbone gone, the name servers at the edge could reach no data centre, took
    themselves for unhealthy and withdrew their routes: what still worked vanished too. Here an
    orchestrator that hears nobody doubts itself: nothing is evicted anywhere, for as long as it
    lasts.
    https://engineering.fb.com/2021/10/05/networking-traffic/outage-details/
    """
    home = running(30, a=5, b=5, c=1)
    home.fall_silent(*home.world.nodes)
    assert home.run(6 * 3600, step=15.0) == 0
    (hold,) = home.holds
    assert hold.scope is Scope.EVERYTHING and home.reasons().count("MassSilence") == 1
    home.speak(*home.world.nodes)
    assert home.run(60) == 0 and not home.holds


def test_github_2018_10_21_forty_three_seconds_and_a_failover_of_everything() -> None:
    """Connectivity between two data centres was lost for 43 seconds; that was enough for automation
    to move the primaries of the databases to the other coast, and it took a day to put right. Here
    a site that is cut off for 43 seconds, longer than one node's `lost_after`, moves nothing: that
    most of it went at once speaks against its being dead.
    https://github.blog/2018-10-30-oct21-post-incident-analysis/
    """
    home = running(40, east=10, west=10)
    before = home.world.where()
    east = [name for name in home.world.nodes if name.startswith("east")]
    home.fall_silent(*east)
    assert home.run(43) == 0
    home.speak(*east)
    assert home.run(600) == 0
    assert home.world.where() == before


def test_kubernetes_zones_whose_nodes_are_all_not_ready() -> None:
    """Kubernetes' node controller evicts more slowly from a zone most of which is unhealthy, and
    not at all when all zones are: then its own connectivity is the likely fault. Here: most of a
    site is silent, and nobody is evicted there; a single dead box elsewhere is left as ever.
    https://kubernetes.io/docs/concepts/architecture/nodes/
    """
    home = running(40, a=10, b=10)
    dark = [f"a-{n}" for n in range(6)]
    home.fall_silent(*dark, "b-0")
    home.run(300)
    assert {home.state(name) for name in dark} == {Liveness.SILENT}
    assert home.state("b-0") is Liveness.LOST and "b-0" not in home.world.where().values()


def test_aws_2025_10_20_health_that_alternated_between_failing_and_passing() -> None:
    """Later that day health checks of network load balancers alternated, since new instances were
    not reachable yet: healthy targets were taken out of DNS and put back in, again and again. Here
    a node that is lost and found for ten minutes loses each replica once at most.
    https://aws.amazon.com/message/101925/
    """
    home = running(8, a=4)
    stops = 0
    for _ in range(10):
        home.fall_silent("a-0", "a-1")
        stops += home.run(40)
        home.speak("a-0", "a-1")
        stops += home.run(20)
    assert stops <= 8
    assert home.reasons().count("NodeFlapping") == 2
    told = [name for reason, name, _ in home.told if reason in ("NodeSilent", "NodeLost")]
    assert len(told) <= 8  # and not one for each of the ten rounds


def test_aws_2025_10_20_automation_that_had_to_be_switched_off() -> None:
    """To recover, engineers disabled automatic failover, and the DNS automation world-wide. Here
    that is one command, and it holds through the restarts of a bad night.
    https://aws.amazon.com/message/101925/
    """
    home = running(20, a=4)
    before = home.world.where()
    home.put(Freeze("", "operator/ann", "bad night", int(home.now * 1000)).record())
    home.fall_silent("a-0")
    home.want("app", count=5)
    for _ in range(5):
        home.new_leader()
        home.run(60)
    assert home.world.where() == before
    del home.kept[keys.freeze("")]
    home.run(60)
    assert home.world.where() != before


@pytest.mark.parametrize("jump_s", [86_400.0, -86_400.0])
def test_a_wall_clock_that_jumps_by_a_day(jump_s: float) -> None:
    """No single outage, and part of many: leases and timeouts on a clock that somebody sets."""
    home = running(20, a=5, b=5)
    home.jump = jump_s
    assert home.run(120) == 0 and home.reasons() == []
    home.jump = 0.0
    assert home.run(120) == 0 and home.reasons() == []
