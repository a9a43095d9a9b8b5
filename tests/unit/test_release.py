"""Releases of the agent: their form, their signatures, and which version is later."""

import json
import random
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.identity.authority import create_region, create_root, load_root, signing_key
from polder.local_proofs import sign_grant
from polder.release import (
    InvalidRelease,
    Package,
    Release,
    SignedRelease,
    read_release,
    read_signed,
    release_bytes,
    version_order,
)
from polder.release_proofs import sign_release, verify_release
from polder.signing import UntrustedSignature
from tests.unit.test_local_access import GRANT

AMD64 = Package("amd64", "a" * 64, 30_000_000)
ARM64 = Package("arm64", "b" * 64, 31_000_000)
RELEASE = Release("polder.internal", "0.2.0-1", 1, (AMD64, ARM64), 1_000)


def test_a_release_reads_back_as_it_was() -> None:
    assert read_release(release_bytes(RELEASE)) == RELEASE
    down = replace(RELEASE, downgrade=True)
    assert read_release(release_bytes(down)) == down
    assert RELEASE.package_for("arm64") == ARM64
    assert replace(RELEASE, packages=(AMD64,)).package_for("arm64") is None


def test_a_signed_release_reads_back_as_it_was() -> None:
    signed = SignedRelease(release_bytes(RELEASE), b"signature")
    assert read_signed(f"  {signed}\n") == signed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "v1"}, "is not a version"),
        ({"version": "1/../../2"}, "is not a version"),
        ({"version": "1.0-"}, "is not a version"),
        ({"version": "1" * 64}, "is not a version"),
        ({"state_schema": 0}, "state schema"),
        ({"packages": ()}, "no package"),
        ({"packages": (AMD64, AMD64)}, "two packages for amd64"),
        ({"packages": (replace(AMD64, arch="riscv64"),)}, "'riscv64' is none of"),
        ({"packages": (replace(AMD64, sha256="A" * 64),)}, "not a SHA-256"),
        ({"packages": (replace(AMD64, size=0),)}, "no size"),
        ({"packages": (replace(AMD64, size=1 << 40),)}, "no size"),
    ],
)
def test_what_no_release_may_say(change: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRelease, match=words):
        replace(RELEASE, **change)  # type: ignore[arg-type]


def test_a_later_release_may_say_more() -> None:
    """An agent reads the releases that came after it."""
    body = json.loads(release_bytes(RELEASE))
    body["notes"] = ["more"]
    body["packages"][0]["format"] = "deb"
    assert read_release(json.dumps(body).encode()) == RELEASE


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"{}", b'{"packages": 3}', b"\xff", b"[" * 100_000],
)
def test_what_is_no_release_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRelease):
        read_release(body)


@pytest.mark.parametrize(
    ("name", "value"),
    [("state_schema", True), ("issued_at_ms", True), ("version", True), ("downgrade", 1)],
)
def test_a_field_of_another_type_is_refused(name: str, value: object) -> None:
    body = json.loads(release_bytes(RELEASE))
    body[name] = value
    with pytest.raises(InvalidRelease):
        read_release(json.dumps(body).encode())


@pytest.mark.parametrize("text", ["", "polder1.abc", "polder-release1.!!", "polder-release1.e30"])
def test_a_damaged_file_says_what_to_do(text: str) -> None:
    with pytest.raises(InvalidRelease, match=r"sign-release|copied whole"):
        read_signed(text)


# --- signatures -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("ca")
    create_root(home, "polder.internal", time.time())
    create_region(home, "eu", time.time())
    return home


def test_the_root_signs_and_no_region(authorities: Path) -> None:
    """Members hold the keys of their regions' CAs: one that was broken into must not do."""
    _, key = load_root(authorities)
    signed = sign_release(RELEASE, key)
    assert verify_release(signed, [_der(authorities)], "polder.internal") == RELEASE
    _, of_region, _ = signing_key(authorities, "eu", time.time())
    assert _refused(sign_release(RELEASE, of_region), authorities) == "BadSignature"


def test_what_was_changed_after_is_not_believed(authorities: Path) -> None:
    _, key = load_root(authorities)
    signed = sign_release(RELEASE, key)
    changed = replace(signed, release=signed.release.replace(b"0.2.0-1", b"0.1.9-1"))
    assert changed != signed
    assert _refused(changed, authorities) == "BadSignature"


def test_another_installations_is_not_believed(authorities: Path, tmp_path: Path) -> None:
    create_root(tmp_path, "polder.internal", time.time())
    _, key = load_root(tmp_path)
    assert _refused(sign_release(RELEASE, key), authorities) == "BadSignature"
    _, own = load_root(authorities)
    other = replace(RELEASE, trust_domain="other.example")
    assert _refused(sign_release(other, own), authorities) == "WrongInstallation"


def test_a_signature_for_something_else_is_none_for_a_release(authorities: Path) -> None:
    root, key = load_root(authorities)
    token = sign_grant(GRANT, key, (), _der(authorities))
    assert root is not None
    mixed = SignedRelease(token.grant, token.signature)
    assert _refused(mixed, authorities) == "BadSignature"


def _refused(signed: SignedRelease, authorities: Path) -> str:
    with pytest.raises(UntrustedSignature) as refused:
        verify_release(signed, [_der(authorities)], "polder.internal")
    return refused.value.reason


def _der(authorities: Path) -> bytes:
    from orchestrator.identity.pem import der, read_certificates

    return der(read_certificates(authorities / "root.crt")[0])


# --- order ----------------------------------------------------------------------------------------

RISING = (
    "0.1~~",
    "0.1~rc1",
    "0.1~rc1-2",
    "0.1",
    "0.1-1",
    "0.1-1+b1",
    "0.1-2",
    "0.1-10",
    "0.1a",
    "0.1+1",
    "0.1.0",
    "0.2~1",
    "0.2",
    "0.10",
    "1.0",
    "1.0-1",
)


def test_versions_rise_as_debians_do() -> None:
    shuffled = list(RISING)
    random.Random(1).shuffle(shuffled)
    assert tuple(sorted(shuffled, key=version_order)) == RISING


@pytest.mark.parametrize(("one", "other"), [("1.0", "1.0-0"), ("1.00", "1.0"), ("1.", "1.0")])
def test_some_versions_are_the_same(one: str, other: str) -> None:
    assert version_order(one) == version_order(other)


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="compares with dpkg, which is not here")
def test_the_order_is_that_of_dpkg() -> None:
    dice = random.Random(7)
    for _ in range(150):
        one, other = (_version(dice) for _ in range(2))
        word = "lt" if version_order(one) < version_order(other) else "ge"
        done = subprocess.run(["dpkg", "--compare-versions", one, word, other], check=False)
        assert done.returncode == 0, f"{one} {word} {other}"


def _version(dice: random.Random) -> str:
    text = str(dice.randint(0, 2)) + "".join(dice.choices("019ab.+~", k=dice.randint(0, 4)))
    if dice.random() < 0.5:
        text += "-" + "".join(dice.choices("01a.~", k=dice.randint(1, 3)))
    return text
