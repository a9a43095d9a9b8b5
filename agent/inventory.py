"""What this box is and how much of it is in use. `agent/main.py` wires it to the session.

Facts come from the kernel's files below injectable roots, so that tests describe boxes that nobody
has at hand; psutil lists the addresses, which no file holds. They are those of the box: a cgroup
limit on the agent itself says nothing about what containers may use.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import psutil

from agent.accelerators import Accelerator, find
from agent.config import STATE_DIR, Reserved

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv8l": "arm64"}
_VIRTUAL_LINKS = (
    "lo",
    "veth",
    "cni",
    "polder",
    "docker",
    "br-",
    "virbr",
    "tun",
    "tap",
    "dummy",
    "flannel",
)
_PLACEHOLDERS = ("to be filled by o.e.m.", "default string", "system product name", "none", "")
_NO_SERIALS = frozenset(
    (
        "03000200040005000006000700080009",
        "00020003000400050006000700080009",  # the same, read in the other byte order
        "123456781234567890abcddeefaabbcc",
        "0123456789",
        "123456789",
        "1234567890",
        "tobefilledbyoem",
        "defaultstring",
        "systemserialnumber",
        "baseboardserialnumber",
        "serialnumber",
        "notspecified",
        "notapplicable",
        "notavailable",
        "none",
        "null",
        "unknown",
        "invalid",
        "empty",
        "oem",
    )
)
"""What firmware says that was never told, letters and digits only."""
MAX_ADDRESSES = 16
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Amounts:
    """`devices` by resource name."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    devices: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inventory:
    """Facts that seldom change. `complaints` are what could not be read, for events.

    `host_paths` is what the box's configuration lets pods see of it, `site_endpoints` where the
    nodes of its site reach it, `local_endpoints` where operators do, and `site_certificate` what it
    shows all of them there (DER). `hardware_profile` names the class of boxes that this one is of
    (`agent/hardware/`).
    """

    arch: str
    os: str
    kernel: str
    hostname: str
    machine_id: str
    hardware_id: str
    model: str
    capacity: Amounts
    reserved: Amounts
    allocatable: Amounts
    accelerators: tuple[Accelerator, ...]
    addresses: tuple[str, ...]
    runtime_version: str = ""
    host_paths: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()
    site_endpoints: tuple[str, ...] = ()
    site_certificate: bytes = b""
    local_endpoints: tuple[str, ...] = ()
    hardware_profile: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """A moment's use. Temperature 0: no sensor. Battery -1: none. Network counts since boot."""

    cpu_millis: int
    memory_bytes: int
    disk_bytes: int
    network_rx_bytes: int
    network_tx_bytes: int
    temperature_celsius: float
    battery_percent: int
    on_battery: bool
    memory_available_bytes: int
    disk_available_bytes: int


@dataclass(frozen=True, slots=True)
class Box:
    """Where to look. `disk` is a path on the file system that containers and images fill.

    `state_dir` is the agent's; `profile` the name of the hardware profile, found out beforehand.
    """

    root: Path = Path("/")
    disk: Path = Path("/var/lib")
    machine: str = ""  # as uname -m says; empty: ask
    state_dir: Path = STATE_DIR
    profile: str = ""

    def text(self, path: str) -> str:
        """A small kernel file, without surrounding blanks and NULs; empty when it is not there."""
        try:
            return (self.root / path).read_text(errors="replace").strip("\0\n ")
        except OSError:
            return ""


def take(
    box: Box,
    reserved: Reserved,
    devices: Mapping[str, tuple[str, ...]] | None = None,
    host_paths: tuple[str, ...] = (),
) -> Inventory:
    """Look at the box. A few milliseconds: call it at start and every few minutes."""
    accelerators, complaints = find(box.root, devices or {})
    counts: dict[str, int] = {}
    for accelerator in accelerators:
        counts[accelerator.resource] = counts.get(accelerator.resource, 0) + 1
    disk = _disk(box)
    capacity = Amounts(_cores(box) * 1000, _memory(box)["MemTotal"], disk[0], counts)
    kept = Amounts(
        reserved.cpu.of(capacity.cpu_millis),
        reserved.memory.of(capacity.memory_bytes),
        reserved.disk.of(capacity.disk_bytes),
    )
    free = Amounts(
        capacity.cpu_millis - kept.cpu_millis,
        capacity.memory_bytes - kept.memory_bytes,
        capacity.disk_bytes - kept.disk_bytes,
        counts,
    )
    return Inventory(
        arch=architecture(box),
        os=_os_name(box),
        kernel=box.text("proc/sys/kernel/osrelease"),
        hostname=box.text("proc/sys/kernel/hostname") or socket.gethostname(),
        machine_id=machine_id(box),
        hardware_id=hardware_id(box),
        model=_model(box),
        capacity=capacity,
        reserved=kept,
        allocatable=free,
        accelerators=tuple(accelerators),
        addresses=_addresses(),
        host_paths=host_paths,
        complaints=tuple(complaints),
        hardware_profile=box.profile,
    )


def with_runtime(inventory: Inventory, version: str) -> Inventory:
    """The same box with the container runtime's version, once it has answered."""
    return replace(inventory, runtime_version=version)


def with_site(
    inventory: Inventory, peers: tuple[str, ...], operators: tuple[str, ...], certificate: bytes
) -> Inventory:
    """The same box with where its peers and operators reach it, and what it shows them."""
    return replace(
        inventory, site_endpoints=peers, local_endpoints=operators, site_certificate=certificate
    )


def architecture(box: Box) -> str:
    """As OCI images name it."""
    machine = box.machine or os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


def memory_total(box: Box) -> int:
    """In bytes; 0 when the kernel does not say."""
    return _memory(box)["MemTotal"]


def machine_id(box: Box) -> str:
    """A stable, hashed name of this installation; hashed as machine-id(5) asks.

    Empty when the box has neither a machine id nor a serial number. Two agents of one box differ by
    their state directories; two boxes with copies of one disk do not differ, and are told so.
    """
    own = "" if box.state_dir == STATE_DIR else f"\0{box.state_dir}"
    for path in (
        "etc/machine-id",
        "var/lib/dbus/machine-id",
        "sys/class/dmi/id/product_uuid",
        "proc/device-tree/serial-number",
    ):
        text = box.text(path)
        if text and text != "uninitialized":
            return sha256(f"polder.v1.machine\0{text}{own}".encode()).hexdigest()
    return ""


def hardware_id(box: Box) -> str:
    """A stable, hashed name of the board; empty when it tells none.

    By it the orchestrator knows a copy of a disk from a box that comes back. A disk that moves gets
    another; two agents of one box have the same. No network addresses: adapters come and go. An
    agent that named the same board otherwise than the one before it would have to wait until that
    one counts as silent: leave the order and the hash as they are.
    """
    for path in (
        "sys/class/dmi/id/product_uuid",
        "sys/class/dmi/id/product_serial",
        "sys/class/dmi/id/board_serial",
        "proc/device-tree/serial-number",
    ):
        text = box.text(path).lower()
        bare = "".join(filter(str.isalnum, text))
        # All zeros, all F, FEFE..., and whatever else has two characters, was never written.
        if len(set(bare)) > 2 and bare not in _NO_SERIALS:
            return sha256(f"polder.v1.hardware\0{text}".encode()).hexdigest()
    return ""


def boot_id(box: Box) -> str:
    """Of the kernel: differs after every reboot."""
    return box.text("proc/sys/kernel/random/boot_id")


def _cores(box: Box) -> int:
    lines = box.text("proc/stat").splitlines()
    return sum(1 for line in lines if line.startswith("cpu") and line[3:4].isdigit()) or 1


def _memory(box: Box) -> dict[str, int]:
    """MemTotal and MemAvailable in bytes."""
    found = {"MemTotal": 0, "MemAvailable": 0}
    for line in box.text("proc/meminfo").splitlines():
        key, _, rest = line.partition(":")
        if key in found:
            found[key] = int(rest.split()[0]) * 1024
    return found


def _disk(box: Box) -> tuple[int, int, int]:
    """(capacity, used, available to others than root) in bytes, of the file system of `disk`."""
    path = box.disk
    while not path.exists() and path != path.parent:
        path = path.parent
    facts = os.statvfs(path)
    total, free = facts.f_blocks * facts.f_frsize, facts.f_bfree * facts.f_frsize
    return total, total - free, facts.f_bavail * facts.f_frsize


def _os_name(box: Box) -> str:
    text = box.text("etc/os-release") or box.text("usr/lib/os-release")
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip("\"'")
    return "Linux"


def _model(box: Box) -> str:
    """As the firmware says: the device tree's on ARM boards, DMI's elsewhere."""
    tree = box.text("proc/device-tree/model")
    if tree:
        return tree
    names = (box.text("sys/class/dmi/id/sys_vendor"), box.text("sys/class/dmi/id/product_name"))
    return " ".join(name for name in names if name.lower() not in _PLACEHOLDERS)


def _addresses() -> tuple[str, ...]:
    """Where others may reach the box; none of loopback, link-local or container links."""
    found = []
    for link, entries in sorted(psutil.net_if_addrs().items()):
        if link.startswith(_VIRTUAL_LINKS):
            continue
        for entry in entries:
            address = entry.address.partition("%")[0]
            is_ip = entry.family in (socket.AF_INET, socket.AF_INET6)
            if is_ip and not address.startswith(("127.", "169.254.", "fe80:", "::1")):
                found.append(address)
    return tuple(found[:MAX_ADDRESSES])


class UsageSampler:
    """Called once per heartbeat, so it opens few files and none of the slow ones twice.

    CPU use is that since the sample before; the first one is since boot.
    """

    def __init__(self, box: Box) -> None:
        self._box = box
        self._busy, self._total = 0, 0
        self._thermal = _thermometers(box)
        self._battery, self._mains = _power_supplies(box)

    def sample(self) -> Usage:
        """The box's use now."""
        box = self._box
        memory = _memory(box)
        _, disk_used, disk_available = _disk(box)
        received, sent = _network(box)
        return Usage(
            cpu_millis=self._cpu(),
            memory_bytes=memory["MemTotal"] - memory["MemAvailable"],
            disk_bytes=disk_used,
            network_rx_bytes=received,
            network_tx_bytes=sent,
            temperature_celsius=_hottest(box, self._thermal),
            battery_percent=_number(box, f"{self._battery}/capacity", -1) if self._battery else -1,
            on_battery=bool(self._battery) and self._is_discharging(),
            memory_available_bytes=memory["MemAvailable"],
            disk_available_bytes=disk_available,
        )

    def _cpu(self) -> int:
        text = self._box.text("proc/stat")
        first, _, rest = text.partition("\n")
        ticks = [int(word) for word in first.split()[1:9]]
        cores = (
            _cores(self._box)
            if not rest
            else sum(1 for line in rest.splitlines() if line.startswith("cpu"))
        )
        idle = ticks[3] + ticks[4] if len(ticks) > 4 else 0
        busy, total = sum(ticks) - idle, sum(ticks)
        busy_delta, total_delta = busy - self._busy, total - self._total
        self._busy, self._total = busy, total
        if total_delta <= 0:
            return 0
        return max(0, cores * 1000 * busy_delta // total_delta)

    def _is_discharging(self) -> bool:
        if self._mains:
            return _number(self._box, f"{self._mains}/online", 1) == 0
        return self._box.text(f"{self._battery}/status") == "Discharging"


def _sensors(box: Box, directory: str, prefix: str, name: str) -> list[str]:
    try:
        entries = sorted(p.name for p in (box.root / directory).iterdir())
    except OSError:
        return []
    paths = (f"{directory}/{entry}/{name}" for entry in entries if entry.startswith(prefix))
    return [path for path in paths if box.text(path)][:16]


def _thermometers(box: Box) -> list[str]:
    zones = _sensors(box, "sys/class/thermal", "thermal_zone", "temp")
    return zones + _sensors(box, "sys/class/hwmon", "hwmon", "temp1_input")


def hottest(box: Box) -> float:
    """Degrees Celsius of the hottest sensor; 0: there is none."""
    return _hottest(box, _thermometers(box))


def _power_supplies(box: Box) -> tuple[str, str]:
    """The paths of the first battery that feeds the box, and of the mains."""
    battery = mains = ""
    directory = "sys/class/power_supply"
    try:
        entries = sorted(p.name for p in (box.root / directory).iterdir())
    except OSError:
        return "", ""
    for entry in entries:
        path = f"{directory}/{entry}"
        kind = box.text(f"{path}/type")
        if kind == "Battery" and box.text(f"{path}/scope") != "Device" and not battery:
            battery = path  # scope Device is the battery of a mouse
        elif kind == "Mains" and not mains:
            mains = path
    return battery, mains


def _hottest(box: Box, paths: Sequence[str]) -> float:
    values = (_number(box, path, 0) / 1000 for path in paths)
    return max((v for v in values if 0 < v < 200), default=0.0)


def _number(box: Box, path: str, default: int) -> int:
    try:
        return int(box.text(path))
    except ValueError:
        return default


def _network(box: Box) -> tuple[int, int]:
    received = sent = 0
    for line in box.text("proc/net/dev").splitlines()[2:]:
        link, _, numbers = line.partition(":")
        columns = numbers.split()
        if len(columns) >= 9 and not link.strip().startswith(_VIRTUAL_LINKS):
            received += int(columns[0])
            sent += int(columns[8])
    return received, sent


def own_memory_bytes() -> int:
    """Resident set of the agent's process: cheap, and a little more than its share (PSS)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def own_cpu_seconds() -> float:
    """User and system time of the agent's process since it started."""
    times = os.times()
    return times.user + times.system
