"""What is signed for local operators, and what a break-glass token may say."""

import json
from dataclasses import replace

import pytest

from polder.local_access import (
    BreakGlassToken,
    Grant,
    InvalidGrant,
    entry,
    grant_bytes,
    introduction,
    read_grant,
    read_token,
)

HOUR_MS = 3_600_000
GRANT = Grant(
    trust_domain="polder.internal",
    site="nl-utr-1",
    namespace="umc",
    workload="",
    allow=("stop", "restart"),
    purpose="ward 3 floods",
    serial="0123456789abcdef" * 2,
    issued_at_ms=1_000,
    expires_at_ms=1_000 + 2 * HOUR_MS,
)


def test_a_grant_reads_back_as_it_was() -> None:
    assert read_grant(grant_bytes(GRANT)) == GRANT


def test_a_token_reads_back_as_it_was() -> None:
    token = BreakGlassToken(grant_bytes(GRANT), b"signature", (b"region",), b"root")
    assert read_token(f"  {token}\n") == token


@pytest.mark.parametrize(
    ("action", "namespace", "workload", "allowed"),
    [
        ("stop", "umc", "triage", True),
        ("read", "umc", "triage", True),
        ("exec", "umc", "triage", False),
        ("stop", "city", "triage", False),
        ("read", "city", "triage", False),
        ("read", "", "", False),
    ],
)
def test_it_allows_what_it_says_where_it_says(
    action: str, namespace: str, workload: str, allowed: bool
) -> None:
    assert GRANT.allows(action, namespace, workload) is allowed


def test_one_workload_is_not_the_next() -> None:
    grant = replace(GRANT, workload="triage")
    assert grant.allows("stop", "umc", "triage")
    assert not grant.allows("stop", "umc", "billing")


def test_without_a_namespace_it_is_for_the_whole_site() -> None:
    grant = replace(GRANT, namespace="", allow=("freeze", "stop"))
    assert grant.allows("freeze", "", "") and grant.allows("stop", "umc", "triage")
    assert not grant.allows("unfreeze", "", "")


@pytest.mark.parametrize(
    "change",
    [
        {"allow": ()},
        {"allow": ("stop", "stop")},
        {"allow": ("delete",)},
        {"allow": ("freeze",)},  # with a namespace
        {"namespace": "", "workload": "triage"},
        {"namespace": "UMC"},
        {"site": ""},
        {"purpose": ""},
        {"purpose": "two\nlines"},
        {"purpose": "x" * 201},
        {"serial": "12"},
        {"expires_at_ms": 1_000 + 25 * HOUR_MS},
        {"expires_at_ms": 1_000},
    ],
)
def test_what_no_grant_may_say(change: dict[str, object]) -> None:
    with pytest.raises(InvalidGrant):
        replace(GRANT, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"only_on_sundays": True},  # a limit that this program would not keep
        {"expires_at_ms": "9999"},
        {"issued_at_ms": True},
        {"allow": [["stop"]]},
        {"allow": "stop"},
        {"purpose": None},
    ],
)
def test_a_grant_of_another_make_is_refused(change: dict[str, object]) -> None:
    body = {**json.loads(grant_bytes(GRANT)), **change}
    with pytest.raises(InvalidGrant):
        read_grant(json.dumps(body).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000, b"null"])
def test_a_grant_that_is_none(data: bytes) -> None:
    with pytest.raises(InvalidGrant):
        read_grant(data)


@pytest.mark.parametrize(
    "text",
    ["", "polder1.abc", "polder-break-glass1.", "polder-break-glass1.ä", "polder-break-glass1.e30"],
)
def test_a_token_that_is_none(text: str) -> None:
    with pytest.raises(InvalidGrant):
        read_token(text)


def test_a_token_that_was_cut_is_refused() -> None:
    text = str(BreakGlassToken(grant_bytes(GRANT), b"signature", (), b"root"))
    with pytest.raises(InvalidGrant, match="damaged"):
        read_token(text[:-9])


def test_the_two_messages_are_never_alike_and_bound_to_the_connection() -> None:
    nonce = b"n" * 32
    messages = {introduction(nonce, b"one"), entry(nonce, b"one"), entry(nonce, b"two")}
    assert len(messages) == 3


@pytest.mark.parametrize("nonce", [b"", b"n" * 31, b"n" * 64])
def test_a_nonce_has_one_length(nonce: bytes) -> None:
    with pytest.raises(ValueError):
        introduction(nonce, b"certificate")
