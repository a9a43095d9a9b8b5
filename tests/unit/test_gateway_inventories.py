"""A node's certificate for its peers speaks for that node and for no other."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.gateway.inventories import problems_of
from polder.identity import NodeId
from polder.v1 import agent_pb2

ME = NodeId("td", "s1", "n1")


def certificate(*names: str, curve: ec.EllipticCurve | None = None) -> bytes:
    key = ec.generate_private_key(curve or ec.SECP256R1())
    subject = x509.Name([])
    found = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(n) for n in names])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(1970, 1, 1))
        .not_valid_after(datetime.datetime(9999, 12, 31))
        .add_extension(found, critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.DER)


def reported(der: bytes) -> agent_pb2.NodeInventory:
    return agent_pb2.NodeInventory(arch="arm64", site_certificate=der)


def test_its_own_is_taken_and_none_is_needed() -> None:
    assert problems_of(reported(certificate(str(ME))), ME) == []
    assert problems_of(reported(b""), ME) == []


@pytest.mark.parametrize(
    ("der", "why"),
    [
        (certificate(str(NodeId("td", "s1", "n2"))), "not for spiffe://td/site/s1/node/n1"),
        (certificate(str(NodeId("td", "s2", "n1"))), "not for"),
        (certificate(str(ME), str(NodeId("td", "s1", "n2"))), "not for"),
        (certificate(str(ME), curve=ec.SECP384R1()), "P-256"),
        (b"no certificate", "cannot be read"),
    ],
)
def test_anything_else_is_told(der: bytes, why: str) -> None:
    (problem,) = problems_of(reported(der), ME)
    assert problem.startswith("siteCertificate ") and why in problem
