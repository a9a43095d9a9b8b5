"""Looks at the box for `edge-agent doctor`. Changes nothing, and takes some seconds at most.

Whatever cannot be found out is left at its default: the checks never take silence for trouble.
`gather_network.py` looks at what has to do with others.
"""

import contextlib
import ctypes
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from agent import accelerators, mounts
from agent.config import STATE_DIR, AgentConfig
from agent.doctor import gather_network
from agent.doctor.facts import (
    Cgroups,
    Clock,
    Devices,
    Drive,
    Facts,
    FileSystem,
    Kernel,
    RuntimeFacts,
    Standing,
    WaitingToken,
)
from agent.doctor.tools import TOOL_S, run_tool
from agent.hardware import shelf
from agent.hardware.profile import Profile
from agent.identity_store import IdentityFailure, IdentityStore, NodeIdentity, NotJoined
from agent.inventory import Box, hottest, machine_id
from agent.notify import holder_of
from agent.site import switch_ask
from agent.upgrade.box import unfit
from agent.upgrade.files import OUTCOME, UpgradeFiles
from agent.upgrade.order import outcome_of
from polder import tokens

STA_UNSYNC = 0x40
JOIN_TOKEN = "etc/polder/join-token"  # noqa: S105 - a file name, of edge-join.service
UNITS, SWITCH_UNIT = ("usr/lib/systemd/system", "lib/systemd/system"), "edge-switch.service"
BATTERY_MICROVOLTS_MIN = 1_000_000


def gather(config: AgentConfig, profile: Profile, box: Box) -> Facts:
    """Everything that the checks ask. Never raises for what a box may be."""
    identity, joined, error = _identity(config)
    return Facts(
        profile=profile,
        kernel=kernel(box),
        cgroups=cgroups(box),
        clock=Clock(time.time(), _synchronised(), has_rtc(box)),
        file_systems=tuple(_file_systems(config)),
        file_system_errors=_errors(box),
        drives=tuple(_drives(box)),
        random_ready=_random_ready(),
        tpm_version=_tpm(box),
        watchdog_there=(box.root / "dev/watchdog0").exists(),
        watchdog_armed_s=_watchdog(),
        temperature_celsius=hottest(box),
        devices=_devices(config, box),
        runtime=_runtime(config),
        cni=gather_network.cni(box),
        links=gather_network.links(box),
        reaches=gather_network.reaches(identity.endpoints if identity else ()),
        site_port=_port(config.site_listen),
        local_port=_port(config.local_listen),
        listening=gather_network.listening(box),
        nft_there=shutil.which("nft") is not None,
        firewall=gather_network.firewall(),
        standing=Standing(
            joined=joined,
            node=str(identity.id) if identity else "",
            error=error,
            not_before=identity.not_before if identity else 0.0,
            not_after=identity.not_after if identity else 0.0,
            agent_pid=holder_of(config.state_dir),
            machine_id=machine_id(box),
            open_paths=tuple(_open_paths(config.state_dir, box.root / JOIN_TOKEN)),
            switch_answers=_switch_answers(config.state_dir),
            upgrade_watched=_upgrade_watched(config.state_dir),
            upgrade_trouble=_upgrade_trouble(config.state_dir),
            token=waiting_token(box.root / JOIN_TOKEN),
            forbidden_state_dir=forbidden(config.state_dir, box),
        ),
    )


# --- kernel -----------------------------------------------------------------------------------


def kernel(box: Box) -> Kernel:
    """From /proc, and the lists of modules that come with the kernel."""
    release = box.text("proc/sys/kernel/osrelease")
    systems = {line.split()[-1] for line in box.text("proc/filesystems").splitlines() if line}
    seccomp = "Seccomp:" in box.text("proc/self/status")
    namespaces = {path.name for path in (box.root / "proc/self/ns").glob("*")}
    return Kernel(
        release=release,
        filesystems=frozenset(systems),
        modules=_modules(box, release),
        namespaces=frozenset(namespaces),
        seccomp=seccomp,
        forwarding=box.text("proc/sys/net/ipv4/ip_forward") != "0",
    )


def _modules(box: Box, release: str) -> frozenset[str] | None:
    """By name; None for a kernel without lists, of which only the kernel itself knows."""
    names: set[str] = set()
    for folder in ("lib/modules", "usr/lib/modules"):
        for file in ("modules.builtin", "modules.dep"):
            lines = box.text(f"{folder}/{release}/{file}").splitlines()
            names |= {
                line.partition(":")[0].rpartition("/")[2].partition(".ko")[0] for line in lines
            }
    if not names:
        return None
    names |= {line.split()[0] for line in box.text("proc/modules").splitlines() if line}
    return frozenset(name.replace("-", "_") for name in names)


def cgroups(box: Box) -> Cgroups:
    """Of the unified hierarchy if its controllers are there, else of version 1."""
    controllers = frozenset(box.text("sys/fs/cgroup/cgroup.controllers").split())
    if controllers:
        return Cgroups(2, controllers)
    ones = {
        line.split()[0]
        for line in box.text("proc/cgroups").splitlines()
        if not line.startswith("#") and line.split()[-1:] == ["1"]
    }
    return Cgroups(1 if (box.root / "sys/fs/cgroup").is_dir() and ones else 0, frozenset(ones))


class _Timex(ctypes.Structure):
    """The head of struct timex, adjtimex(2); what follows is room only."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("room", ctypes.c_byte * 256),
    )


def _synchronised() -> bool | None:
    """Whether anything disciplines the kernel's clock, whichever program that is."""
    timex = _Timex()
    try:
        if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return not timex.status & STA_UNSYNC


def has_rtc(box: Box) -> bool:
    """A clock that goes on without a supply. A Raspberry Pi 5 has one, and says if no battery is
    plugged in for it."""
    voltage = box.text("sys/class/rtc/rtc0/battery_voltage")
    is_flat = voltage.isdigit() and int(voltage) < BATTERY_MICROVOLTS_MIN
    return (box.root / "sys/class/rtc/rtc0").exists() and not is_flat


def _random_ready() -> bool:
    try:
        os.getrandom(1, os.GRND_NONBLOCK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


# --- disks ------------------------------------------------------------------------------------


def _file_systems(config: AgentConfig) -> Iterator[FileSystem]:
    seen = set()
    for what, path in (
        ("state", config.state_dir),
        ("logs", config.log_dir),
        ("images and containers", Path("/var/lib")),
    ):
        while not path.exists():
            path = path.parent
        device = path.stat().st_dev
        if device not in seen:
            seen.add(device)
            facts = os.statvfs(path)
            yield FileSystem(
                what,
                str(path),
                _kind(path),
                facts.f_blocks * facts.f_frsize,
                facts.f_bavail * facts.f_frsize,
                facts.f_files,
                facts.f_ffree,
                bool(facts.f_flag & os.ST_RDONLY),
            )


def _kind(path: Path) -> str:
    """ext4, xfs, ...: of the mount that holds it."""
    best = mounts.MountPoint("", "")
    with contextlib.suppress(OSError):
        for point in mounts.parse(mounts.MOUNTINFO.read_text()):
            inside = path.is_relative_to(point.path)
            if inside and len(point.path) >= len(best.path):
                best = point
    return best.kind


def _errors(box: Box) -> dict[str, int]:
    found = {}
    for folder in sorted((box.root / "sys/fs/ext4").glob("*")):
        count = box.text(f"sys/fs/ext4/{folder.name}/errors_count")
        if count.isdigit():
            found[folder.name] = int(count)
    return found


def _drives(box: Box) -> Iterator[Drive]:
    """Flash that says itself how worn it is, and what smartctl says of the others."""
    for folder in sorted((box.root / "sys/block").glob("*")):
        name = folder.name
        if name.startswith(("loop", "ram", "dm-", "md", "zram", "sr")):
            continue
        worn = emmc_worn(box.text(f"sys/block/{name}/device/life_time"))
        if worn >= 0:
            yield Drive(f"/dev/{name}", worn)
        elif (said := run_tool("smartctl", "--json", "--health", "--all", f"/dev/{name}")) != "":
            drive = from_smart(f"/dev/{name}", said)
            if drive is not None:
                yield drive


def emmc_worn(life_time: str) -> int:
    """Percent of its life that is used up, at most; -1: it does not say. Two estimates in tenths.

    JEDEC eMMC 5.0, DEVICE_LIFE_TIME_EST_TYP_A and B: 0x01 is 0 to 10 %, 0x0b is beyond its life.
    """
    tenths = [int(word, 16) for word in life_time.split() if word.startswith("0x")]
    known = [tenth for tenth in tenths if 0 < tenth <= 0x0B]
    return min(100, max(known) * 10) if known else -1


def from_smart(name: str, text: str) -> Drive | None:
    """What `smartctl --json` says; None when it says nothing of its health."""
    try:
        said = json.loads(text)
        health = said.get("smart_status", {}).get("passed")
        worn = said.get("nvme_smart_health_information_log", {}).get("percentage_used", -1)
    except (ValueError, AttributeError):
        return None
    if health is None and worn < 0:
        return None
    return Drive(name, int(worn), health if isinstance(health, bool) else None)


# --- devices, runtime, the agent itself -------------------------------------------------------


def _devices(config: AgentConfig, box: Box) -> Devices:
    found, complaints = accelerators.find(box.root, config.devices)
    return Devices(tuple(found), tuple(complaints), shelf.gather(box).pci)


def _tpm(box: Box) -> int:
    """Its major version; 0: none."""
    version = box.text("sys/class/tpm/tpm0/tpm_version_major")
    if version.isdigit():
        return int(version)
    return 2 if (box.root / "dev/tpmrm0").exists() else 0


def _watchdog() -> int:
    """Seconds that systemd arms the hardware with; 0: it does not."""
    said = run_tool("systemctl", "show", "--property=RuntimeWatchdogUSec", "--value").strip()
    units = {"min": 60, "s": 1, "h": 3600}
    total = 0
    for word in said.split():
        number = word.rstrip("minsh")
        unit = word[len(number) :]
        if number.isdigit() and unit in units:
            total += int(number) * units[unit]
    return total


def _runtime(config: AgentConfig) -> RuntimeFacts:
    """Asked over its socket, as the agent asks it."""
    import asyncio

    from agent.runtime.cri.adapter import CriRuntime
    from agent.runtime.port import RuntimeFailure

    path = str(config.runtime_socket)
    if not config.runtime_socket.exists():
        return RuntimeFacts(path, "there is no such socket")

    async def ask() -> RuntimeFacts:
        runtime = CriRuntime(path)
        try:
            async with asyncio.timeout(TOOL_S):
                info = await runtime.info()
                objection = await runtime.cdi_objection()
        finally:
            await runtime.close()
        ready = (info.runtime_ready, info.network_ready)
        return RuntimeFacts(path, "", info.version, *ready, info.message, objection)

    try:
        return asyncio.run(ask())
    except (RuntimeFailure, TimeoutError, OSError) as error:
        return RuntimeFacts(path, str(error) or "it did not answer in time")


def _identity(config: AgentConfig) -> tuple[NodeIdentity | None, bool, str]:
    try:
        return IdentityStore(config.state_dir).load(), True, ""
    except NotJoined:
        return None, False, ""
    except (IdentityFailure, OSError) as error:
        return None, False, str(error)


def forbidden(state_dir: Path, box: Box) -> str:
    """A state directory where the package's units, which see the rest of the disk read-only, may
    not write; empty when they may, or when no package is here, or somebody changed its units."""
    own = any((box.root / folder / SWITCH_UNIT).exists() for folder in UNITS)
    changed = (box.root / "etc/systemd/system" / f"{SWITCH_UNIT}.d").is_dir()
    return "" if state_dir == STATE_DIR or not own or changed else str(state_dir)


def waiting_token(file: Path) -> WaitingToken | None:
    """What an image or an installer left for `edge-join.service`, while that has not used it."""
    try:
        text = file.read_text(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        return WaitingToken(str(file), error=error.strerror or str(error))
    try:
        return WaitingToken(str(file), tokens.parse(text).expires_at_ms / 1000)
    except tokens.InvalidToken as error:
        return WaitingToken(str(file), error=str(error))


def _open_paths(state_dir: Path, token: Path) -> Iterator[str]:
    """What others may read and must not: the state directory, keys in it, and a token."""
    for path in (state_dir, *sorted(state_dir.glob("identities/*/key.pem")), token):
        with contextlib.suppress(OSError):
            if path.stat().st_mode & 0o077:
                yield str(path)


def _switch_answers(state_dir: Path) -> bool | None:
    """None when it cannot be asked from here."""
    try:
        switch_ask.deadlines(state_dir)
    except PermissionError:
        return None
    except OSError:
        return False
    return True


def _upgrade_watched(state_dir: Path) -> bool | None:
    if unfit(state_dir):
        return None
    return run_tool("systemctl", "is-active", "edge-upgrade.path").strip() == "active"


def _upgrade_trouble(state_dir: Path) -> str:
    """Empty when the last one was well, or there was none."""
    outcome = outcome_of(UpgradeFiles(state_dir).read(OUTCOME))
    if outcome is None or not outcome.reason:
        return ""
    return f"{outcome.version}: {outcome.phase}: {outcome.reason}: {outcome.message}"


def _port(listen: str) -> int:
    """Of a setting such as site_listen; 0: it is empty."""
    return int(listen.rpartition(":")[2] or 0)
