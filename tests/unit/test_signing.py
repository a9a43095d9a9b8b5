"""Plan signatures and the chains behind them: who is believed, and who is not."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from polder.identity import InvalidIdentity, MemberId, NodeId, OperatorId
from polder.signing import (
    MAX_CHAIN,
    PLAN_CONTEXT,
    UntrustedSignature,
    identity_of,
    sign_plan,
    verify_chain,
    verify_plan,
)

NOW = 1_700_000_000.0
DAY = 86_400.0
MEMBER = MemberId("polder.test", "eu-west", "m1")
PLAN = b"a plan"
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass
class Party:
    """A key and its certificate, which issues others whether or not it may."""

    name: str
    issuer: "Party | None" = None
    uris: tuple[str, ...] = ()
    ca: bool | None = True
    path_length: int | None = None
    cert_sign: bool | None = None
    start: float = NOW - DAY
    end: float = NOW + DAY
    key: Key = field(default_factory=new_key)

    def __post_init__(self) -> None:
        issuer = self.issuer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(common_name(self.name))
            .issuer_name(common_name(issuer.name))
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.fromtimestamp(self.start, UTC))
            .not_valid_after(datetime.fromtimestamp(self.end, UTC))
        )
        if self.ca is not None:
            limits = x509.BasicConstraints(self.ca, self.path_length if self.ca else None)
            builder = builder.add_extension(limits, critical=True)
        if self.uris:
            names = [x509.UniformResourceIdentifier(uri) for uri in self.uris]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if self.cert_sign is not None:
            builder = builder.add_extension(usage(self.cert_sign), critical=True)
        algorithm = None if isinstance(issuer.key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        self.certificate = builder.sign(issuer.key, algorithm)
        self.der = self.certificate.public_bytes(Encoding.DER)


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def usage(cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(True, False, False, False, False, cert_sign, False, False, False)


ROOT = Party("root")
REGION = Party("eu-west", ROOT, path_length=0, cert_sign=True)
SIGNER = Party("m1", REGION, uris=(str(MEMBER),), ca=False)


def signed_by(signer: Party, payload: bytes = PLAN) -> bytes:
    assert isinstance(signer.key, ec.EllipticCurvePrivateKey)
    return sign_plan(payload, signer.key)


def verify(
    signer: Party = SIGNER,
    chain: tuple[Party, ...] | None = None,
    roots: tuple[Party, ...] = (ROOT,),
    *,
    payload: bytes = PLAN,
    signature: bytes | None = None,
    at: float = NOW,
    trust_domain: str = "polder.test",
) -> MemberId:
    chain = (signer, REGION) if chain is None else chain
    signature = signed_by(signer) if signature is None else signature
    return verify_plan(
        payload, signature, [p.der for p in chain], [r.der for r in roots], at, trust_domain
    )


def reason(**arguments: object) -> str:
    with pytest.raises(UntrustedSignature) as caught:
        verify(**arguments)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300
    return caught.value.reason


def test_a_member_is_believed() -> None:
    assert verify() == MEMBER
    assert verify(chain=(SIGNER, REGION, ROOT)) == MEMBER  # the root may come along
    assert verify(roots=(Party("other root"), ROOT)) == MEMBER  # while roots are exchanged


def test_a_member_directly_under_the_root() -> None:
    signer = Party("m2", ROOT, uris=(str(MEMBER),), ca=False)
    assert verify(signer, (signer,)) == MEMBER


def test_another_root() -> None:
    assert reason(roots=(Party("root"),)) == "BadChain"  # the same name, another key
    assert reason(roots=()) == "BadChain"
    assert reason(chain=(SIGNER,)) == "BadChain"  # the link to the root is missing
    assert reason(chain=(SIGNER, ROOT)) == "BadChain"
    assert reason(chain=(REGION, SIGNER)) == "BadChain"


def test_a_self_made_root_at_the_end_of_the_chain_is_not_trusted() -> None:
    root = Party("root")
    region = Party("eu-west", root)
    signer = Party("m1", region, uris=(str(MEMBER),), ca=False)
    assert reason(signer=signer, chain=(signer, region, root)) == "BadChain"


@pytest.mark.parametrize("ca", [False, None])
def test_a_leaf_that_is_no_ca_issues_nothing(ca: bool | None) -> None:
    """Else whoever steals one node's key is an orchestrator."""
    node = Party("n", REGION, uris=(str(NodeId("polder.test", "s", "n")),), ca=ca)
    forged = Party("m1", node, uris=(str(MEMBER),), ca=False)
    assert reason(signer=forged, chain=(forged, node, REGION)) == "BadChain"


def test_a_ca_below_one_that_allows_none_is_refused() -> None:
    below = Party("sub", REGION)  # REGION has path length 0
    signer = Party("m1", below, uris=(str(MEMBER),), ca=False)
    assert reason(signer=signer, chain=(signer, below, REGION)) == "BadChain"
    free = Party("region", ROOT)
    below = Party("sub", free)
    signer = Party("m1", below, uris=(str(MEMBER),), ca=False)
    assert verify(signer, (signer, below, free)) == MEMBER


def test_a_root_that_allows_no_intermediates() -> None:
    root = Party("root", path_length=0)
    region = Party("eu-west", root)
    signer = Party("m1", region, uris=(str(MEMBER),), ca=False)
    assert reason(signer=signer, chain=(signer, region), roots=(root,)) == "BadChain"


def test_an_issuer_whose_key_is_not_for_certificates() -> None:
    region = Party("eu-west", ROOT, cert_sign=False)
    signer = Party("m1", region, uris=(str(MEMBER),), ca=False)
    assert reason(signer=signer, chain=(signer, region)) == "BadChain"


def test_a_forged_link() -> None:
    other = Party("eu-west", ROOT)  # the same name as REGION, another key
    assert reason(chain=(SIGNER, other)) == "BadChain"


@pytest.mark.parametrize(("days", "words"), [(2, "but until"), (-2, "is the clock right?")])
def test_what_is_not_valid_says_since_or_until_when_it_is(days: int, words: str) -> None:
    with pytest.raises(UntrustedSignature, match="was not valid at") as caught:
        verify(at=NOW + days * DAY)
    assert words in str(caught.value)


def test_validity_counts_at_the_given_moment() -> None:
    assert reason(at=NOW + 2 * DAY) == "ExpiredChain"
    assert reason(at=NOW - 2 * DAY) == "ExpiredChain"
    assert verify(at=NOW + DAY) == MEMBER  # the last second counts
    assert verify(at=NOW - DAY) == MEMBER
    short = Party("eu-west", ROOT, end=NOW - 1)
    signer = Party("m1", short, uris=(str(MEMBER),), ca=False)
    assert reason(signer=signer, chain=(signer, short)) == "ExpiredChain"
    assert verify(signer, (signer, short), at=NOW - 2) == MEMBER


@pytest.mark.parametrize(
    "uris",
    [
        (),
        (str(NodeId("polder.test", "eu-west", "m1")),),
        (str(OperatorId("polder.test", "m1")),),
        (str(MemberId("polder.example", "eu-west", "m1")),),
        (str(MEMBER), str(NodeId("polder.test", "s", "n"))),
        ("https://polder.test/region/eu-west/orchestrator/m1",),
    ],
    ids=["nobody", "node", "operator", "other domain", "two names", "not SPIFFE"],
)
def test_only_a_member_of_our_domain_signs_plans(uris: tuple[str, ...]) -> None:
    signer = Party("m1", REGION, uris=uris, ca=False)
    assert reason(signer=signer) == "WrongSigner"


def test_the_domain_is_the_one_of_the_node() -> None:
    assert reason(trust_domain="polder.example") == "WrongSigner"


def test_a_changed_plan_or_signature() -> None:
    good = signed_by(SIGNER)
    assert reason(payload=PLAN + b"\0", signature=good) == "BadSignature"
    assert reason(payload=b"", signature=good) == "BadSignature"
    assert reason(signature=b"") == "BadSignature"
    assert reason(signature=good[:-1]) == "BadSignature"
    assert reason(signature=good + b"\0") == "BadSignature"
    for position in range(len(good)):
        spoilt = bytearray(good)
        spoilt[position] ^= 1
        assert reason(signature=bytes(spoilt)) == "BadSignature"
    assert reason(signature=signed_by(REGION)) == "BadSignature"


def test_a_signature_for_something_else_is_none_for_a_plan() -> None:
    assert isinstance(SIGNER.key, ec.EllipticCurvePrivateKey)
    bare = SIGNER.key.sign(PLAN, ec.ECDSA(hashes.SHA256()))
    assert reason(signature=bare) == "BadSignature"
    other = SIGNER.key.sign(b"polder.v1.Other\0" + PLAN, ec.ECDSA(hashes.SHA256()))
    assert reason(signature=other) == "BadSignature"
    assert PLAN_CONTEXT.endswith(b"\0"), "no context is the beginning of another"


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP384R1()),
    ],
    ids=["rsa", "ed25519", "p384"],
)
def test_keys_of_other_kinds(key: Key) -> None:
    signer = Party("m1", REGION, uris=(str(MEMBER),), ca=False, key=key)
    assert reason(signer=signer, signature=signed_by(SIGNER)) == "BadSignature"


def test_chains_that_are_none() -> None:
    assert reason(chain=()) == "BadChain"
    assert reason(chain=(SIGNER,) * (MAX_CHAIN + 1)) == "BadChain"
    for spoilt in (b"", b"x", SIGNER.der[:-1], SIGNER.der + b"\0"):
        with pytest.raises(UntrustedSignature) as caught:
            verify_chain([spoilt, REGION.der], [ROOT.der], NOW)
        assert caught.value.reason == "BadChain"


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_no_byte_of_a_certificate_can_be_changed() -> None:
    """Whatever the library makes of a spoilt certificate, the answer is a reason."""
    for position in range(len(SIGNER.der)):
        for change in (0x01, 0xFF):
            spoilt = bytearray(SIGNER.der)
            spoilt[position] ^= change
            with pytest.raises(UntrustedSignature):
                verify_plan(PLAN, b"", [bytes(spoilt), REGION.der], [ROOT.der], NOW, "polder.test")


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_no_signed_byte_of_an_issuer_can_be_changed() -> None:
    """Only what is signed: the byte that counts unused bits of the signature itself may differ."""
    signed = REGION.certificate.tbs_certificate_bytes
    start = REGION.der.index(signed)
    for position in range(start, start + len(signed)):
        for change in (0x01, 0xFF):
            spoilt = bytearray(REGION.der)
            spoilt[position] ^= change
            with pytest.raises(UntrustedSignature):
                verify_chain([SIGNER.der, bytes(spoilt)], [ROOT.der], NOW)


def test_the_identity_of_a_certificate() -> None:
    assert identity_of(SIGNER.certificate) == MEMBER
    with pytest.raises(InvalidIdentity, match="has no SPIFFE identity"):
        identity_of(ROOT.certificate)
    two = Party("x", uris=(str(MEMBER), str(MEMBER)))
    with pytest.raises(InvalidIdentity, match="has 2 URI names"):
        identity_of(two.certificate)
