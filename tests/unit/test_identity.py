"""SPIFFE identities: what is read, and that no part can pretend to be another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polder.identity import Identity, InvalidIdentity, MemberId, NodeId, OperatorId, parse

EXAMPLES: list[tuple[str, Identity]] = [
    ("spiffe://polder.test/site/nl-utr-1/node/box-1", NodeId("polder.test", "nl-utr-1", "box-1")),
    ("spiffe://p/region/eu-west/orchestrator/m1", MemberId("p", "eu-west", "m1")),
    ("spiffe://p/operator/Jan.de_Vries", OperatorId("p", "Jan.de_Vries")),
]


@pytest.mark.parametrize(("text", "identity"), EXAMPLES)
def test_text_and_back(text: str, identity: Identity) -> None:
    assert parse(text) == identity
    assert str(identity) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe:///site/a/node/b",
        "SPIFFE://p/operator/a",
        "https://p/operator/a",
        "spiffe://P/operator/a",
        "spiffe://p:443/operator/a",
        "spiffe://u@p/operator/a",
        "spiffe://p/operator/a?x=1",
        "spiffe://p/operator/a#x",
        "spiffe://p/operator/a/",
        "spiffe://p/operator//a",
        "spiffe://p/operator/",
        "spiffe://p/operator/..",
        "spiffe://p/operator/%61",
        "spiffe://p/operator/a\n",
        "spiffe://p/operator/ä",
        "spiffe://p/operator/" + "a" * 254,
        "spiffe://" + "p" * 256 + "/operator/a",
        "spiffe://p",
        "spiffe://p/",
        "spiffe://p/node/b",
        "spiffe://p/site/a/node/b/c",
        "spiffe://p/site/./node/b",
        "spiffe://p/Site/a/node/b",
        "x" * 1_000_000,
        "spiffe://p/operator/" + "a/" * 1_000_000,
    ],
    ids=lambda text: text[:40],
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidIdentity) as caught:
        parse(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a/node/b", "a b", "a\n", "é", "a" * 254])
def test_parts_that_would_read_back_as_something_else_cannot_be_used(bad: str) -> None:
    for make in (
        lambda: NodeId("p", bad, "n"),
        lambda: NodeId("p", "s", bad),
        lambda: MemberId("p", bad, "m"),
        lambda: MemberId("p", "r", bad),
        lambda: OperatorId("p", bad),
    ):
        with pytest.raises(InvalidIdentity):
            make()


def test_a_trust_domain_is_checked_too() -> None:
    for bad in ("", "P", "a/b", "p:1"):
        with pytest.raises(InvalidIdentity):
            OperatorId(bad, "a")


@given(st.text(), st.text(), st.text())
def test_what_can_be_made_reads_back_as_itself(domain: str, first: str, second: str) -> None:
    for make in (NodeId, MemberId, lambda d, a, _: OperatorId(d, a)):
        try:
            identity = make(domain, first, second)
        except InvalidIdentity:
            continue
        assert parse(str(identity)) == identity


@given(st.sampled_from([text for text, _ in EXAMPLES]), st.integers(0, 80), st.characters())
def test_one_changed_character_never_gives_the_same_identity(
    text: str, position: int, character: str
) -> None:
    position %= len(text)
    changed = text[:position] + character + text[position + 1 :]
    try:
        identity = parse(changed)
    except InvalidIdentity:
        return
    assert str(identity) == changed
