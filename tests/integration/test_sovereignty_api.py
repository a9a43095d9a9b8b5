"""Sovereignty as an operator and an agent meet it: apply, why, plan, simulate, what a plan says."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.api import thinking
from orchestrator.api.compliance import Compliance
from orchestrator.domain.inventory import stored_form
from orchestrator.fact_book import FactBook
from orchestrator.gateway.compose import Surroundings, compose
from orchestrator.gateway.signed_facts import SignedFacts
from orchestrator.records import NodeStatusRecord
from orchestrator.store import keys
from polder.v1 import agent_pb2, operator_pb2, plan_pb2
from tests.integration.orchestrator_rig import (
    Rig,
    apply_request,
    manifest,
    ref,
    refusal,
    running,
    until,
    workload,
)

LATER, OVER = "2099-12-31", "2020-12-31"
OPEN = {"residency": ["EU"]}
STRICT = {"forbidLaws": ["US-CLOUD-ACT"], "ownership": "secnumcloud"}


def provider(name: str, country: str, parent: str, *, ends: str = LATER) -> dict[str, Any]:
    owners = [
        {"holder": "Holding", "country": country, "capitalPercent": 100, "votesPercent": 100},
        {
            "holder": "Parent",
            "of": "Holding",
            "country": parent,
            "capitalPercent": 100,
            "votesPercent": 100,
        },
    ]
    spec = {
        "legalName": f"{name} company",
        "seatCountry": country,
        "headOffice": country,
        "governingLaw": country,
        "owners": owners,
        "ownersComplete": True,
        "exposedToLaws": [],
        "subcontractors": [],
        "certifications": [{"scheme": "ISO27001", "issuer": "Auditor", "validUntil": ends}],
        "seal": {"SOV-2": 3 if country == "NL" else 2},
    }
    return manifest("Provider", name, spec=spec)


def site(name: str, owner: str, country: str) -> dict[str, Any]:
    spec = {
        "provider": owner,
        "country": country,
        "tenure": "owned",
        "adminCountries": [country],
        "supportCountries": [country],
    }
    return manifest("Site", name, spec=spec)


FACTS = (
    provider("dutch", "NL", "NL"),
    site("nl-1", "dutch", "NL"),
    provider("german", "DE", "US"),
    site("de-1", "german", "DE"),
)


def want(name: str, sovereignty: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    more = {"sovereignty": sovereignty} if sovereignty is not None else {}
    return workload(name, **more, **spec)


async def box(rig: Rig, name: str, where: str) -> None:
    """A node that is live and has room, without an agent behind it."""
    await rig.node(name, where)
    plenty = agent_pb2.Resources(cpu_millis=4000, memory_bytes=8 << 30, disk_bytes=50 << 30)
    inventory = agent_pb2.NodeInventory(arch="amd64", capacity=plenty, allocatable=plenty)
    record = NodeStatusRecord(name, "0.1", "boot", stored_form(inventory), 1)
    await rig.put(keys.node_status(name), record.to_bytes())
    rig.orchestrator.parts.fleet.heard(name, time.time()).heard_at = time.monotonic() + 600
    rig.orchestrator.parts.fleet.touch(name)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as made:
        yield made


@pytest.fixture
async def fleet(rig: Rig) -> Rig:
    await rig.apply(*FACTS)
    await box(rig, "box-nl", "nl-1")
    await box(rig, "box-de", "de-1")
    return rig


async def placed(rig: Rig, name: str, count: int = 1) -> None:
    index = rig.orchestrator.parts.catalog.index
    await until(lambda: len(index.workload("default", name).placed) == count, f"{name} is placed")


def warnings(response: operator_pb2.ApplyResponse) -> str:
    return "\n".join(text for result in response.results for text in result.warnings)


# --- apply --------------------------------------------------------------------------------------


async def test_a_workload_that_no_site_could_satisfy_is_refused_and_counted(rig: Rig) -> None:
    early = await rig.apply(want("early", OPEN))
    assert "no site is declared yet" in warnings(early)
    await rig.apply(*FACTS)
    assert not warnings(await rig.apply(want("fine", STRICT)))
    no = await refusal(
        rig.admin().Apply(apply_request(want("no", {**STRICT, "residency": ["DE"]})))
    )
    assert (no.code, no.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "InvalidManifest")
    (violation,) = no.detail.violations
    assert violation.path == "spec.sovereignty"
    assert "none of the 2 declared sites" in violation.message
    for part in ("ownership refuses 1", "forbidLaws.US-CLOUD-ACT refuses 1", "residency refuses 1"):
        assert part in violation.message
    # Its site may come in the same request.
    await rig.apply(
        provider("third", "DE", "DE"),
        site("de-2", "third", "DE"),
        want("no", {**STRICT, "residency": ["DE"]}),
    )


async def test_a_floor_can_be_tightened_and_not_loosened(rig: Rig) -> None:
    await rig.apply(*FACTS, want("old", {"residency": ["EU"], "seal": {"SOV-2": 1}}, replicas=0))
    floor = {"residency": ["NL", "DE"], "seal": {"SOV-2": 2}}
    raised = await rig.apply(manifest("Namespace", "default", spec={"floor": floor}))
    assert "old (residency allows" in warnings(raised), "the floor holds, and says for whom"
    loose = {"residency": ["NL", "US"], "seal": {"SOV-2": 1}}
    no = await refusal(rig.admin().Apply(apply_request(want("x", loose))))
    assert {v.path for v in no.detail.violations} == {
        "spec.sovereignty.residency",
        "spec.sovereignty.seal.SOV-2",
    }
    assert not warnings(await rig.apply(want("x", {"residency": ["NL"]})))
    # What stands is not refused for being applied again; it is told.
    again = await rig.apply(want("old", {"residency": ["EU"], "seal": {"SOV-2": 1}}, replicas=0))
    assert "weaker than the namespace's floor" in warnings(again)
    # A floor and a workload of one request are one world.
    await rig.apply(
        manifest("Namespace", "default", spec={"floor": {"residency": ["EU"]}}),
        want("x", {"residency": ["EU"]}),
    )
    nowhere = manifest("Namespace", "default", spec={"floor": {"residency": ["FR"]}})
    assert "no declared site will do for: old, x" in warnings(await rig.apply(nowhere))


async def test_graphs_that_cannot_be_and_certificates_that_ended(rig: Rig) -> None:
    bad = provider("bad", "NL", "NL")
    bad["spec"]["owners"][0]["capitalPercent"] = 70
    bad["spec"]["owners"].append({"holder": "More", "country": "FR", "capitalPercent": 60})
    bad["spec"]["owners"].append({"holder": "X", "of": "Nobody", "country": "FR", "control": True})
    no = await refusal(rig.admin().Apply(apply_request(bad)))
    told = "\n".join(v.message for v in no.detail.violations)
    assert "adds up to 130 percent" in told and "'Nobody'" in told
    circle = provider("circle", "NL", "NL")
    circle["spec"]["owners"].append(
        {"holder": "Holding", "of": "Parent", "country": "NL", "capitalPercent": 100}
    )
    assert "ISO27001" not in warnings(await rig.apply(circle)), "a cycle is a fact like others"
    ended = await rig.apply(provider("old", "NL", "NL", ends=OVER))
    assert f"spec.certifications[0]: ISO27001 ended with {OVER}" in warnings(ended)
    where = await refusal(rig.admin().Apply(apply_request(want("w", {"residency": ["XX"]}))))
    assert "XX" in where.detail.violations[0].message


async def test_a_sale_is_told_before_it_is_felt(fleet: Rig) -> None:
    await fleet.apply(want("web", STRICT))
    await placed(fleet, "web")
    sold = await fleet.apply(provider("dutch", "NL", "US"), dry_run=True)
    assert "1 replica will no longer comply" in warnings(sold) and "web-0" in warnings(sold)


# --- why ----------------------------------------------------------------------------------------


async def test_why_names_every_reason_of_every_node(fleet: Rig) -> None:
    await fleet.apply(want("web", {**STRICT, "seal": {"SOV-2": 3}}, replicas=2))
    await placed(fleet, "web", 2)
    request = operator_pb2.WhyRequest(ref=ref("Workload", "web"))
    (found,) = (await fleet.admin().Why(request)).workloads
    assert (found.nodes, found.nodes_fitting) == (2, 1)
    assert (found.replicas_wanted, found.replicas_placed) == (2, 2)
    verdicts = {verdict.node: verdict for verdict in found.verdicts}
    assert not verdicts["box-nl"].reasons
    assert {reason.knob for reason in verdicts["box-de"].reasons} == {
        "sovereignty.ownership",
        "sovereignty.forbidLaws.US-CLOUD-ACT",
        "sovereignty.seal.SOV-2",
    }
    assert any("Parent (US)" in reason.message for reason in verdicts["box-de"].reasons)
    assert {item.node for item in found.placed} == {"box-nl"}
    assert any(text.startswith("ownership: secnumcloud") for text in found.placed[0].because)
    assert not found.placed[0].against
    request.nodes.append("box-de")
    (narrow,) = (await fleet.admin().Why(request)).workloads
    assert (narrow.nodes, len(narrow.placed)) == (1, 0)


async def test_why_finds_the_smallest_change_for_what_is_not_applied(fleet: Rig) -> None:
    asked = want("seal", {"residency": ["DE"], "seal": {"SOV-2": 3}})
    request = operator_pb2.WhyRequest(documents=apply_request(asked).documents)
    (found,) = (await fleet.admin().Why(request)).workloads
    texts = [item.text for item in found.suggestions]
    assert "1 more site if sovereignty.seal.SOV-2 were 2" in texts
    assert "1 more site if sovereignty.residency allowed NL" in texts
    assert "apply would refuse it" in found.warnings[0]
    assert await refusal(fleet.admin().Get(operator_pb2.GetRequest(ref=ref("Workload", "seal"))))
    only_facts = operator_pb2.WhyRequest(documents=apply_request(*FACTS).documents)
    assert (await refusal(fleet.admin().Why(only_facts))).reason == "InvalidArgument"


async def test_why_refuses_what_it_cannot_answer(fleet: Rig) -> None:
    await fleet.apply(workload("web", replicas=0))
    stub = fleet.admin()
    why = operator_pb2.WhyRequest
    missing = await refusal(stub.Why(why(ref=ref("Workload", "nope"))))
    assert missing.code is grpc.StatusCode.NOT_FOUND
    assert (await refusal(stub.Why(why(ref=ref("Site", "nl-1"))))).reason == "InvalidArgument"
    typo = await refusal(stub.Why(why(ref=ref("Workload", "web"), nodes=["box-x"])))
    assert "no node 'box-x'" in typo.message
    viewer = fleet.operators(await fleet.operator("vera", "viewer:default"))
    assert (await viewer.Why(why(ref=ref("Workload", "web")))).workloads
    documents = apply_request(workload("x")).documents
    assert (await refusal(viewer.Why(why(documents=documents)))).reason == "Forbidden"


# --- plan ---------------------------------------------------------------------------------------


def actions(response: operator_pb2.PlanResponse) -> dict[str, tuple[str, str]]:
    names = operator_pb2.ChangeAction.Name
    return {
        change.replica: (names(change.action).removeprefix("CHANGE_ACTION_"), change.node)
        for change in response.changes
    }


async def plan_of(rig: Rig, *documents: dict[str, Any], stub: Any = None) -> Any:
    request = operator_pb2.PlanRequest(documents=apply_request(*documents).documents)
    return await (stub or rig.admin()).Plan(request)


async def test_plan_says_what_apply_would_do_and_does_not_do_it(fleet: Rig) -> None:
    await fleet.apply(want("web", OPEN), want("gone", OPEN))
    await placed(fleet, "web")
    await placed(fleet, "gone")
    before = fleet.orchestrator.parts.cache.revision
    found = await plan_of(
        fleet,
        want("web", STRICT, image="app:2"),
        want("gone", OPEN, replicas=0),
        want("new", {"residency": ["DE"]}, replicas=2),
        want("big", replicas=1, template=_needs("64")),
    )
    told = actions(found)
    assert told["gone-0"][0] == "STOP"
    assert told["new-0"] == told["new-1"] == ("PLACE", "box-de")
    assert told["web-0"] in (("UPDATE", "box-nl"), ("MOVE", "box-nl"))
    (lacks,) = found.unplaced
    assert (lacks.workload, lacks.replicas) == ("big", 1) and "InsufficientCpu" in lacks.message
    assert not found.incomplete and found.now_ms
    assert [result.outcome for result in found.results] == [2, 2, 1, 1]
    assert fleet.orchestrator.parts.cache.revision == before
    quiet = await plan_of(fleet, want("web", OPEN))
    assert not quiet.changes and not quiet.totals


async def test_plan_moves_when_a_company_is_sold_and_shows_preemption(fleet: Rig) -> None:
    await fleet.apply(want("web", {"seal": {"SOV-2": 2}, "forbidLaws": ["US-CLOUD-ACT"]}))
    await placed(fleet, "web")
    moved = await plan_of(fleet, provider("dutch", "NL", "US"), provider("german", "DE", "DE"))
    assert actions(moved)["web-0"] == ("MOVE", "box-de")
    assert moved.changes[0].cause == "NonCompliant"
    await fleet.apply(want("low", {"residency": ["NL"]}, template=_needs("3900m")))
    await placed(fleet, "low")
    urgent = want("high", {"residency": ["NL"]}, template=_needs("3900m"), priority=100)
    found = actions(await plan_of(fleet, urgent))
    assert found["high-0"] == ("PLACE", "box-nl")
    assert found["low-0"][0] == "PREEMPT"


async def test_plan_shows_nothing_of_foreign_namespaces(fleet: Rig) -> None:
    await fleet.apply(manifest("Namespace", "other"))
    other = workload("low", namespace="other", template=_needs("3900m"))
    other["spec"]["sovereignty"] = {"residency": ["NL"]}
    await fleet.apply(other)
    index = fleet.orchestrator.parts.catalog.index
    await until(lambda: len(index.workload("other", "low").placed) == 1, "placed")
    stub = fleet.operators(await fleet.operator("otto", "operator:default"))
    urgent = want("high", {"residency": ["NL"]}, template=_needs("3900m"), priority=100)
    found = await plan_of(fleet, urgent, stub=stub)
    assert {change.namespace for change in found.changes} == {"default"}
    assert found.changes_hidden == 1
    refused = await refusal(plan_of(fleet, provider("dutch", "NL", "US"), stub=stub))
    assert refused.reason == "Forbidden"


async def test_bounded_output_for_a_large_plan(fleet: Rig) -> None:
    found = await plan_of(fleet, workload("many", replicas=3_000))
    assert [total.replicas for total in found.totals] == [3_000]
    assert len(found.changes) == 20 and found.changes_left_out == 2_980


def _needs(cpu: str) -> dict[str, Any]:
    container = {"name": "app", "image": "app:1", "resources": {"cpu": cpu}}
    return {"containers": [container]}


# --- simulate, concentration, compliance --------------------------------------------------------


async def simulate(rig: Rig, *words: str) -> Any:
    losses = [
        operator_pb2.SimulatedLoss(kind=kind, name=name)
        for kind, _, name in (word.partition("/") for word in words)
    ]
    return await rig.admin().Simulate(operator_pb2.SimulateRequest(losses=losses))


async def test_simulated_losses(fleet: Rig) -> None:
    await fleet.apply(
        want("pages", OPEN, replicas=2, placement={"spread": {"by": "site", "maxSkew": 1}}),
        want("home", {"residency": ["DE"]}),
    )
    await placed(fleet, "pages", 2)
    await placed(fleet, "home")
    law = await simulate(fleet, "law/US-CLOUD-ACT")
    assert (law.nodes, law.nodes_lost, law.sites_lost) == (2, 1, 1)
    assert "Parent (US)" in law.sites[0].reason and not law.sites[0].for_want_of_facts
    outcomes = {item.name: item for item in law.workloads}
    assert outcomes["home"].outcome == operator_pb2.SURVIVAL_OUTCOME_DIES
    assert outcomes["pages"].outcome == operator_pb2.SURVIVAL_OUTCOME_SURVIVES
    assert (law.replicas, law.replicas_lost, law.replicas_replaced) == (3, 2, 1)
    assert law.replacements[0].site == "nl-1"
    same = await simulate(fleet, "provider/german")
    assert [item.outcome for item in same.workloads] == [item.outcome for item in law.workloads]
    everything = await simulate(fleet, "country/NL", "country/DE")
    assert (everything.workloads_dead, everything.nodes_lost) == (2, 2)
    placements = fleet.orchestrator.parts.cache.placements()
    assert sum(len(placement.assignments) for placement in placements) == 3, "nothing happened"
    for bad in ("planet/mars", "site/nowhere", "law/nonsense", "node/"):
        assert (await refusal(simulate(fleet, bad))).reason == "InvalidArgument"


async def test_shares_by_provider_owner_country_and_region(fleet: Rig) -> None:
    await fleet.apply(want("pages", {"residency": ["DE"]}, replicas=3), want("home", STRICT))
    await placed(fleet, "pages", 3)
    await placed(fleet, "home")
    found = await fleet.admin().Concentration(operator_pb2.ConcentrationRequest())
    tables = {table.by: {row.name: row for row in table.rows} for table in found.tables}
    assert tables["provider"]["german"].replicas_percent == 75
    assert tables["ownerCountry"]["US"].replicas == 3, "the parent's parent, not the seat"
    assert tables["country"]["NL"].replicas == 1
    assert tables["region"]["(not declared)"].capacity_percent == 100
    other = operator_pb2.ConcentrationRequest(namespace="elsewhere")
    assert (await fleet.admin().Concentration(other)).replicas == 0


async def test_compliance_lists_what_does_not_comply_and_what_expires(
    fleet: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.apply(want("web", {**STRICT, "certifications": ["ISO27001"]}), want("free"))
    await placed(fleet, "web")
    await placed(fleet, "free")
    ask = operator_pb2.ComplianceRequest
    fine = await fleet.admin().Compliance(ask())
    assert (fine.judged, fine.compliant, len(fine.replicas)) == (1, 1, 0)
    (expiry,) = fine.expiries
    assert expiry.what == "ISO27001 of provider dutch"
    assert (expiry.replicas, expiry.replicas_without) == (1, 1)
    await fleet.apply(provider("dutch", "NL", "NL", ends=OVER))
    bad = await fleet.admin().Compliance(ask(namespace="default"))
    (item,) = bad.replicas
    assert (item.replica, item.node, item.replacement) == ("web-0", "box-nl", "")
    assert item.reasons[0].code == "CertificateExpired" and item.since_ms
    index = fleet.orchestrator.parts.catalog.index
    assert index.workload("default", "web").placed, "it keeps running"
    await fleet.apply(provider("dutch", "NL", "US"))
    insight = fleet.orchestrator.insight
    await _said(insight.compliance)
    (item,) = (await fleet.admin().Compliance(ask())).replicas
    assert item.since_ms == pytest.approx(time.time() * 1000, abs=60_000)
    await fleet.apply(provider("german", "DE", "DE"))

    def moves() -> bool:
        return any(p.node == "box-de" for p in index.workload("default", "web").placed.values())

    await until(moves, "a compliant replacement starts")
    (item,) = (await fleet.admin().Compliance(ask())).replicas
    assert item.replacement == "box-de" and item.node == "box-nl", "the old one waits for it"


async def _said(compliance: Compliance) -> None:
    """One round of what `run` does every minute."""
    await compliance._say({})


async def test_heavy_questions_queue_and_then_are_refused(
    fleet: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thinking, "WAITING_MAX", 0)
    monkeypatch.setattr(thinking, "RUNNING_MAX", 0)
    asked = fleet.admin().Compliance(operator_pb2.ComplianceRequest())
    busy = await refusal(asked)
    assert (busy.code, busy.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "Busy")
    monkeypatch.undo()
    calls = [fleet.admin().Compliance(operator_pb2.ComplianceRequest()) for _ in range(6)]
    assert all(answer.now_ms for answer in await asyncio.gather(*calls))


# --- what a node is told ------------------------------------------------------------------------


async def test_plans_carry_policies_and_facts_and_are_renewed_when_they_change(fleet: Rig) -> None:
    await fleet.apply(want("web", {"residency": ["NL"]}), want("free"))
    await placed(fleet, "web")
    cache = fleet.orchestrator.parts.cache
    first = cache.placement("box-nl")
    assert first.demands_digest
    policy, facts = _carried(fleet, "web")
    assert policy == {"residency": ["NL"]}
    assert (facts["site"], facts["country"]) == ("nl-1", "NL")
    await fleet.apply(manifest("Namespace", "default", spec={"floor": {"seal": {"SOV-2": 2}}}))
    await until(lambda: cache.placement("box-nl").generation > first.generation, "a new plan")
    policy, facts = _carried(fleet, "web")
    assert policy == {"residency": ["NL"], "seal": {"SOV-2": 2}}
    assert facts["provider"]["seal"]["SOV-2"] == 3
    second = cache.placement("box-nl")
    unrelated = provider("dutch", "NL", "NL")
    unrelated["spec"]["certifications"] = []
    await fleet.apply(unrelated)
    weaker = provider("dutch", "NL", "NL")
    weaker["spec"]["seal"] = {"SOV-2": 2}
    await fleet.apply(weaker)
    await until(lambda: cache.placement("box-nl").generation > second.generation, "facts changed")
    assert _carried(fleet, "web")[1]["provider"]["seal"]["SOV-2"] == 2


def _carried(rig: Rig, name: str) -> tuple[Any, Any]:
    """What the plan of the replica's node says now, as its gateway would sign it."""
    index = rig.orchestrator.parts.catalog.index
    node = next(iter(index.workload("default", name).placed.values())).node
    cache = rig.orchestrator.parts.cache
    record = cache.resource("Node", "", node)
    assert record is not None
    demands = SignedFacts(cache, FactBook(cache)).demands_at(str(record.spec["site"]))
    around = Surroundings("", rig.authority.trust_domain, ())
    payload = compose(cache.placement(node), around, cache.revision_of, lambda *_: None, demands)
    plan = plan_pb2.NodePlan.FromString(payload)
    (found,) = [item for item in plan.assignments if item.workload == name]
    return json.loads(found.policy_json), json.loads(found.facts_json)
