"""The leader obeys what operators of a site decided: no failure, no replacement, no change."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.adoption import Case, Verdict, judge
from orchestrator.domain.liveness import Liveness
from orchestrator.domain.overrides import LocalOverride
from orchestrator.domain.site_freezes import marked, without_frozen_sites
from orchestrator.records import AssignmentRecord, GroupRecord
from orchestrator.scheduling.decisions import Plan
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.snapshot import Observed, Resources, Template
from polder.epochs import decided_at
from polder.manifest.placement import Failover
from polder.manifest.update import Update
from polder.overrides import Override
from polder.succession import Contender
from tests.unit.rollout_world import RolloutWorld
from tests.unit.scheduling_world import World, box

BIGGER = Template(Resources(cpu_millis=200, memory_bytes=64 << 20))


def stopped(replica: str = "web-0", site: str = "s1") -> LocalOverride:
    workload = replica.rpartition("-")[0]
    decision = Override("stopped", "true", f"uid-{workload}", "ns", replica, stamp=1, node="a")
    return LocalOverride(site, replace(decision, by="operator/ann"), judged=True)


def frozen(site: str = "s1") -> LocalOverride:
    return LocalOverride(site, Override("frozen", "true", stamp=1, node="a", by="operator/ann"))


def two_sites() -> World:
    world = World(now=1_000.0)
    return world.add(*(box(f"{site}-{n}", site) for site in ("s1", "s2") for n in range(2)))


def at(world: World, replica: str) -> str:
    return world.where()[replica]


def rests(world: World, *replicas: str) -> None:
    """Its agent has stopped it."""
    for node, placement in world.placements.items():
        for item in placement.assignments:
            if item.replica in replicas:
                world.observed[node, item.replica_uid] = Observed(
                    False, False, item.revision, reason="StoppedLocally"
                )


def on_site(world: World, count: int = 1, **facts: Any) -> World:
    """web with all of its replicas at s1, settled; s2 has room, too."""
    for n in range(2):
        world.change(f"s2-{n}", unschedulable=True)
    world.want("web", count=count, **facts)
    world.settle()
    for n in range(2):
        world.change(f"s2-{n}", unschedulable=False)
    return world


def codes(decided: Plan) -> set[str]:
    return {explanation.code for explanation in decided.explanations}


def lost(world: World, node: str) -> None:
    world.change(node, liveness=Liveness.LOST, since=0.0)


# --- stopped ----------------------------------------------------------------------------------


def test_its_lost_node_is_no_reason_to_start_it_elsewhere() -> None:
    world = on_site(two_sites())
    home = at(world, "web-0")
    world.local.append(stopped())
    rests(world, "web-0")
    lost(world, home)
    decided = world.step()
    assert decided.changes_nothing and codes(decided) == {"StoppedLocally"}
    world.local.clear()
    assert not world.step().changes_nothing and at(world, "web-0") != home


def test_a_drain_moves_it_within_its_site_alone() -> None:
    world = on_site(two_sites())
    home = at(world, "web-0")
    world.local.append(stopped())
    rests(world, "web-0")
    world.change(home, draining=True)
    world.step()
    assert at(world, "web-0") != home and at(world, "web-0").startswith("s1")
    rests(world, "web-0")
    world.change(at(world, "web-0"), draining=True, drain_overdue=True)
    decided = world.step()
    assert at(world, "web-0").startswith("s1") and codes(decided) == {
        "StoppedLocally",
        "CannotMove",
    }


def test_it_gets_a_new_template_at_once_and_holds_no_other_up() -> None:
    world = on_site(two_sites(), 3, update=Update(max_unavailable="1", max_surge="0"))
    world.local.append(stopped())
    world.update("web", BIGGER)
    for _ in range(8):
        world.obey()
        rests(world, "web-0")
        if world.step().changes_nothing:
            break
    revisions = [item.revision for p in world.placements.values() for item in p.assignments]
    assert revisions == [2, 2, 2]


def test_a_replacement_of_it_is_given_up() -> None:
    world = on_site(two_sites())
    home = at(world, "web-0")
    world.change(home, draining=True)
    world.step()
    assert sum(len(p.assignments) for p in world.placements.values()) == 2, "one starts beside it"
    world.change(home, draining=False)
    world.local.append(stopped())
    rests(world, "web-0")
    decided = world.step()
    (stop,) = decided.stop
    assert stop.node != home and stop.cause.value == "ReplacementFailed"


def test_the_same_replica_at_another_site_is_not_meant() -> None:
    world = on_site(two_sites())
    world.local.append(stopped(site="s2"))
    lost(world, at(world, "web-0"))
    assert not world.step().changes_nothing


def test_an_exclusive_one_is_not_placed_anew_when_its_site_is_isolated() -> None:
    rules = Failover(standbys=1, exclusive=True, when_isolated="stop", stop_after=60.0)
    world = World(now=1_000.0).add(*(box(f"s1-{n}") for n in range(3)), box("z", "s2"))
    world.change("z", unschedulable=True)
    world.want("web", failover=rules)
    world.settle()
    world.change("z", unschedulable=False)
    for n in range(3):
        lost(world, f"s1-{n}")
    world.now = 10_000.0
    before = at(world, "web-0")
    world.local.append(stopped())
    world.step()
    assert at(world, "web-0") == before
    world.local.clear()
    world.step()
    assert at(world, "web-0") == "z"


@pytest.mark.parametrize("said", [True, False])
def test_no_rollout_waits_for_it_or_fails_by_it(said: bool) -> None:
    """A replica that does not run for another reason fails the revision."""
    rolling = RolloutWorld()
    rolling.world.add(*(box(f"s1-{n}") for n in range(4)))
    update = Update(progress_deadline=60.0, max_surge="0", max_unavailable="2")
    rolling.apply("web", "v1", count=2, update=update)
    rolling.goes_on(60.0, 5.0)
    if said:
        rolling.world.local.append(stopped())
    rolling.apply("web", "v2")
    for _ in range(40):
        rolling.obey()
        rests(rolling.world, "web-0")
        rolling.tick(5.0)
    assert ("RolloutFailed" not in rolling.told) is said
    if said:
        assert rolling.versions("web") == {"web-0": 2, "web-1": 2}


# --- frozen -----------------------------------------------------------------------------------


def decided_of(world: World) -> Plan:
    """As the guard rails let it through."""
    snapshot = marked(world.snapshot())
    return without_frozen_sites(plan(snapshot, world.now), snapshot)


@pytest.mark.parametrize(
    "cause",
    ["lost", "drained", "overdue", "deleted", "scaled", "gone", "updated", "more"],
)
def test_nothing_changes_at_a_frozen_site(cause: str) -> None:
    world = on_site(two_sites(), 2)
    home = at(world, "web-0")
    world.local.append(frozen())
    match cause:
        case "lost":
            lost(world, home)
        case "drained":
            world.change(home, draining=True)
        case "overdue":
            world.change(home, draining=True, drain_overdue=True)
        case "deleted":
            world.change(home, deleting=True)
        case "scaled":
            world.want("web", count=0)
        case "gone":
            world.want("web", deleting=True)
        case "updated":
            world.update("web", BIGGER)
        case "more":
            world.want("web", count=4)
    decided = decided_of(world)
    touched = {place.node for place in decided.place} | {
        place.moved_from for place in decided.place
    }
    assert not {name for name in touched if name.startswith("s1")}
    assert not decided.stop and not decided.revise and not decided.standbys
    assert "SiteFrozen" in codes(decided)
    assert len(decided.place) == (2 if cause == "more" else 0), "elsewhere life goes on"
    world.local.clear()
    assert not decided_of(world).changes_nothing


def test_its_plans_are_still_renewed() -> None:
    """What operators here drop must reach the site."""
    world = on_site(two_sites(), 2)
    world.local.append(frozen())
    snapshot = marked(replace(world.snapshot(), reroled=frozenset({"s1-0"})))
    assert without_frozen_sites(plan(snapshot, 0.0), snapshot).refresh == ("s1-0",)


# --- placedOn ---------------------------------------------------------------------------------

E = decided_at(5)
GROUP = GroupRecord(decided_at(4), ("a", "b"))
RECORD = AssignmentRecord("ns", "web", "w", "web-0", "old", E, 1, group=GROUP)


@pytest.mark.parametrize(
    ("asked", "serves", "ready_s", "verdict"),
    [
        ("b", True, 1.0, Verdict.ADOPT),  # by the common rule the older one would stay
        ("b", True, 0.0, Verdict.WAIT),
        ("b", False, 1.0, Verdict.ADOPT),
        ("a", True, 1.0, Verdict.KEEP),
        ("c", True, 1.0, Verdict.WAIT),
        ("", True, 99.0, Verdict.KEEP),
    ],
)
def test_of_two_the_one_stays_that_operators_asked_for(
    asked: str, serves: bool, ready_s: float, verdict: Verdict
) -> None:
    local = Contender("b", "local", E + 1, ready_s > 0, ready_s)
    case = Case("a", RECORD, E, True, serves, 900.0, local, True, asked)
    assert judge(case) is verdict
