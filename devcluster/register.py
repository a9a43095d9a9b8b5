"""The observer of exclusive replicas: a register that refuses epochs lower than it has seen.

Used by the end-to-end tests, `bench takeover` and examples/isolation. Each container of the image
`writer` (devcluster/image.py) writes its epoch here ten times a second, with the time at which it
did, by the clock of the one machine that all of them share. So two that ran at once are found even
if their writes came late or were refused.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True, slots=True)
class Write:
    """`stay` differs for every start of a container; `at`: seconds since the machine booted."""

    replica: str
    stay: str
    node: str
    epoch: int
    at: float


@dataclass(slots=True)
class Tenure:
    """What one container was seen to do, from its first to its last write. `epoch`: the last."""

    replica: str
    stay: str
    node: str
    epoch: int
    first_at: float
    last_at: float
    accepted: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two containers of one replica that both ran for a while."""

    replica: str
    nodes: tuple[str, str]
    epochs: tuple[int, int]
    seconds: float


class Tenures:
    """What was written, by container. Bounded by how many containers there were."""

    def __init__(self) -> None:
        self._by_stay: dict[tuple[str, str], Tenure] = {}
        self._highest: dict[str, int] = {}

    def write(self, write: Write) -> bool:
        """False: refused, a higher epoch has been seen."""
        tenure = self._by_stay.setdefault(
            (write.replica, write.stay),
            Tenure(write.replica, write.stay, write.node, write.epoch, write.at, write.at),
        )
        tenure.first_at = min(tenure.first_at, write.at)
        tenure.last_at = max(tenure.last_at, write.at)
        tenure.epoch = max(tenure.epoch, write.epoch)
        accepted = write.epoch >= self._highest.get(write.replica, 0)
        if accepted:
            self._highest[write.replica] = write.epoch
            tenure.accepted += 1
        else:
            tenure.refused += 1
        return accepted

    def of(self, replica: str) -> list[Tenure]:
        """In the order in which they began."""
        mine = [tenure for tenure in self._by_stay.values() if tenure.replica == replica]
        return sorted(mine, key=lambda tenure: tenure.first_at)

    def overlaps(self) -> list[Overlap]:
        return list(self._overlaps())

    def _overlaps(self) -> Iterator[Overlap]:
        for one, other in combinations(self._by_stay.values(), 2):
            first, second = sorted((one, other), key=lambda tenure: tenure.first_at)
            apart = second.first_at >= first.last_at and second.first_at > first.first_at
            if one.replica == other.replica and not apart:
                both_s = min(first.last_at, second.last_at) - second.first_at
                nodes, epochs = (first.node, second.node), (first.epoch, second.epoch)
                yield Overlap(one.replica, nodes, epochs, round(both_s, 2))

    def refused(self, replica: str) -> int:
        return sum(tenure.refused for tenure in self.of(replica))


class Register:
    """`with Register(address) as register:` serves until it ends. Port 0: a free one."""

    def __init__(self, address: str, port: int = 0) -> None:
        self._tenures = Tenures()
        self._lock = threading.Lock()
        self._server = _Server((address, port), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        """What containers get as REGISTER."""
        address, port = self._server.server_address[:2]
        return f"{address!s}:{port}"

    def __enter__(self) -> "Register":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def write(self, write: Write) -> bool:
        with self._lock:
            return self._tenures.write(write)

    def of(self, replica: str) -> list[Tenure]:
        """Its containers so far, in the order in which they began."""
        with self._lock:
            return self._tenures.of(replica)

    def overlaps(self) -> list[Overlap]:
        with self._lock:
            return self._tenures.overlaps()

    def refused(self, replica: str) -> int:
        """Writes with an epoch that was lower than one seen before."""
        with self._lock:
            return self._tenures.refused(replica)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def parse(path: str) -> Write:
    """The write in a request's path. Raises ValueError."""
    parts = urlsplit(path)
    found = {name: values[0] for name, values in parse_qs(parts.query).items()}
    try:
        replica, stay, node = (found[name] for name in ("replica", "stay", "node"))
        return Write(replica, stay, node, int(found["epoch"]), float(found["at"]))
    except KeyError as error:
        raise ValueError(f"{error} is missing") from error


def _handler(register: Register) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0

        def do_GET(self) -> None:
            try:
                accepted = register.write(parse(self.path))
            except ValueError as error:
                self.send_error(400, str(error))
                return
            self.send_response(200 if accepted else 409)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Ten lines a second tell nobody anything."""

    return Handler
