"""Looks at what has to do with others: CNI, links, ports, firewall, orchestrators."""

import contextlib
import json
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agent.doctor.facts import Cni, CniNetwork, Link, Reach
from agent.doctor.tools import run_tool
from agent.inventory import Box

DIAL_S = 3.0
ENDPOINTS_MAX = 16
IP_MTU, IPV6_MTU = 14, 24  # linux/in.h, linux/in6.h: of the way that the socket goes
LISTEN = "0A"
CNI_CONFIG = "etc/cni/net.d"
PROGRAMS = ("usr/sbin", "sbin", "usr/local/sbin", "usr/bin")
CALL_IPTABLES = ("portmap", "firewall")  # and bridge, when it masquerades
CNI_PLUGINS = ("opt/cni/bin", "usr/lib/cni")


def cni(box: Box) -> Cni:
    """The networks that are configured, and the plugins that are installed."""
    networks = []
    files = sorted((box.root / CNI_CONFIG).glob("*"))
    for file in files:
        if file.suffix in (".conflist", ".conf", ".json"):
            networks.append(cni_network(f"/{CNI_CONFIG}/{file.name}", box))
    plugins = {
        entry.name
        for folder in CNI_PLUGINS
        for entry in (box.root / folder).glob("*")
        if entry.is_file()
    }
    iptables = any((box.root / folder / "iptables").exists() for folder in PROGRAMS)
    return Cni(tuple(networks), frozenset(plugins), iptables)


def cni_network(file: str, box: Box) -> CniNetwork:
    """One file of /etc/cni/net.d: a list of plugins, or a single one."""
    try:
        config = json.loads(box.text(file.lstrip("/")))
        chain = config.get("plugins") or [config]
        types = tuple(str(plugin["type"]) for plugin in chain)
        types += tuple(
            str(plugin["ipam"]["type"])
            for plugin in chain
            if (plugin.get("ipam") or {}).get("type")
        )
        mtu = next((int(plugin["mtu"]) for plugin in chain if plugin.get("mtu")), 0)
        calls = any(plugin["type"] in CALL_IPTABLES or plugin.get("ipMasq") for plugin in chain)
        return CniNetwork(file, str(config["name"]), types, mtu, wants_iptables=calls)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return CniNetwork(
            file, "", error=f"not a CNI configuration ({type(error).__name__}: {error})"
        )


def links(box: Box) -> tuple[Link, ...]:
    """With their MTU, and whether a default route leads over them."""
    uplinks = set()
    for line in box.text("proc/net/route").splitlines()[1:]:
        words = line.split()
        if len(words) > 7 and words[1] == words[7] == "00000000":
            uplinks.add(words[0])
    for line in box.text("proc/net/ipv6_route").splitlines():
        words = line.split()
        if len(words) > 9 and set(words[0]) == {"0"} and words[1] == "00" and words[9] != "lo":
            uplinks.add(words[9])
    found = []
    for folder in sorted((box.root / "sys/class/net").glob("*")):
        mtu = box.text(f"sys/class/net/{folder.name}/mtu")
        if mtu.isdigit():
            found.append(Link(folder.name, int(mtu), folder.name in uplinks))
    return tuple(found)


def listening(box: Box) -> frozenset[int]:
    """TCP ports that something listens at, whichever the address."""
    ports = set()
    for file in ("proc/net/tcp", "proc/net/tcp6"):
        for line in box.text(file).splitlines()[1:]:
            words = line.split()
            if len(words) > 3 and words[3] == LISTEN:
                ports.add(int(words[1].rpartition(":")[2], 16))
    return frozenset(ports)


def firewall() -> tuple[Mapping[str, Any], ...] | None:
    """The rules as nft shows them; None without nft, without rights or without rules."""
    try:
        rules = json.loads(run_tool("nft", "--json", "list", "ruleset") or "{}")
        found = tuple(item for item in rules["nftables"] if "metainfo" not in item)
    except (ValueError, KeyError, TypeError):
        return None
    return found or None


def reaches(endpoints: Sequence[str]) -> tuple[Reach, ...]:
    """Whether a connection is made; all at the same time."""
    chosen = endpoints[:ENDPOINTS_MAX]
    if not chosen:
        return ()
    with ThreadPoolExecutor(len(chosen)) as pool:
        return tuple(pool.map(reach, chosen))


def reach(endpoint: str) -> Reach:
    """A TCP connection and nothing more: who answers there is the session's business."""
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), DIAL_S) as made:
            six = made.family == socket.AF_INET6
            mtu = 0
            with contextlib.suppress(OSError):
                mtu = made.getsockopt(
                    socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP, IPV6_MTU if six else IP_MTU
                )
            return Reach(endpoint, path_mtu=mtu)
    except TimeoutError:
        return Reach(endpoint, f"no answer within {DIAL_S:g} s")
    except (OSError, ValueError) as error:
        return Reach(endpoint, getattr(error, "strerror", "") or str(error))
