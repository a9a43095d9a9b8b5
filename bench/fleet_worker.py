"""A process full of agents: `python -m bench.fleet_worker SETTINGS`, started by `fleet_crew.py`.

It reads one JSON command per line on stdin and answers each with one JSON line on stdout:

    {"do": "join", "tokens": FILE}        -> {joined, failed, errors}     FILE: NAME TOKEN per line
    {"do": "start", "spread_s": 0}        -> {started}
    {"do": "look"}                        -> {connected, members, assigned, running, cpu_s}
    {"do": "generations"}                 -> {generations: {node: generation}}
    {"do": "turns"}         since the last -> {turns: [[at, node, connected, member]]}
    {"do": "probe", "seconds", "per_s"}   -> {round_trips_s, lags_s, unanswered}
    {"do": "cut", "count", "port"}        -> {cut}         connections to that port
    {"do": "beaten"}                      -> {}            when each agent's heartbeat is just out
    {"do": "stop"}                        -> {}

Times are seconds of CLOCK_MONOTONIC, which all processes share.
"""

import asyncio
import gc
import json
import logging
import os
import random
import resource
import socket
import stat
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop

from agent.identity_store import IdentityFailure
from agent.join import JoinFailed
from agent.session_stream import SessionEnded
from bench.fleet_agent import FleetAgent, SharedBox, Turn

JOINS_AT_ONCE = 16
ERRORS_SHOWN = 5
LAG_EVERY_S = 0.05
TURNS_MAX = 1_000_000
BEAT_WAIT_S = 70.0

Answer = dict[str, Any]


class Worker:
    """`settings`: folder, names."""

    def __init__(self, settings: dict[str, Any]) -> None:
        folder = Path(settings["folder"])
        shared = self._shared = SharedBox(folder)
        self._agents = {
            name: FleetAgent(name, folder, shared, self._on_turn) for name in settings["names"]
        }
        self._turns: list[tuple[float, str, bool, str]] = []
        self._started: list[FleetAgent] = []
        self._commands: dict[str, Callable[[dict[str, Any]], Awaitable[Answer]]] = {
            "join": self._join,
            "start": self._start,
            "look": self._look,
            "generations": self._generations,
            "turns": self._take_turns,
            "probe": self._probe,
            "cut": self._cut,
            "beaten": self._beaten,
        }

    def _on_turn(self, node: str, turn: Turn) -> None:
        if len(self._turns) < TURNS_MAX:
            self._turns.append((turn.at, node, turn.connected, turn.member))

    async def run(self) -> None:
        """Until `stop`, or until nobody holds stdin any more."""
        while line := await asyncio.to_thread(sys.stdin.readline):
            request = json.loads(line)
            if request["do"] == "stop":
                _say({})
                return
            try:
                answer = await self._commands[request["do"]](request)
            except Exception as error:  # the crew decides what a failure means
                logging.getLogger(__name__).exception("command failed")
                answer = {"error": f"{type(error).__name__}: {error}"}
            _say(answer)

    async def _join(self, request: dict[str, Any]) -> Answer:
        given = [line.split() for line in Path(request["tokens"]).read_text().splitlines()]
        waiting = iter(given)
        errors: list[str] = []
        joined = 0

        async def joiner() -> None:
            nonlocal joined
            for name, token in waiting:
                try:
                    await self._agents[name].join(token)
                    joined += 1
                except (JoinFailed, IdentityFailure) as error:
                    errors.append(f"{name}: {error}")

        await asyncio.gather(*(joiner() for _ in range(JOINS_AT_ONCE)))
        return {"joined": joined, "failed": len(errors), "errors": errors[:ERRORS_SHOWN]}

    async def _start(self, request: dict[str, Any]) -> Answer:
        spread_s = float(request.get("spread_s", 0))
        for agent in self._agents.values():
            agent.start()
            self._started.append(agent)
            await asyncio.sleep(spread_s / len(self._agents))
        return {"started": len(self._started)}

    async def _look(self, _: dict[str, Any]) -> Answer:
        members = Counter(agent.member for agent in self._started if agent.connected)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "connected": members.total(),
            "members": dict(members),
            "assigned": sum(agent.assignments for agent in self._started),
            "running": sum(agent.supervisor.counts()[0] for agent in self._started),
            "cpu_s": usage.ru_utime + usage.ru_stime,
        }

    async def _generations(self, _: dict[str, Any]) -> Answer:
        return {"generations": {agent.name: agent.keeper.generation for agent in self._started}}

    async def _take_turns(self, _: dict[str, Any]) -> Answer:
        turns, self._turns = self._turns, []
        return {"turns": turns}

    async def _probe(self, request: dict[str, Any]) -> Answer:
        """Round trips over sessions drawn at random, and how late this process itself is."""
        ends = time.monotonic() + float(request["seconds"])
        pause = 1 / float(request["per_s"])
        round_trips: list[float] = []
        unanswered = 0

        async def one(agent: FleetAgent) -> None:
            nonlocal unanswered
            try:
                round_trips.append(await agent.round_trip_s())
            except (SessionEnded, TimeoutError):
                unanswered += 1

        lags = asyncio.create_task(_lags(ends))
        asked = []
        while time.monotonic() < ends:
            asked.append(asyncio.create_task(one(random.choice(self._started))))
            await asyncio.sleep(random.random() * 2 * pause)
        await asyncio.gather(*asked)
        return {"round_trips_s": round_trips, "lags_s": await lags, "unanswered": unanswered}

    async def _cut(self, request: dict[str, Any]) -> Answer:
        """Connections drawn at random break, under the agents' feet."""
        found = _connections(int(request["port"]))
        drawn = random.sample(found, min(int(request["count"]), len(found)))
        for descriptor in drawn:
            with socket.socket(fileno=os.dup(descriptor)) as connection, suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        return {"cut": len(drawn)}

    async def _beaten(self, _: dict[str, Any]) -> Answer:
        """The moment at which a death is noticed latest: all agents of a small process beat within
        a moment of each other, as they have connected."""
        last, ends = self._shared.beats, time.monotonic() + BEAT_WAIT_S
        while self._shared.beats < last + len(self._started):
            await asyncio.sleep(0.01)
            if time.monotonic() > ends:
                break
        return {}


def _connections(port: int) -> list[int]:
    """File descriptors of this process's connections to a port."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, not paths
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                internet = one.family in (socket.AF_INET, socket.AF_INET6)
                if internet and one.getpeername()[1] == port:
                    found.append(int(name))
    return found


async def _lags(ends: float) -> list[float]:
    """How much later than asked for this process wakes up."""
    found = []
    while (now := time.monotonic()) < ends:
        await asyncio.sleep(LAG_EVERY_S)
        found.append(max(0.0, time.monotonic() - now - LAG_EVERY_S))
    return found


def _say(answer: Answer) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> int:
    settings = json.loads(Path(sys.argv[1]).read_text())
    logging.basicConfig(level=settings.get("log_level", "ERROR"))
    # One agent's heap is walked in a moment; that of thousands stops them all for a second.
    gc.set_threshold(100_000, 50, 1_000)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(Worker(settings).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
