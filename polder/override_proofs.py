"""That a decision was written by the node whose name it bears (`polder/overrides.py`).

The agent signs what it decides and checks what its peers pass on, in its one-shot process
(`agent/credentials.py`); the gateway checks what sites bring up and signs what an orchestrator
decides. So a node that was broken into can speak to its site in its own name only.

Dates do not count, as for whoever introduces itself at a site (`local_proofs.py`): a decision
stands for longer than a certificate, and the key was its writer's own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from polder.identity import InvalidIdentity, MemberId, NodeId
from polder.overrides import Override, Proof, signed_bytes
from polder.signing import (
    UntrustedSignature,
    identity_of,
    sign,
    validity,
    verify_by,
    verify_chain,
)


def signed(
    override: Override, site: str, key: ec.EllipticCurvePrivateKey, chain_der: Iterable[bytes]
) -> Override:
    """With its writer's proof."""
    return replace(override, proof=Proof(sign(signed_bytes(override, site), key), tuple(chain_der)))


def unproven(
    overrides: Iterable[Override],
    site: str,
    roots_der: Sequence[bytes],
    at: float,
    trust_domain: str,
) -> Mapping[int, str]:
    """Which of them (by their place) their writers did not write, and why not. `at`: unix seconds.

    A node signs what it decides; of what has no node, any orchestrator does.
    """
    leaves: dict[tuple[bytes, ...], x509.Certificate] = {}  # one node decides many things
    found = {}
    for place, override in enumerate(overrides):
        try:
            _check(override, site, roots_der, at, trust_domain, leaves)
        except UntrustedSignature as error:
            found[place] = str(error)
    return found


def _check(
    override: Override,
    site: str,
    roots_der: Sequence[bytes],
    at: float,
    trust_domain: str,
    leaves: dict[tuple[bytes, ...], x509.Certificate],
) -> None:
    proof = override.proof
    if proof is None:
        raise UntrustedSignature("BadSignature", "nobody signed it")
    leaf = leaves.get(proof.chain)
    if leaf is None:
        begins, ends = validity(proof.chain)
        leaf = verify_chain(proof.chain, roots_der, min(max(at, begins), ends))
        leaves[proof.chain] = leaf
    try:
        signer = identity_of(leaf)
        if override.node:
            right = signer == NodeId(trust_domain, site, override.node)
        else:
            right = isinstance(signer, MemberId) and signer.trust_domain == trust_domain
    except InvalidIdentity as error:
        raise UntrustedSignature("WrongSigner", str(error)) from error
    if not right:
        wanted = f"node {override.node} of site {site}" if override.node else "an orchestrator"
        raise UntrustedSignature("WrongSigner", f"{signer} signed it, and not {wanted}")
    verify_by(leaf, proof.signature, signed_bytes(override, site))
