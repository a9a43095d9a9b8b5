"""A box that asks again because the answer to its join got lost on the way. Used by `nodes.py`.

The join leaves a mark (`settling`) under the token's digest: which node, and a digest of the key
that the box had certified. Whoever shows the token again with a request signed by the same key is
that box, and is answered again, by any member; to everybody else the token is used up.
"""

import hashlib
import json
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from orchestrator.identity.authority import Issued
from orchestrator.store.port import Entry
from polder.identity import NodeId

STEP = "join"


@dataclass(frozen=True, slots=True)
class JoinedBefore:
    """What a token was traded for."""

    node: str
    site: str
    serial: str  # of the certificate that was issued then


def to_mark(identity: NodeId, issued: Issued, key: ec.EllipticCurvePublicKey) -> bytes:
    said = {"node": identity.node, "site": identity.site, "serial": issued.serial}
    return json.dumps({**said, "key": _digest(key)}).encode()


def from_mark(mark: Entry, key: ec.EllipticCurvePublicKey) -> JoinedBefore | None:
    """None: the token was traded for another key."""
    said = json.loads(mark.value)
    if said["key"] != _digest(key):
        return None
    return JoinedBefore(said["node"], said["site"], said["serial"])


def _digest(key: ec.EllipticCurvePublicKey) -> str:
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()
