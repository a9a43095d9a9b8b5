"""What a node says of itself before anything believes it: also the certificate for its peers.

Called for the Hello of a session and for every new inventory. The certificate goes into the plans
of the node's peers, which accept no other from it and nobody else by it.
"""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.domain import inventory
from polder.identity import NodeId
from polder.v1 import agent_pb2


def problems_of(reported: agent_pb2.NodeInventory, identity: NodeId) -> list[str]:
    """Everything that cannot be true; empty when it can be believed."""
    found = inventory.problems(reported)
    if not found and reported.site_certificate:
        fault = _fault(reported.site_certificate, identity)
        found += [f"siteCertificate {fault}"] if fault else []
    return found


def _fault(der: bytes, identity: NodeId) -> str:
    """Why it cannot speak for the node; empty when it can."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except Exception:  # the library has many ways to fail on bytes from outside
        return "cannot be read"
    if uris != [str(identity)]:
        return f"is for {', '.join(uris)[:200] or 'nobody'}, not for {identity}"
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        return "has no key for ECDSA P-256"
    return ""
