"""What is signed between `edgectl --site-endpoint` and agents, and the text of break-glass tokens.

Used by the agent (`agent/local/`), by edgectl and by `edge-orchestrator ca break-glass`; the
signatures themselves are `local_proofs.py`, because the agent's long-running process has no
cryptography. See ADR 26.

A break-glass token opens one site for one purpose when no certificate does: `polder-break-glass1.`
and base64url of the JSON {"grant", "signature", "chain", "root"}. Whoever has its text may use it,
also on a machine that knows nothing of the installation: as in a join token (ADR 6) the root is
inside.
"""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256

from polder.base64url import UNREADABLE, decode, encode
from polder.manifest.names import HOST_NAME, LABEL

# Each keeps a signature from being valid for anything else.
INTRODUCE_CONTEXT = b"polder.v1.Introduce\0"
ENTER_CONTEXT = b"polder.v1.Enter\0"
BREAK_GLASS_CONTEXT = b"polder.v1.BreakGlass\0"
NONCE_BYTES = 32

SESSION_KEY = "polder-local-session"
SERVER_NAME = "node.polder.internal"  # in every site certificate
DEFAULT_PORT = 7446

PREFIX = "polder-break-glass1."
MAX_TEXT = 8192
LIFE_MAX_S = 24 * 3600.0
PURPOSE_MAX = 200
SITE_ACTIONS = ("freeze", "unfreeze")
# Reading is part of every token; one that only reads says so.
ACTIONS = ("read", "exec", "stop", "start", "restart", "move", *SITE_ACTIONS)


class InvalidGrant(ValueError):
    """The text is no break-glass token, or says what none may say."""


def introduction(nonce: bytes, certificate: bytes) -> bytes:
    """What a node signs for its caller. `certificate`: of the connection, DER. Raises ValueError
    for a nonce of another length, which could make two messages alike."""
    return INTRODUCE_CONTEXT + _nonce(nonce) + sha256(certificate).digest()


def entry(challenge: bytes, certificate: bytes) -> bytes:
    """What an operator signs for a node; as `introduction`."""
    return ENTER_CONTEXT + _nonce(challenge) + sha256(certificate).digest()


def _nonce(data: bytes) -> bytes:
    if len(data) != NONCE_BYTES:
        raise ValueError(f"a nonce of {len(data)} bytes; it has {NONCE_BYTES}")
    return data


@dataclass(frozen=True, slots=True)
class Grant:
    """What a break-glass token allows. Without `namespace`: everywhere at the site; without
    `workload`: everything of the namespace. Raises InvalidGrant when made wrongly."""

    trust_domain: str
    site: str
    namespace: str
    workload: str
    allow: tuple[str, ...]
    purpose: str
    serial: str
    issued_at_ms: int
    expires_at_ms: int

    def __post_init__(self) -> None:
        wrong = _wrong(self)
        if wrong:
            raise InvalidGrant(wrong)

    @property
    def target(self) -> str:
        """For people: what it is for."""
        return "/".join(part for part in (self.namespace, self.workload) if part) or "the site"

    def allows(self, action: str, namespace: str, workload: str) -> bool:
        """Whether it covers `action` on a workload. Without a namespace: on the site itself."""
        if action != "read" and action not in self.allow:
            return False
        return self.namespace in ("", namespace) and self.workload in ("", workload)


def _wrong(grant: Grant) -> str:
    """Why the grant must not be; empty when it may."""
    if HOST_NAME.fullmatch(grant.site) is None:
        return f"{grant.site[:80]!r} is no name of a site"
    for what, name in (("namespace", grant.namespace), ("workload", grant.workload)):
        if name and LABEL.fullmatch(name) is None:
            return f"{name[:80]!r} is no name of a {what}"
    if grant.workload and not grant.namespace:
        return "a workload is in a namespace: give that, too"
    if not grant.allow or len(set(grant.allow)) != len(grant.allow):
        return "it allows nothing, or something twice"
    for action in grant.allow:
        if action not in ACTIONS:
            return f"{action[:40]!r} is none of {', '.join(ACTIONS)}"
        if action in SITE_ACTIONS and grant.namespace:
            return f"{action} is of the whole site: no namespace can be given with it"
    if not 0 < len(grant.purpose) <= PURPOSE_MAX or not grant.purpose.isprintable():
        return f"it needs a purpose, in one line of at most {PURPOSE_MAX} characters"
    if not 0 < grant.expires_at_ms - grant.issued_at_ms <= LIFE_MAX_S * 1000:
        return f"it is valid for {LIFE_MAX_S / 3600:g} hours at most"
    if not (len(grant.serial) == 32 and set(grant.serial) <= set("0123456789abcdef")):
        return "its serial number is not 32 hex digits"
    return ""


def grant_bytes(grant: Grant) -> bytes:
    """What is signed, after BREAK_GLASS_CONTEXT."""
    return json.dumps(asdict(grant), separators=(",", ":"), ensure_ascii=True).encode()


def read_grant(data: bytes) -> Grant:
    """Strictly: a field that is not known may be a limit that is not kept. Raises InvalidGrant."""
    try:
        found = json.loads(data)
        if not isinstance(found, dict) or set(found) != set(Grant.__dataclass_fields__):
            raise InvalidGrant("it is of another make: this program does not know what it allows")
        for name, known in Grant.__dataclass_fields__.items():
            expected = {"allow": list, "issued_at_ms": int, "expires_at_ms": int}.get(name, str)
            if type(found[name]) is not expected:
                raise TypeError(known.name)
        if not all(isinstance(action, str) for action in found["allow"]):
            raise TypeError("allow")
    except InvalidGrant:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidGrant("what it says cannot be read") from error
    return Grant(**{**found, "allow": tuple(found["allow"])})


@dataclass(frozen=True, slots=True)
class BreakGlassToken:
    """Not yet verified. `chain`: the region's CA that signed it, DER; empty: the root did. `root`:
    for who has only this token; a node goes by those that it knows itself."""

    grant: bytes
    signature: bytes
    chain: tuple[bytes, ...]
    root: bytes

    def __str__(self) -> str:
        body = {
            "grant": encode(self.grant),
            "signature": encode(self.signature),
            "chain": [encode(der) for der in self.chain],
            "root": encode(self.root),
        }
        return PREFIX + encode(json.dumps(body, separators=(",", ":")).encode())


def read_token(text: str) -> BreakGlassToken:
    """Raises InvalidGrant with what to do."""
    text = text.strip()
    if not text.startswith(PREFIX) or len(text) > MAX_TEXT:
        raise InvalidGrant(
            f"this is not a break-glass token: those start with {PREFIX!r} "
            "(edge-orchestrator ca break-glass)"
        )
    try:
        body = json.loads(decode(text[len(PREFIX) :]))
        grant, signature = decode(body["grant"]), decode(body["signature"])
        chain = tuple(decode(der) for der in body["chain"])
        root = decode(body["root"])
    except UNREADABLE as error:
        raise InvalidGrant("the break-glass token is damaged: was it copied whole?") from error
    return BreakGlassToken(grant, signature, chain, root)
