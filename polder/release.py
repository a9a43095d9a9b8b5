"""Releases of the agent: what the operator of an installation signs, and which version is later.

Used by `edge-orchestrator ca sign-release`, by edgectl, by the orchestrator and by the agent; the
signatures themselves are `release_proofs.py`, because the agent's long-running process has no
cryptography. See ADR 31.

A release names the packages of one version, one for each architecture, by their hashes. Its file is
`polder-release1.` and base64url of the JSON {"release", "signature"}.
"""

import json
import re
from dataclasses import asdict, dataclass

from polder.base64url import UNREADABLE, decode, encode
from polder.manifest.placement import ARCHITECTURES

# Keeps a signature from being valid for anything else.
RELEASE_CONTEXT = b"polder.v1.Release\0"
PACKAGE_NAME = "polder-agent"
# Of a package's control file: the form of the agent's durable state that this version writes.
STATE_SCHEMA_FIELD = "Polder-State-Schema"

PREFIX = "polder-release1."
MAX_TEXT = 16 << 10
PACKAGE_BYTES_MAX = 512 << 20
# As dpkg has them, without an epoch: it is also a part of file names and of the Store's keys.
VERSION = re.compile(r"[0-9][A-Za-z0-9.+~-]{0,62}(?<!-)")
VERSION_HELP = "a version such as 0.2.0-1: a digit, then letters, digits, '.', '+', '~' and '-'"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class InvalidRelease(ValueError):
    """The text is no release, or says what none may say."""


@dataclass(frozen=True, slots=True)
class Package:
    """`arch` as Debian and our inventories name it; `sha256` in hex; `size` in bytes."""

    arch: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Release:
    """One version of the agent for one installation. Raises InvalidRelease when made wrongly.

    `state_schema`: an agent of a lower one cannot read the state that this one writes.
    `downgrade`: boxes that run a later version may become it, too (`release_floor.py`).
    """

    trust_domain: str
    version: str
    state_schema: int
    packages: tuple[Package, ...]
    issued_at_ms: int
    downgrade: bool = False

    def __post_init__(self) -> None:
        wrong = _wrong(self)
        if wrong:
            raise InvalidRelease(wrong)

    def package_for(self, arch: str) -> Package | None:
        """None: boxes of this architecture cannot run the version."""
        return next((package for package in self.packages if package.arch == arch), None)


def _wrong(release: Release) -> str:
    """Why the release must not be; empty when it may."""
    if VERSION.fullmatch(release.version) is None:
        return f"{release.version[:80]!r} is not {VERSION_HELP}"
    if release.state_schema < 1:
        return "its state schema is not a positive number"
    if not release.packages:
        return "it has no package"
    known: set[str] = set()
    for package in release.packages:
        if package.arch not in ARCHITECTURES:
            return f"{package.arch[:40]!r} is none of {', '.join(ARCHITECTURES)}"
        if package.arch in known:
            return f"it has two packages for {package.arch}"
        known.add(package.arch)
        if _SHA256.fullmatch(package.sha256) is None:
            return f"the hash of the package for {package.arch} is not a SHA-256 in hex"
        if not 0 < package.size <= PACKAGE_BYTES_MAX:
            limit = PACKAGE_BYTES_MAX >> 20
            return f"the package for {package.arch} has no size up to {limit} MiB"
    return ""


def release_bytes(release: Release) -> bytes:
    """What is signed, after RELEASE_CONTEXT."""
    return json.dumps(asdict(release), separators=(",", ":"), ensure_ascii=True).encode()


def read_release(data: bytes) -> Release:
    """A field that is not known is passed over: an agent must be able to read the releases that
    came after it. What changes the meaning of the others needs another context. Raises
    InvalidRelease."""
    try:
        found = json.loads(data)
        packages = tuple(
            Package(_text(item, "arch"), _text(item, "sha256"), _whole(item, "size"))
            for item in found["packages"]
        )
        return Release(
            trust_domain=_text(found, "trust_domain"),
            version=_text(found, "version"),
            state_schema=_whole(found, "state_schema"),
            packages=packages,
            issued_at_ms=_whole(found, "issued_at_ms"),
            downgrade=_flag(found, "downgrade"),
        )
    except InvalidRelease:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidRelease("what it says cannot be read") from error


def _text(found: dict[str, object], name: str) -> str:
    value = found[name]
    if not isinstance(value, str):
        raise TypeError(name)
    return value


def _whole(found: dict[str, object], name: str) -> int:
    value = found[name]
    if type(value) is not int:
        raise TypeError(name)
    return value


def _flag(found: dict[str, object], name: str) -> bool:
    value = found[name]
    if type(value) is not bool:
        raise TypeError(name)
    return value


@dataclass(frozen=True, slots=True)
class SignedRelease:
    """Not yet verified."""

    release: bytes
    signature: bytes

    def __str__(self) -> str:
        body = {"release": encode(self.release), "signature": encode(self.signature)}
        return PREFIX + encode(json.dumps(body, separators=(",", ":")).encode())


def read_signed(text: str) -> SignedRelease:
    """Raises InvalidRelease with what to do."""
    text = text.strip()
    if not text.startswith(PREFIX) or len(text) > MAX_TEXT:
        raise InvalidRelease(
            f"this is not a signed release: those start with {PREFIX!r} "
            "(edge-orchestrator ca sign-release)"
        )
    try:
        body = json.loads(decode(text[len(PREFIX) :]))
        release, signature = decode(body["release"]), decode(body["signature"])
    except UNREADABLE as error:
        raise InvalidRelease("the signed release is damaged: was it copied whole?") from error
    return SignedRelease(release, signature)


def version_order(version: str) -> tuple[object, ...]:
    """A key that sorts versions as dpkg does (Debian Policy, 5.6.12), for those of VERSION."""
    upstream, _, revision = version.rpartition("-") if "-" in version else (version, "", "")
    return _part_order(upstream), _part_order(revision)


_END = ((0,), 0)
_PARTS = re.compile(r"([^0-9]*)([0-9]*)")


def _part_order(text: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """By turns what is no digit and a number. The end counts as nothing and the number zero: only
    a tilde is less."""
    found = [
        ((*(_weight(character) for character in letters), 0), int(digits or 0))
        for letters, digits in _PARTS.findall(text)
    ]
    while found and found[-1] == _END:
        found.pop()
    return (*found, _END)


def _weight(character: str) -> int:
    """Letters come before all other characters, a tilde even before the end."""
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256
