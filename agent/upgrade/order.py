"""The agent's order to the installer, and the outcome it gets back: what their files hold.

`desk.py` writes orders and reads outcomes, `command.py` reads orders and verifies them again. The
installer itself takes of an order the hashes and versions, with nothing but JSON.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.domain.upgrade import Outcome, State, Telling
from polder.release import InvalidRelease, Package, Release, SignedRelease, read_release
from polder.release_floor import Floor


class UnreadableOrder(Exception):
    """The file holds no order of ours."""


@dataclass(frozen=True, slots=True)
class Half:
    """One of the two releases of an order, and its package for this box."""

    release: Release
    signed: SignedRelease
    package: Package


def order_of(state: State) -> dict[str, Any]:
    """As JSON has it. The state is that of a box which has both packages."""
    telling, wanted, present = state.telling, state.wanted, state.present
    assert telling is not None and wanted is not None and present is not None
    return {
        "id": telling.id,
        "attempt": telling.attempt,
        "patience_s": telling.patience_s,
        "wanted": _half(telling.wanted, wanted),
        "present": _half(telling.present, present),
    }


def _half(signed: SignedRelease, package: Package) -> dict[str, Any]:
    return {
        "version": read_release(signed.release).version,
        "sha256": package.sha256,
        "release": _encode(signed.release),
        "signature": _encode(signed.signature),
    }


def telling_of(order: Mapping[str, Any]) -> Telling:
    """What the order followed from; its releases can be read. Raises UnreadableOrder."""
    try:
        wanted, present = _signed(order["wanted"]), _signed(order["present"])
        for signed in (wanted, present):
            read_release(signed.release)
        id_, attempt, patience_s = str(order["id"]), order["attempt"], order["patience_s"]
        return Telling(id_, int(attempt), wanted, present, int(patience_s))
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableOrder(f"{type(error).__name__}: {error}") from error


def half_of(order: Mapping[str, Any], name: str, arch: str) -> Half:
    """`wanted` or `present`, with the package that its release names for this architecture. Raises
    UnreadableOrder, also when the order has another package than that."""
    try:
        body = order[name]
        signed = _signed(body)
        release = read_release(signed.release)
        package = release.package_for(arch)
        said = (str(body["version"]), str(body["sha256"]))
    except (InvalidRelease, KeyError, TypeError, ValueError) as error:
        raise UnreadableOrder(f"{type(error).__name__}: {error}") from error
    if package is None or said != (release.version, package.sha256):
        raise UnreadableOrder(f"its package is not the one of {release.version} for {arch}")
    return Half(release, signed, package)


def _signed(body: Mapping[str, Any]) -> SignedRelease:
    return SignedRelease(_decode(body["release"]), _decode(body["signature"]))


def outcome_of(body: Mapping[str, Any] | None) -> Outcome | None:
    """None for what is none."""
    try:
        return Outcome(**body) if body is not None else None
    except TypeError:
        return None


def floor_of(body: Mapping[str, Any] | None) -> Floor:
    """As it was remembered. What cannot be read is a disk's fault, and forgotten: then what runs
    is the measure."""
    try:
        return Floor(**body) if body is not None else Floor()
    except TypeError:
        return Floor()


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
