"""Shares along chains, control, and what an operator is told about them."""

from typing import Any

import pytest

from polder.manifest import InvalidManifest, decode
from polder.manifest.facts import ProviderSpec
from polder.sovereignty.profile import Owned, analyse_owners

Raw = dict[str, Any]


def row(holder: str, country: str, percent: float, of: str = "", **more: Any) -> Raw:
    found: Raw = {"holder": holder, "capitalPercent": percent, "votesPercent": percent, **more}
    if country:
        found["country"] = country
    if of:
        found["of"] = of
    return found


def raw(*owners: Raw, complete: bool = True) -> Raw:
    return {
        "legalName": "Example GmbH",
        "seatCountry": "DE",
        "owners": list(owners),
        "ownersComplete": complete,
    }


def analyse(*owners: Raw, complete: bool = True) -> Owned:
    return analyse_owners(decode(ProviderSpec, raw(*owners, complete=complete)))


def outside(owned: Owned) -> dict[str, float]:
    return {holding.holder: holding.votes_percent for holding in owned.holdings}


def test_percentages_multiply_along_a_chain_and_parallel_chains_add() -> None:
    owned = analyse(
        row("left", "DE", 60),
        row("right", "FR", 40),
        row("big", "US", 30, of="left"),
        row("big", "US", 10, of="right"),
        row("anna", "DE", 70, of="left", kind="person"),
        row("bert", "FR", 90, of="right", kind="person"),
    )
    assert outside(owned) == {"big": 22.0}
    assert owned.capital.percent == 22.0
    assert owned.capital.unknown_percent == 0
    assert owned.holdings[0].via == ("left",), "the chain that carries most"


def test_a_company_outside_the_eu_counts_whoever_is_behind_it() -> None:
    owned = analyse(
        row("shell", "US", 30),
        row("anna", "DE", 70, kind="person"),
        row("anna", "DE", 100, "shell", kind="person"),
    )
    assert outside(owned) == {"shell": 30.0}


def test_parent_and_subsidiary_outside_are_counted_once_together() -> None:
    owned = analyse(
        row("sub", "US", 30),
        row("parent", "US", 100, of="sub"),
        row("anna", "DE", 70, kind="person"),
    )
    assert outside(owned) == {"sub": 30.0, "parent": 30.0}
    assert owned.votes.percent == 30.0


def test_control_counts_as_100() -> None:
    owned = analyse(
        row("holding", "NL", 100),
        row("fund", "US", 5, of="holding", control=True),
        row("anna", "NL", 95, of="holding", kind="person"),
    )
    assert outside(owned) == {"fund": 100.0}
    assert "fund (US) has control of holding (NL)" in owned.control


def test_cross_holdings_raise_the_share_of_outsiders() -> None:
    """The provider holds half of its holder: those shares have no other owner."""
    owned = analyse(
        row("holding", "DE", 40),
        row("anna", "DE", 60, kind="person"),
        row("big", "US", 50, of="holding"),
        {**row("Example GmbH", "DE", 50), "of": "holding"},
    )
    assert outside(owned) == {"big": 25.0}


def test_mutual_control_terminates_and_invents_nothing() -> None:
    owned = analyse(
        row("a", "DE", 30),
        row("anna", "DE", 70, kind="person"),
        {"holder": "a", "of": "b", "country": "DE", "control": True},
        {"holder": "b", "of": "a", "country": "DE", "control": True},
    )
    assert outside(owned) == {}
    assert owned.votes.unknown_percent == 30.0, "nobody says who holds a"


def test_a_circle_with_nobody_behind_it_is_unknown() -> None:
    owned = analyse(row("a", "DE", 100), row("b", "DE", 100, of="a"), row("a", "DE", 100, of="b"))
    assert owned.votes.unknown_percent == 100.0
    assert "held in a circle" in owned.possible_control
    assert owned.anyone


@pytest.mark.parametrize("complete", [True, False])
def test_what_is_not_declared(complete: bool) -> None:
    owned = analyse(row("anna", "DE", 60, kind="person"), complete=complete)
    part = owned.votes
    assert (part.unknown_percent, part.dispersed_percent) == ((0, 40) if complete else (40, 0))
    assert bool(owned.possible_control) is not complete


def test_a_company_without_listed_holders_is_unknown_unless_the_list_is_complete() -> None:
    assert analyse(row("corp", "DE", 100), complete=False).votes.unknown_percent == 100.0
    assert analyse(row("corp", "DE", 100)).votes.unknown_percent == 0.0
    person = row("anna", "DE", 100, kind="person")
    assert analyse(person, complete=False).votes.unknown_percent == 0.0


def test_votes_that_are_left_out_are_unknown_also_in_a_complete_list() -> None:
    owned = analyse({"holder": "anna", "kind": "person", "country": "DE", "capitalPercent": 100})
    assert owned.capital.unknown_percent == 0
    assert owned.votes.unknown_percent == 100.0


def test_free_float_counts_by_its_country_and_controls_nothing() -> None:
    owned = analyse(
        row("anna", "DE", 40, kind="person"),
        row("float", "EU", 30, kind="dispersed"),
        row("float elsewhere", "US", 20, kind="dispersed"),
        row("float somewhere", "", 10, kind="dispersed"),
    )
    assert (owned.votes.percent, owned.votes.dispersed_percent) == (20.0, 10.0)
    assert owned.holdings == ()
    assert not owned.control and not owned.possible_control


def test_a_chain_of_majorities_is_control_though_the_product_is_small() -> None:
    chain = [row("a", "DE", 51), row("b", "NL", 51, of="a"), row("c", "FR", 51, of="b")]
    owned = analyse(*chain, row("big", "US", 51, of="c"))
    assert outside(owned) == {"big": pytest.approx(6.765201)}
    assert "big (US) holds 51 percent of the votes of c (FR)" in owned.control
    assert [reach.country for reach in owned.reaches] == ["DE", "FR", "NL", "US"]


def test_puerto_rico_is_under_us_law() -> None:
    owned = analyse(row("isla", "PR", 60), row("anna", "DE", 40, kind="person"))
    assert [reach.country for reach in owned.reaches] == ["US"]


def test_together_holders_of_one_country_control() -> None:
    owned = analyse(
        row("one", "US", 30), row("two", "US", 30), row("anna", "DE", 40, kind="person")
    )
    how = {reach.country: reach.how for reach in owned.reaches}["US"]
    assert how == "one (US) and two (US) hold 60 percent of the votes of Example GmbH"


def test_a_hundred_owners_in_a_tangle_terminate() -> None:
    names = [f"c{index}" for index in range(33)]
    rows = [row(name, "US" if name == "c7" else "DE", 3) for name in names]
    for index, name in enumerate(names):
        for step in (1, 2):
            held = names[(index + step) % len(names)]
            rows.append(row(name, "US" if name == "c7" else "DE", 49, of=held))
    owned = analyse(*rows)
    assert 0 < owned.votes.percent <= 100


@pytest.mark.parametrize(
    ("rows", "path", "text"),
    [
        (
            [row("a", "DE", 60), row("b", "FR", 41)],
            "owners",
            "capital of 'Example GmbH' adds up to 101",
        ),
        ([row("a", "DE", 60, of="ghost")], "owners[0].of", "'ghost' is neither a holder"),
        (
            [row("a", "DE", 60, kind="person"), row("b", "DE", 9, of="a")],
            "owners[1].of",
            "'a' is a person: nobody holds it",
        ),
        (
            [row("a", "DE", 6), row("a", "US", 6)],
            "owners[1].country",
            "'a' has US here and DE before",
        ),
        ([row("a", "", 6)], "owners[0].country", "is required, unless"),
        ([row("a", "EU", 6)], "owners[0].country", "is a group of countries"),
        ([{"holder": "a", "country": "DE"}], "owners[0]", "needs capitalPercent, votesPercent or"),
        ([row("a", "DE", 101)], "owners[0].capitalPercent", "the most allowed is 100%"),
        ([row("", "DE", 1)], "owners[0].holder", "is empty"),
        (
            [row("f", "EU", 9, kind="dispersed", control=True)],
            "owners[0].control",
            "control nothing",
        ),
    ],
)
def test_graphs_that_cannot_be(rows: list[Raw], path: str, text: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        decode(ProviderSpec, raw(*rows))
    assert any(v.path == path and text in v.message for v in caught.value.violations), caught.value


def test_thirds_as_registers_round_them_are_accepted() -> None:
    owned = analyse(*(row(name, "DE", 33.33, kind="person") for name in "abc"), complete=False)
    assert owned.votes.unknown_percent == 0
    assert analyse(*(row(name, "DE", 33.34, kind="person") for name in "abc")).votes.percent == 0
