"""Worlds played to their rest, who ultimately owns what, and what a site meets. Pure."""

import pytest

from orchestrator.api.compliance import first_told, judged
from orchestrator.api.concentration import NOT_DECLARED, SPREAD, UNCLEAR, owner_country
from orchestrator.api.demands_met import demands_met
from orchestrator.api.foresight import ROUNDS_MAX, outlook
from orchestrator.api.planning import MOVE, PLACE, PREEMPT, STOP, UPDATE, changes, compared
from orchestrator.api.simulating import DEGRADES, DIES, SURVIVES, simulated
from orchestrator.events import EventRecord
from orchestrator.scheduling.snapshot import Resources, Site, Template
from orchestrator.scheduling.what_if import Loss
from polder.manifest.facts import Certification, Energy, Owner, ProviderSpec, SealLevels, SiteSpec
from polder.manifest.policy import EnergyLimits, SealMinimum, SovereigntySpec
from polder.sovereignty import KNOWN_LAWS, SiteFacts, analyse_provider, evaluate, site_facts
from tests.unit.scheduling_world import World, box

HALF = Template(Resources(cpu_millis=500, memory_bytes=1 << 20))


def everyone(_: str) -> bool:
    return True


def facts(country: str = "NL", **more: object) -> SiteFacts:
    spec = ProviderSpec(
        legal_name="P",
        seat_country=country,
        head_office=country,
        governing_law=country,
        **{"owners": (), "owners_complete": True, **more},  # type: ignore[arg-type]
    )
    where = SiteSpec(provider="p", country=country, energy=Energy(pue=1.2))
    return site_facts("s1", where, analyse_provider("p", spec))


def world(*nodes: str) -> World:
    made = World().add(*(box(name, f"s-{name}") for name in nodes))
    made.sites = {f"s-{n}": Site(f"s-{n}", SiteFacts(f"s-{n}", country="NL")) for n in nodes}
    return made


# --- the outlook --------------------------------------------------------------------------------


def test_a_world_at_rest_stays_as_it_is() -> None:
    made = world("n1", "n2")
    made.want("web", HALF, count=3)
    made.settle()
    found = outlook(made.snapshot(), 0.0)
    assert found.rests and not found.causes
    assert {k[1]: stay.node for k, stay in found.stays.items()} == made.where()


def test_the_outlook_is_where_the_real_world_ends() -> None:
    made = world("n1", "n2", "n3")
    made.want("web", HALF, count=3)
    made.settle()
    made.change("n1", draining=True)
    made.want("late", HALF)
    found = outlook(made.snapshot(), 0.0)
    made.settle()
    assert {k[1]: stay.node for k, stay in found.stays.items()} == made.where()
    assert "n1" not in made.where().values()


def test_it_ends_when_it_is_enough() -> None:
    made = world("n1")
    made.want("web", HALF)
    found = outlook(made.snapshot(), 0.0, enough=lambda: True)
    assert not found.rests and len(found.stays) == 1 and ROUNDS_MAX < 100


# --- the difference -----------------------------------------------------------------------------


def test_changes_are_those_of_the_apply_alone() -> None:
    made = world("n1", "n2")
    made.want("web", HALF, count=2)
    made.want("gone", HALF)
    made.settle()
    made.want("late", HALF)  # under way already: nobody's change
    before = made.snapshot()
    made.want("gone", count=0)
    made.update("web", HALF)
    made.want("new", Template(Resources(cpu_millis=10)))
    was, will = outlook(before, 0.0), outlook(made.snapshot(), 0.0)
    found = changes(was, will, frozenset({"uid-web"}))
    told = {change.replica: change.action for change in found}
    assert told == {"gone-0": STOP, "new-0": PLACE, "web-0": UPDATE, "web-1": UPDATE}


def test_a_move_and_a_preemption_are_told_as_such() -> None:
    made = world("n1")
    made.want("low", Template(Resources(cpu_millis=900)))
    made.settle()
    before = made.snapshot()
    made.want("high", Template(Resources(cpu_millis=900)), priority=10)
    found = compared(before, made.snapshot(), 0.0, everyone)
    assert {c.replica: c.action for c in found.changes} == {"high-0": PLACE, "low-0": PREEMPT}
    made = world("n1", "n2")
    made.want("web", HALF)
    made.settle()
    here = made.where()["web-0"]
    before = made.snapshot()
    made.change(here, draining=True)
    (move,) = compared(before, made.snapshot(), 0.0, everyone).changes
    assert (move.action, move.from_node, move.cause) == (MOVE, here, "Drained")


def test_what_one_may_not_read_is_only_counted() -> None:
    made = world("n1")
    before = made.snapshot()
    made.want("web", HALF)
    found = compared(before, made.snapshot(), 0.0, lambda _: False)
    assert (len(found.changes), found.changes_hidden, len(found.totals)) == (0, 1, 0)


# --- losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "outcome", "replaced"), [(2, SURVIVES, 1), (4, DEGRADES, 0), (0, None, 0)]
)
def test_a_loss_is_survived_as_far_as_there_is_room(
    count: int, outcome: int | None, replaced: int
) -> None:
    made = world("n1", "n2")
    made.want("web", HALF, count=count)
    made.settle()
    found = simulated(made.snapshot(), [Loss("node", "n1")], 0.0, everyone)
    assert (found.nodes, found.nodes_lost, found.sites_lost) == (2, 1, 1)
    assert [item.outcome for item in found.workloads] == ([outcome] if outcome else [])
    assert found.replicas_replaced == replaced
    everything = simulated(made.snapshot(), [Loss("node", "n1"), Loss("node", "n2")], 0.0, everyone)
    assert all(item.outcome == DIES for item in everything.workloads)


def test_a_law_takes_what_is_not_declared_and_says_so() -> None:
    made = world("n1")
    for law in KNOWN_LAWS:
        found = simulated(made.snapshot(), [Loss("law", law)], 0.0, everyone)
        assert found.nodes_lost == 1 and found.sites[0].for_want_of_facts


# --- owners, facts, compliance ------------------------------------------------------------------


def held(holder: str, country: str, percent: float, of: str = "", **more: object) -> Owner:
    return Owner(holder, of, country, percent, percent, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("owners", "complete", "country"),
    [
        (None, True, NOT_DECLARED),
        ((), True, SPREAD),
        ((), False, UNCLEAR),
        ((held("A", "DE", 100), held("B", "US", 60, "A"), held("C", "DE", 40, "A")), True, "US"),
        ((held("A", "DE", 30), held("B", "FR", 30), held("C", "US", 40)), True, SPREAD),
        ((held("A", "DE", 30), held("B", "PR", 20, control=True)), True, "US"),
    ],
)
def test_the_owners_country_is_that_of_the_ends_of_the_chains(
    owners: tuple[Owner, ...] | None, complete: bool, country: str
) -> None:
    spec = ProviderSpec("P", "NL", owners=owners, owners_complete=complete)
    assert owner_country(spec, analyse_provider("p", spec)) == country


def test_each_demand_that_is_met_is_told_with_its_fact() -> None:
    policy = SovereigntySpec(
        residency=("EU",),
        ownership="secnumcloud",
        forbid_laws=("US-CLOUD-ACT",),
        gaiax_label=1,
        seal=SealMinimum(sov_2=2, sov_3=4),
        certifications=("ISO27001", "C5"),
        energy=EnergyLimits(pue_max=1.3),
    )
    known = facts(
        seal=SealLevels(sov_2=3, sov_3=1),
        gaiax_label=2,
        exposed_to_laws=(),
        subcontractors=(),
        certifications=(Certification("ISO 27001", "Auditor", "2099-01-01"),),
    )
    told = dict(text.split(": ", 1) for text in demands_met(policy, known, 0.0))
    failing = {reason.knob for reason in evaluate(policy, known, 0.0)}
    assert told.keys().isdisjoint(failing)
    assert told["residency"] == "site s1 is in NL"
    assert told["seal.SOV-2"] == "SEAL-3, at least 2 is asked"
    assert told["certifications.ISO27001"].endswith("until 2099-01-01")
    assert told["energy.pueMax"] == "1.2, at most 1.3 is asked"
    assert {"seal.SOV-3", "certifications.C5"} <= failing
    assert demands_met(policy, SiteFacts("s1"), 0.0) == []


def test_since_when_is_the_first_word_of_it() -> None:
    def event(reason: str, at: int) -> EventRecord:
        return EventRecord("Replica", "ns", "web-0", 2, reason, str(at), "x", at, at + 5)

    told = first_told([event("NonCompliant", 9_000), event("Started", 1), event("NonCompliant", 7)])
    assert told == {("Replica", "ns", "web-0"): 7}
    made = world("n1")
    made.want("web", HALF)
    made.settle()
    made.want("web", sovereignty=SovereigntySpec(residency=("DE",)))
    found = judged(made.snapshot(), 0.0, everyone, told)
    assert (found.judged, found.compliant, found.replicas[0].since_ms) == (1, 0, 7)
    assert judged(made.snapshot(), 0.0, everyone, {}).replicas[0].since_ms == 0
    assert judged(made.snapshot(), 0.0, lambda _: False, {}).judged == 0
