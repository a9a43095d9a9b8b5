"""Countries: the frozen table, the groups, and what a wrong code is answered with."""

import pytest

from polder.countries import COUNTRIES, EEA, EU, GROUPS, country_code
from polder.manifest import InvalidManifest, decode_document


def test_the_table_is_iso_3166_1_and_kosovo() -> None:
    assert len(COUNTRIES) == 249 + 1
    assert all(len(c) == 2 and c.isascii() and c.isupper() and c.isalpha() for c in COUNTRIES)
    assert len(set(COUNTRIES.values())) == len(COUNTRIES)
    assert COUNTRIES["XK"] == "Kosovo"


def test_the_groups() -> None:
    assert len(EU) == 27
    assert {"IS", "LI", "NO"} == EEA - EU
    assert GROUPS == {"EU": EU, "EEA": EEA}
    assert COUNTRIES.keys() > EEA
    for outside in ("GB", "CH", "XK", "RE", "GL", "AX", "SJ"):
        assert outside not in EEA


@pytest.mark.parametrize("code", ["NL", "NO", "XK", "RE"])
def test_codes(code: str) -> None:
    assert country_code(code) == code


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("ZZ", "not a country code of ISO 3166-1"),
        ("XX", "not a country code"),
        ("AN", "not a country code"),  # the Netherlands Antilles are no more
        ("", "not a country code"),
        ("nl", "did you mean NL \\(Netherlands\\)"),
        ("UK", "did you mean GB \\(United Kingdom\\)"),
        ("EL", "did you mean GR \\(Greece\\)"),
        ("EU", "a group of countries"),
        ("eea", "a group of countries"),
        ("NLD", "not a country code"),
        ("NL ", "not a country code"),
        ("ＮＬ", "not a country code"),  # noqa: RUF001
        (False, 'is Norway meant\\? put "NO" in quotes'),
        (True, "two capital letters"),
        (31, "two capital letters"),
        (["NL"], "two capital letters"),
        ("x" * 1_000_000, "not a country code"),
    ],
    ids=lambda raw: repr(raw)[:12],
)
def test_no_codes(raw: object, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        country_code(raw)
    assert len(str(caught.value)) < 150


def test_sites_and_providers_stand_in_countries_that_exist() -> None:
    for kind, spec, key in (
        ("Site", {"provider": "p"}, "country"),
        ("Provider", {"legalName": "P"}, "seatCountry"),
    ):
        raw = {"apiVersion": "polder.eu/v1", "kind": kind, "metadata": {"name": "x"}}
        assert decode_document(raw | {"spec": spec | {key: "NL"}})
        with pytest.raises(InvalidManifest) as caught:
            decode_document(raw | {"spec": spec | {key: "QQ"}})
        assert [v.path for v in caught.value.violations] == [f"spec.{key}"]
