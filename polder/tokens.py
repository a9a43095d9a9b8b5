"""The text of a join token. Made by the orchestrator, read by `edge-agent join`.

The root certificate is inside, so that the very first connection is verified: a box never trusts
whoever answers first. The secret is the only confidential part; the store keeps its hash alone.
"""

import base64
import hashlib
import json
from dataclasses import dataclass

from polder.base64url import UNREADABLE, decode, encode

PREFIX = "polder1."
MAX_TEXT = 8192


class InvalidToken(ValueError):
    """The text is no join token, or not a whole one."""


@dataclass(frozen=True, slots=True)
class JoinToken:
    """`endpoints` are join addresses (host:port); `ca` is the root certificate, DER."""

    secret: str
    site: str
    node: str
    endpoints: tuple[str, ...]
    ca: bytes
    expires_at_ms: int

    def __str__(self) -> str:
        body = {
            "s": self.secret,
            "site": self.site,
            "node": self.node,
            "e": list(self.endpoints),
            "ca": base64.b64encode(self.ca).decode(),
            "x": self.expires_at_ms,
        }
        raw = json.dumps(body, separators=(",", ":")).encode()
        check = hashlib.sha256(raw).digest()[:4]  # tells a cut-off paste from a wrong token
        return PREFIX + encode(check + raw)

    def __repr__(self) -> str:
        return f"JoinToken(site={self.site!r}, node={self.node!r}, endpoints={self.endpoints!r})"


def secret_digest(secret: str) -> str:
    """What the store knows a token by: hex SHA-256."""
    return hashlib.sha256(secret.encode()).hexdigest()


def parse(text: str) -> JoinToken:
    """Raises InvalidToken with what to do."""
    text = text.strip()
    if not text.startswith(PREFIX) or len(text) > MAX_TEXT:
        raise InvalidToken(
            f"this is not a join token: those start with {PREFIX!r} (edgectl token create)"
        )
    try:
        raw = decode(text[len(PREFIX) :])
        check, body = raw[:4], raw[4:]
        if hashlib.sha256(body).digest()[:4] != check:
            raise InvalidToken("the join token is damaged: was it copied whole?")
        return _token(json.loads(body))
    except InvalidToken:
        raise
    except UNREADABLE as error:
        raise InvalidToken("the join token is damaged: was it copied whole?") from error


def _token(data: dict[str, object]) -> JoinToken:
    """Strictly typed: a token of another make must not half work. Raises what `parse` catches."""
    endpoints, expires = data["e"], data["x"]
    if not isinstance(endpoints, list) or not endpoints:
        raise TypeError("endpoints")
    if not isinstance(expires, int) or isinstance(expires, bool):
        raise TypeError("expiry")
    ca = base64.b64decode(_ascii(data["ca"]), validate=True)
    if not ca:
        raise ValueError("root certificate")
    return JoinToken(
        secret=_ascii(data["s"]),
        site=_ascii(data["site"]),
        node=_ascii(data["node"], empty=True),
        endpoints=tuple(_ascii(endpoint) for endpoint in endpoints),
        ca=ca,
        expires_at_ms=expires,
    )


def _ascii(value: object, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        raise TypeError("not a text")
    if not value.isascii() or not value.isprintable():
        raise ValueError("not printable")
    return value
