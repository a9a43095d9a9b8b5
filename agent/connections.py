"""How many connections others hold to a port of this node, in all and from one address.

`agent/site/server.py` and `agent/local/server.py` have one `Crowd` each.

Whoever reaches the box can connect, and is nobody until later. gRPC bounds how many there are
in all (`at_most`), so that they do not eat the box's memory; but one neighbour could have all of
them, and keep peers and operators out. It knows no bound for an address, nor shows its sockets.
So they are found in /proc, and what is too much of one address is shut down from here, which looks
to gRPC like a caller that went away. Those that were there first stay: peers hold theirs for long.
"""

import contextlib
import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from agent import steady_clock
from agent.local.tries import network_of

log = logging.getLogger(__name__)

EACH = 16  # of one address
LOOK_EVERY_S = 2.0
FEW = 64  # open files of the process: with so few there is no crowd
HANDSHAKE_MS = 5_000
_FILES = Path("/proc/self/fd")


def at_most(connections: int) -> list[tuple[str, int]]:
    """For a server: so many connections, and no time for those that say nothing."""
    return [
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
    ]


class Crowd:
    """Those who are connected to TCP port `port`. `of_network`: from one IPv6 network, of which a
    host has all addresses, and in which a whole site may be."""

    def __init__(self, port: int, of_network: int, each: int = EACH) -> None:
        self._port = port
        self._of_network = of_network
        self._each = each
        self._seen: dict[int, int] = {}  # by inode: the how-manieth it was
        self._count = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await steady_clock.sleep(LOOK_EVERY_S)
            try:
                if len(os.listdir(_FILES)) > FEW:  # noqa: PTH208 - each two seconds
                    self.thin_out()
            except OSError as error:  # no file is left, perhaps because of them
                log.warning("connections cannot be counted", extra={"error": str(error)})

    def thin_out(self) -> int:
        """Shut down what is too much, and say how many. Raises OSError."""
        there: dict[int, int] = {}
        held: list[tuple[int, str, socket.socket]] = []
        with contextlib.ExitStack() as stack:
            for inode, found in self._sockets():
                stack.enter_context(found)
                if inode not in self._seen:
                    self._count += 1
                there[inode] = self._seen.get(inode, self._count)
                host = _host(found)
                if host:
                    held.append((there[inode], host, found))
            self._seen = there
            extra = self._extra(sorted(held, key=lambda one: one[0]))
            for _, one in extra:
                with contextlib.suppress(OSError):  # it has gone by itself
                    one.shutdown(socket.SHUT_RDWR)
        if extra:
            facts = {"port": self._port, "from": extra[0][0], "count": len(extra)}
            log.warning("too many connections from one address", extra=facts)
        return len(extra)

    def _extra(self, held: list[tuple[int, str, socket.socket]]) -> list[tuple[str, socket.socket]]:
        """Whose it is, and what; the latest of each."""
        sizes: Counter[str] = Counter()
        found = []
        for _, host, one in held:
            network = network_of(host)
            limits = {network: self._of_network} | {host: self._each}
            if any(sizes[who] >= limit for who, limit in limits.items()):
                found.append((host, one))
                continue
            sizes.update(limits.keys())
        return found

    def _sockets(self) -> Iterator[tuple[int, socket.socket]]:
        """Of our port, each as a duplicate, with its inode."""
        for file in _FILES.iterdir():
            try:
                if not str(file.readlink()).startswith("socket:"):
                    continue
                found = socket.socket(fileno=os.dup(int(file.name)))
            except OSError:  # closed meanwhile
                continue
            if found.family in (socket.AF_INET, socket.AF_INET6) and _port(found) == self._port:
                yield os.fstat(found.fileno()).st_ino, found
            else:
                found.close()


def _port(found: socket.socket) -> int:
    try:
        return int(found.getsockname()[1])
    except OSError:
        return 0


def _host(found: socket.socket) -> str:
    """Of the other side; empty: it listens, or is gone."""
    try:
        host = str(found.getpeername()[0])
    except OSError:
        return ""
    return host.partition("%")[0].removeprefix("::ffff:")
