"""What this machine lacks for running containers, and which Debian package brings it.

The quickstart installs what `missing()` names; the tests give it as the reason for what they skip.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster import power
from devcluster.image import find_busybox

CNI_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
CNI_PLUGINS = ("bridge", "portmap", "host-local", "loopback", "firewall")

# program -> Debian package
PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "nsenter": "util-linux",
}

# Bits of CapEff, from linux/capability.h.
CAP_NET_ADMIN = 12
CAP_SYS_ADMIN = 21
CAP_SYS_RESOURCE = 24


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing that is not there. `package` is empty when no package can bring it (root)."""

    what: str
    package: str


def has_capability(bit: int, status: Path = Path("/proc/self/status")) -> bool:
    """Whether this process has the capability in its effective set."""
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> bit & 1)
    return False


def cni_directory() -> Path | None:
    """The folder that holds every CNI plugin that we chain, or None."""
    for folder in CNI_DIRECTORIES:
        if all((folder / plugin).is_file() for plugin in CNI_PLUGINS):
            return folder
    return None


def missing() -> list[Missing]:
    """Everything that stands in the way of a private containerd; empty when it can start."""
    found: list[Missing] = []
    if os.geteuid() != 0:
        found.append(Missing("root rights", ""))
    elif not (has_capability(CAP_SYS_ADMIN) and has_capability(CAP_NET_ADMIN)):
        found.append(Missing("the capabilities CAP_SYS_ADMIN and CAP_NET_ADMIN", ""))
    for program, package in PROGRAMS.items():
        if shutil.which(program, path=_search_path()) is None:
            found.append(Missing(program, package))
    if cni_directory() is None:
        found.append(Missing("CNI plugins", "containernetworking-plugins"))
    if find_busybox() is None:
        found.append(Missing("static busybox", "busybox-static"))
    return found


def _search_path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin"


def missing_netns() -> list[Missing]:
    """What stands in the way of making network namespaces."""
    rights_or_tools = {"root rights", "the capabilities CAP_SYS_ADMIN and CAP_NET_ADMIN"}
    found = [m for m in missing() if m.what in rights_or_tools or m.what in ("ip", "nsenter")]
    if shutil.which("nft", path=_search_path()) is None:
        found.append(Missing("nft", "nftables"))  # it cuts the lines between namespaces
    return found


def missing_firewall() -> list[Missing]:
    """What stands in the way of rules of nft and of iptables in a network namespace."""
    return [m for m in missing() if m.what == "iptables"] + missing_netns()


def missing_etcd() -> list[Missing]:
    """What stands in the way of an etcd of one's own, for the tests of the Store on it."""
    return [] if shutil.which("etcd") else [Missing("etcd", "etcd-server")]


def missing_registry() -> list[Missing]:
    """What stands in the way of a site's own image registry."""
    return (
        [] if shutil.which("docker-registry") else [Missing("docker-registry", "docker-registry")]
    )


def missing_faketime() -> list[Missing]:
    """What stands in the way of a box whose wall clock is wrong."""
    return [] if power.faketime() else [Missing("libfaketime", "libfaketime")]


def _built(program: str) -> Path | None:
    """On the path, or where tools/kube_tools.sh puts what it builds."""
    ours = Path(__file__).resolve().parents[1] / ".venv" / "kube"
    found = shutil.which(program, path=f"{_search_path()}:{ours}")
    return Path(found) if found else None


def helm() -> Path | None:
    """The program that renders and installs charts."""
    return _built("helm")


def kube_apiserver() -> Path | None:
    """The API server of Kubernetes."""
    return _built("kube-apiserver")


def missing_helm() -> list[Missing]:
    """What stands in the way of rendering the chart. Debian has no package of it."""
    return [] if helm() else [Missing("helm (tools/kube_tools.sh helm, with Go)", "")]


def missing_kubernetes() -> list[Missing]:
    """What stands in the way of an API server of one's own, with pods that really run."""
    found = missing_helm() + missing_etcd() + missing_netns()
    if kube_apiserver() is None:
        found.append(Missing("kube-apiserver (tools/kube_tools.sh kube-apiserver, with Go)", ""))
    return found


def missing_images() -> list[Missing]:
    """What stands in the way of building container images."""
    found = [m for m in missing() if "rights" in m.what or "CAP_" in m.what]
    for program in ("buildah", "mmdebstrap"):
        if shutil.which(program, path=_search_path()) is None:
            found.append(Missing(program, program))
    return found


def missing_dpkg() -> list[Missing]:
    """What stands in the way of installing the agent's package into a copy of this system."""
    found = [m for m in missing() if "rights" in m.what or "CAP_" in m.what]
    for program in ("dpkg-deb", "deb-systemd-helper", "unshare", "nsenter"):
        if shutil.which(program, path=_search_path()) is None:
            found.append(Missing(program, ""))
    if not Path("/usr/bin/python3.11").exists():
        found.append(Missing("Debian 12's Python 3.11", "python3"))
    return found


def missing_emulation() -> list[Missing]:
    """What stands in the way of a Debian of another architecture, under qemu-user."""
    found = missing_dpkg()
    if shutil.which("debootstrap", path=_search_path()) is None:
        found.append(Missing("debootstrap", "debootstrap"))
    if shutil.which("qemu-aarch64-static") is None:
        found.append(Missing("qemu-aarch64-static", "qemu-user-static"))
    if "binfmt_misc" not in Path("/proc/filesystems").read_text():
        found.append(Missing("binfmt_misc in the kernel", ""))
    return found


def missing_spin() -> list[Missing]:
    """What stands in the way of checking models: spin makes C of them, which is compiled."""
    found = [] if shutil.which("spin") else [Missing("spin", "spin")]
    if shutil.which("gcc") is None:
        found.append(Missing("gcc", "gcc"))
    if not Path("/usr/include/stdio.h").exists():
        found.append(Missing("C headers", "libc6-dev"))
    return found


def packages(lacking: Sequence[Missing]) -> list[str]:
    """The Debian packages to install, each once."""
    return sorted({m.package for m in lacking if m.package})


def reason(lacking: Sequence[Missing]) -> str:
    """One line for a skipped test or an error: what is missing and how to get it."""
    words = "needs " + ", ".join(m.what for m in lacking)
    names = packages(lacking)
    return f"{words} (apt-get install {' '.join(names)})" if names else words
