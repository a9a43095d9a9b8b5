"""How often somebody may try: so many times in a minute, by address or name.

`door.py` counts callers so, `journal.py` what is refused, `agent/site/deciding.py` words of peers.
No clock in here: `now` is seconds of one that never goes back.
"""

import socket
from collections import deque
from urllib.parse import unquote

WINDOW_S = 60.0
OF_NETWORK = 4  # times as often from one IPv6 network: a host has all addresses of it
ADDRESSES_MAX = 1_024


class Tries:
    """At most `limit` within a minute from one address. Bounded: of very many addresses the one
    that tried longest ago is forgotten."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._times: dict[str, deque[float]] = {}

    def wait_s(self, address: str, now: float) -> float:
        """For how long it must wait; 0: it may try."""
        waits = [0.0]
        for who, limit in self._counted(address):
            times = self._recent(who, now)
            if len(times) >= limit:
                waits.append(times[-limit] + WINDOW_S - now)
        return max(waits)

    def note(self, address: str, now: float) -> None:
        for who, _ in self._counted(address):
            times = self._recent(who, now)
            times.append(now)
            self._times.pop(who, None)
            self._times[who] = times  # the last one is the youngest
        while len(self._times) > ADDRESSES_MAX:
            self._times.pop(next(iter(self._times)))

    def forgive(self, address: str) -> None:
        """The last one was right after all."""
        for who, _ in self._counted(address):
            times = self._times.get(who)
            if times:
                times.pop()

    def _counted(self, address: str) -> list[tuple[str, int]]:
        """Where it counts, and how much is too much there."""
        network = network_of(address)
        alone = [(address, self._limit)]
        return [*alone, (network, OF_NETWORK * self._limit)] if network != address else alone

    def _recent(self, address: str, now: float) -> deque[float]:
        times = self._times.get(address, deque())
        while times and now - times[0] >= WINDOW_S:
            times.popleft()
        return times


def address_of(peer: str) -> str:
    """Of what gRPC calls a peer ("ipv4:10.0.0.7:5123"), without the port."""
    kind, _, rest = peer.partition(":")
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    packed = _packed(host) if kind == "ipv6" else None
    if packed is None:
        return host
    if packed.startswith(b"\0" * 10 + b"\xff\xff"):  # IPv4 in disguise
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def network_of(address: str) -> str:
    """The 64 bits that an IPv6 address has in common with all others of its host; anything else is
    its own network."""
    packed = _packed(address) if ":" in address else None
    return address if packed is None else packed[:8].hex()


def _packed(host: str) -> bytes | None:
    try:
        return socket.inet_pton(socket.AF_INET6, host)
    except OSError:
        return None
