"""Who is at the two ends of LocalService, and who may sign a break-glass token."""

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.identity.authority import (
    Authority,
    LeafRequest,
    create_region,
    create_root,
    load_authority,
)
from orchestrator.identity.pem import read_key
from polder.identity import Identity, NodeId, OperatorId
from polder.local_access import BreakGlassToken, Grant, entry, grant_bytes, introduction
from polder.local_proofs import (
    ProvenOperator,
    sign_grant,
    verify_grant,
    verify_introduction,
    verify_operator,
)
from polder.signing import UntrustedSignature, sign

DOMAIN = "polder.internal"
NOW = 1_800_000_000.0
DAY = 86_400.0
NODE = NodeId(DOMAIN, "nl-utr-1", "node-a")
ANN = OperatorId(DOMAIN, "ann")
INTRODUCTION = introduction(b"n" * 32, b"certificate")
ENTRY = entry(b"c" * 32, b"certificate")
GRANT = Grant(
    trust_domain=DOMAIN,
    site="nl-utr-1",
    namespace="umc",
    workload="",
    allow=("stop",),
    purpose="ward 3 floods",
    serial="0123456789abcdef" * 2,
    issued_at_ms=int(NOW * 1000),
    expires_at_ms=int((NOW + 7200) * 1000),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ca")
    create_root(directory, DOMAIN, NOW - 30 * DAY)
    create_region(directory, "eu-west", NOW - 30 * DAY)
    return directory


@pytest.fixture(scope="module")
def authority(home: Path) -> Authority:
    return load_authority(home, "eu-west")


class Person:
    """Somebody with a key and a certificate."""

    def __init__(
        self, authority: Authority, identity: Identity, *, born: float = NOW, life_s: float = DAY
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        request = LeafRequest(
            identity, self.key.public_key(), life_s, organizations=("operator:umc", "janitor:umc")
        )
        self.chain = authority.issue(request, born).chain_der


def enter(
    person: Person, authority: Authority, *, at: float = NOW, heard_at: float | None = None
) -> ProvenOperator:
    return verify_operator(
        ENTRY,
        sign(ENTRY, person.key),
        person.chain,
        authority.roots_der,
        at,
        at if heard_at is None else heard_at,
        DOMAIN,
    )


def test_a_node_proves_itself(authority: Authority) -> None:
    node = Person(authority, NODE)
    found = verify_introduction(
        INTRODUCTION, sign(INTRODUCTION, node.key), node.chain, authority.roots_der, NOW, DOMAIN
    )
    assert (found.id, found.warning) == (NODE, "")


def test_a_node_whose_certificate_expired_is_still_known(authority: Authority) -> None:
    node = Person(authority, NODE, born=NOW - 20 * DAY)
    found = verify_introduction(
        INTRODUCTION, sign(INTRODUCTION, node.key), node.chain, authority.roots_der, NOW, DOMAIN
    )
    assert found.id == NODE and "expired" in found.warning


def test_a_node_is_not_believed_for_what_another_key_signed(authority: Authority) -> None:
    node, other = Person(authority, NODE), Person(authority, NODE)
    with pytest.raises(UntrustedSignature) as caught:
        verify_introduction(
            INTRODUCTION,
            sign(INTRODUCTION, other.key),
            node.chain,
            authority.roots_der,
            NOW,
            DOMAIN,
        )
    assert caught.value.reason == "BadSignature"


def test_an_operator_is_no_node_and_a_node_no_operator(authority: Authority) -> None:
    ann, node = Person(authority, ANN), Person(authority, NODE)
    with pytest.raises(UntrustedSignature) as caught:
        verify_introduction(
            INTRODUCTION, sign(INTRODUCTION, ann.key), ann.chain, authority.roots_der, NOW, DOMAIN
        )
    assert caught.value.reason == "WrongSigner"
    with pytest.raises(UntrustedSignature) as caught:
        enter(node, authority)
    assert caught.value.reason == "WrongSigner"


def test_another_installation_is_another_world(authority: Authority) -> None:
    ann = Person(authority, ANN)
    with pytest.raises(UntrustedSignature) as caught:
        verify_operator(
            ENTRY, sign(ENTRY, ann.key), ann.chain, authority.roots_der, NOW, NOW, "other.internal"
        )
    assert caught.value.reason == "WrongSigner"


def test_an_operator_enters_with_the_roles_that_are_known(authority: Authority) -> None:
    found = enter(Person(authority, ANN), authority)
    assert (found.id, found.roles, found.warning) == (ANN, ("operator:umc",), "")
    assert found.begins <= NOW and found.ends == NOW + DAY


def test_a_certificate_that_ended_before_the_site_was_alone_is_refused(
    authority: Authority,
) -> None:
    ann = Person(authority, ANN, born=NOW - 5 * DAY)
    with pytest.raises(UntrustedSignature) as caught:
        enter(ann, authority, heard_at=NOW - 3 * DAY)
    assert caught.value.reason == "ExpiredChain"


def test_one_that_ended_while_the_site_was_alone_is_let_in_with_a_warning(
    authority: Authority,
) -> None:
    ann = Person(authority, ANN, born=NOW - 5 * DAY)
    assert "expired" in enter(ann, authority, heard_at=NOW - 4.5 * DAY).warning


def test_a_slow_clock_keeps_nobody_out(authority: Authority) -> None:
    ann = Person(authority, ANN)
    found = enter(ann, authority, at=NOW - 20 * DAY)
    assert "slow" in found.warning


def signed(authority: Authority) -> BreakGlassToken:
    return sign_grant(GRANT, authority.private_key, authority.chain_der, authority.roots_der[0])


@pytest.mark.parametrize("by", ["root", "region"])
def test_the_root_and_a_region_may_sign_a_token(home: Path, authority: Authority, by: str) -> None:
    if by == "root":
        token = sign_grant(GRANT, read_key(home / "root.key"), (), authority.roots_der[0])
    else:
        token = signed(authority)
    found = verify_grant(token, authority.roots_der, NOW + 60, DOMAIN, "nl-utr-1")
    assert found == (GRANT, "")


def test_an_operator_may_not_sign_a_token(authority: Authority) -> None:
    """His certificate leads to the same root."""
    ann = Person(authority, ANN)
    for chain in (ann.chain, ann.chain[:1], ()):
        with pytest.raises(UntrustedSignature):
            token = sign_grant(GRANT, ann.key, chain, authority.roots_der[0])
            verify_grant(token, authority.roots_der, NOW, DOMAIN, "nl-utr-1")


def test_an_operator_that_the_root_certified_may_not_either(home: Path) -> None:
    root = load_authority(home, "eu-west").root
    by_root = Authority(root, root, read_key(home / "root.key"))
    ann = Person(by_root, ANN)
    with pytest.raises(UntrustedSignature) as caught:
        token = sign_grant(GRANT, ann.key, ann.chain[:1], by_root.roots_der[0])
        verify_grant(token, by_root.roots_der, NOW, DOMAIN, "nl-utr-1")
    assert caught.value.reason == "WrongSigner"


def test_a_token_is_for_one_site_and_its_time(authority: Authority) -> None:
    token = signed(authority)
    for at, site, reason in (
        (NOW, "nl-utr-2", "WrongSite"),
        (NOW + 7200, "nl-utr-1", "ExpiredGrant"),
    ):
        with pytest.raises(UntrustedSignature) as caught:
            verify_grant(token, authority.roots_der, at, DOMAIN, site)
        assert caught.value.reason == reason


def test_a_token_that_was_changed_is_refused(authority: Authority) -> None:
    token = signed(authority)
    more = grant_bytes(replace(GRANT, allow=("stop", "exec")))
    with pytest.raises(UntrustedSignature) as caught:
        verify_grant(
            BreakGlassToken(more, token.signature, token.chain, token.root),
            authority.roots_der,
            NOW,
            DOMAIN,
            "nl-utr-1",
        )
    assert caught.value.reason == "BadSignature"


def test_a_token_says_when_the_clock_is_slow(authority: Authority) -> None:
    token = signed(authority)
    _, warning = verify_grant(token, authority.roots_der, NOW - 9 * DAY, DOMAIN, "nl-utr-1")
    assert "slow" in warning
