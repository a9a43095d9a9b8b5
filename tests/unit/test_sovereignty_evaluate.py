"""One place that meets every demand, and each fact changed in turn: the reasons that follow."""

import copy
from typing import Any

import pytest

from polder.sovereignty import evaluate, loosens, next_change, single_change, site_facts, tighten
from tests.unit.sovereignty_strategies import DAY0, Raw, as_facts, as_policy
from tests.unit.yardstick import pieces

JUNE_30_OVER = 1_814_400_000.0  # 2027-07-01T00:00:00Z

PROVIDER: Raw = {
    "legalName": "Example Cloud GmbH",
    "seatCountry": "DE",
    "headOffice": "DE",
    "governingLaw": "DE",
    "owners": [
        {"holder": "Founders GbR", "country": "DE", "capitalPercent": 80, "votesPercent": 80},
        {"holder": "Minor Inc", "country": "US", "capitalPercent": 20, "votesPercent": 20},
    ],
    "ownersComplete": True,
    "exposedToLaws": [],
    "subcontractors": [{"name": "Power AG", "country": "AT", "laws": []}],
    "certifications": [
        {"scheme": "EUCS", "level": "high", "issuer": "TUV", "validUntil": "2027-06-30"}
    ],
    "gaiaxLabel": 2,
    "seal": {f"SOV-{number}": 3 for number in range(1, 9)},
    "assurance": {"default": "audited"},
}
SITE: Raw = {
    "provider": "example",
    "country": "DE",
    "tenure": "leased",
    "dataCentreOperator": {"name": "Halls BV", "country": "NL", "laws": []},
    "adminCountries": ["DE", "FR"],
    "supportCountries": [],
    "energy": {"pue": 1.2, "wue": 0.5, "renewableShare": 0.9, "carbonIntensityGPerKwh": 40},
    "assurance": {"default": "audited"},
}
POLICY: Raw = {
    "residency": ["EU"],
    "forbidLaws": ["US-CLOUD-ACT"],
    "ownership": "secnumcloud",
    "gaiaxLabel": 2,
    "seal": {"SOV-2": 3, "overall": 2},
    "certifications": ["EUCS/substantial"],
    "energy": {
        "pueMax": 1.3,
        "wueMax": 0.5,
        "renewableShareMin": 0.8,
        "carbonIntensityGPerKwhMax": 50,
    },
    "assurance": {"default": "audited"},
}


def changed(raw: Raw, path: str, value: Any) -> Raw:
    """A copy with one fact set, or left out if the value is ...; `owners.1.country` goes deep."""
    found = copy.deepcopy(raw)
    *keys, last = (int(key) if key.isdigit() else key for key in path.split("."))
    here: Any = found
    for key in keys:
        here = here[key]
    if value is ...:
        del here[last]
    else:
        here[last] = value
    return found


def reasons(
    site: Raw | None = SITE,
    provider: Raw | None = PROVIDER,
    policy: Raw = POLICY,
    now: float = DAY0,
) -> list[tuple[str, str]]:
    found = evaluate(as_policy(policy), as_facts(site, provider), now)
    return [(reason.knob, reason.code) for reason in found]


def test_a_place_that_meets_everything() -> None:
    assert reasons() == []


LAW, OWN = "forbidLaws.US-CLOUD-ACT", "ownership"
CERTIFIED = "certifications.EUCS/substantial"
CAPS = [(OWN, "HolderOutsideEuOverLimit"), (OWN, "HoldersOutsideEuOverLimit")]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("seatCountry", "US", [(OWN, "SeatOutsideEu"), (LAW, "LawReaches")]),
        ("headOffice", "PR", [(OWN, "HeadOfficeOutsideEu"), (LAW, "LawReaches")]),
        (
            "headOffice",
            ...,
            [(OWN, "NotDeclared"), (LAW, "NotDeclared"), ("assurance.identity", "NotDeclared")],
        ),
        ("governingLaw", "US", [(LAW, "LawReaches")]),
        ("governingLaw", ..., [(LAW, "NotDeclared")]),
        (
            "owners",
            ...,
            [(OWN, "NotDeclared"), (LAW, "NotDeclared"), ("assurance.ownership", "NotDeclared")],
        ),
        ("owners.1.control", True, [(OWN, "ControlOutsideEu"), *CAPS, *CAPS, (LAW, "LawReaches")]),
        ("owners.1.capitalPercent", ..., [(OWN, "ControlUnknown"), (LAW, "LawMayReach")]),
        ("exposedToLaws", ["US-CLOUD-ACT"], [(LAW, "LawReaches")]),
        ("exposedToLaws", ["US-FISA-702"], []),
        ("exposedToLaws", ..., [(LAW, "NotDeclared"), ("assurance.laws", "NotDeclared")]),
        (
            "subcontractors",
            ...,
            [(LAW, "NotDeclared"), ("assurance.subcontractors", "NotDeclared")],
        ),
        ("subcontractors.0.country", "US", [(LAW, "LawReaches")]),
        ("subcontractors.0.laws", ["US-CLOUD-ACT"], [(LAW, "LawReaches")]),
        ("subcontractors.0.laws", ..., [(LAW, "NotDeclared")]),
        ("gaiaxLabel", 1, [("gaiaxLabel", "LabelTooLow")]),
        ("gaiaxLabel", ..., [("gaiaxLabel", "NotDeclared"), ("assurance.gaiax", "NotDeclared")]),
        ("seal.SOV-2", 2, [("seal.SOV-2", "SealTooLow")]),
        ("seal.SOV-7", 1, [("seal.overall", "SealTooLow")]),
        ("seal.SOV-7", ..., [("seal.overall", "NotDeclared")]),
        ("certifications", ..., [(CERTIFIED, "NotDeclared")]),
        ("certifications", [], [(CERTIFIED, "NotCertified")]),
        ("certifications.0.level", "basic", [(CERTIFIED, "NotCertified")]),
        ("certifications.0.scheme", "eu-cs", []),
        ("certifications.0.validUntil", "2027-01-14", [(CERTIFIED, "CertificateExpired")]),
        ("certifications.0.validUntil", "2027-01-15", []),
        ("assurance.ownership", "self", [("assurance.ownership", "AssuranceTooLow")]),
        ("assurance.ownership", "attested", []),
        ("assurance.certifications", "self", [("assurance.certifications", "AssuranceTooLow")]),
    ],
)
def test_a_fact_of_the_provider_that_is_otherwise(
    path: str, value: Any, expected: list[tuple[str, str]]
) -> None:
    assert reasons(provider=changed(PROVIDER, path, value)) == expected


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("country", "NO", [("residency", "OutsideResidency")]),
        ("country", "US", [("residency", "OutsideResidency"), (LAW, "LawReaches")]),
        ("dataCentreOperator.country", "US", [(LAW, "LawReaches")]),
        ("dataCentreOperator.laws", ..., [(LAW, "NotDeclared")]),
        ("dataCentreOperator", ..., [(LAW, "NotDeclared")]),
        ("adminCountries", ["DE", "US", "GU"], [(LAW, "LawReaches"), (LAW, "LawReaches")]),
        ("adminCountries", ..., [(LAW, "NotDeclared"), ("assurance.operations", "NotDeclared")]),
        ("supportCountries", ["US"], [(LAW, "LawReaches")]),
        ("supportCountries", ..., [(LAW, "NotDeclared")]),
        ("seal", {"SOV-2": 2}, [("seal.SOV-2", "SealTooLow")]),
        ("seal", {"SOV-2": 4}, []),
        ("energy.pue", 1.31, [("energy.pueMax", "EnergyLimitMissed")]),
        ("energy.renewableShare", 0.5, [("energy.renewableShareMin", "EnergyLimitMissed")]),
        ("energy.wue", ..., [("energy.wueMax", "NotDeclared")]),
        (
            "assurance",
            {},
            [(f"assurance.{g}", "AssuranceTooLow") for g in ("location", "operations", "energy")],
        ),
    ],
)
def test_a_fact_of_the_site_that_is_otherwise(
    path: str, value: Any, expected: list[tuple[str, str]]
) -> None:
    assert reasons(site=changed(SITE, path, value)) == expected


def test_an_owned_site_needs_no_operator() -> None:
    site = changed(changed(SITE, "tenure", "owned"), "dataCentreOperator", ...)
    assert reasons(site=site) == []
    assert reasons(site=changed(site, "tenure", ...)) == [(LAW, "NotDeclared")]


def test_what_is_not_declared_at_all_fails_every_demand() -> None:
    demands = set(POLICY) - {"residency", "energy"}
    codes = dict(reasons(provider=None))
    assert {knob.split(".")[0] for knob in codes} == demands
    assert set(codes.values()) <= {"ProviderNotDeclared", "NotDeclared"}
    knobs = {knob.split(".")[0] for knob, _ in reasons(site=None, provider=None)}
    assert knobs == set(POLICY)
    assert evaluate(as_policy({}), site_facts("nowhere", None, None), DAY0) == ()


def test_a_us_parent_of_a_german_provider_is_told_as_a_chain() -> None:
    owners = [
        {"holder": "Example Holding BV", "country": "NL", "capitalPercent": 62, "votesPercent": 62},
        {
            "holder": "Example US Holdings",
            "of": "Example Holding BV",
            "country": "US",
            "capitalPercent": 100,
            "votesPercent": 100,
        },
        {
            "holder": "Anna",
            "kind": "person",
            "country": "DE",
            "capitalPercent": 38,
            "votesPercent": 38,
        },
    ]
    provider = changed(PROVIDER, "owners", owners)
    policy = {"forbidLaws": ["US-CLOUD-ACT"], "ownership": "secnumcloud"}
    found = evaluate(as_policy(policy), as_facts(SITE, provider), DAY0)
    texts = [reason.message for reason in found]
    assert (
        "Example US Holdings (US) holds 62 percent of the votes of Example Cloud GmbH through "
        "Example Holding BV; SecNumCloud 3.2 section 19.6 allows one holder outside the EU 24 "
        "percent"
    ) in texts
    assert (
        "US-CLOUD-ACT reaches it: Example Holding BV (NL) holds 62 percent of the votes of Example "
        "Cloud GmbH; Example US Holdings (US) holds 100 percent of the votes of Example Holding BV "
        "(NL)"
    ) in texts


@pytest.mark.parametrize(
    ("one", "other", "admitted"),
    [(24, 15, True), (24.01, 0, False), (20, 19, True), (20, 19.01, False), (13, 13.5, True)],
)
def test_the_caps_of_secnumcloud(one: float, other: float, admitted: bool) -> None:
    parts = {"US": one, "CN": other, "DE": 100 - one - other}
    owners = [
        {"holder": c, "country": c, "kind": "person", "capitalPercent": p, "votesPercent": p}
        for c, p in parts.items()
    ]
    policy = {"ownership": "secnumcloud"}
    assert (reasons(provider=changed(PROVIDER, "owners", owners), policy=policy) == []) is admitted


@pytest.mark.parametrize(("outside", "admitted"), [(49.9, True), (50, False), (50.1, False)])
def test_eu_controlled_needs_more_than_half(outside: float, admitted: bool) -> None:
    parts = {"US": outside, "DE": 100 - outside}
    owners = [
        {"holder": c, "country": c, "kind": "person", "capitalPercent": p, "votesPercent": p}
        for c, p in parts.items()
    ]
    policy = {"ownership": "eu-controlled"}
    assert (reasons(provider=changed(PROVIDER, "owners", owners), policy=policy) == []) is admitted


def test_a_law_that_no_table_knows_is_judged_by_its_country() -> None:
    policy = {"forbidLaws": ["US-SOMETHING-NEW"]}
    assert reasons(policy=policy) == []
    assert reasons(site=changed(SITE, "country", "US"), policy=policy)


def test_certificates_end_with_their_day_and_say_when_to_plan_again() -> None:
    policy, facts = as_policy(POLICY), as_facts(SITE, PROVIDER)
    assert next_change(policy, facts, DAY0) == JUNE_30_OVER
    assert evaluate(policy, facts, JUNE_30_OVER - 1) == ()
    (reason,) = evaluate(policy, facts, JUNE_30_OVER)
    assert reason.message == "the certificate of TUV for EUCS/substantial ended with 2027-06-30"
    assert next_change(policy, facts, JUNE_30_OVER) is None
    assert next_change(as_policy({"residency": ["EU"]}), facts, DAY0) is None


def test_assurance_that_is_named_is_asked_whatever_else_is() -> None:
    assert reasons(policy={"assurance": {"default": "attested"}}) == []
    named = [("assurance.energy", "AssuranceTooLow")]
    assert reasons(policy={"assurance": {"energy": "attested"}}) == named
    certificates = [("assurance.certifications", "AssuranceTooLow")]
    assert reasons(policy={"assurance": {"certifications": "attested"}}) == certificates


@pytest.mark.parametrize(
    ("provider", "site", "expected"),
    [
        (("seal.SOV-2", 2), None, ("seal.SOV-2", 2)),
        (("gaiaxLabel", 0), None, ("gaiaxLabel", 0)),
        (None, ("country", "NO"), ("residency", "NO")),
        (None, ("energy.pue", 1.5), ("energy.pueMax", 1.5)),
        (("exposedToLaws", ["US-CLOUD-ACT"]), None, (LAW, None)),
        (("seal.SOV-2", 2), ("country", "NO"), None),
    ],
)
def test_the_single_change_that_would_help(provider: Any, site: Any, expected: Any) -> None:
    facts = as_facts(
        changed(SITE, *site) if site else SITE,
        changed(PROVIDER, *provider) if provider else PROVIDER,
    )
    found = single_change(evaluate(as_policy(POLICY), facts, DAY0))
    assert (None if found is None else (found.knob, found.value)) == expected


FLOOR: Raw = {
    "residency": ["EEA"],
    "forbidLaws": ["US-CLOUD-ACT"],
    "ownership": "secnumcloud",
    "seal": {"overall": 2, "SOV-2": 3},
    "gaiaxLabel": 1,
    "energy": {"pueMax": 1.4, "renewableShareMin": 0.5},
    "assurance": {"default": "audited"},
}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, {}),
        ({"residency": ["DE"], "forbidLaws": ["CN-NSL"], "gaiaxLabel": 3}, {}),
        ({"residency": ["US", "CH"]}, {"residency": "no country is left: it allows CH, US"}),
        ({"residency": ["EU", "CH"]}, {"residency": "allows CH; the namespace's floor allows EEA"}),
        ({"ownership": "eu-controlled"}, {"ownership": "weaker than the namespace's floor of sec"}),
        ({"seal": {"SOV-2": 2}}, {"seal.SOV-2": "is 2, weaker than the namespace's floor of 3"}),
        ({"seal": {"SOV-5": 1}}, {"seal.SOV-5": "floor of 2"}),
        ({"seal": {"overall": 0}}, {"seal.overall": "floor of 2"}),
        ({"gaiaxLabel": 0}, {"gaiaxLabel": "floor of 1"}),
        ({"energy": {"pueMax": 1.5}}, {"energy.pueMax": "is 1.5, weaker than"}),
        ({"energy": {"renewableShareMin": 0.4, "wueMax": 9}}, {"energy.renewableShareMin": ""}),
        ({"assurance": {"default": "self"}}, {"assurance.default": "floor of audited"}),
    ],
)
def test_what_loosens_a_floor_is_explained(policy: Raw, expected: dict[str, str]) -> None:
    found = {v.path: v.message for v in loosens(as_policy(FLOOR), as_policy(policy))}
    assert found.keys() == expected.keys()
    assert all(text in found[path] for path, text in expected.items()), found


def test_tightened_policies() -> None:
    mine = as_policy({"residency": ["NL", "CH"], "seal": {"SOV-1": 4}, "energy": {"pueMax": 1.2}})
    both = tighten(as_policy(FLOOR), mine)
    assert both.residency == ("NL",)
    assert (both.seal.sov_1, both.seal.sov_2, both.seal.overall) == (4, 3, 2)
    assert (both.energy.pue_max, both.energy.renewable_share_min) == (1.2, 0.5)
    assert (both.ownership, both.assurance.default) == ("secnumcloud", "audited")
    nothing = tighten(as_policy({"residency": ["EU"]}), as_policy({"residency": ["CH"]}))
    assert nothing.residency == ()
    assert reasons(site=changed(SITE, "country", "CH"), policy={"residency": ["CH"]}) == []
    assert evaluate(nothing, as_facts(changed(SITE, "country", "CH"), PROVIDER), DAY0)


def test_a_workload_cannot_lower_the_default_assurance_of_its_floor_by_naming_a_group() -> None:
    floor = {"energy": {"pueMax": 2}, "assurance": {"default": "attested"}}
    both = tighten(as_policy(floor), as_policy({"assurance": {"energy": "self"}}))
    (reason,) = evaluate(both, as_facts(SITE, PROVIDER), DAY0)
    assert reason.knob == "assurance.energy"
    seal = tighten(as_policy({"seal": {"overall": 2}}), as_policy({"seal": {"SOV-1": 1}})).seal
    assert (seal.sov_1, seal.overall) == (2, 2)


def test_a_question_costs_little() -> None:
    """Wanted are 50 microseconds of an idle core, which is half a piece."""
    policy, facts = as_policy(POLICY), as_facts(SITE, PROVIDER)
    assert pieces(lambda: evaluate(policy, facts, DAY0)) < 2.5
