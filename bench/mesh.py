"""What it costs members to know each other's nodes: CPU of telling and of hearing, over real mTLS.

One process has the nodes and tells; others follow it, each in a process of its own. First the
whole, then status changes at a rate, then nothing but pulses and what heartbeats bring.
"""

import argparse
import asyncio
import multiprocessing
import random
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from grpc import aio

from bench.report import emit, progress
from orchestrator.authz import Listener
from orchestrator.cache import Cache
from orchestrator.calls import LiveCalls
from orchestrator.fleet import Fleet
from orchestrator.identity.authority import create_region, create_root, load_authority
from orchestrator.identity.member import MemberIdentity
from orchestrator.identity.peers import Peers
from orchestrator.mesh.link import Link
from orchestrator.mesh.newer import SessionName
from orchestrator.mesh.nodes_heard import NodesHeard
from orchestrator.mesh.service import MemberService, add_member_service
from orchestrator.mesh.telling import StoreState, Telling
from orchestrator.metrics import Metrics
from orchestrator.records import MemberRecord
from orchestrator.rpc import FrontDoor
from orchestrator.store.sqlite import open_sqlite
from polder.identity import MemberId
from polder.v1 import agent_pb2, member_pb2

_DOMAIN = "bench.polder.eu"
_HEARTBEAT_S = 5.0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench mesh", description=__doc__)
    parser.add_argument("--nodes", type=int, default=3_333, help="of the member that tells")
    parser.add_argument("--replicas", type=int, default=10, help="on each")
    parser.add_argument("--followers", type=int, default=2)
    parser.add_argument("--changes", type=int, default=20_000, help="of replica states")
    parser.add_argument("--rate", type=int, default=1_667, help="changes per second")
    parser.add_argument("--quiet", type=float, default=10.0, help="seconds without changes")
    parser.add_argument("--json", action="store_true", help="one JSON object (always so)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="polder-bench-") as folder:
        create_root(Path(folder), _DOMAIN, time.time())
        create_region(Path(folder), "eu", time.time())
        emit("mesh", measure(Path(folder), options))
    return 0


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Drives the processes through the phases; each answers with its CPU seconds until then."""
    start = multiprocessing.get_context("spawn")
    teller, far = start.Pipe()
    processes = [start.Process(target=_run, args=(tell, folder, far, options), daemon=True)]
    processes[0].start()
    port = teller.recv()
    lines = []
    progress(f"{options.nodes} nodes of {options.replicas} replicas; {options.followers} follow")
    before = _ask(teller, "cpu")
    for number in range(options.followers):
        near, far = start.Pipe()
        arguments = (follow, folder, far, options, port, f"f{number}")
        processes.append(start.Process(target=_run, args=arguments, daemon=True))
        processes[-1].start()
        lines.append(near)
    wholes = [line.recv() for line in lines]
    whole = _ask(teller, "cpu")
    progress(f"{options.changes} changes at {options.rate} per second")
    starts = [_ask(line, "cpu") for line in lines]
    lag_s = _ask(teller, "change")
    changed, ends = _ask(teller, "cpu"), [_ask(line, "cpu") for line in lines]
    progress(f"{options.quiet:g} quiet seconds")
    time.sleep(options.quiet)
    quiet, rests = _ask(teller, "cpu"), [_ask(line, "cpu") for line in lines]
    sums = [_ask(line, "sum") for line in lines]
    right = all(found == _ask(teller, "sum") for found in sums)
    rss_mb = [_ask(line, "rss") for line in lines]
    for line in (teller, *lines):
        line.send("stop")
    thousands = options.changes / 1_000
    followed = list(zip(starts, ends, strict=True))
    rested = list(zip(ends, rests, strict=True))
    return {
        "nodes": options.nodes,
        "replicas": options.nodes * options.replicas,
        "followers": options.followers,
        "tell_whole_cpu_s": round((whole - before) / options.followers, 3),
        "hear_whole_cpu_s": round(max(wholes), 3),
        "tell_1000_changes_cpu_s": round((changed - whole) / thousands, 4),
        "hear_1000_changes_cpu_s": round(max(b - a for a, b in followed) / thousands, 4),
        "behind_at_end_s": round(lag_s, 2),
        "tell_quiet_cores": round((quiet - changed) / options.quiet, 4),
        "hear_quiet_cores": round(max(b - a for a, b in rested) / options.quiet, 4),
        "follower_rss_mb": max(rss_mb),
        "all_heard": right,
    }


def _ask(line: Connection, what: str) -> Any:
    line.send(what)
    return line.recv()


def _run(work: Any, *arguments: Any) -> None:
    asyncio.run(work(*arguments))


async def _answer(line: Connection, fleet: Fleet, **more: Any) -> None:
    loop = asyncio.get_running_loop()
    while (asked := await loop.run_in_executor(None, line.recv)) != "stop":
        if asked in more:
            line.send(await more[asked]())
        elif asked == "sum":
            line.send(sum(s.restarts for seen in fleet.nodes() for s in seen.replicas.values()))
        elif asked == "rss":
            line.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        else:
            line.send(time.process_time())


# --- who tells ------------------------------------------------------------------------------------


class _Session:
    """As an agent's that is well."""

    def __init__(self, node: str, fleet: Fleet) -> None:
        self.node = node
        self._fleet = fleet

    @property
    def last_heard(self) -> float:
        return self._fleet.steady()


def _status(node: int, number: int, restarts: int = 0) -> agent_pb2.ReplicaStatus:
    """As large as a real one."""
    container = agent_pb2.ContainerStatus(
        name="app", id=f"{node:032x}{number:032x}", state="running", ready=True,
        started_at_ms=1_795_305_600_000, image=f"registry.example/app@sha256:{number:064x}",
    )  # fmt: skip
    return agent_pb2.ReplicaStatus(
        namespace="default", workload=f"workload-{number}", workload_uid=f"{number:032x}",
        replica=f"workload-{number}-{node}", replica_uid=f"{node:016x}{number:016x}",
        phase=agent_pb2.REPLICA_PHASE_RUNNING, ready=True, revision=1, epoch=77, restarts=restarts,
        pod_ip="10.88.0.7", started_at_ms=1_795_305_600_000, containers=[container],
        observed_at_ms=1_795_305_600_000, template_digest=f"{number:064x}",
    )  # fmt: skip


def _fill(fleet: Fleet, options: argparse.Namespace) -> list[_Session]:
    for node in range(options.nodes):
        seen = fleet.heard(f"node-{node}", time.time())
        seen.belong(None, SessionName(f"{node:032x}", 1, f"{node:016x}"), "teller")
        seen.complete = True
        seen.heartbeat = agent_pb2.Heartbeat(sequence=1, usage=agent_pb2.Usage(cpu_millis=500))
        for number in range(options.replicas):
            status = _status(node, number)
            seen.replicas[status.replica_uid] = status
        fleet.touch(seen.node)
    return [_Session(seen.node, fleet) for seen in fleet.nodes()]


async def tell(folder: Path, line: Connection, options: argparse.Namespace) -> None:
    """The member that has the nodes."""
    identity = _identity(folder, "teller")
    store = await open_sqlite(folder / "store.db")
    cache, fleet = Cache(store, time.time), Fleet(time.time())
    sessions: list[_Session] = []
    hello = member_pb2.MemberHello(member="teller", region="eu", version="1.0")
    telling = Telling(
        fleet, sessions, hello, lambda: StoreState(True, 1, 0.0), time.time, _HEARTBEAT_S
    )
    sessions += _fill(fleet, options)
    peers = Peers(store, cache, _DOMAIN, time.time)
    door = FrontDoor(
        Listener.MTLS, peers, LiveCalls(cache, time.time), Metrics("1", "teller", "eu")
    )
    server = aio.server(interceptors=[door])
    add_member_service(MemberService("teller", telling, None), server)  # type: ignore[arg-type]
    port = server.add_secure_port(
        "127.0.0.1:0", identity.server_credentials(client_certificate=True)
    )
    await server.start()
    running = asyncio.create_task(telling.run())
    await asyncio.sleep(0.5)  # what was filled in is noted before anybody follows
    line.send(port)

    async def change() -> float:
        return await _change(fleet, options)

    await _answer(line, fleet, change=change)
    running.cancel()
    await server.stop(0)
    await store.close()


async def _change(fleet: Fleet, options: argparse.Namespace) -> float:
    """Each of another replica; as agents say them. Returns by how much the rate was missed."""
    dice, started = random.Random(1), time.monotonic()
    for count in range(1, options.changes + 1):
        node, number = dice.randrange(options.nodes), dice.randrange(options.replicas)
        status = _status(node, number, restarts=count)
        fleet.observe(f"node-{node}").replicas[status.replica_uid] = status
        fleet.touch(f"node-{node}")
        if count % 16 == 0:
            ahead = count / options.rate - (time.monotonic() - started)
            await asyncio.sleep(max(0.0, ahead))
    missed_s = time.monotonic() - started - options.changes / options.rate
    await asyncio.sleep(0.5)
    return float(missed_s)


# --- who follows ----------------------------------------------------------------------------------


class _NoSessions:
    def supersede(self, *_: object) -> None: ...


async def follow(
    folder: Path, line: Connection, options: argparse.Namespace, port: int, name: str
) -> None:
    """A member without nodes of its own."""
    identity = _identity(folder, name)
    store = await open_sqlite(folder / f"{name}.db")
    fleet = Fleet(time.time())
    heard = NodesHeard(fleet, Cache(store, time.time), _NoSessions(), time.time)
    record = MemberRecord("teller", "eu", "1.0", (), (), f"127.0.0.1:{port}")
    request = member_pb2.FollowRequest(member=name, region="eu", version="1.0")
    complete = asyncio.Event()
    link = Link(record, request, identity, heard, lambda *_: None, time.time, complete.set)
    before = time.process_time()
    running = asyncio.create_task(link.run())
    await complete.wait()
    assert len(list(fleet.nodes())) == options.nodes, "it is not complete"
    line.send(time.process_time() - before)
    await _answer(line, fleet)
    running.cancel()
    await store.close()


def _identity(folder: Path, name: str) -> MemberIdentity:
    authority = load_authority(folder, "eu")
    return MemberIdentity(authority, MemberId(_DOMAIN, "eu", name), time.time)
