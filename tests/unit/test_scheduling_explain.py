"""`explain` and the other worlds: what `edgectl why`, `plan` and `simulate` are made of."""

from dataclasses import replace

from orchestrator.scheduling.explain import explain
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.snapshot import Namespace, Resources, Site, Snapshot, Template
from orchestrator.scheduling.what_if import Loss, lost_nodes, with_namespace, without
from polder.manifest import Placement, Spread
from polder.manifest.facts import Owner, ProviderSpec, SealLevels, SiteSpec
from polder.manifest.policy import SealMinimum, SovereigntySpec
from polder.sovereignty import analyse_provider, site_facts
from tests.unit.scheduling_world import World, box


def site(name: str, country: str = "NL", **facts: object) -> Site:
    """A site of a declared provider that nobody outside the EU owns, unless `facts` say so."""
    spec = ProviderSpec(
        legal_name=f"{name} BV",
        seat_country=country,
        head_office=country,
        governing_law=country,
        **{"owners_complete": True, "owners": (), **facts},  # type: ignore[arg-type]
    )
    profile = analyse_provider(f"p-{name}", spec)
    where = SiteSpec(provider=f"p-{name}", country=country)
    return Site(name, site_facts(name, where, profile), 52.0, 5.0)


def world() -> World:
    made = World().add(
        box("n1", "nl"), box("n2", "de", country="DE"), box("n3", "de", country="DE")
    )
    american = Owner(holder="Big Corp", country="US", capital_percent=100.0, votes_percent=100.0)
    made.sites = {
        "nl": site("nl", seal=SealLevels(sov_2=3)),
        "de": site("de", "DE", seal=SealLevels(sov_2=2), owners=(american,)),
    }
    return made


def snapshot_of(made: World) -> Snapshot:
    return made.snapshot()


def test_every_reason_is_told_and_counted() -> None:
    made = world()
    policy = SovereigntySpec(residency=("NL",), seal=SealMinimum(sov_2=3), ownership="secnumcloud")
    made.want("web", Template(Resources(cpu_millis=5000)), sovereignty=policy)
    found = explain(made.snapshot(), made.workloads["uid-web"], 0.0)
    assert (found.nodes, found.fitting) == (3, 0)
    german = next(v for v in found.verdicts if v.node == "n2")
    assert {r.knob for r in german.reasons} >= {
        "sovereignty.residency",
        "sovereignty.seal.SOV-2",
        "sovereignty.ownership",
        "resources.cpu",
    }
    counted = {(g.code, g.knob): (g.nodes, g.sites) for g in found.groups}
    assert counted[("OutsideResidency", "sovereignty.residency")] == (2, 1)
    assert counted[("InsufficientCpu", "resources.cpu")] == (3, 2)


def test_the_smallest_change_is_named() -> None:
    made = world()
    made.want("web", sovereignty=SovereigntySpec(seal=SealMinimum(sov_2=3)))
    found = explain(made.snapshot(), made.workloads["uid-web"], 0.0)
    assert found.fitting == 1
    assert found.suggestions[0].text == "1 more site if sovereignty.seal.SOV-2 were 2"
    assert found.suggestions[0].nodes == 2


def test_a_question_can_be_narrowed() -> None:
    made = world()
    made.want("web", sovereignty=SovereigntySpec(residency=("NL",)))
    wanted = made.workloads["uid-web"]
    assert explain(made.snapshot(), wanted, 0.0, nodes=["n2"]).nodes == 1
    assert explain(made.snapshot(), wanted, 0.0, sites=["de"]).nodes == 2


def test_the_floor_of_the_namespace_counts() -> None:
    made = world()
    made.want("web", count=3)
    floor = Namespace("ns", floor=SovereigntySpec(residency=("NL",)))
    snapshot = with_namespace(made.snapshot(), floor)
    assert {place.node for place in plan(snapshot, 0.0).place} == {"n1"}
    assert explain(snapshot, made.workloads["uid-web"], 0.0).fitting == 1


def test_a_namespace_that_cannot_be_read_gets_nothing_new() -> None:
    made = world()
    made.want("web")
    snapshot = with_namespace(made.snapshot(), Namespace("ns", readable=False))
    decided = plan(snapshot, 0.0)
    assert not decided.place and decided.explanations[0].code == "NamespaceUnreadable"
    found = explain(snapshot, made.workloads["uid-web"], 0.0)
    assert [reason.code for reason in found.blockers] == ["NamespaceUnreadable"]


def test_a_site_that_nobody_declared_fails_every_demand() -> None:
    made = world()
    made.sites = {}
    made.want("web", sovereignty=SovereigntySpec(residency=("NL", "DE")))
    made.want("free")
    decided = made.step()
    assert [place.assignment.workload for place in decided.place] == ["free"]


def test_losses_by_every_kind() -> None:
    made = world()
    snapshot = made.snapshot()
    assert lost_nodes(snapshot, Loss("country", "DE"), 0.0) == {"n2", "n3"}
    assert lost_nodes(snapshot, Loss("site", "nl"), 0.0) == {"n1"}
    assert lost_nodes(snapshot, Loss("node", "n2"), 0.0) == {"n2"}
    assert lost_nodes(snapshot, Loss("region", "eu"), 0.0) == {"n1", "n2", "n3"}
    assert "n2" in lost_nodes(snapshot, Loss("law", "US-CLOUD-ACT"), 0.0)


def test_what_a_loss_leaves_is_planned_on_the_rest() -> None:
    made = world()
    made.want("web", count=3, placement=Placement(spread=Spread("node", 1)))
    made.settle()
    lost = without(made.snapshot(), [Loss("site", "nl")], 0.0)
    decided = plan(lost, 0.0)
    assert {stop.node for stop in decided.stop} <= {"n1"}
    assert {place.node for place in decided.place} <= {"n2", "n3"}
    assert replace(lost, nodes=()).nodes == ()
