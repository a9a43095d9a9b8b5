"""A node decides in its own name only, whoever carries it further."""

import json
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
from polder.identity import Identity, MemberId, NodeId, OperatorId
from polder.override_proofs import signed, unproven
from polder.overrides import (
    FROZEN,
    STOPPED,
    TRUE,
    BadOverride,
    Override,
    Proof,
    from_body,
    from_message,
    signed_bytes,
    to_body,
    to_message,
)

DOMAIN, SITE, DAY, NOW = "polder.internal", "nl-utr-1", 86_400.0, 1_800_000_000.0
STOP = Override(
    STOPPED, TRUE, "w", "ns", "db-0", "id", 7, "node-a", "operator/ann", "why", 5_000, 3, 9
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    home: Path = tmp_path_factory.mktemp("ca")
    create_root(home, DOMAIN, NOW - 30 * DAY)
    create_region(home, "eu-west", NOW - 30 * DAY)
    return load_authority(home, "eu-west")


def by(
    authority: Authority, identity: Identity, override: Override = STOP, *, born: float = NOW
) -> Override:
    key = ec.generate_private_key(ec.SECP256R1())
    request = LeafRequest(identity, key.public_key(), DAY)
    return signed(override, SITE, key, authority.issue(request, born).chain_der)


def why(authority: Authority, override: Override, site: str = SITE, at: float = NOW) -> str:
    return unproven([override], site, authority.roots_der, at, DOMAIN).get(0, "")


def test_a_node_signs_what_it_decides(authority: Authority) -> None:
    assert why(authority, by(authority, NodeId(DOMAIN, SITE, "node-a"))) == ""


@pytest.mark.parametrize("at", [NOW + 30 * DAY, NOW - 30 * DAY])
def test_neither_the_end_of_its_certificate_nor_a_wrong_clock_counts(
    authority: Authority, at: float
) -> None:
    assert why(authority, by(authority, NodeId(DOMAIN, SITE, "node-a")), at=at) == ""


@pytest.mark.parametrize(
    "signer",
    [
        NodeId(DOMAIN, SITE, "node-b"),
        NodeId(DOMAIN, "nl-utr-2", "node-a"),
        MemberId(DOMAIN, "eu-west", "eu-west-1"),
        OperatorId(DOMAIN, "node-a"),
    ],
)
def test_nobody_else_decides_in_its_name(authority: Authority, signer: Identity) -> None:
    assert "and not node node-a" in why(authority, by(authority, signer))


@pytest.mark.parametrize("node", ["", "node-a", "no/../name"])
def test_only_an_orchestrator_decides_without_a_node(authority: Authority, node: str) -> None:
    taken_back = replace(STOP, value="", node=node)
    member = by(authority, MemberId(DOMAIN, "eu-west", "eu-west-1"), taken_back)
    assert (why(authority, member) == "") == (node == "")
    other = by(authority, NodeId(DOMAIN, SITE, "node-b"), taken_back)
    assert why(authority, other) != ""


@pytest.mark.parametrize(
    "change",
    [
        {"value": ""},
        {"stamp": 8},
        {"replica": "db-1"},
        {"workload_uid": "v"},
        {"namespace": "other"},
        {"id": "x"},
        {"by": "operator/bob"},
        {"reason": "because"},
        {"at_ms": 6_000},
        {"base_revision": 4},
        {"base_epoch": 10},
    ],
)
def test_whatever_is_changed_on_the_way_is_seen(
    authority: Authority, change: dict[str, object]
) -> None:
    true = by(authority, NodeId(DOMAIN, SITE, "node-a"))
    assert "does not fit" in why(authority, replace(true, **change))  # type: ignore[arg-type]


def test_it_is_of_one_site_and_a_conflict_is_for_the_orchestrator_to_say(
    authority: Authority,
) -> None:
    freeze = Override(FROZEN, "", stamp=9)
    member = by(authority, MemberId(DOMAIN, "eu-west", "eu-west-1"), freeze)
    assert why(authority, member) == ""
    assert "does not fit" in why(authority, member, site="nl-utr-2")
    node = by(authority, NodeId(DOMAIN, SITE, "node-a"))
    assert why(authority, replace(node, conflict="it was moved meanwhile")) == ""


def test_of_several_only_the_forged_are_left_out(authority: Authority) -> None:
    true = by(authority, NodeId(DOMAIN, SITE, "node-a"))
    bare = replace(true, proof=None)
    mangled = replace(true, proof=Proof(b"0", true.proof.chain if true.proof else ()))
    strange = replace(true, proof=Proof(b"0", (b"no certificate",)))
    found = unproven([bare, true, mangled, strange], SITE, authority.roots_der, NOW, DOMAIN)
    assert set(found) == {0, 2, 3} and found[0] == "nobody signed it"


def test_another_installations_node_is_nobody(authority: Authority, tmp_path: Path) -> None:
    create_root(tmp_path, DOMAIN, NOW - 30 * DAY)
    create_region(tmp_path, "eu-west", NOW - 30 * DAY)
    theirs = by(load_authority(tmp_path, "eu-west"), NodeId(DOMAIN, SITE, "node-a"))
    assert "no root" in why(authority, theirs)


def test_its_forms_carry_the_proof(authority: Authority) -> None:
    true = by(authority, NodeId(DOMAIN, SITE, "node-a"))
    kept = from_body(json.loads(json.dumps(to_body(true))))
    sent = from_message(to_message(true))
    assert kept.proof == sent.proof == true.proof and kept == sent == replace(true, proof=None)
    assert signed_bytes(kept, SITE) == signed_bytes(true, SITE)


@pytest.mark.parametrize(
    "proof", [Proof(b"0" * 101, ()), Proof(b"", (b"0",) * 5), Proof(b"", (b"0" * 4_097,))]
)
def test_a_proof_is_small(proof: Proof) -> None:
    with pytest.raises(BadOverride):
        replace(STOP, proof=proof)


@pytest.mark.parametrize("proof", [7, ["%"], [7], {"signature": ""}])
def test_a_proof_that_another_version_wrote_is_no_override(proof: object) -> None:
    with pytest.raises(BadOverride):
        from_body(to_body(STOP) | {"proof": proof})
