"""Rules beyond room: what operators ask of places, of neighbours, of their own share and rank."""

from collections import Counter

import pytest

from orchestrator.domain.liveness import Liveness
from orchestrator.scheduling.decisions import Cause
from orchestrator.scheduling.explain import explain
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.snapshot import Mode, Namespace, Quota, Resources, Site, Template
from polder.manifest import Placement
from polder.manifest.facts import Certification, Energy
from polder.manifest.placement import (
    Affinity,
    DeviceExpression,
    Failover,
    LabelExpression,
    Near,
)
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty import SiteFacts
from tests.unit.scheduling_world import World, box
from tests.unit.test_scheduling_explain import site

BIG = Template(Resources(cpu_millis=900))
HALF = Template(Resources(cpu_millis=450))


def four() -> World:
    return World().add(box("a1", "a"), box("a2", "a"), box("b1", "b"), box("b2", "b"))


# --- labels, devices, distance -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [
        ("In", ("3", "5"), {"n3"}),
        ("NotIn", ("3",), {"n7", "bare", "word"}),
        ("Exists", (), {"n3", "n7", "word"}),
        ("DoesNotExist", (), {"bare"}),
        ("Gt", ("3",), {"n7"}),
        ("Lt", ("7",), {"n3"}),
    ],
)
def test_set_operators(operator: str, values: tuple[str, ...], expected: set[str]) -> None:
    world = World().add(
        box("n3", labels={"rack": "3"}),
        box("n7", labels={"rack": "7"}),
        box("word", labels={"rack": "x"}),
        box("bare"),
    )
    where = Placement(match_expressions=(LabelExpression("rack", operator, values),))
    world.want("mon", mode=Mode.PER_NODE, placement=where)
    world.want("one", placement=where)
    world.step()
    found = world.where()
    assert {node for name, node in found.items() if name.startswith("mon")} == expected
    assert found["one-0"] in expected


def test_devices_are_judged_by_the_worst_of_a_node() -> None:
    t4, old = {"vendor": "nvidia", "model": "t4"}, {"vendor": "nvidia", "model": "k80"}
    gpu = Resources(1000, 1 << 30, 10 << 30, {"polder.eu/gpu": 2})
    world = World().add(
        box("good", allocatable=gpu, devices={"polder.eu/gpu": (t4, t4)}),
        box("mixed", allocatable=gpu, devices={"polder.eu/gpu": (t4, old)}),
        box("silent", allocatable=gpu),
    )
    asked = DeviceExpression("polder.eu/gpu", "model", "In", ("t4",))
    world.want(
        "ai",
        Template(Resources(devices={"polder.eu/gpu": 1})),
        count=3,
        placement=Placement(device_expressions=(asked,)),
    )
    decided = world.step()
    assert [place.node for place in decided.place] == ["good", "good"]
    assert {r.code for r in decided.explanations[0].reasons} == {
        "DeviceMismatch",
        "InsufficientDevices",
    }


def test_near_is_a_bound_on_the_estimated_round_trip() -> None:
    world = World().add(box("here", "utrecht"), box("near", "berlin"), box("far", "lisbon"))
    world.add(box("nowhere", "lost"))
    world.sites = {
        "utrecht": Site("utrecht", SiteFacts("utrecht"), 52.09, 5.12),
        "berlin": Site("berlin", SiteFacts("berlin"), 52.52, 13.40),
        "lisbon": Site("lisbon", SiteFacts("lisbon"), 38.72, -9.14),
    }
    near = Placement(near=Near("utrecht", 12.0))
    world.want("mon", mode=Mode.PER_NODE, placement=near)
    world.step()
    assert set(world.where().values()) == {"here", "near"}
    found = explain(world.snapshot(), world.workloads["uid-mon"], 0.0)
    knobs = {g.knob for g in found.groups if g.code == "TooFar"}
    assert knobs == {"placement.near", "placement.near.rttMsMax"}


# --- neighbours ----------------------------------------------------------------------------------


def test_affinity_follows_and_anti_affinity_keeps_apart_both_ways() -> None:
    world = four()
    world.want("db", labels={"app": "db"}, created_at_ms=1)
    close = Placement(affinity=(Affinity({"app": "db"}, "site"),))
    apart = Placement(anti_affinity=(Affinity({"app": "db"}, "site"),))
    world.want("web", count=3, placement=close, created_at_ms=2)
    world.want("noisy", count=3, placement=apart, created_at_ms=3)
    world.step()
    found = world.where()
    home = found["db-0"][0]
    assert {found[f"web-{n}"][0] for n in range(3)} == {home}
    assert {found[f"noisy-{n}"][0] for n in range(3)} == {"b" if home == "a" else "a"}
    world.want("db", count=9)
    world.step()
    assert {node[0] for name, node in world.where().items() if name.startswith("db")} == {home}


def test_a_follower_is_placed_in_the_plan_that_places_whom_it_follows() -> None:
    world = four()
    world.want("web", placement=Placement(affinity=(Affinity({"app": "db"}, "node"),)), priority=9)
    world.want("db", labels={"app": "db"})
    world.step()
    assert world.where()["web-0"] == world.where()["db-0"]
    assert world.step().changes_nothing


def test_replicas_of_one_workload_apart_by_site() -> None:
    world = four()
    own = Placement(anti_affinity=(Affinity({"app": "x"}, "site"),))
    world.want("x", count=3, labels={"app": "x"}, placement=own)
    decided = world.step()
    assert sorted(node[0] for node in world.where().values()) == ["a", "b"]
    assert decided.explanations[0].replicas == ("x-2",)
    world = four()
    own = Placement(anti_affinity=(Affinity({"app": "x"}, "node"),))
    world.want("x", count=6, labels={"app": "x"}, placement=own)
    world.step()
    assert sorted(world.where().values()) == ["a1", "a2", "b1", "b2"]


def test_replicas_of_one_workload_together() -> None:
    world = four()
    own = Placement(affinity=(Affinity({"app": "x"}, "site"),))
    world.want("x", count=4, labels={"app": "x"}, placement=own)
    world.step()
    assert len({node[0] for node in world.where().values()}) == 1


def test_a_preference_gives_way() -> None:
    world = four()
    world.want("db", labels={"app": "db"}, created_at_ms=1)
    likes = Placement(affinity=(Affinity({"app": "db"}, "node", required=False),))
    world.want("web", BIG, count=2, placement=likes, created_at_ms=2)
    world.step()
    found = world.where()
    assert found["db-0"] in (found["web-0"], found["web-1"])
    assert len({found["web-0"], found["web-1"]}) == 2


# --- quotas, packing, green ----------------------------------------------------------------------


def test_a_quota_is_kept_and_named() -> None:
    world = four()
    world.namespaces["ns"] = Namespace("ns", quota=Quota(replicas=5, cpu_millis=1000))
    world.want("web", Template(Resources(cpu_millis=300)), count=5)
    decided = world.step()
    assert len(world.where()) == 3
    (why,) = decided.explanations
    assert why.code == "QuotaExceeded" and len(why.replicas) == 2
    assert "100 of its quota of cpu left" in why.message
    blockers = explain(world.snapshot(), world.workloads["uid-web"], 0.0).blockers
    assert [reason.knob for reason in blockers] == ["namespace.quota.cpu"]
    world.settle()
    world.update("web", Template(Resources(cpu_millis=400)))
    world.settle()
    held = [i.revision for p in world.placements.values() for i in p.assignments]
    assert sorted(held) == [1, 1, 2]  # one may grow by what is left; the others would exceed it


@pytest.mark.parametrize("mode", [Mode.PER_SITE, Mode.PER_NODE])
def test_a_quota_holds_for_every_mode(mode: Mode) -> None:
    world = four()
    world.namespaces["ns"] = Namespace("ns", quota=Quota(replicas=1))
    world.want("web", mode=mode)
    world.step()
    assert len(world.where()) == 1


def test_a_namespace_packs_or_spreads() -> None:
    for pack, nodes in ((True, 1), (False, 4)):
        world = four()
        world.namespaces["ns"] = Namespace("ns", pack=pack)
        world.want("web", count=4)
        world.step()
        assert len(set(world.where().values())) == nodes
        world = four()
        world.namespaces["ns"] = Namespace("ns", pack=pack)
        for number in range(4):
            world.want(f"w{number}")
        world.step()
        assert len(set(world.where().values())) == nodes


def test_greener_sites_first_when_asked() -> None:
    world = World().add(box("c1", "coal"), box("h1", "hydro"), box("u1", "unknown"))
    for name, carbon in (("coal", 700.0), ("hydro", 20.0)):
        energy = Energy(carbon_intensity_g_per_kwh=carbon)
        world.sites[name] = Site(name, SiteFacts(name, energy=energy))
    world.want("web", HALF, count=5, placement=Placement(prefer_green=True))
    world.step()
    assert Counter(n[0] for n in world.where().values()) == {"h": 2, "c": 2, "u": 1}


# --- priority ------------------------------------------------------------------------------------


def test_preemption_takes_the_least_and_places_it_again() -> None:
    world = World().add(box("n1"), box("n2"))
    world.want("cheap", BIG)
    world.want("dear", BIG, priority=5)
    world.settle()
    spot = world.where()["cheap-0"]
    world.add(box("tiny", allocatable=Resources(950, 1 << 30, 1 << 30)))
    world.change("tiny", labels={"size": "small"})
    near = Placement(node_selector={})
    world.want("vip", Template(Resources(cpu_millis=980)), priority=9, placement=near)
    decided = world.step()
    assert [(s.node, s.cause) for s in decided.stop] == [(spot, Cause.PREEMPTED)]
    assert [p.assignment.replica for p in decided.place] == ["cheap-0"]  # placed again at once
    assert decided.explanations[0].code == "Preempting"
    assert world.step().changes_nothing  # nobody else makes room while this is awaited
    world.settle()
    assert world.where() == {"vip-0": spot, "cheap-0": "tiny", "dear-0": world.where()["dear-0"]}


def test_explanations_of_a_great_many_can_be_compared() -> None:
    """Whoever watches a workload is told when its explanations change."""
    world = World().add(box("n1"), box("n2"))
    world.want("cheap", BIG)
    world.settle()
    world.want("vip", Template(Resources(cpu_millis=980)), priority=9, count=300)
    decided = world.step()
    assert sum(item.replica_count for item in decided.explanations) >= 298
    assert len({hash(item) for item in decided.explanations}) == len(decided.explanations)


def test_as_few_as_will_do_are_preempted() -> None:
    world = World().add(box("n1"), box("n2"))
    for number in range(4):
        world.want(f"s{number}", Template(Resources(cpu_millis=450)), priority=number)
    world.settle()
    world.want("vip", Template(Resources(cpu_millis=500)), priority=9)
    (stop,) = world.step().stop
    assert stop.cause is Cause.PREEMPTED
    other = [n for n, p in world.placements.items() if n != stop.node]
    assert world.workloads[stop.assignment.workload_uid].priority <= 2 and other


def test_equals_and_protected_namespaces_are_not_preempted() -> None:
    world = World().add(box("n1"))
    world.want("first", BIG, priority=1)
    world.settle()
    world.want("second", BIG, priority=1)
    assert not world.step().stop
    world.want("second", priority=2)
    world.namespaces["ns"] = Namespace("ns", preemptible=False)
    assert not world.step().stop
    world.namespaces["ns"] = Namespace("ns")
    assert len(world.step().stop) == 1


# --- compliance ----------------------------------------------------------------------------------


def certified(name: str, until: str) -> Site:
    held = (Certification(scheme="C5", issuer="BSI", valid_until=until),)
    return site(name, certifications=held)


def test_a_replica_whose_site_is_no_longer_compliant_is_replaced_start_first() -> None:
    world = World().add(box("a1", "a"), box("b1", "b"))
    world.sites = {"a": certified("a", "2026-01-31"), "b": certified("b", "2030-01-31")}
    world.now = 1_767_225_600.0  # 2026-01-01
    world.change("b1", unschedulable=True)
    world.want("web", sovereignty=SovereigntySpec(certifications=("C5",)))
    world.settle()
    assert world.where() == {"web-0": "a1"}
    world.now += 60 * 86400
    decided = world.step()
    assert decided.changes_nothing  # no compliant place: it keeps running
    (found,) = decided.noncompliant
    assert found.node == "a1" and found.reasons[0].code == "CertificateExpired"
    assert decided.explanations[0].code == "NonCompliant" and not found.replacement
    world.change("b1", unschedulable=False)
    decided = world.step()
    assert [p.node for p in decided.place] == ["b1"] and not decided.stop
    assert decided.noncompliant[0].replacement == "b1"
    assert world.step().changes_nothing  # not yet seen ready
    world.obey()
    (stop,) = world.step().stop
    assert (stop.node, stop.cause, stop.moved_to) == ("a1", Cause.NON_COMPLIANT, "b1")
    world.settle()
    assert world.where() == {"web-0": "b1"} and not world.step().noncompliant


@pytest.mark.parametrize("mode", [Mode.PER_SITE, Mode.PER_NODE])
def test_what_cannot_move_to_a_compliant_place_keeps_running(mode: Mode) -> None:
    world = World().add(box("a1", "a"))
    world.sites = {"a": certified("a", "2026-01-31")}
    world.now = 1_767_225_600.0
    world.want("web", mode=mode, sovereignty=SovereigntySpec(certifications=("C5",)))
    world.settle()
    world.now += 60 * 86400
    decided = world.step()
    assert decided.changes_nothing and len(decided.noncompliant) == 1


def test_a_replacement_whose_node_dies_is_given_up_and_the_old_one_stays() -> None:
    world = four()
    world.want("web")
    world.settle()
    old = world.where()["web-0"]
    world.change(old, draining=True)
    (place,) = world.step().place
    assert place.assignment.replaces and place.assignment.because == "Drained"
    world.change(place.node, liveness=Liveness.LOST)
    decided = world.step()
    assert [(s.node, s.cause) for s in decided.stop] == [(place.node, Cause.REPLACEMENT_FAILED)]
    world.settle()
    assert world.where()["web-0"] not in (old, place.node)


def test_a_replacement_takes_over_at_once_when_the_old_node_dies() -> None:
    world = four()
    world.want("web")
    world.settle()
    old = world.where()["web-0"]
    world.change(old, draining=True)
    (place,) = world.step().place
    world.change(old, liveness=Liveness.LOST)
    decided = world.step()
    assert [(s.node, s.cause) for s in decided.stop] == [(old, Cause.NODE_LOST)]
    assert world.where() == {"web-0": place.node}


def test_scaling_to_zero_stops_a_replacement_too() -> None:
    world = four()
    world.want("web")
    world.settle()
    world.change(world.where()["web-0"], draining=True)
    world.step()
    world.want("web", count=0)
    assert {s.cause for s in world.step().stop} == {Cause.SCALED_DOWN}
    assert world.where() == {}


# --- standbys ------------------------------------------------------------------------------------


def test_standbys_are_other_nodes_of_the_site_and_stay_the_same() -> None:
    world = four()
    world.want("web", count=2, failover=Failover(standbys=1))
    world.settle()
    for name, placement in world.placements.items():
        for item in placement.assignments:
            (standby,) = item.standbys
            assert standby != name and standby[0] == name[0]
    item = next(i for p in world.placements.values() for i in p.assignments)
    world.change(item.standbys[0], draining=True)
    world.settle()
    assert world.step().changes_nothing
    world.want("web", failover=Failover())
    world.settle()
    assert all(not i.standbys for p in world.placements.values() for i in p.assignments)


def test_standbys_in_wider_scopes_are_at_other_sites_and_lost_ones_are_renewed() -> None:
    world = four().add(box("c1", "c"))
    world.want("web", failover=Failover(standbys=2, scope="any"))
    world.settle()
    ((node, item),) = ((n, i) for n, p in world.placements.items() for i in p.assignments)
    assert len({node[0], *(s[0] for s in item.standbys)}) == 3
    world.change(item.standbys[0], liveness=Liveness.LOST)
    decided = world.step()
    assert len(decided.standbys) == 1 and not decided.place and not decided.stop
    assert item.standbys[0] not in decided.standbys[0].standbys
    assert item.standbys[1] in decided.standbys[0].standbys


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cpu", [float("nan"), -1, float("inf"), 1 << 70, True])
def test_a_node_with_impossible_capacity_is_refused_alone(cpu: float) -> None:
    world = World().add(box("good"), box("bad", allocatable=Resources(cpu, 1 << 30, 1 << 30)))  # type: ignore[arg-type]
    world.want("web", count=2)
    world.step()
    assert set(world.where().values()) == {"good"}
    found = explain(world.snapshot(), world.workloads["uid-web"], 0.0, nodes=["bad"])
    assert "CapacityInvalid" in {g.code for g in found.groups}


def test_a_million_asked_of_a_fleet_that_holds_fewer() -> None:
    nodes = [
        box(f"n{i}", f"s{i % 10}", allocatable=Resources(1000, 1 << 40, 1 << 40))
        for i in range(100)
    ]
    world = World().add(*nodes)
    world.want("web", Template(Resources(cpu_millis=1)), count=1_000_000)
    decided = plan(world.snapshot(), 0.0)
    assert len(decided.place) == 100_000
    (why,) = decided.explanations
    assert len(why.replicas) == 900_000 and why.replicas[0] == "web-100000"
    assert why.reasons[0].code == "InsufficientCpu"
    per_node = Counter(place.node for place in decided.place)
    assert set(per_node.values()) == {1000}
