"""As whom a site is entered, and by whose word its nodes are believed. Used by `link`.

Either the operator's certificate of the context, or a break-glass token, which needs no context:
the root is in it, and whoever handed the token over vouches for that.
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from edgectl.config import Connection
from edgectl.config_file import read_bounded
from edgectl.errors import CliError
from polder.identity import NodeId
from polder.local_access import (
    MAX_TEXT,
    BreakGlassToken,
    Grant,
    InvalidGrant,
    entry,
    introduction,
    read_grant,
    read_token,
)
from polder.v1 import local_pb2

TOKEN_VARIABLE = "EDGECTL_BREAK_GLASS_TOKEN"  # noqa: S105


class NotProven(Exception):
    """Whoever answers did not prove to be a node of the installation."""


@dataclass(frozen=True, slots=True)
class Access:
    """`vouches`: where the root is from, for people. Without a token the certificate is used."""

    roots_der: tuple[bytes, ...]
    trust_domain: str
    vouches: str
    certificate_pem: bytes = b""
    key_pem: bytes = field(default=b"", repr=False)
    token: str = field(default="", repr=False)
    grant: Grant | None = None

    def check_node(
        self, nonce: bytes, certificate_der: bytes, answer: local_pb2.IntroduceResponse
    ) -> tuple[NodeId, str]:
        """Which node it is, and a warning or nothing. Raises NotProven."""
        from polder.local_proofs import verify_introduction
        from polder.signing import UntrustedSignature

        message = introduction(nonce, certificate_der)
        chain = list(answer.certificate_chain)
        try:
            proven = verify_introduction(
                message, answer.signature, chain, self.roots_der, time.time(), self.trust_domain
            )
        except UntrustedSignature as error:
            raise NotProven(str(error)) from error
        return proven.id, proven.warning

    def credential(
        self, node: NodeId, challenge: bytes, certificate_der: bytes
    ) -> local_pb2.EnterRequest:
        """What lets us in there. A token goes to no node of another site: it would be given away.

        Raises NotProven for such a node, ValueError for a challenge that must not be signed.
        """
        if self.grant is not None:
            if node.site != self.grant.site:
                raise NotProven(f"it is of site {node.site}; the token is for {self.grant.site}")
            return local_pb2.EnterRequest(break_glass_token=self.token)
        from edgectl.certificates import ders_of, signing_key
        from polder.signing import sign

        proof = local_pb2.OperatorProof(
            certificate_chain=ders_of(self.certificate_pem),
            challenge=challenge,
            signature=sign(entry(challenge, certificate_der), signing_key(self.key_pem)),
        )
        return local_pb2.EnterRequest(operator=proof)


def by_certificate(connection: Connection) -> Access:
    """Raises CliError when the context's files cannot be read."""
    from edgectl.certificates import ders_of, signing_key, trust_domain_of

    context = f"context {connection.context!r}"
    try:
        roots = ders_of(connection.ca_pem)
        signing_key(connection.key_pem)
        leaf, *_ = ders_of(connection.certificate_pem)
        trust_domain = connection.trust_domain or trust_domain_of(leaf)
    except ValueError as error:
        raise CliError(f"{context}: its certificates cannot be used: {error}") from error
    return Access(
        tuple(roots),
        trust_domain,
        f"the CA of {context}",
        connection.certificate_pem,
        connection.key_pem,
    )


def by_token(text: str) -> Access:
    """Raises CliError for a text that is no token. Whether it holds is for the nodes to say."""
    try:
        token: BreakGlassToken = read_token(text)
        grant = read_grant(token.grant)
    except InvalidGrant as error:
        raise CliError(f"the break-glass token cannot be used: {error}") from error
    return Access(
        (token.root,),
        grant.trust_domain,
        "the break-glass token",
        token=text.strip(),
        grant=grant,
    )


def given_token(path: str) -> str:
    """Its text: of the file, of standard input for `-`, else of the environment."""
    if not path:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    source = Path("/dev/stdin") if path == "-" else Path(path).expanduser()
    try:
        text = read_bounded(source, max(MAX_TEXT, 1 << 20)).decode("ascii", "replace").strip()
    except OSError as error:
        raise CliError(f"--break-glass-token: {path}: {error.strerror}") from error
    if not text:
        raise CliError(f"--break-glass-token: {path} is empty")
    return text
