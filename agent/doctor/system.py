"""Kernel, clock, disks and what else the box itself brings. Pure: facts in, findings out."""

import re
from collections.abc import Iterator

from agent.doctor.facts import Facts, FileSystem
from agent.doctor.finding import FAILURE, NOTE, OK, PREPARE, WARNING, Finding
from agent.domain import clock
from polder.manifest.quantity import format_timestamp

KERNEL_MIN, KERNEL_GOOD = (5, 10), (5, 14)
NAMESPACES = ("ipc", "mnt", "net", "pid", "uts")
CONTROLLERS = ("cpu", "memory", "pids")
# What a bridge with NAT and published ports takes.
MODULES = ("overlay", "veth", "bridge", "nf_nat")
FREE_FEW, FREE_NONE = 0.10, 0.03
WORN, WORN_OUT = 80, 100
HOT_WITHIN = 5.0  # degrees below the limit
_VERSION = re.compile(r"(\d+)\.(\d+)")


def findings(facts: Facts) -> Iterator[Finding]:
    """All of this module."""
    yield from kernel(facts)
    yield from cgroups(facts)
    yield from the_clock(facts)
    yield from disks(facts)
    yield from entropy(facts)
    yield from tpm(facts)
    yield from watchdog(facts)
    yield from temperature(facts)


def kernel(facts: Facts) -> Iterator[Finding]:
    found = facts.kernel
    version = _VERSION.match(found.release)
    number = (int(version[1]), int(version[2])) if version else KERNEL_GOOD
    troubles = list(_kernel_features(facts))
    if number < KERNEL_MIN:
        troubles.append(
            Finding(
                "kernel",
                FAILURE,
                f"Linux {found.release} is older than {KERNEL_MIN[0]}.{KERNEL_MIN[1]}",
                "upgrade the kernel: `apt full-upgrade`, or the board maker's newer image",
            )
        )
    elif number < KERNEL_GOOD:
        troubles.append(
            Finding(
                "kernel",
                NOTE,
                f"Linux {found.release} has no cgroup.kill: an exclusive replica ends later",
                "5.14 or later, such as Debian 12's, has it",
            )
        )
    yield from troubles
    if not troubles:
        yield Finding("kernel", OK, f"Linux {found.release} has what containers take")


def _kernel_features(facts: Facts) -> Iterator[Finding]:
    found = facts.kernel
    known = found.modules
    if "overlay" not in found.filesystems and known is not None:
        lacking = [name for name in MODULES if name not in known]
    else:
        lacking = [name for name in MODULES[1:] if known is not None and name not in known]
    if lacking:
        yield Finding(
            "kernel",
            FAILURE,
            f"the kernel has no {', '.join(lacking)}",
            "install a kernel with these modules (Debian's linux-image has all of them)",
        )
    absent = [name for name in NAMESPACES if name not in found.namespaces]
    if absent:
        yield Finding(
            "kernel",
            FAILURE,
            f"the kernel has no namespaces of kind {', '.join(absent)}",
            "install a kernel with CONFIG_NAMESPACES and all kinds of them",
        )
    if not found.seccomp:
        yield Finding(
            "kernel",
            WARNING,
            "the kernel has no seccomp: containers may use every system call",
            "install a kernel with CONFIG_SECCOMP_FILTER",
        )
    if not found.forwarding:
        yield Finding(
            "kernel",
            WARNING,
            "net.ipv4.ip_forward is 0: pods reach nothing outside of this box",
            "`echo net.ipv4.ip_forward=1 > /etc/sysctl.d/70-forward.conf; sysctl --system`",
        )


def cgroups(facts: Facts) -> Iterator[Finding]:
    found = facts.cgroups
    if not found.version:
        yield Finding(
            "cgroups",
            FAILURE,
            "no cgroups are mounted",
            "boot with systemd, and without `cgroup_disable`",
        )
        return
    lacking = [name for name in CONTROLLERS if name not in found.controllers]
    if lacking:
        fix = "take `cgroup_disable=` off the kernel's command line, or install a kernel with them"
        if any(argument.startswith("cgroup_enable") for argument in facts.profile.kernel_arguments):
            fix = f"run `{PREPARE}`: it adds cgroup_enable=memory to /boot/firmware/cmdline.txt"
        yield Finding(
            "cgroups",
            FAILURE,
            f"cgroups have no controller {', '.join(lacking)}: limits of containers would not hold",
            f"{fix}, and reboot",
        )
    elif found.version == 1:
        yield Finding(
            "cgroups",
            NOTE,
            "cgroups of version 1: of an ended exclusive replica a process may run for a moment",
            "boot with `systemd.unified_cgroup_hierarchy=1`",
        )
    else:
        yield Finding("cgroups", OK, f"version 2 with {', '.join(sorted(found.controllers))}")


def the_clock(facts: Facts) -> Iterator[Finding]:
    found = facts.clock
    shown = format_timestamp(max(0.0, found.now))
    if clock.is_impossible(found.now):
        yield Finding(
            "clock",
            FAILURE,
            f"the clock says {shown}, before this version existed: no certificate is valid then",
            clock.FIX,
        )
        return
    before = facts.standing.not_before
    if before and found.now < before - 300:
        yield Finding(
            "clock",
            FAILURE,
            f"the clock says {shown}, before this node's own certificate was issued",
            clock.FIX,
        )
        return
    if found.synchronised is False:
        yield Finding(
            "time-sync",
            WARNING,
            f"nothing keeps the clock right ({shown})",
            "`apt install chrony` (or systemd-timesyncd), and let UDP port 123 out",
        )
    else:
        what = "the clock is kept right" if found.synchronised else "the clock looks right"
        yield Finding("time-sync", OK, f"{what} ({shown})")
    if not found.has_rtc:
        yield Finding(
            "clock",
            NOTE,
            "no battery-backed clock: after a reboot the time is wrong until a network is there",
            "fit an RTC battery, or `apt install fake-hwclock`",
        )


def disks(facts: Facts) -> Iterator[Finding]:
    for found in facts.file_systems:
        yield from _file_system(found)
    for name, count in sorted(facts.file_system_errors.items()):
        if count:
            yield Finding(
                "disk",
                WARNING,
                f"the file system on {name} has recorded {count} errors",
                f"look at `dmesg`, save what matters, and `fsck /dev/{name}` unmounted",
            )
    for drive in facts.drives:
        if drive.healthy is False:
            yield Finding(
                "disk", FAILURE, f"{drive.name} says by SMART that it fails", "replace it now"
            )
        elif drive.worn_percent >= WORN:
            yield Finding(
                "disk",
                FAILURE if drive.worn_percent >= WORN_OUT else WARNING,
                f"{drive.name} has used {drive.worn_percent} % of the writes it was made for",
                "plan to replace it; `edge-agent tune` and a log level of warning write less",
            )
        elif drive.worn_percent >= 0 or drive.healthy:
            worn = f", {drive.worn_percent} % worn" if drive.worn_percent >= 0 else ""
            yield Finding("disk", OK, f"{drive.name} is healthy{worn}")


def _file_system(found: FileSystem) -> Iterator[Finding]:
    if found.read_only:
        yield Finding(
            "disk",
            FAILURE,
            f"{found.path} ({found.what}) is read-only",
            "after an error the kernel does that: look at `dmesg`, fsck, and mount it again",
        )
        return
    few = False
    for kind, free, total in (
        ("space", found.bytes_free, found.bytes_total),
        ("inodes", found.inodes_free, found.inodes_total),
    ):
        if total and free < total * FREE_FEW:
            few = True
            yield Finding(
                "disk",
                FAILURE if free < total * FREE_NONE else WARNING,
                f"{found.path} ({found.what}) has {100 * free // total} % of its {kind} left",
                "`crictl rmi --prune`, `journalctl --vacuum-size=100M`, or a larger disk",
            )
    if not few:
        room = f"{found.bytes_free / 2**30:.1f} GiB free"
        yield Finding("disk", OK, f"{found.path} ({found.what}): {found.kind or 'mounted'}, {room}")


def entropy(facts: Facts) -> Iterator[Finding]:
    if facts.random_ready:
        yield Finding("entropy", OK, "random numbers are ready")
    else:
        yield Finding(
            "entropy",
            FAILURE,
            "the kernel has no good random numbers yet: making a key would hang",
            "wait a minute and try again; `apt install rng-tools5` where the board has a generator",
        )


def tpm(facts: Facts) -> Iterator[Finding]:
    fitted = facts.profile.tpm.fitted
    if facts.tpm_version == 2:
        yield Finding("tpm", OK, "a TPM 2.0 is there")
    elif facts.tpm_version:
        yield Finding(
            "tpm", NOTE, "the TPM is older than 2.0", "upgrade its firmware if there is one"
        )
    elif fitted == "built-in":
        yield Finding(
            "tpm",
            WARNING,
            f"no TPM, though a {facts.profile.title} has one",
            "switch it on in the firmware's setup (Intel PTT, AMD fTPM, Security Device Support)",
        )
    else:
        yield Finding("tpm", OK, "no TPM; Polder does not need one")


def watchdog(facts: Facts) -> Iterator[Finding]:
    wanted = facts.profile.watchdog
    if facts.watchdog_armed_s:
        yield Finding(
            "watchdog", OK, f"systemd arms {wanted.device} with {facts.watchdog_armed_s} s"
        )
    elif wanted.timeout_s and facts.watchdog_there:
        yield Finding(
            "watchdog",
            WARNING,
            f"{wanted.device} is there and not armed: a box that hangs stays so",
            "`edge-agent tune && systemctl daemon-reexec`",
        )
    elif wanted.timeout_s:
        driver = f"`modprobe {wanted.driver}`" if wanted.driver else "boot a kernel with its driver"
        yield Finding(
            "watchdog",
            WARNING,
            f"no {wanted.device}, though a {facts.profile.title} has a watchdog",
            f"{driver}, or switch it on in the firmware's setup",
        )
    elif facts.watchdog_there:
        yield Finding(
            "watchdog",
            NOTE,
            f"{wanted.device or 'a watchdog'} is there and not armed",
            "RuntimeWatchdogSec=60 in /etc/systemd/system.conf",
        )


def temperature(facts: Facts) -> Iterator[Finding]:
    cooling, found = facts.profile.cooling, facts.temperature_celsius
    if not found:
        return  # it has no sensor
    if cooling.limit_celsius and not cooling.inlet and found >= cooling.limit_celsius - HOT_WITHIN:
        yield Finding(
            "temperature",
            WARNING,
            f"{found:.0f} C, and from {cooling.limit_celsius:g} C on a {facts.profile.title} slows "
            "down or stops",
            f"look at dust, at the fan and at where it stands; its class has: {cooling.kind}",
        )
    else:
        yield Finding("temperature", OK, f"{found:.0f} C at the hottest sensor")
