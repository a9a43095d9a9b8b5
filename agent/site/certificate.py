"""The key and certificate that this node shows to the nodes of its site.

Made once, when `agent/service.py` wires an agent that listens for peers, and kept: the plans of the
peers name this certificate, byte for byte, and no other is accepted from this node.

    STATE/site/certificate/key.pem           private key, mode 0600
                          certificate.pem
                          identity           whose it is: after a join under another name, another
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from agent.durable import sync_directory, write_synced
from agent.identity_store import CALL_TIMEOUT_S, Credentials, IdentityFailure, from_pem, to_pem
from polder.identity import NodeId

SERVER_NAME = "node.polder.internal"


@dataclass(frozen=True, slots=True)
class SiteCertificate:
    """`der` goes up in the inventory."""

    key_pem: bytes = field(repr=False)
    der: bytes = field(repr=False)

    @property
    def pem(self) -> bytes:
        return to_pem([self.der])


async def load_or_make(
    state_dir: Path, identity: NodeId, credentials: Credentials
) -> SiteCertificate:
    """The node's site certificate. Raises IdentityFailure when none can be read nor made."""
    directory = state_dir / "site" / "certificate"
    try:
        known = _read(directory, identity)
        return known or await _make(directory, identity, credentials)
    except OSError as error:
        raise IdentityFailure(f"{directory}: {error.strerror or error}") from error


def _read(directory: Path, identity: NodeId) -> SiteCertificate | None:
    """None when there is none, or another identity's, or one that is damaged."""
    try:
        if (directory / "identity").read_text() != str(identity):
            return None
        key = (directory / "key.pem").read_bytes()
        (der,) = from_pem((directory / "certificate.pem").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return SiteCertificate(key, der)


async def _make(directory: Path, identity: NodeId, credentials: Credentials) -> SiteCertificate:
    """Written whole beside the old one, which then makes room: a crash leaves one or none."""
    fresh = directory.with_name("certificate.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700, parents=True)
    header: dict[str, object] = {
        "path": str(fresh / "key.pem"),
        "identity": str(identity),
        "dns": SERVER_NAME,
    }
    _, (der,) = await credentials("new-site-key", header, timeout_s=CALL_TIMEOUT_S)
    for name, data in (("certificate.pem", to_pem([der])), ("identity", str(identity).encode())):
        write_synced(fresh / name, data)
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)
    for path in (directory, directory.parent):
        sync_directory(path)
    return SiteCertificate((directory / "key.pem").read_bytes(), der)
