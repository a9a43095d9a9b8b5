"""The processes that hold the agents of `bench fleet`, and how they are spoken to.

`bench/fleet.py` starts one crew. Each worker (`fleet_worker.py`) answers one command at a time; a
worker whose pipe closes ends by itself, so that nothing is left when the benchmark is killed.
"""

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.fleet_measure import Use, use_of

ANSWER_BYTES_MAX = 256 << 20
STOP_S = 20.0
_ENVIRONMENT = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"}


class WorkerFailed(Exception):
    """A process of agents ended, or could not do what it was asked."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A node's session opened or ended, at a moment of CLOCK_MONOTONIC (seconds)."""

    at: float
    node: str
    connected: bool
    member: str


class Worker:
    """One process. `start`, any number of `ask`, `stop`."""

    def __init__(self, number: int, folder: Path, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._number = number
        self._folder = folder
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        settings = self._folder / f"worker-{self._number}.json"
        settings.write_text(
            json.dumps({"folder": str(self._folder / "agents"), "names": self.names})
        )
        with (self._folder / f"worker-{self._number}.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bench.fleet_worker",
                str(settings),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=ANSWER_BYTES_MAX,
                env={**os.environ, **_ENVIRONMENT},
            )

    async def ask(self, do: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Raises WorkerFailed."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        async with self._turn:
            try:
                process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
                async with asyncio.timeout(timeout_s):
                    await process.stdin.drain()
                    line = await process.stdout.readline()
            except TimeoutError:
                raise WorkerFailed(f"{self}: {do}: no answer in {timeout_s:.0f} s") from None
            except ConnectionError as error:
                raise WorkerFailed(f"{self}: {do}: {error}") from error
        if not line:
            raise WorkerFailed(f"{self} ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(f"{self}: {do}: {answer['error']}")
        return answer

    def freeze(self) -> None:
        """Its agents say nothing any more, and their connections stay open: as a box that hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        self.thaw()
        process.kill()  # nothing of what it holds is worth a goodbye
        async with asyncio.timeout(STOP_S):
            await process.wait()

    def _last_words(self) -> str:
        log = self._folder / f"worker-{self._number}.log"
        return log.read_text(errors="replace")[-500:].strip() or "its log is empty"

    def __str__(self) -> str:
        return f"worker {self._number}"


class Crew:
    """All workers. `doomed` is a small one, for what is done to a few agents only."""

    def __init__(self, folder: Path, names: Sequence[str], doomed: int, per_worker: int) -> None:
        (folder / "agents").mkdir(parents=True, exist_ok=True)
        rest = names[doomed:]
        shares = [rest[at : at + per_worker] for at in range(0, len(rest), per_worker)]
        self._folder = folder
        self.workers = [
            Worker(number, folder, share) for number, share in enumerate([names[:doomed], *shares])
        ]
        self.doomed = self.workers[0]
        self.names = tuple(names)

    async def start(self) -> None:
        await asyncio.gather(*(worker.start() for worker in self.workers))

    async def join(self, tokens: dict[str, str], timeout_s: float) -> dict[str, Any]:
        """`tokens` by node's name. Sums of the workers' answers."""
        asked = []
        for number, worker in enumerate(self.workers):
            file = self._folder / f"tokens-{number}"
            lines = [f"{name} {tokens[name]}" for name in worker.names if name in tokens]
            file.write_text("\n".join(lines))
            asked.append(worker.ask("join", timeout_s, tokens=str(file)))
        answers = await asyncio.gather(*asked)
        return {
            "joined": sum(answer["joined"] for answer in answers),
            "failed": sum(answer["failed"] for answer in answers),
            "errors": [error for answer in answers for error in answer["errors"]],
        }

    async def ask(self, do: str, timeout_s: float = 60.0, **arguments: Any) -> list[dict[str, Any]]:
        """The same of every worker. Raises WorkerFailed."""
        asked = (worker.ask(do, timeout_s, **arguments) for worker in self.workers)
        return list(await asyncio.gather(*asked))

    async def look(self) -> dict[str, Any]:
        """connected, assigned, running, and the sessions by member."""
        answers = await self.ask("look")
        members: dict[str, int] = {}
        for answer in answers:
            for member, count in answer["members"].items():
                members[member] = members.get(member, 0) + count
        totals = {key: sum(a[key] for a in answers) for key in ("connected", "assigned", "running")}
        return {**totals, "members": members}

    async def turns(self) -> list[Turn]:
        """Since the last call, in order of time."""
        answers = await self.ask("turns")
        found = [Turn(*turn) for answer in answers for turn in answer["turns"]]
        return sorted(found, key=lambda turn: turn.at)

    async def generations(self) -> dict[str, int]:
        """Of the plan that each node uses."""
        answers = await self.ask("generations")
        return {node: g for answer in answers for node, g in answer["generations"].items()}

    async def cut(self, count: int, port: int) -> int:
        """So many connections to that port break, shared by the workers. Returns how many did."""
        shares = [count // len(self.workers)] * len(self.workers)
        for lucky in random.sample(range(len(shares)), count % len(shares)):
            shares[lucky] += 1
        answers = await asyncio.gather(
            *(
                worker.ask("cut", 60.0, count=share, port=port)
                for worker, share in zip(self.workers, shares, strict=True)
            )
        )
        return sum(answer["cut"] for answer in answers)

    def use(self) -> Use:
        """Of all workers together."""
        found = [use_of(worker.pid) for worker in self.workers]
        return Use(sum(u.cpu_s for u in found), sum(u.rss_mb for u in found))

    async def stop(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self.workers), return_exceptions=True)
