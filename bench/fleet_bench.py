"""What all phases of `bench fleet` share: the members, the agents, the operator, and the numbers.

`bench/fleet.py` makes one and hands it to the phases in `fleet_rise.py` and `fleet_fall.py`.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.fleet_crew import Crew
from bench.fleet_measure import Use, percentile_or_none
from bench.fleet_members import Members, Operator, Region
from bench.report import progress

POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. Durations in seconds unless the name says otherwise."""

    agents: int
    members: int
    store: str
    replicas: int
    steady_s: float
    soak_minutes: float
    per_worker: int
    doomed: int
    heartbeat_s: float
    folder: Path


@dataclass(slots=True)
class Bench:
    """`result` is what will be printed; `missed` what did not come about in its time."""

    options: Options
    members: Members
    crew: Crew
    result: dict[str, Any] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    rss_before_mb: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    _operators: dict[str, Operator] = field(default_factory=dict)

    def say(self, text: str) -> None:
        progress(f"[{time.monotonic() - self.began:6.1f} s] {text}")

    def miss(self, text: str) -> None:
        """Said at once, and in the result."""
        self.missed.append(text)
        self.say(f"MISSED: {text}")

    def operator(self, region: Region) -> Operator:
        """One connection to each member."""
        if region.name not in self._operators:
            self._operators[region.name] = Operator(self.members.context(), region)
        return self._operators[region.name]

    @property
    def leader(self) -> Operator:
        return self.operator(self.members.leader())

    async def until(
        self,
        reached: Callable[[dict[str, Any]], bool],
        timeout_s: float,
        what: str,
        every_s: float = POLL_S,
    ) -> dict[str, Any]:
        """Look at the agents until it is so, or the time is over; then `missed` says what was."""
        deadline, told = time.monotonic() + timeout_s, time.monotonic()
        while True:
            seen = await self.crew.look()
            if reached(seen):
                return seen
            now = time.monotonic()
            if now > deadline:
                self.miss(f"{what}: after {timeout_s:.0f} s {json.dumps(seen)}")
                return seen
            if now - told > 10:
                told = now
                self.say(f"{what}: {json.dumps(seen)}")
            await asyncio.sleep(every_s)

    async def close(self) -> None:
        for operator in self._operators.values():
            await operator.close()


@dataclass(slots=True)
class Window:
    """CPU and memory of every process between two moments: `with Window.open(bench)`, `close`."""

    bench: Bench
    started: float
    before: dict[str, Use]
    agents_before: Use
    etcd_before: dict[str, Use]

    @staticmethod
    def open(bench: Bench) -> "Window":
        living = bench.members.living
        return Window(
            bench,
            time.monotonic(),
            {region.name: region.use() for region in living},
            bench.crew.use(),
            {r.name: r.etcd_use() for r in living},
        )

    def close(self) -> dict[str, Any]:
        """cpu_cores and rss_mb by member, and those of the agents' side and of etcd in sum."""
        bench = self.bench
        took = time.monotonic() - self.started
        agents = bench.crew.use()
        members, etcd_cpu = {}, 0.0
        for region in bench.members.living:
            if region.name not in self.before:
                continue
            use = region.use()
            members[region.name] = {
                "cpu_cores": round((use.cpu_s - self.before[region.name].cpu_s) / took, 3),
                "rss_mb": round(use.rss_mb, 1),
                "files": region.files(),
            }
            etcd_cpu += region.etcd_use().cpu_s - self.etcd_before[region.name].cpu_s
        return {
            "seconds": round(took, 1),
            "orchestrators": members,
            "agents_cpu_cores": round((agents.cpu_s - self.agents_before.cpu_s) / took, 3),
            "agents_rss_mb": round(agents.rss_mb, 1),
            "etcd_cpu_cores": round(etcd_cpu / took, 3),
        }


def in_ms(values: list[float], share: float) -> float | None:
    """A percentile of seconds, in milliseconds."""
    found = percentile_or_none(values, share)
    return round(found * 1000, 1) if found is not None else None
