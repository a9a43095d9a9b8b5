"""`edge-agent upgrade`: shows what becomes of an upgrade, and begins one that the agent ordered.

`apply` is what edge-upgrade.service runs. It verifies the order once more, as a process of its own
and as root, before anything of the box is touched; then it becomes the installer (`installer.py`).
"""

import asyncio
import io
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from agent.config import AgentConfig
from agent.domain.upgrade import MAX_MESSAGE, Outcome, Telling
from agent.identity_store import CredentialsRefused, IdentityFailure, IdentityStore
from agent.inventory import Box, architecture
from agent.state_form import form_on_disk
from agent.upgrade import box, desk
from agent.upgrade.files import (
    FLOOR,
    INSTALLER,
    LOG,
    ORDER,
    OUTCOME,
    TAKEN,
    UpgradeFiles,
    sha256_of,
)
from agent.upgrade.installer import AGAIN, only_one
from agent.upgrade.order import Half, UnreadableOrder, floor_of, half_of, outcome_of, telling_of
from polder import __version__
from polder.release import PACKAGE_NAME, InvalidRelease, read_release
from polder.release_floor import Floor

OK = 0
PYTHON = "/usr/bin/python3"
FIELDS = ("Package", "Version", "Architecture", "Installed-Size")
ROOM_LEFT_BYTES = 64 << 20
ROOT = Path(__file__).resolve().parents[2]
# All that runs while /opt changes. None of them imports anything else of ours.
COPIED = (
    "agent/__init__.py",
    "agent/durable.py",
    "agent/upgrade/__init__.py",
    "agent/upgrade/files.py",
    "agent/upgrade/installer.py",
)


class Refusal(Exception):
    """Nothing was touched. `reason` is CamelCase."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def apply(config: AgentConfig) -> int:
    """Take the agent's order and become the installer. Returns the exit code when there is none,
    when it is refused, or when the disk does not let it be tried."""
    files = UpgradeFiles(config.state_dir)
    try:
        if not files.exists(ORDER) and not files.exists(TAKEN):
            return _say("no upgrade is ordered")
        with only_one(files) as mine:
            if not mine:
                return _say("another one is at it", AGAIN)
            if not _prepared(config, files):
                return OK
        os.execv(PYTHON, [PYTHON, "-I", str(files.folder / INSTALLER)])  # noqa: S606
    except OSError as error:
        return _say(f"{error.filename or files.folder}: {error.strerror or error}", AGAIN)


def _prepared(config: AgentConfig, files: UpgradeFiles) -> bool:
    """Whether the installer stands ready. Raises OSError."""
    order = files.take()
    telling: Telling | None = None
    try:
        if order is None:
            raise UnreadableOrder("it is damaged")
        telling = telling_of(order)
        outcome = outcome_of(files.read(OUTCOME))
        if outcome is None or outcome.key != telling.key:
            arch = architecture(Box())
            halves = half_of(order, "wanted", arch), half_of(order, "present", arch)
            floor = _check(config, files, *halves)
            # Not anew when it goes on after a power cut: the floor may be written by then.
            order.setdefault("floor", asdict(floor))
            files.write(TAKEN, order)
    except UnreadableOrder as error:
        _end(files, telling, "BadOrder", f"the order cannot be used: {error}")
        return False
    except Refusal as error:
        _end(files, telling, error.reason, str(error))
        return False
    files.remove(LOG)
    files.write_bytes(INSTALLER, archive(config.state_dir))
    return True


def _end(files: UpgradeFiles, telling: Telling | None, reason: str, message: str) -> None:
    """Nothing was touched."""
    _say(f"{reason}: {message}")
    if telling is not None:
        now_ms, cut = int(time.time() * 1000), message[:MAX_MESSAGE]
        version = read_release(telling.wanted.release).version
        ended = Outcome(telling.id, telling.attempt, version, "Refused", reason, cut, now_ms)
        files.write(OUTCOME, asdict(ended))
    files.remove(INSTALLER, TAKEN)


# --- once more ----------------------------------------------------------------------------------


def _check(config: AgentConfig, files: UpgradeFiles, wanted: Half, present: Half) -> Floor:
    """The box's floor once this has come through. Raises Refusal, and OSError."""
    if (why := box.unfit(config.state_dir)) != "":
        raise Refusal("NotPackaged", why)
    store = IdentityStore(config.state_dir)
    for half in (wanted, present):
        try:
            asyncio.run(desk.verified(store, half.signed))
        except CredentialsRefused as error:
            raise Refusal(error.reason, str(error)) from error
        except (IdentityFailure, InvalidRelease, ValueError) as error:
            raise Refusal("VerifierFailed", str(error)) from error
    floor = floor_of(files.read(FLOOR))
    if why := floor.refuses(wanted.release, present.release):
        raise Refusal("OlderRelease", why)
    form = form_on_disk(config.state_dir)
    if wanted.release.state_schema < form:
        text = f"{wanted.release.version} reads the agent's state up to form "
        raise Refusal("OlderState", f"{text}{wanted.release.state_schema}; here it has {form}")
    kilobytes = max(_check_package(files, half) for half in (wanted, present))
    free = shutil.disk_usage(box.PREFIX).free
    # dpkg unpacks the new files beside the old ones.
    if free < kilobytes * 1024 + ROOM_LEFT_BYTES:
        text = f"{free >> 20} MiB are free at {box.PREFIX}; the package takes {kilobytes >> 10} MiB"
        raise Refusal("NoRoom", text)
    return floor.after(wanted.release, present.release)


def _check_package(files: UpgradeFiles, half: Half) -> int:
    """KiB that it takes once unpacked. Raises Refusal when the file is not what was signed."""
    path, package = files.package(half.package.sha256), half.package
    try:
        found = sha256_of(path)
    except OSError as error:
        raise Refusal("BadPackage", f"{path.name}: {error.strerror}") from error
    if found != package.sha256 or path.stat().st_size != package.size:
        raise Refusal("BadPackage", f"{path.name} is not what was signed")
    command = ["dpkg-deb", "--field", str(path), *FIELDS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    fields = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    said = tuple(fields.get(name, "") for name in FIELDS[:3])
    expected = (PACKAGE_NAME, half.release.version, package.arch)
    if said != expected:
        text = f"{path.name} is {' '.join(said)}, and was signed as {' '.join(expected)}"
        raise Refusal("BadPackage", text)
    size = fields.get("Installed-Size", "")
    return int(size) if size.isdecimal() else 0


def archive(state_dir: Path) -> bytes:
    """The installer as one file that Debian's Python runs: the same sources give the same bytes."""
    held = io.BytesIO()
    start = (
        "import sys\nfrom pathlib import Path\n\nfrom agent.upgrade.installer import main\n\n"
        f"sys.exit(main(Path({str(state_dir)!r})))\n"
    )
    with zipfile.ZipFile(held, "w") as made:  # not compressed: then zipimport needs no zlib
        for name in COPIED:
            made.writestr(zipfile.ZipInfo(name), (ROOT / name).read_bytes())
        made.writestr(zipfile.ZipInfo("__main__.py"), start)
    return held.getvalue()


# --- status -------------------------------------------------------------------------------------


def status(config: AgentConfig) -> int:
    """What runs, what is under way, and what became of the last one. Returns the exit code."""
    lines = [("version", __version__), ("state form", str(form_on_disk(config.state_dir)))]
    why = box.unfit(config.state_dir)
    lines.append(("from afar", f"no: {why}" if why else "yes"))
    files = UpgradeFiles(config.state_dir)
    lines += _under_way(files)
    floor = floor_of(files.read(FLOOR))
    if floor.signed_ms:
        lines.append(("downgrades", f"only if signed after {_moment(floor.signed_ms)}"))
    if floor.since_ms:
        lines.append(("all else", f"only if signed after {_moment(floor.since_ms)}"))
    outcome = outcome_of(files.read(OUTCOME))
    if outcome is not None:
        what = f"{outcome.version or 'an upgrade'}: {outcome.phase}, {_moment(outcome.at_ms)}"
        lines.append(("last", what))
        if outcome.reason:
            lines.append(("because", f"{outcome.reason}: {outcome.message}"))
    sys.stdout.write("".join(f"{key:<13}{value}\n" for key, value in lines))
    return OK


def _moment(unix_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(unix_ms / 1000))


def _under_way(files: UpgradeFiles) -> Iterable[tuple[str, str]]:
    taken = files.read(TAKEN)
    if taken is not None:
        wanted = str(taken.get("wanted", {}).get("version", "?"))
        yield "under way", f"{wanted}: {_STEPS.get(str(taken.get('step', '')), 'is verified')}"
        for key in ("message", "back_trouble"):
            if taken.get(key):
                yield "trouble", str(taken[key])
    elif (order := files.read(ORDER)) is not None:
        yield "ordered", str(order.get("wanted", {}).get("version", "?"))
    else:
        for part in sorted(files.folder.glob("*.part")):
            yield "fetched", f"{part.stat().st_size >> 10} KiB of {part.stem[:12]} so far"


_STEPS = {
    "install": "the package is installed",
    "try": "waits until the new agent is well",
    "back": "goes back to the package that was there",
    "settle": "went back, and waits until the old agent is well",
}


def _say(message: str, code: int = OK) -> int:
    sys.stderr.write(f"edge-agent: upgrade: {message}\n")
    return code
