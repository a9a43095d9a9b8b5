"""What a person sees of a site that is alone: a line each second, and what was counted at the end.

Beside it visitors ask every node for both pages, ten times a second, and a register takes what the
exclusive replica writes. All of that goes on whatever is cut: they stand outside.
"""

import threading
import time
from dataclasses import dataclass, field

from devcluster.register import Register
from devcluster.site import LocalSite
from devcluster.site_watch import answers
from polder.epochs import shown

PAGE, LEDGER = 18080, 18081
NAMES = {PAGE: "page", LEDGER: "ledger"}
VISIT_EVERY_S = 0.1
VISIT_S = 0.5


@dataclass(slots=True)
class Service:
    """A page, wherever it is. Times are monotonic seconds."""

    nodes: set[str] = field(default_factory=set)
    answered_at: float = 0.0
    longest_gap_s: float = 0.0


class View:
    """`with View(site, register) as view: view.show(20)`."""

    def __init__(self, site: LocalSite, register: Register) -> None:
        self._site = site
        self._register = register
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.services = {port: Service() for port in NAMES}
        ways = [(port, node) for port in NAMES for node in site.nodes]
        self._threads = [threading.Thread(target=self._visit, args=way) for way in ways]
        self.uplink = "up"
        self.off: set[str] = set()

    def __enter__(self) -> "View":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def show(self, seconds: float) -> None:
        """A line each second."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            print(self._line(), flush=True)
            time.sleep(1.0)

    def where(self, port: int) -> list[str]:
        with self._lock:
            return sorted(self.services[port].nodes)

    def _line(self) -> str:
        nodes = "   ".join(f"{node}: {self._of(node):<12}" for node in self._site.nodes)
        seen = self._register.of("ledger-0")
        epoch = f"{shown(seen[-1].epoch)} by {seen[-1].node}" if seen else "-"
        with self._lock:
            now = time.monotonic()
            dark = [
                f"no {NAMES[port]} for {now - one.answered_at:.1f} s"
                for port, one in self.services.items()
                if one.answered_at and not one.nodes
            ]
        overlaps = len(self._register.overlaps())
        return (
            f"{time.strftime('%H:%M:%S')}  uplink {self.uplink:<4} {nodes}"
            f" epoch {epoch:<18} overlaps {overlaps}  {', '.join(dark)}".rstrip()
        )

    def _of(self, node: str) -> str:
        if node in self.off:
            return "(off)"
        with self._lock:
            mine = [NAMES[port] for port, one in self.services.items() if node in one.nodes]
        return " ".join(mine) or "-"

    def _visit(self, port: int, node: str) -> None:
        service = self.services[port]
        while not self._over.wait(VISIT_EVERY_S):
            well = answers(self._site.address(node), port, VISIT_S)
            now = time.monotonic()
            with self._lock:
                if not well:
                    service.nodes.discard(node)
                    continue
                gap_s = now - service.answered_at if service.answered_at else 0.0
                service.longest_gap_s = max(service.longest_gap_s, gap_s)
                service.answered_at = now
                service.nodes.add(node)
