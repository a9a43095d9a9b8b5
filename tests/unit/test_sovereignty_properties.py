"""What must hold of every policy and every site, whatever is declared."""

import copy
import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from polder.sovereignty import (
    evaluate,
    facts_from_json,
    facts_json,
    loosens,
    next_change,
    policy_from_json,
    policy_json,
    single_change,
    tighten,
)
from tests.unit import reference_sovereignty as reference
from tests.unit.sovereignty_strategies import (
    DATES,
    DAY0,
    DEMANDS,
    LEGAL_NAME,
    Raw,
    as_facts,
    as_policy,
    owners,
    policies,
    providers,
    sites,
)

QUICK = settings(max_examples=60, deadline=None)
OWNERSHIP: Raw = {"ownership": "secnumcloud"}
CLEAN: Raw = {"legalName": LEGAL_NAME, "seatCountry": "DE", "headOffice": "DE"}
SITE: Raw = {"provider": "example", "country": "DE"}


def allows(policy: Raw, site: Raw | None, provider: Raw | None, now: float = DAY0) -> bool:
    return not evaluate(as_policy(policy), as_facts(site, provider), now)


@given(policies(), sites(), providers())
@settings(QUICK, max_examples=150)
def test_agrees_with_the_reference(policy: Raw, site: Raw, provider: Raw) -> None:
    assert allows(policy, site, provider) == reference.allowed(policy, site, provider, DAY0)


@given(st.sampled_from(("secnumcloud", "eu-controlled")), owners(), st.booleans())
@settings(QUICK, max_examples=150)
@example(
    "eu-controlled",
    [
        {"holder": "alpha", "country": "DE", "capitalPercent": 100, "votesPercent": 100},
        {
            "holder": "beta",
            "of": "alpha",
            "country": "DE",
            "capitalPercent": 100,
            "votesPercent": 100,
        },
        {
            "holder": "alpha",
            "of": "beta",
            "country": "DE",
            "capitalPercent": 100,
            "votesPercent": 100,
        },
    ],
    True,
)
def test_agrees_with_the_reference_on_owners(wanted: str, rows: list[Raw], whole: bool) -> None:
    provider = {**CLEAN, "owners": rows, "ownersComplete": whole}
    policy = {"ownership": wanted}
    assert allows(policy, SITE, provider) == reference.allowed(policy, SITE, provider, DAY0)


@given(owners(), st.booleans(), st.sampled_from(("US-CLOUD-ACT", "CN-NSL")))
@settings(QUICK, max_examples=100)
def test_agrees_with_the_reference_on_laws_through_owners(
    rows: list[Raw], whole: bool, law: str
) -> None:
    provider = {
        **CLEAN,
        "owners": rows,
        "ownersComplete": whole,
        "governingLaw": "DE",
        "exposedToLaws": [],
        "subcontractors": [],
    }
    site = {**SITE, "tenure": "owned", "adminCountries": [], "supportCountries": []}
    policy = {"forbidLaws": [law]}
    assert allows(policy, site, provider) == reference.allowed(policy, site, provider, DAY0)


@given(policies(), sites(), providers(), st.sampled_from(sorted(DEMANDS)), st.data())
@QUICK
def test_adding_a_constraint_never_adds_sites(
    policy: Raw, site: Raw, provider: Raw, key: str, data: Any
) -> None:
    stricter = {**policy, key: policy.get(key, data.draw(DEMANDS[key]))}
    assert allows(policy, site, provider) or not allows(stricter, site, provider)


@given(policies(), policies(), sites(), providers())
@QUICK
def test_tightened_is_both(floor: Raw, policy: Raw, site: Raw, provider: Raw) -> None:
    facts = as_facts(site, provider)
    both = tighten(as_policy(floor), as_policy(policy))
    admitted = not evaluate(both, facts, DAY0)
    each = allows(floor, site, provider) and allows(policy, site, provider)
    asked = {*floor.get("assurance", {}), *policy.get("assurance", {})}
    if asked & {"default", "certifications"}:
        # The least assurance of one is then also that of the other's facts.
        assert each or not admitted
    else:
        assert admitted == each
    assert tighten(both, both) == both
    if both.residency != ():
        assert loosens(as_policy(floor), both) == []
    assert tighten(as_policy({}), as_policy(policy)) == as_policy(policy)


OPTIONAL = {
    "provider": (
        "headOffice",
        "governingLaw",
        "owners",
        "ownersComplete",
        "exposedToLaws",
        "subcontractors",
        "certifications",
        "gaiaxLabel",
        "seal",
    ),
    "site": ("tenure", "adminCountries", "supportCountries", "energy", "certifications"),
}


@given(policies(), sites(), providers())
@QUICK
def test_an_undeclared_fact_never_helps(policy: Raw, site: Raw, provider: Raw) -> None:
    before = allows(policy, site, provider)
    for key in OPTIONAL["provider"]:
        less = {k: v for k, v in provider.items() if k != key}
        assert before or not allows(policy, site, less), key
    for key in OPTIONAL["site"]:
        less = {k: v for k, v in site.items() if k != key}
        if key == "tenure":
            less.pop("dataCentreOperator", None)
        assert before or not allows(policy, less, provider), key
    assert before or not allows(policy, site, None)
    assert before or not allows(policy, None, provider)


@given(owners(), st.sampled_from(("secnumcloud", "eu-controlled")), st.data())
@QUICK
def test_leaving_an_owner_out_never_helps(rows: list[Raw], wanted: str, data: Any) -> None:
    """Unless the list is said to be complete: then the statement is false, not the arithmetic."""
    held = {row.get("of", "") for row in rows}
    leaves = [
        index
        for index, row in enumerate(rows)
        if row["holder"] not in held and row.get("capitalPercent", 0) and row.get("votesPercent", 0)
    ]
    if not leaves:
        return
    gone = data.draw(st.sampled_from(leaves))
    fewer = [row for index, row in enumerate(rows) if index != gone]
    policy = {"ownership": wanted}
    before = allows(policy, SITE, {**CLEAN, "owners": rows})
    assert before or not allows(policy, SITE, {**CLEAN, "owners": fewer})


@given(policies(), sites(), providers(), st.randoms(use_true_random=False))
@QUICK
def test_the_order_of_lists_does_not_matter(
    policy: Raw, site: Raw, provider: Raw, random: Any
) -> None:
    shuffled = copy.deepcopy(provider)
    for key in ("owners", "subcontractors", "certifications", "exposedToLaws"):
        random.shuffle(shuffled.get(key, []))
    one = evaluate(as_policy(policy), as_facts(site, provider), DAY0)
    two = evaluate(as_policy(policy), as_facts(site, shuffled), DAY0)
    listed = ("provider.subcontractors", "provider.certifications")
    steady = [r for r in one if not r.fact.startswith(listed) and r.predicate != "certifications"]
    assert steady == [
        r for r in two if not r.fact.startswith(listed) and r.predicate != "certifications"
    ]
    assert {r.knob for r in one} == {r.knob for r in two}


@given(owners(), st.booleans())
@QUICK
def test_shares_stay_between_0_and_100(rows: list[Raw], whole: bool) -> None:
    facts = as_facts(SITE, {**CLEAN, "owners": rows, "ownersComplete": whole})
    assert facts.provider is not None and facts.provider.owned is not None
    owned = facts.provider.owned
    for part in (owned.capital, owned.votes):
        for percent in (part.percent, part.unknown_percent, part.dispersed_percent):
            assert 0 <= percent <= 100
    for holding in owned.holdings:
        assert 0 <= holding.capital_percent <= 100
        assert 0 <= holding.votes_percent <= 100


@given(owners(), st.booleans())
@QUICK
def test_whatever_secnumcloud_admits_is_eu_controlled(rows: list[Raw], whole: bool) -> None:
    provider = {**CLEAN, "owners": rows, "ownersComplete": whole}
    if allows(OWNERSHIP, SITE, provider):
        assert allows({"ownership": "eu-controlled"}, SITE, provider)


@given(policies(), sites(), providers())
@QUICK
def test_the_agent_comes_to_the_same_reasons_from_its_plan(
    policy: Raw, site: Raw, provider: Raw
) -> None:
    decided, facts = as_policy(policy), as_facts(site, provider)
    sent = json.loads(json.dumps([policy_json(decided), facts_json(decided, facts)]))
    received, known = policy_from_json(sent[0]), facts_from_json(sent[1])
    assert received == decided
    assert evaluate(received, known, DAY0) == evaluate(decided, facts, DAY0)


@given(policies(), policies(), sites(), providers())
@QUICK
def test_facts_that_are_left_out_of_a_plan_fail_another_policy(
    policy: Raw, other: Raw, site: Raw, provider: Raw
) -> None:
    cut = facts_from_json(facts_json(as_policy(policy), as_facts(site, provider)))
    assert allows(other, site, provider) or evaluate(as_policy(other), cut, DAY0)


@given(policies(), sites(), providers(), st.floats(0, 1, exclude_max=True))
@QUICK
def test_nothing_changes_before_the_next_change(
    policy: Raw, site: Raw, provider: Raw, part: float
) -> None:
    decided, facts = as_policy(policy), as_facts(site, provider)
    found = next_change(decided, facts, DAY0)
    until = DAY0 + 40 * 365 * 86_400 if found is None else found
    assert until > DAY0
    later = DAY0 + part * (until - DAY0)
    assert evaluate(decided, facts, later) == evaluate(decided, facts, DAY0)


@given(policies(1), sites(), providers())
@QUICK
def test_a_single_change_that_drops_a_demand_helps(policy: Raw, site: Raw, provider: Raw) -> None:
    reasons = evaluate(as_policy(policy), as_facts(site, provider), DAY0)
    change = single_change(reasons)
    if not reasons:
        assert change is None
    elif change is not None:
        assert allows({}, site, provider)
        assert change.knob.split(".")[0] in policy


def test_the_dates_straddle_now() -> None:
    assert min(DATES) < "2027-01-15" < max(DATES)
