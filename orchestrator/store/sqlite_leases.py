"""Which leases live, by a monotonic clock.

The event loop renews, the writer thread expires: a lock keeps them apart. Renewing does not touch
the disk, so that a slow disk never makes a live holder lose its lease. Only the ttl is stored: a
deadline would need a clock that survives a reboot, and the wall clock can jump. Hence every lease
starts a full new ttl when the store is opened. A holder may thus be believed in for longer than its
ttl, never shorter.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from orchestrator.store.port import LeaseNotFound

Clock = Callable[[], float]

_NEVER = float("inf")


@dataclass(slots=True)
class _Lease:
    ttl_s: float
    deadline: float


class LeaseTable:
    """A lease is live until its deadline, then condemned until its keys are durably gone."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._live: dict[int, _Lease] = {}
        self._condemned: set[int] = set()
        self._earliest = _NEVER  # no live lease ends before this; renewals only make it early

    def replace(self, rows: Iterable[tuple[int, float]]) -> None:
        """Take over what the disk says; leases already known keep their deadline."""
        with self._lock:
            known, self._live = self._live, {}
            self._condemned &= (stored := dict(rows)).keys()
            for lease, ttl_s in stored.items():
                if lease not in self._condemned:
                    self._live[lease] = known.get(lease) or _Lease(ttl_s, self._clock() + ttl_s)
            self._earliest = min((x.deadline for x in self._live.values()), default=_NEVER)

    def add(self, lease: int, ttl_s: float) -> None:
        with self._lock:
            self._live[lease] = _Lease(ttl_s, self._clock() + ttl_s)
            self._earliest = min(self._earliest, self._live[lease].deadline)

    def renew(self, lease: int) -> float:
        """Seconds left after renewal. Raises LeaseNotFound."""
        with self._lock:
            now = self._clock()
            found = self._live.get(lease)
            if found is None or found.deadline <= now:
                raise not_found(lease)
            found.deadline = now + found.ttl_s
            return found.ttl_s

    def alive(self, lease: int) -> bool:
        with self._lock:
            found = self._live.get(lease)
            return found is not None and found.deadline > self._clock()

    def condemn(self, lease: int) -> None:
        """End it now; again is fine until its keys are gone. Raises LeaseNotFound."""
        with self._lock:
            if self._live.pop(lease, None) is None and lease not in self._condemned:
                raise not_found(lease)
            self._condemned.add(lease)

    def due(self) -> list[int]:
        """Condemn what has expired; all condemned leases, whose keys the caller now deletes."""
        with self._lock:
            now = self._clock()
            if now >= self._earliest:
                ended = [lease for lease, x in self._live.items() if x.deadline <= now]
                for lease in ended:
                    del self._live[lease]
                self._condemned.update(ended)
                self._earliest = min((x.deadline for x in self._live.values()), default=_NEVER)
            return sorted(self._condemned) if self._condemned else []

    def forget(self, leases: Iterable[int]) -> None:
        """Their keys are durably gone."""
        with self._lock:
            self._condemned.difference_update(leases)

    def next_due_s(self) -> float | None:
        """Seconds until `due` may have news; None when there is no lease at all."""
        with self._lock:
            if self._condemned:
                return 0.0
            return None if not self._live else max(0.0, self._earliest - self._clock())


def not_found(lease: int) -> LeaseNotFound:
    return LeaseNotFound(f"lease {lease} has expired or never was")
