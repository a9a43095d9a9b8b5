"""Who holds a host port already: our other pods, or a process on the box.

Called before a sandbox starts. CNI's portmap plugin rewrites packets before they reach a socket and
checks nothing: a second pod would steal the first one's traffic, and a local daemon's port would be
shadowed without a word. Formats: proc_net_tcp.txt in the kernel's documentation.
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.runtime.port import PortMapping

_MAPPED_IPV4 = bytes(10) + b"\xff\xff"
_TCP_LISTEN = "0A"
_UDP_UNCONNECTED = "07"
_TABLES = (
    ("TCP", "tcp", _TCP_LISTEN),
    ("TCP", "tcp6", _TCP_LISTEN),
    ("UDP", "udp", _UDP_UNCONNECTED),
    ("UDP", "udp6", _UDP_UNCONNECTED),
)


@dataclass(frozen=True, slots=True)
class Listener:
    """One bound socket. `address` is empty when it listens on every address."""

    protocol: str
    address: str
    port: int


def listeners(proc_net: Path = Path("/proc/self/net")) -> list[Listener]:
    """Every listening TCP and unconnected UDP socket of this process's network namespace."""
    found: list[Listener] = []
    for protocol, table, state in _TABLES:
        try:
            text = (proc_net / table).read_text()
        except FileNotFoundError:  # IPv6 switched off
            continue
        found += parse_table(text, protocol, state)
    return found


def parse_table(text: str, protocol: str, state: str) -> list[Listener]:
    found: list[Listener] = []
    for line in text.splitlines()[1:]:
        columns = line.split()
        if len(columns) > 3 and columns[3] == state:
            address, _, port = columns[1].partition(":")
            found.append(Listener(protocol, _decode(address), int(port, 16)))
    return found


def _decode(text: str) -> str:
    """The kernel prints each 32-bit word in host order (little endian on all our boxes)."""
    words = bytes.fromhex(text)
    packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
    if not any(packed):
        return ""
    packed = packed.removeprefix(_MAPPED_IPV4)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def conflict(
    wanted: Iterable[PortMapping],
    held: Iterable[tuple[str, PortMapping]],
    bound: Iterable[Listener],
) -> str:
    """Why these ports cannot be had; empty when they can.

    held: (pod's name, port) of our other pods. A listener on a loopback address counts too: portmap
    also redirects what is sent to 127.0.0.1.
    """
    held, bound = list(held), list(bound)
    for port in wanted:
        if not port.host_port:
            continue
        label = f"host port {port.host_port}/{port.protocol}"
        for pod, other in held:
            if (other.protocol, other.host_port) == (port.protocol, port.host_port) and _overlap(
                port.host_ip, other.host_ip
            ):
                return f"{label} is taken by pod {pod}"
        for listener in bound:
            if (listener.protocol, listener.port) == (port.protocol, port.host_port) and _overlap(
                port.host_ip, listener.address
            ):
                where = listener.address or "every address"
                return f"{label} is taken by a process that listens on {where}"
    return ""


def _overlap(first: str, second: str) -> bool:
    anywhere = ("", "0.0.0.0", "::")  # noqa: S104  compared, not bound
    return first in anywhere or second in anywhere or first == second
