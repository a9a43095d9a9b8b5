"""The doctor: facts of boxes that nobody has at hand, and what is said of them."""

import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.accelerators import Accelerator
from agent.config import STATE_DIR
from agent.doctor import command, gather, gather_network
from agent.doctor.facts import (
    Cgroups,
    Clock,
    Cni,
    CniNetwork,
    Devices,
    Drive,
    Facts,
    FileSystem,
    Kernel,
    Link,
    Reach,
    RuntimeFacts,
    Standing,
    WaitingToken,
)
from agent.doctor.finding import EXIT_CODES, FAILURE, NOTE, OK, WARNING, Finding, exit_code
from agent.domain.clock import EARLIEST
from agent.hardware import shelf
from agent.inventory import Box
from agent.site import switch_ask
from polder.tokens import JoinToken
from tests.unit.test_inventory import put

PROFILES, _ = shelf.load(own=Path("/nowhere"))
NOW = EARLIEST + 30 * 86_400
GIB = 1 << 30
BRIDGE = CniNetwork("/etc/cni/net.d/10-pods.conflist", "pods", ("bridge", "host-local"))
WELL = Facts(
    profile=PROFILES["generic"],
    kernel=Kernel(
        "6.1.0-28-amd64",
        frozenset({"ext4", "overlay"}),
        frozenset({"veth", "bridge", "nf_nat"}),
        frozenset({"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"}),
    ),
    cgroups=Cgroups(2, frozenset({"cpu", "memory", "pids", "io"})),
    clock=Clock(NOW, synchronised=True),
    file_systems=(FileSystem("state", "/", "ext4", 100 * GIB, 50 * GIB, 1000, 900),),
    drives=(Drive("/dev/nvme0n1", 3, healthy=True),),
    tpm_version=2,
    runtime=RuntimeFacts("/run/containerd.sock", "", "containerd 1.6.20", True, True),
    cni=Cni((BRIDGE,), frozenset({"bridge", "host-local"})),
    links=(Link("eth0", 1500, is_uplink=True), Link("lo", 65_536)),
    reaches=(Reach("a:7443", path_mtu=1500), Reach("b:7443")),
    site_port=7445,
    local_port=7446,
    standing=Standing(
        joined=True,
        node="n1",
        not_before=NOW - 86_400,
        not_after=NOW + 6 * 86_400,
        agent_pid=7,
        machine_id="ab" * 32,
        switch_answers=True,
    ),
)
PI = PROFILES["raspberry-pi-5"]


def sick(change: dict[str, Any]) -> list[Finding]:
    """What is not well, of a box that is well but for this. That no agent runs is no surprise."""
    findings = command.diagnose(replace(WELL, **change))
    asleep = [f for f in findings if f.check == "agent" and len(change) > 1]
    return [f for f in findings if f.level != OK and f not in asleep]


def test_a_box_that_is_well() -> None:
    findings = command.diagnose(WELL)
    assert [f for f in findings if f.level != OK] == [] and exit_code(findings) == 0
    checks = {f.check for f in findings}
    asked = {"kernel", "cgroups", "time-sync", "disk", "entropy", "tpm", "cni", "ports", "runtime"}
    assert checks >= asked | {"orchestrators", "firewall", "mtu", "certificates", "machine-id"}


CLOSED = (
    {"chain": {"family": "inet", "table": "filter", "name": "input", "hook": "input",
               "policy": "drop"}},
    {"rule": {"family": "inet", "table": "filter", "chain": "input", "expr": [
        {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}},
                   "right": 22}}, {"accept": None}]}},
)  # fmt: skip
OLD = replace(WELL.kernel, release="5.4.0-raspi")
STANDING = WELL.standing
TOKEN = WaitingToken("/etc/polder/join-token", NOW + 600)
GPU = Accelerator("polder.eu/gpu", "nvidia.com/gpu=0", "nvidia")
TROUBLES: list[tuple[dict[str, Any], str, str, str, str]] = [
    ({"kernel": OLD}, FAILURE, "kernel", "older than 5.10", "apt full-upgrade"),
    ({"kernel": replace(OLD, release="5.10.104-tegra")}, NOTE, "kernel", "cgroup.kill", "5.14"),
    ({"kernel": replace(WELL.kernel, modules=frozenset({"veth", "nf_nat"}))}, FAILURE, "kernel",
     "no bridge", "linux-image"),
    ({"kernel": replace(WELL.kernel, filesystems=frozenset())}, FAILURE, "kernel", "no overlay",
     "linux-image"),
    ({"kernel": replace(WELL.kernel, namespaces=frozenset({"mnt"}))}, FAILURE, "kernel",
     "ipc, net, pid, uts", "CONFIG_NAMESPACES"),
    ({"kernel": replace(WELL.kernel, seccomp=False)}, WARNING, "kernel", "seccomp", "CONFIG_SEC"),
    ({"kernel": replace(WELL.kernel, forwarding=False)}, WARNING, "kernel", "ip_forward", "sysctl"),
    ({"cgroups": Cgroups(0)}, FAILURE, "cgroups", "no cgroups", "systemd"),
    ({"cgroups": Cgroups(1, frozenset({"cpu", "memory", "pids"}))}, NOTE, "cgroups", "version 1",
     "unified"),
    ({"cgroups": Cgroups(2, frozenset({"cpu", "pids"}))}, FAILURE, "cgroups", "no controller",
     "`cgroup_disable=` off"),
    ({"cgroups": Cgroups(2, frozenset({"cpu", "pids"})), "profile": PI, "watchdog_armed_s": 15},
     FAILURE, "cgroups", "no controller memory", "cmdline.txt"),
    ({"clock": Clock(86_400.0)}, FAILURE, "clock", "1970-01-02", "timedatectl"),
    ({"clock": Clock(EARLIEST + 60, synchronised=True)}, FAILURE, "clock", "own certificate",
     "set the clock"),
    ({"clock": Clock(NOW, synchronised=False)}, WARNING, "time-sync", "nothing keeps", "chrony"),
    ({"clock": Clock(NOW, True, has_rtc=False)}, NOTE, "clock", "battery", "fake-hwclock"),
    ({"file_systems": (FileSystem("state", "/", "ext4", 100, 9, 100, 90),)}, WARNING, "disk",
     "9 % of its space", "prune"),
    ({"file_systems": (FileSystem("state", "/", "ext4", 100, 90, 100, 2),)}, FAILURE, "disk",
     "2 % of its inodes", "prune"),
    ({"file_systems": (FileSystem("logs", "/var", read_only=True),)}, FAILURE, "disk", "read-only",
     "fsck"),
    ({"file_system_errors": {"sda1": 3, "sdb1": 0}}, WARNING, "disk", "sda1 has", "fsck"),
    ({"drives": (Drive("/dev/mmcblk0", 90),)}, WARNING, "disk", "90 %", "replace"),
    ({"drives": (Drive("/dev/mmcblk0", 100),)}, FAILURE, "disk", "100 %", "replace"),
    ({"drives": (Drive("/dev/sda", 1, healthy=False),)}, FAILURE, "disk", "SMART", "replace"),
    ({"random_ready": False}, FAILURE, "entropy", "no good random numbers", "rng-tools"),
    ({"tpm_version": 1}, NOTE, "tpm", "older than 2.0", "firmware"),
    ({"tpm_version": 0, "profile": PROFILES["dell-xr8000"], "watchdog_armed_s": 60}, WARNING, "tpm",
     "no TPM, though", "firmware's setup"),
    ({"profile": PI, "watchdog_there": True}, WARNING, "watchdog", "not armed", "edge-agent tune"),
    ({"profile": PI}, WARNING, "watchdog", "no /dev/watchdog0", "modprobe bcm2835_wdt"),
    ({"profile": PROFILES["jetson-orin"]}, WARNING, "watchdog", "no /dev/watchdog0",
     "a kernel with its driver"),
    ({"profile": PI, "watchdog_armed_s": 15, "temperature_celsius": 81.0}, WARNING, "temperature",
     "81 C, and from 85 C", "active cooler"),
    ({"profile": PI, "watchdog_armed_s": 15, "devices": Devices(pci=frozenset({"1e60:2864"}))},
     WARNING, "devices", "no polder.eu/npu is offered", "driver"),
    ({"devices": Devices((GPU,)), "runtime": replace(WELL.runtime, cdi_objection="no CDI here")},
     FAILURE, "devices", "nvidia.com/gpu=0: no CDI here", "enable_cdi"),
    ({"devices": Devices((replace(GPU, id="/dev/nvidia0"),))}, WARNING, "devices",
     "/dev/nvidia0 has no CDI name", "nvidia-ctk"),
    ({"devices": Devices(complaints=("/etc/cdi/x.yaml: no kind",))}, WARNING, "devices",
     "/etc/cdi/x.yaml: no kind", "nvidia-ctk"),
    ({"watchdog_there": True}, NOTE, "watchdog", "not armed", "RuntimeWatchdogSec"),
    ({"cni": Cni()}, FAILURE, "cni", "no network", "share/polder/prepare"),
    ({"cni": Cni((replace(BRIDGE, wants_iptables=True),), WELL.cni.plugins, iptables=False)},
     FAILURE, "cni", "pods get no network", "apt install iptables"),
    ({"cni": Cni((BRIDGE,), frozenset({"bridge"}))}, FAILURE, "cni", "host-local",
     "containernetworking-plugins"),
    ({"cni": Cni((replace(BRIDGE, error="not a CNI configuration"),))}, FAILURE, "cni", "not a CNI",
     "mend"),
    ({"site_port": 0}, NOTE, "ports", "takes nothing over", "site_listen"),
    ({"local_port": 0}, NOTE, "ports", "nobody reaches this box", "local_listen"),
    ({"listening": frozenset({7445}), "standing": replace(STANDING, agent_pid=0)}, FAILURE, "ports",
     "another program listens", "ss -ltnp"),
    ({"listening": frozenset({7446}), "standing": replace(STANDING, agent_pid=0)}, FAILURE, "ports",
     "for operators at the site", "local_listen"),
    ({"reaches": (Reach("a:1", "refused"), Reach("b:1", "refused"))}, FAILURE, "orchestrators",
     "none can be reached (a:1: refused; b:1: refused)", "uplink"),
    ({"reaches": (Reach("a:1", "refused"), Reach("b:1"))}, WARNING, "orchestrators", "1 of 2",
     "firewall"),
    ({"nft_there": False}, NOTE, "firewall", "were not looked at", "apt install nftables"),
    ({"links": ()}, WARNING, "mtu", "no default route", "ip route"),
    ({"links": (Link("wwan0", 1200, True),),
      "cni": Cni((replace(BRIDGE, mtu=1200),), WELL.cni.plugins)}, WARNING, "mtu", "1200", "link"),
    ({"links": (Link("wwan0", 1430, True),)}, WARNING, "mtu", "large packets", '"mtu": 1430'),
    ({"reaches": (Reach("a:1", path_mtu=1400),)}, NOTE, "mtu", "1400 bytes", "tunnel"),
    ({"runtime": RuntimeFacts("/run/x.sock", "there is no such socket")}, FAILURE, "runtime",
     "no container runtime answers at /run/x.sock", "apt install containerd"),
    ({"runtime": replace(WELL.runtime, runtime_ready=False)}, FAILURE, "runtime", "not ready",
     "journalctl"),
    ({"runtime": replace(WELL.runtime, network_ready=False)}, FAILURE, "runtime", "no network",
     "cni"),
    ({"standing": replace(STANDING, open_paths=("/s/key.pem",))}, FAILURE, "certificates",
     "/s/key.pem can be read", "chmod go="),
    ({"standing": replace(STANDING, joined=False, agent_pid=0)}, NOTE, "certificates",
     "has not joined", "edge-agent join"),
    ({"standing": replace(STANDING, joined=False, error="damaged")}, FAILURE, "certificates",
     "damaged", "edge-agent join"),
    ({"standing": replace(STANDING, joined=False, token=TOKEN)}, WARNING, "certificates",
     "edge-join.service tries", "journalctl -u edge-join"),
    ({"standing": replace(STANDING, joined=False, token=replace(TOKEN, expires_at=NOW - 1))},
     FAILURE, "certificates", "expired at", "see that the clock is right"),
    ({"standing": replace(STANDING, joined=False, token=replace(TOKEN, error="cut off"))},
     FAILURE, "certificates", "join-token: cut off", "edgectl token create"),
    ({"standing": replace(STANDING, token=TOKEN)}, WARNING, "certificates", "there is a token in",
     "rm /etc/polder/join-token"),
    ({"standing": replace(STANDING, not_after=NOW - 5)}, FAILURE, "certificates", "ran out",
     "--force"),
    ({"standing": replace(STANDING, not_before=NOW - 6 * 86_400, not_after=NOW + 86_400)}, WARNING,
     "certificates", "was not renewed", "by itself"),
    ({"standing": replace(STANDING, forbidden_state_dir="/srv/p")}, FAILURE, "state-dir",
     "may not write", "mount the disk at /var/lib/polder-agent"),
    ({"standing": replace(STANDING, machine_id="")}, WARNING, "machine-id", "copy of this disk",
     "systemd-machine-id-setup"),
    ({"standing": replace(STANDING, agent_pid=0)}, NOTE, "agent", "does not run", "systemctl"),
    ({"standing": replace(STANDING, switch_answers=False)}, WARNING, "switch", "does not answer",
     "edge-switch"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "level", "check", "what", "fix"), TROUBLES, ids=[f"{t[2]}: {t[3]}" for t in TROUBLES]
)
def test_one_trouble_is_one_finding_with_its_fix(
    change: dict[str, Any], level: str, check: str, what: str, fix: str
) -> None:
    (found,) = sick(change)
    assert (found.level, found.check) == (level, check)
    assert what in found.what and fix in found.fix
    assert exit_code([found]) == EXIT_CODES[level]


def test_upgrades_of_the_fleet_need_somebody_who_carries_them_out() -> None:
    def found(**facts: Any) -> list[tuple[str, str]]:
        standing = replace(WELL.standing, **facts)
        findings = command.diagnose(replace(WELL, standing=standing))
        return [(f.level, f.what) for f in findings if f.check == "upgrades"]

    assert found() == [], "a box that is no package is upgraded by hand"
    assert [level for level, _ in found(upgrade_watched=True)] == [OK]
    ((level, what),) = found(upgrade_watched=False)
    assert level == WARNING and "edge-upgrade.path" in what
    failed = found(upgrade_watched=True, upgrade_trouble="0.2.0-1: RolledBack: NotWell: x")
    assert failed[1] == (NOTE, "the last upgrade failed: 0.2.0-1: RolledBack: NotWell: x")


def test_what_is_well_is_said() -> None:
    seen = replace(WELL, devices=Devices((GPU, replace(GPU, id="nvidia.com/gpu=1"))))
    findings = command.diagnose(replace(seen, profile=PI, temperature_celsius=48.2))
    assert Finding("devices", OK, "2 polder.eu/gpu") in findings
    assert Finding("temperature", OK, "48 C at the hottest sensor") in findings
    # The limit of a telco server is that of the air it takes in, which no chip's sensor measures.
    hot = replace(WELL, profile=PROFILES["dell-xr8000"], temperature_celsius=70.0)
    assert "temperature" not in [f.check for f in command.diagnose(hot) if f.level != OK]


def test_what_the_box_does_not_say_is_no_trouble() -> None:
    quiet = {"kernel": replace(WELL.kernel, modules=None), "reaches": (), "drives": ()}
    assert sick({**quiet, "clock": Clock(NOW, synchronised=None)}) == []


# --- the firewall -----------------------------------------------------------------------------


def test_a_closed_firewall_is_told_of_for_peers_and_for_operators() -> None:
    peers, operators = sick({"firewall": CLOSED})
    assert (peers.level, peers.check) == (operators.level, operators.check) == (WARNING, "firewall")
    assert "inet filter input" in peers.what and "dport 7445 accept" in peers.fix
    assert "operators at the site" in operators.what and "dport 7446 accept" in operators.fix


# --- gathering --------------------------------------------------------------------------------


def test_facts_are_read_from_the_boxs_files(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/sys/kernel/osrelease": "6.1.0\n",
            "proc/filesystems": "nodev\tsysfs\n\text4\nnodev\toverlay\n",
            "proc/modules": "nf_nat 1 0 - Live 0x0\n",
            "lib/modules/6.1.0/modules.builtin": "kernel/net/bridge/bridge.ko\n",
            "lib/modules/6.1.0/modules.dep": "kernel/drivers/net/veth.ko.xz: kernel/x.ko\n",
            "proc/self/status": "Seccomp:\t0\n",
            "proc/self/ns/net": "",
            "proc/sys/net/ipv4/ip_forward": "0\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu memory pids\n",
            "sys/fs/ext4/sda1/errors_count": "2\n",
            "proc/net/route": "Iface\n"
            "wwan0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
            "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n",
            "sys/class/net/wwan0/mtu": "1430\n",
            "sys/class/net/eth0/mtu": "1500\n",
            "proc/net/tcp": "sl\n 0: 00000000:1D15 00000000:0000 0A 0\n 1: 0:0016 0:0000 01 0\n",
            "etc/cni/net.d/10-a.conflist": json.dumps(
                {
                    "name": "a",
                    "plugins": [{"type": "bridge", "mtu": 1400, "ipam": {"type": "dhcp"}}],
                }
            ),
            "etc/cni/net.d/20-b.conf": "{",
            "usr/lib/cni/bridge": "",
        },
    )
    box = Box(root=tmp_path)
    kernel = gather.kernel(box)
    assert kernel.modules == {"bridge", "veth", "nf_nat"} and "overlay" in kernel.filesystems
    assert kernel.seccomp and not kernel.forwarding and kernel.namespaces == {"net"}
    assert gather.cgroups(box) == Cgroups(2, frozenset({"cpu", "memory", "pids"}))
    assert gather_network.links(box) == (Link("eth0", 1500), Link("wwan0", 1430, is_uplink=True))
    assert gather_network.listening(box) == {7445}
    cni = gather_network.cni(box)
    assert cni.networks[0].plugins == ("bridge", "dhcp") and cni.networks[0].mtu == 1400
    assert cni.networks[1].error and cni.plugins == {"bridge"} and cni.iptables is False
    put(tmp_path, {"usr/sbin/iptables": ""})
    assert gather_network.cni(box).iptables


@pytest.mark.parametrize(
    ("plugin", "calls"),
    [
        ({"type": "bridge", "ipMasq": True}, True),
        ({"type": "bridge"}, False),
        ({"type": "portmap"}, True),
        ({"type": "ptp"}, False),
    ],
)
def test_which_networks_call_iptables(tmp_path: Path, plugin: dict[str, Any], calls: bool) -> None:
    put(tmp_path, {"etc/cni/net.d/1.conf": json.dumps({"name": "a", **plugin})})
    assert gather_network.cni(Box(root=tmp_path)).networks[0].wants_iptables is calls


def test_a_clock_without_its_battery_is_none(tmp_path: Path) -> None:
    box = Box(root=tmp_path)
    assert not gather.has_rtc(box)
    put(tmp_path, {"sys/class/rtc/rtc0/since_epoch": "7\n"})
    assert gather.has_rtc(box)
    put(tmp_path, {"sys/class/rtc/rtc0/battery_voltage": "3018000\n"})
    assert gather.has_rtc(box)
    put(tmp_path, {"sys/class/rtc/rtc0/battery_voltage": "4012\n"})
    assert not gather.has_rtc(box), "a Raspberry Pi 5 without the battery that is sold apart"


def test_where_the_units_of_the_package_may_not_write(tmp_path: Path) -> None:
    box, elsewhere = Box(root=tmp_path), Path("/srv/polder")
    assert gather.forbidden(elsewhere, box) == "", "no package: whoever starts it chose the place"
    put(tmp_path, {"usr/lib/systemd/system/edge-switch.service": "[Service]\n"})
    assert gather.forbidden(elsewhere, box) == "/srv/polder"
    assert gather.forbidden(STATE_DIR, box) == ""
    put(tmp_path, {"etc/systemd/system/edge-switch.service.d/own.conf": "[Service]\n"})
    assert gather.forbidden(elsewhere, box) == ""


def test_the_token_that_waits(tmp_path: Path) -> None:
    file = tmp_path / gather.JOIN_TOKEN
    assert gather.waiting_token(file) is None
    put(tmp_path, {gather.JOIN_TOKEN: f"{JoinToken('s', 'ams-1', 'n1', ('a:1',), b'ca', 7000)}\n"})
    assert gather.waiting_token(file) == WaitingToken(str(file), 7.0)
    put(tmp_path, {gather.JOIN_TOKEN: "polder1.cut"})
    found = gather.waiting_token(file)
    assert found is not None and "damaged" in found.error


def test_cgroups_of_version_1(tmp_path: Path) -> None:
    text = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t1\t1\nmemory\t2\t1\t0\n"
    put(tmp_path, {"proc/cgroups": text, "sys/fs/cgroup/cpu/tasks": ""})
    assert gather.cgroups(Box(root=tmp_path)) == Cgroups(1, frozenset({"cpu"}))


@pytest.mark.parametrize(
    ("said", "percent"),
    [("0x01 0x02", 20), ("0x0b 0x01", 100), ("", -1), ("0x00 0x00", -1), ("0xff 0x03", 30)],
)
def test_flash_says_how_worn_it_is(said: str, percent: int) -> None:
    assert gather.emmc_worn(said) == percent


@pytest.mark.parametrize(
    ("said", "drive"),
    [
        ('{"smart_status": {"passed": false}}', Drive("d", -1, healthy=False)),
        ('{"smart_status": {"passed": true}, "nvme_smart_health_information_log": '
         '{"percentage_used": 7}}', Drive("d", 7, healthy=True)),
        ('{"json_format_version": [1, 0]}', None),
        ("not JSON", None),
        ("[]", None),
    ],
)  # fmt: skip
def test_what_smartctl_says(said: str, drive: Drive | None) -> None:
    assert gather.from_smart("d", said) == drive


def test_somebody_who_does_not_answer_is_told_of(tmp_path: Path) -> None:
    assert gather_network.reach("127.0.0.1:1").error
    assert gather_network.reach("nonsense").error
    with pytest.raises(OSError):
        switch_ask.deadlines(tmp_path)
    assert switch_ask.wait_until_idle(tmp_path, 0.0)


def test_the_switch_is_stopped_for_good_only_when_no_deadline_lies_ahead(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as switch:
        switch.bind(str(tmp_path / "site" / "switch.sock"))

        def answer(*texts: str) -> None:
            for text in texts:
                _, sender = switch.recvfrom(100)
                switch.sendto(f"1 {text}".encode(), sender)

        ahead = int((time.clock_gettime(time.CLOCK_BOOTTIME) + 60) * 1e9)
        asked = threading.Thread(target=answer, args=(f"ok 7 1 a=5 b={ahead}", "ok 7 1 a=5", "no"))
        asked.start()
        assert not switch_ask.wait_until_idle(tmp_path, 0.0)
        assert switch_ask.wait_until_idle(tmp_path, 0.0)
        with pytest.raises(OSError, match="said"):
            switch_ask.deadlines(tmp_path)
        asked.join()


def test_the_report_shows_each_fix_below_its_finding() -> None:
    shown = command.text("A box", sick({"random_ready": False}))
    assert shown.splitlines()[1].startswith("failure  entropy")
    assert "fix: wait a minute" in shown.splitlines()[2]
