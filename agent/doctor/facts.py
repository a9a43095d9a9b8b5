"""What the doctor looked at, as plain values. `gather.py` fills it, the checks read it. Pure.

None and empty texts mean that the box did not say, which is never taken for good or bad.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.accelerators import Accelerator
from agent.hardware.profile import Profile


@dataclass(frozen=True, slots=True)
class Kernel:
    """`modules`: loaded, built in, or there to be loaded; None when the kernel has no list."""

    release: str = ""
    filesystems: frozenset[str] = frozenset()
    modules: frozenset[str] | None = None
    namespaces: frozenset[str] = frozenset()
    seccomp: bool = True
    forwarding: bool = True


@dataclass(frozen=True, slots=True)
class Cgroups:
    """`version` 0: none mounted."""

    version: int = 2
    controllers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Clock:
    """`now` in unix seconds. `synchronised` as the kernel has it from whatever sets its clock."""

    now: float = 0.0
    synchronised: bool | None = None
    has_rtc: bool = True


@dataclass(frozen=True, slots=True)
class FileSystem:
    """`what` lives there, at `path`."""

    what: str
    path: str
    kind: str = ""
    bytes_total: int = 0
    bytes_free: int = 0
    inodes_total: int = 0
    inodes_free: int = 0
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Drive:
    """`worn_percent` of its life that is used up, -1: not known; `healthy` as SMART says."""

    name: str
    worn_percent: int = -1
    healthy: bool | None = None


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """`cdi_objection`: why it would not hand out devices that have a CDI name."""

    socket: str = ""
    error: str = ""
    version: str = ""
    runtime_ready: bool = False
    network_ready: bool = False
    message: str = ""
    cdi_objection: str = ""


@dataclass(frozen=True, slots=True)
class CniNetwork:
    file: str
    name: str
    plugins: tuple[str, ...] = ()
    mtu: int = 0
    error: str = ""
    wants_iptables: bool = False


@dataclass(frozen=True, slots=True)
class Cni:
    """`iptables`: the program is there."""

    networks: tuple[CniNetwork, ...] = ()
    plugins: frozenset[str] = frozenset()
    iptables: bool | None = None


@dataclass(frozen=True, slots=True)
class Link:
    name: str
    mtu: int
    is_uplink: bool = False


@dataclass(frozen=True, slots=True)
class Reach:
    """One orchestrator's address. `path_mtu` 0: not known."""

    endpoint: str
    error: str = ""
    path_mtu: int = 0


@dataclass(frozen=True, slots=True)
class Devices:
    """What the box has for replicas that ask for devices; specs that cannot be read; what is on
    the PCI bus, as `vendor:device`."""

    found: tuple[Accelerator, ...] = ()
    complaints: tuple[str, ...] = ()
    pci: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class WaitingToken:
    """A join token that an image or an installer left. `expires_at` in unix seconds, 0: never."""

    path: str
    expires_at: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """The agent's own: identity, directories, process. `open_paths` are readable by others.

    `error`: there is an identity, and it cannot be read. `upgrade_watched`: orders of the fleet
    would be carried out here, None on a box that cannot; `upgrade_trouble`: how the last failed.
    `forbidden_state_dir`: where the state is to be, and the package's units may not write.
    """

    joined: bool = False
    node: str = ""
    error: str = ""
    not_before: float = 0.0
    not_after: float = 0.0
    agent_pid: int = 0
    machine_id: str = ""
    open_paths: tuple[str, ...] = ()
    switch_answers: bool | None = None
    upgrade_watched: bool | None = None
    upgrade_trouble: str = ""
    token: WaitingToken | None = None
    forbidden_state_dir: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """`site_port` is where peers come and `local_port` where operators do, 0: nowhere; `listening`
    what is bound on this box.

    `firewall` is what `nft -j list ruleset` says; None when it says nothing, or is not there
    (`nft_there`).
    """

    profile: Profile
    kernel: Kernel = Kernel()
    cgroups: Cgroups = Cgroups()
    clock: Clock = Clock()
    file_systems: tuple[FileSystem, ...] = ()
    file_system_errors: Mapping[str, int] = field(default_factory=dict)
    drives: tuple[Drive, ...] = ()
    random_ready: bool = True
    tpm_version: int = 0
    watchdog_there: bool = False
    watchdog_armed_s: int = 0
    temperature_celsius: float = 0.0
    devices: Devices = Devices()
    runtime: RuntimeFacts = RuntimeFacts()
    cni: Cni = Cni()
    links: tuple[Link, ...] = ()
    reaches: tuple[Reach, ...] = ()
    site_port: int = 0
    local_port: int = 0
    listening: frozenset[int] = frozenset()
    nft_there: bool = True
    firewall: tuple[Mapping[str, Any], ...] | None = None
    standing: Standing = Standing()
