"""Facts of providers and sites as operators write them, and what is refused."""

from typing import Any

import pytest

from polder.manifest import InvalidManifest, decode
from polder.manifest.facts import ProviderSpec, SiteSpec
from polder.manifest.identifiers import area_text, countries_in, end_of_day
from polder.manifest.policy import SovereigntySpec

PROVIDER = {"legalName": "Example Cloud GmbH", "seatCountry": "DE"}
SITE = {"provider": "example", "country": "DE"}


def test_manifests_without_facts_stay_valid() -> None:
    assert decode(ProviderSpec, PROVIDER).owners is None
    site = {**SITE, "region": "eu-central", "coordinates": {"latitude": 50.1, "longitude": 8.7}}
    assert decode(SiteSpec, site).tenure == ""


def test_declared_none_is_not_unknown() -> None:
    assert decode(ProviderSpec, {**PROVIDER, "exposedToLaws": []}).exposed_to_laws == ()
    assert decode(ProviderSpec, PROVIDER).exposed_to_laws is None


@pytest.mark.parametrize(
    "more",
    [
        {"lei": "7ZW8QJWVPR4P1S5PX088"},
        {"lei": "969500KSV493XWY0PS33"},
        {"euid": "DEK1101R.HRB116737"},
        {"euid": "ELGEMI.123456789000"},
        {"euid": "ROONRC.J40/2845/1998"},
        {"seal": {"SOV-1": 0, "SOV-8": 4}, "gaiaxLabel": 0},
        {"exposedToLaws": ["US-CLOUD-ACT", "CN-NSL", "EU-DATA-ACT"]},
        {"assurance": {"default": "audited", "ownership": "attested"}},
    ],
)
def test_facts_of_a_provider(more: dict[str, Any]) -> None:
    decode(ProviderSpec, PROVIDER | more)


@pytest.mark.parametrize(
    ("more", "path", "text"),
    [
        ({"lei": "7ZW8QJWVPR4P1S5PX089"}, "lei", "check digits do not match"),
        ({"lei": "TOOSHORT"}, "lei", "is not an LEI"),
        ({"lei": 5}, "lei", "is not an LEI"),
        ({"euid": "US123.4"}, "euid", "US is no country that issues them"),
        ({"euid": "GRGEMI.1"}, "euid", "GR is no country that issues them"),
        ({"euid": "HRB 116737"}, "euid", "is not an EUID"),
        ({"exposedToLaws": ["CloudAct"]}, "exposedToLaws[0]", "such as US-CLOUD-ACT"),
        ({"exposedToLaws": ["QQ-ACT"]}, "exposedToLaws[0]", "such as US-CLOUD-ACT"),
        ({"gaiaxLabel": 4}, "gaiaxLabel", "the most allowed is 3"),
        ({"seal": {"SOV-9": 1}}, "seal.SOV-9", "unknown field"),
        ({"seal": {"SOV-1": 5}}, "seal.SOV-1", "the most allowed is 4"),
        ({"headOffice": "UK"}, "headOffice", "did you mean GB"),
        ({"assurance": {"default": "sure"}}, "assurance.default", "allowed are self, audited"),
        (
            {"certifications": [{"scheme": "C5", "issuer": "X", "validUntil": "2027-02-30"}]},
            "certifications[0].validUntil",
            "is not a day of the calendar",
        ),
        (
            {"certifications": [{"scheme": "C5", "issuer": "X", "validUntil": 2027}]},
            "certifications[0].validUntil",
            "expected a date such as 2027-03-31",
        ),
        (
            {
                "certifications": [
                    {
                        "scheme": "C5",
                        "issuer": "X",
                        "validUntil": "2027-03-31",
                        "evidence": "sha256:abc",
                    }
                ]
            },
            "certifications[0].evidence",
            "is not a digest",
        ),
    ],
)
def test_facts_of_a_provider_that_are_refused(more: dict[str, Any], path: str, text: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        decode(ProviderSpec, PROVIDER | more)
    (violation,) = caught.value.violations
    assert violation.path == path
    assert text in violation.message


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"energy": {"pue": 0.9}}, "energy.pue"),
        ({"energy": {"renewableShare": 85}}, "energy.renewableShare"),
        ({"energy": {"pue": float("nan")}}, "energy.pue"),
        ({"tenure": "rented"}, "tenure"),
        (
            {"tenure": "owned", "dataCentreOperator": {"name": "X", "country": "US"}},
            "dataCentreOperator",
        ),
        ({"adminCountries": ["EU"]}, "adminCountries[0]"),
    ],
)
def test_facts_of_a_site_that_are_refused(more: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        decode(SiteSpec, SITE | more)
    assert [violation.path for violation in caught.value.violations] == [path]


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"residency": ["XX"]}, "residency[0]"),
        ({"residency": []}, "residency"),
        ({"residency": None}, "residency"),
        ({"ownership": ""}, "ownership"),
        ({"seal": {"SOV-2": None}}, "seal.SOV-2"),
        ({"energy": {"pueMax": None}}, "energy.pueMax"),
        ({"forbidLaws": ["cloud act"]}, "forbidLaws[0]"),
        ({"ownership": "european"}, "ownership"),
        ({"seal": {"SOV-2": 9}}, "seal.SOV-2"),
        ({"seal": {"SOV-2": 1, "overall": 2}}, "seal.SOV-2"),
        ({"certifications": ["/high"]}, "certifications[0]"),
        ({"residencies": ["DE"]}, "residencies"),
        ({"assurance": {"residency": "self"}}, "assurance.residency"),
    ],
)
def test_policies_that_are_refused(raw: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        decode(SovereigntySpec, raw)
    assert [violation.path for violation in caught.value.violations] == [path]


def test_areas_and_days() -> None:
    assert "NO" in countries_in(("EEA",)) and "NO" not in countries_in(("EU",))
    assert area_text(countries_in(("EU", "CH"))) == "EU, CH"
    assert area_text(countries_in(("NL", "DE"))) == "DE, NL"
    assert area_text(frozenset()) == "no country"
    assert end_of_day("1970-01-01") == 86_400
    assert end_of_day("9999-12-31") > end_of_day("2027-01-01") == 1_798_848_000
