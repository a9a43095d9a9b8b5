"""How often somebody may try: so many times in a minute, by address. Used by `door.py`.

No clock in here: `now` is seconds of one that never goes back.
"""

import socket
from collections import deque
from urllib.parse import unquote

WINDOW_S = 60.0
ADDRESSES_MAX = 1_024


class Tries:
    """At most `limit` within a minute from one address. Bounded: of very many addresses the one
    that tried longest ago is forgotten."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._times: dict[str, deque[float]] = {}

    def wait_s(self, address: str, now: float) -> float:
        """For how long it must wait; 0: it may try."""
        times = self._recent(address, now)
        return times[0] + WINDOW_S - now if len(times) >= self._limit else 0.0

    def note(self, address: str, now: float) -> None:
        times = self._recent(address, now)
        times.append(now)
        self._times.pop(address, None)
        self._times[address] = times  # the last one is the youngest
        if len(self._times) > ADDRESSES_MAX:
            self._times.pop(next(iter(self._times)))

    def forgive(self, address: str) -> None:
        """The last one was right after all."""
        times = self._times.get(address)
        if times:
            times.pop()

    def _recent(self, address: str, now: float) -> deque[float]:
        times = self._times.get(address, deque())
        while times and now - times[0] >= WINDOW_S:
            times.popleft()
        return times


def address_of(peer: str) -> str:
    """Of what gRPC calls a peer ("ipv4:10.0.0.7:5123"), without the port. Of IPv6 the network: one
    host has all of its addresses."""
    kind, _, rest = peer.partition(":")
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    if kind != "ipv6":
        return host
    try:
        packed = socket.inet_pton(socket.AF_INET6, host)
    except OSError:
        return host
    if packed.startswith(b"\0" * 10 + b"\xff\xff"):  # IPv4 in disguise
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return packed[:8].hex()
