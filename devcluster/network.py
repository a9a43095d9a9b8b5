"""The pod network of a private containerd: one bridge, one subnet, one CNI configuration."""

import ipaddress
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

# Rarely used at home, in offices or by Docker: 10.213.0.0/24 ... 10.213.255.0/24.
CANDIDATES = ipaddress.IPv4Network("10.213.0.0/16")


def conflist(name: str, bridge: str, subnet: str, ipam_directory: Path) -> dict[str, object]:
    """CNI configuration: bridge, host ports, and forward rules (Docker sets FORWARD to DROP)."""
    return {
        "cniVersion": "0.4.0",
        "name": name,
        "plugins": [
            {
                "type": "bridge",
                "bridge": bridge,
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(ipam_directory),
                    "ranges": [[{"subnet": subnet}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "firewall", "backend": "iptables"},
        ],
    }


def make_bridge(bridge: str, netns: str, subnet: str = "") -> str:
    """Make the bridge with its gateway address, or keep the one that is there; returns the subnet.

    Made before the first pod so that its route shows others that the subnet is taken.
    """
    run(["ip", "link", "set", "lo", "up"], netns)
    present = bridge_subnet(bridge, netns)
    if present:
        return present
    run(["ip", "link", "delete", bridge], netns, check=False)
    chosen = subnet or free_subnet(run(["ip", "-4", "route", "show", "table", "all"], netns))
    gateway = next(ipaddress.ip_network(chosen).hosts())
    run(["ip", "link", "add", bridge, "type", "bridge"], netns)
    prefix = chosen.partition("/")[2]
    run(["ip", "address", "add", f"{gateway}/{prefix}", "dev", bridge], netns)
    run(["ip", "link", "set", bridge, "up"], netns)
    return chosen


def bridge_subnet(bridge: str, netns: str) -> str:
    """The subnet on an existing bridge; empty if there is none."""
    shown = run(["ip", "-4", "-o", "address", "show", "dev", bridge], netns, check=False)
    match = re.search(r"inet (\S+)", shown)
    return str(ipaddress.ip_interface(match[1]).network) if match else ""


def free_subnet(routes: str, candidates: ipaddress.IPv4Network = CANDIDATES) -> str:
    """The first /24 that overlaps no route in `ip route show table all`. Raises OSError."""
    taken = list(_networks(routes))
    for subnet in candidates.subnets(new_prefix=24):
        if not any(subnet.overlaps(other) for other in taken):
            return str(subnet)
    raise OSError(f"no free /24 left in {candidates}")


def _networks(routes: str) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Destinations; the default route is none, since it overlaps everything."""
    kinds = {"local", "broadcast", "unicast", "blackhole", "unreachable", "prohibit", "multicast"}
    for line in routes.splitlines():
        words = [word for word in line.split() if word not in kinds]
        if not words or words[0] in ("default", "0.0.0.0/0"):
            continue
        try:
            yield ipaddress.ip_network(words[0], strict=False)
        except ValueError:
            continue


def remove(network: str, netns: str) -> None:
    """Delete the bridge and every rule that names the network. No error if there is nothing."""
    subnet = bridge_subnet(network, netns)
    run(["ip", "link", "delete", network], netns, check=False)
    for table in ("nat", "filter"):
        saved = run(["iptables-save", "-t", table], netns, check=False)
        for command in removal_commands(saved, network, subnet):
            run(["iptables", "-w", "-t", table, *command], netns, check=False)


def removal_commands(saved: str, network: str, subnet: str) -> list[list[str]]:
    """iptables arguments that delete what CNI left for this network in one saved table.

    Rules are ours when their comment names the network (bridge, portmap) or when they are about an
    address of the subnet (firewall). A chain that such a rule jumps to is one pod's: it goes too.
    """
    inside = ipaddress.ip_network(subnet) if subnet else None
    rules = [shlex.split(line) for line in saved.splitlines() if line.startswith("-A ")]
    chains: list[str] = []
    deletions: list[list[str]] = []
    for rule in rules:
        comment = _after(rule, "--comment")
        address = _after(rule, "-s") or _after(rule, "-d")
        mine = f'name: "{network}"' in comment or (
            inside is not None and address != "" and _within(address, inside)
        )
        if not mine or rule[1] in chains:
            continue
        deletions.append(["-D", *rule[1:]])
        jump = _after(rule, "-j")
        if re.fullmatch(r"CNI-(DN-)?[0-9a-f]{21,24}", jump) and jump not in chains:
            chains.append(jump)
    flushes = [[flag, chain] for chain in chains for flag in ("-F", "-X")]
    return deletions + flushes


def _after(rule: Sequence[str], option: str) -> str:
    return rule[rule.index(option) + 1] if option in rule else ""


def _within(address: str, subnet: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        network = ipaddress.ip_network(address, strict=False)
    except ValueError:
        return False
    return network.overlaps(subnet)


def run(command: list[str], netns: str, *, check: bool = True) -> str:
    """Run a network tool, inside the namespace if one is given. Raises OSError with its stderr."""
    if netns:
        command = ["nsenter", f"--net={netns}", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if check and done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
