"""Join tokens: a token is read whole and unchanged, or refused."""

import base64
import contextlib
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polder.tokens import MAX_TEXT, PREFIX, InvalidToken, JoinToken, parse, secret_digest

TOKEN = JoinToken(
    secret="s3cr3t-" + "x" * 36,
    site="nl-utr-1",
    node="box-1",
    endpoints=("203.0.113.7:7443", "[2001:db8::1]:7443"),
    ca=bytes(range(256)) * 2,
    expires_at_ms=1_700_000_000_000,
)
TEXT = str(TOKEN)


def made(body: Any) -> str:
    """A token with a right checksum around any body."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    check = hashlib.sha256(raw).digest()[:4]
    return PREFIX + base64.urlsafe_b64encode(check + raw).decode().rstrip("=")


def body(**changes: Any) -> dict[str, Any]:
    fields = {"s": "x", "site": "a", "node": "", "e": ["h:1"], "ca": "AAAA", "x": 5}
    return fields | changes


def test_text_and_back() -> None:
    assert parse(TEXT) == TOKEN
    assert parse(f"  {TEXT}\n") == TOKEN
    anywhere = replace(TOKEN, node="")
    assert parse(str(anywhere)) == anywhere


def test_the_secret_stays_out_of_logs() -> None:
    assert TOKEN.secret not in repr(TOKEN)
    assert TOKEN.secret not in f"{[TOKEN]}"
    assert secret_digest("abc") == hashlib.sha256(b"abc").hexdigest()


def test_the_body_built_here_is_a_good_one() -> None:
    assert parse(made(body())) == JoinToken("x", "a", "", ("h:1",), b"\0\0\0", 5)


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        "x",
        5,
        None,
        {},
        body(s=None),
        body(s=""),
        body(s=5),
        body(s="\ud800"),
        body(s="ä"),
        body(site=""),
        body(site="a\n"),
        body(node=None),
        body(e=[]),
        body(e="h:1"),
        body(e=[1]),
        body(e=[""]),
        body(e={"h:1": 1}),
        body(ca=""),
        body(ca="A"),
        body(ca="ä"),
        body(ca=None),
        body(x="5"),
        body(x=True),
        body(x=5.0),
        body(x=float("inf")),
        body(x=None),
        {k: v for k, v in body().items() if k != "node"},
        b"[" * 6000,
        b'{"s":' * 1000,
        b"\xff\xfe",
        b"",
        b"9" * 5000,
    ],
    ids=lambda wrong: repr(wrong)[:60],
)
def test_a_right_checksum_around_a_wrong_body(wrong: Any) -> None:
    with pytest.raises(InvalidToken, match="damaged"):
        parse(made(wrong))


@pytest.mark.parametrize(
    "text",
    ["", PREFIX, "polder2." + TEXT[8:], TEXT[1:], TEXT.upper(), "ä" + TEXT, TEXT + "A" * MAX_TEXT],
    ids=lambda text: text[:20],
)
def test_no_tokens(text: str) -> None:
    with pytest.raises(InvalidToken, match=r"this is not a join token|damaged") as caught:
        parse(text)
    assert len(str(caught.value)) < 150


def test_every_cut_off_paste_is_refused() -> None:
    for length in range(len(TEXT)):
        with pytest.raises(InvalidToken):
            parse(TEXT[:length])


def parsed_is_right_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidToken):
        assert parse(text) == TOKEN


@given(st.integers(0, len(TEXT) - 1), st.characters(exclude_categories=()))
def test_a_changed_character_never_gives_another_token(position: int, character: str) -> None:
    parsed_is_right_or_refused(TEXT[:position] + character + TEXT[position + 1 :])


@given(st.integers(0, len(TEXT)), st.integers(0, len(TEXT)), st.text(max_size=8))
def test_a_changed_stretch_never_gives_another_token(start: int, end: int, put: str) -> None:
    parsed_is_right_or_refused(TEXT[:start] + put + TEXT[end:])


@given(st.text(), st.booleans())
def test_any_text(text: str, prefixed: bool) -> None:
    with pytest.raises(InvalidToken):
        parse(PREFIX + text if prefixed else text)
