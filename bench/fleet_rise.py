"""The first half of `bench fleet`: all join, connect, beat quietly, and get their replicas."""

import asyncio
import json
import time
from typing import Any

from bench import fleet_world
from bench.fleet_bench import Bench, Window, in_ms
from bench.fleet_measure import between, peak_per_s, sockets_of
from bench.fleet_members import PLACES, PORT
from devcluster.client import apply_request
from polder.v1 import operator_pb2

JOIN_LIMIT_S = 900.0
CONNECT_LIMIT_S = 300.0
APPLY_LIMIT_S = 300.0
SETTLE_S = 10.0
TOKENS_AT_ONCE = 32
PROBES_PER_S = 20.0


async def join_all(bench: Bench) -> None:
    """Sites, tokens, and a Join for every node. The memory before it is what is compared with."""
    places = PLACES[: bench.options.members]
    where = fleet_world.sites(places, bench.options.agents)
    bench.rss_before_mb = {r.name: r.use().rss_mb for r in bench.members.regions}
    stub = bench.leader.stub
    for at in range(0, len(where), 500):
        await stub.Apply(apply_request(*fleet_world.manifests(where[at : at + 500])), timeout=60)
    bench.say(f"{len(where)} sites; making {bench.options.agents} join tokens")
    started = time.monotonic()
    tokens: dict[str, str] = {}
    waiting = iter(enumerate(bench.crew.names))

    async def maker() -> None:
        for number, node in waiting:
            site = where[number % len(where)][0]
            wanted = operator_pb2.CreateJoinTokenRequest(site=site, node=node)
            tokens[node] = (await stub.CreateJoinToken(wanted, timeout=30)).token

    await asyncio.gather(*(maker() for _ in range(TOKENS_AT_ONCE)))
    bench.result["tokens_s"] = round(time.monotonic() - started, 2)
    bench.say("joining")
    started = time.monotonic()
    joined = await bench.crew.join(tokens, JOIN_LIMIT_S)
    bench.result["join_all_s"] = round(time.monotonic() - started, 2)
    bench.result["joined"] = joined["joined"]
    if joined["failed"]:
        bench.miss(f"{joined['failed']} nodes did not join: {joined['errors'][:3]}")


async def connect_all(bench: Bench) -> None:
    """Everybody dials at once."""
    bench.say("connecting")
    started = time.monotonic()
    wanted = bench.result["joined"]
    await bench.crew.ask("start", CONNECT_LIMIT_S)
    await bench.until(lambda seen: seen["connected"] >= wanted, CONNECT_LIMIT_S, "connecting")
    opened = [turn.at for turn in await bench.crew.turns() if turn.connected]
    seen = await bench.crew.look()
    bench.result |= {
        "connected": seen["connected"],
        "connect_all_s": round(max(opened) - started, 2) if opened else None,
        "connect_peak_per_s": peak_per_s(opened),
        "sessions": seen["members"],
    }


async def steady_idle(bench: Bench) -> None:
    """Before there is anything to run: the figures that the targets are about."""
    found = await steady(bench, "steady")
    bench.result |= {key: found.get(key) for key in _HEADLINES}


_HEADLINES = (
    "cpu_cores",
    "kb_per_agent",
    "heartbeat_p99_ms",
    "idle_kbit_s_per_agent",
    "agents_cpu_cores",
    "etcd_cpu_cores",
)


async def steady(bench: Bench, name: str) -> dict[str, Any]:
    """Nothing happens but heartbeats. The figures are also kept under `name`."""
    await asyncio.sleep(SETTLE_S if bench.options.steady_s >= SETTLE_S else 2.0)
    bench.say(f"{name}: measuring for {bench.options.steady_s:.0f} s")
    living = bench.members.living
    sockets = {r.name: sockets_of(r.address, PORT) for r in living}
    window = Window.open(bench)
    workers = [worker for worker in bench.crew.workers if worker.names]
    seconds = bench.options.steady_s
    await asyncio.sleep(seconds)
    found = window.close()
    moved = [between(sockets[r.name], sockets_of(r.address, PORT)) for r in living]
    took, count = found["seconds"], sum(t.connections for t in moved)
    wire = sum(t.wire_bytes for t in moved)
    payload = sum(t.payload_bytes for t in moved)
    if count:
        found |= {
            "idle_kbit_s_per_agent": round(wire * 8 / 1000 / took / count, 3),
            "idle_payload_kbit_s_per_agent": round(payload * 8 / 1000 / took / count, 3),
            "idle_packets_per_agent_minute": round(
                sum(t.packets for t in moved) / count / took * 60, 1
            ),
            "connections_watched": count,
        }
    # Apart from the measurement of CPU and bytes, which it would spoil a little.
    asked = [
        worker.ask(
            "probe", seconds + 60, seconds=min(30.0, seconds), per_s=PROBES_PER_S / len(workers)
        )
        for worker in workers
    ]
    answers = await asyncio.gather(*asked)
    trips = [trip for answer in answers for trip in answer["round_trips_s"]]
    lags = [lag for answer in answers for lag in answer["lags_s"]]
    found |= {
        "heartbeat_p50_ms": in_ms(trips, 0.5),
        "heartbeat_p99_ms": in_ms(trips, 0.99),
        "heartbeat_samples": len(trips),
        "heartbeat_unanswered": sum(answer["unanswered"] for answer in answers),
        "agents_lag_p99_ms": in_ms(lags, 0.99),
    }
    members = found["orchestrators"].values()
    grown = sum(
        member["rss_mb"] - bench.rss_before_mb[name]
        for name, member in found["orchestrators"].items()
    )
    found["cpu_cores"] = round(sum(member["cpu_cores"] for member in members), 3)
    found["cpu_cores_max"] = max((member["cpu_cores"] for member in members), default=0.0)
    found["kb_per_agent"] = round(grown * 1024 / max(1, bench.result["connected"]), 1)
    bench.result[name] = found
    return found


async def apply_all(bench: Bench) -> None:
    """Workloads for everybody, until each replica is in a plan that its node acknowledged."""
    replicas = bench.options.replicas
    if not replicas:
        return
    bench.say(f"applying {replicas} replicas")
    manifests = fleet_world.workloads(replicas)
    window = Window.open(bench)
    started = time.monotonic()
    await bench.leader.stub.Apply(apply_request(*manifests), timeout=120)
    stored = time.monotonic() - started
    await bench.until(lambda seen: seen["assigned"] >= replicas, APPLY_LIMIT_S, "acknowledging")
    acked = time.monotonic() - started
    seen = await bench.until(lambda seen: seen["running"] >= replicas, APPLY_LIMIT_S, "running")
    running = time.monotonic() - started
    ready, asked_s = await _ready_replicas(bench, replicas)
    bench.result |= {
        "apply_replicas": seen["assigned"],
        "apply_stored_s": round(stored, 2),
        "apply_acked_s": round(acked, 2) if seen["assigned"] >= replicas else None,
        "apply_running_s": round(running, 2) if seen["running"] >= replicas else None,
        "apply_reported_s": round(time.monotonic() - started, 2) if ready >= replicas else None,
        "list_workloads_s": round(asked_s, 2),
        "apply_use": window.close(),
    }
    await steady(bench, "loaded")


async def _ready_replicas(bench: Bench, wanted: int) -> tuple[int, float]:
    """As an operator sees it: (ready replicas, how long the last List took)."""
    deadline = time.monotonic() + APPLY_LIMIT_S
    while True:
        asked = time.monotonic()
        request = operator_pb2.ListRequest(kind="Workload")
        listed = await bench.leader.stub.List(request, timeout=120)
        took = time.monotonic() - asked
        statuses = [json.loads(item.status_json) for item in listed.resources]
        ready = sum(int(status["ready"]) for status in statuses)
        if ready >= wanted:
            return ready, took
        if time.monotonic() > deadline:
            bench.miss(f"{ready} of {wanted} replicas are ready, as an operator sees it")
            return ready, took
        await asyncio.sleep(max(0.5, 2 * took))
