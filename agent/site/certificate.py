"""The key and certificate that this node shows to the nodes of its site.

Made once, when `agent/service.py` wires an agent that listens for peers, and kept: the plans of the
peers name this certificate, byte for byte, and no other is accepted from this node.

    STATE/site/certificate/key.pem           private key, mode 0600
                          certificate.pem
                          identity           whose it is: after a join under another name, another
"""

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from agent.durable import sync_directory, write_synced
from agent.identity_store import (
    CALL_TIMEOUT_S,
    Credentials,
    CredentialsRefused,
    IdentityFailure,
    from_pem,
    to_pem,
)
from agent.notify import notify
from polder.identity import NodeId

log = logging.getLogger(__name__)

SERVER_NAME = "node.polder.internal"
TRIES = 3
"""Each takes CALL_TIMEOUT_S at most: together less than a start may take (90 s by systemd)."""


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
    der = await _new_key(fresh, identity, credentials)
    for name, data in (("certificate.pem", to_pem([der])), ("identity", str(identity).encode())):
        write_synced(fresh / name, data)
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)
    for path in (directory, directory.parent):
        sync_directory(path)
    return SiteCertificate((directory / "key.pem").read_bytes(), der)


async def _new_key(fresh: Path, identity: NodeId, credentials: Credentials) -> bytes:
    """The certificate; its key is in the directory `fresh`.

    Tried again, since without one the node has no peers until its agent starts anew: at its first
    start a slow box may be too busy to answer in time.
    """
    for left in range(TRIES - 1, 0, -1):
        try:
            return await _try_key(fresh, identity, credentials)
        except CredentialsRefused:
            raise
        except IdentityFailure as error:
            log.warning("no site certificate yet", extra={"error": str(error), "tries_left": left})
    return await _try_key(fresh, identity, credentials)


async def _try_key(fresh: Path, identity: NodeId, credentials: Credentials) -> bytes:
    notify("WATCHDOG=1")  # it strikes already where the agent was started before the join
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700, parents=True)
    header: dict[str, object] = {
        "path": str(fresh / "key.pem"),
        "identity": str(identity),
        "dns": SERVER_NAME,
    }
    _, (der,) = await credentials("new-site-key", header, timeout_s=CALL_TIMEOUT_S)
    return der
