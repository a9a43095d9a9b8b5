"""Real agents of one site: processes with a simulated runtime, real TLS between them.

A scripted orchestrator signs their plans.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agent import status_file
from polder.v1 import agent_pb2, plan_pb2
from tests.integration.agent_fakes import (
    DOMAIN,
    Ca,
    Orchestrator,
    Visit,
    eventually,
    write_identity,
)

TEMPLATE = json.dumps({"containers": [{"name": "app", "image": "app:1"}]}).encode()
EPOCH = 1 << 16
SLOW_S = 90.0  # for what waits on a machine with much else to do


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Box:
    """One node: its state directory, and its agent's process while there is one."""

    def __init__(self, folder: Path, name: str, rig: "Rig") -> None:
        self.name = name
        self.port = free_port()
        self.local_port = free_port()
        self.state = folder / name
        self.rig = rig
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        endpoints = [rig.orchestrator.endpoint]
        write_identity(self.state, rig.ca, endpoints, node=name, life_s=rig.life_s)

    def start(self) -> None:
        self.starts += 1
        environment = {
            **os.environ,
            "POLDER_SITE_LISTEN": f"127.0.0.1:{self.port}",
            "POLDER_SITE_ADVERTISE": "127.0.0.1",
            "POLDER_LOCAL_LISTEN": f"127.0.0.1:{self.local_port}",
        }
        command = [sys.executable, "-m", "agent", "run", "--state-dir", str(self.state)]
        command += ["--runtime", "simulated", "--log-format", "logfmt", "--log-level", "debug"]
        command += ["--log-dir", str(self.state / "pods")]
        with (self.state / f"log-{self.starts}").open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=log, env=environment
            )

    def kill(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGCONT)
                self.process.send_signal(number)
            await asyncio.to_thread(self.process.wait, 20)
            self.process = None

    @property
    def visit(self) -> Visit | None:
        """Its newest session."""
        found = [v for v in self.rig.orchestrator.visits if v.received and self._is_ours(v)]
        return found[-1] if found else None

    def _is_ours(self, visit: Visit) -> bool:
        endpoints = visit.hello.inventory.site_endpoints
        return list(endpoints) == [f"127.0.0.1:{self.port}"]

    def replicas(self) -> dict[str, agent_pb2.ReplicaStatus]:
        """By uid, as it says that they are now."""
        visit = self.visit
        if visit is None:
            return {}
        found = {r.replica_uid: r for r in visit.hello.replicas}
        for request in visit.received:
            if request.WhichOneof("message") == "replica_status":
                found |= {r.replica_uid: r for r in request.replica_status.changed}
                for uid in request.replica_status.gone:
                    found.pop(uid, None)
        return found

    def ready(self, replica: str) -> agent_pb2.ReplicaStatus | None:
        """The stay of that replica that runs here and is ready."""
        return next((r for r in self.replicas().values() if r.replica == replica and r.ready), None)

    def standbys(self) -> dict[str, agent_pb2.StandbyStatus]:
        visit = self.visit
        if visit is None:
            return {}
        found = list(visit.hello.standbys)
        for request in visit.received:
            if request.WhichOneof("message") == "replica_status":
                found = list(request.replica_status.standbys) or found
        return {s.replica: s for s in found}

    def status(self) -> dict[str, Any]:
        """What its agent left for who stands at the box; empty when that was another process."""
        said = status_file.read(self.state)
        ours = self.process is not None and said.get("pid") == self.process.pid
        return said if ours else {}

    def able(self, replica: str) -> bool:
        """To take it over."""
        status = self.standbys().get(replica)
        return status is not None and status.able

    def condition(self, type_: str) -> bool:
        """As its last heartbeat has it."""
        beats = self.visit.of("heartbeat") if self.visit is not None else []
        return bool(beats) and any(c.type == type_ for c in beats[-1].conditions)  # type: ignore[attr-defined]

    def events(self, reason: str) -> list[str]:
        """Messages of all its sessions."""
        return [
            event.message
            for visit in self.rig.orchestrator.visits
            if visit.received and self._is_ours(visit)
            for batch in visit.of("events")
            for event in batch.events
            if event.reason == reason
        ]

    def log(self) -> str:
        return (self.state / f"log-{self.starts}").read_text(errors="replace")


class Rig:
    """Boxes and their orchestrator. `life_s`: of the certificates that they joined with."""

    def __init__(
        self, folder: Path, ca: Ca, orchestrator: Orchestrator, *, life_s: float = 3600.0
    ) -> None:
        self.life_s = life_s
        self.ca = ca
        self.orchestrator = orchestrator
        self.folder = folder
        self.boxes: dict[str, Box] = {}
        self.generation = 0

    async def start(self, *names: str) -> list[Box]:
        for name in names:
            self.boxes[name] = Box(self.folder, name, self)
            self.boxes[name].start()
        made = [self.boxes[name] for name in names]
        await eventually(lambda: all(box.visit is not None for box in made), SLOW_S)
        return made

    async def stop(self) -> None:
        for box in self.boxes.values():
            await box.end()
        await self.orchestrator.stop()

    def peer(self, name: str) -> plan_pb2.SitePeer:
        visit = self.boxes[name].visit
        assert visit is not None
        inventory = visit.hello.inventory
        return plan_pb2.SitePeer(
            node=name, endpoints=inventory.site_endpoints, certificate=inventory.site_certificate
        )

    def assignment(
        self,
        replica: str,
        members: Iterable[str],
        *,
        template: bytes = TEMPLATE,
        epoch: int = EPOCH,
        exclusive: bool = False,
        witnesses: Iterable[str] = (),
    ) -> plan_pb2.Assignment:
        names = list(members)
        return plan_pb2.Assignment(
            namespace="default",
            workload="app",
            workload_uid="w",
            replica=replica,
            replica_uid=f"uid-{replica}",
            epoch=epoch,
            revision=1,
            template_json=template,
            standbys=names[1:],
            group=plan_pb2.FailoverGroup(
                number=epoch, members=names, witnesses=witnesses, exclusive=exclusive
            ),
        )

    def plan(
        self,
        node: str,
        roster: Iterable[plan_pb2.SitePeer],
        assignments: Iterable[plan_pb2.Assignment] = (),
        **more: object,
    ) -> plan_pb2.SignedNodePlan:
        """What `node` does of the assignments: those it is first for it has, for those it stands by
        for it has a role."""
        self.generation += 1
        own = [a for a in assignments if a.group.members[0] == node]
        roles = [
            plan_pb2.StandbyRole(assignment=_as_seen_by(node, a), primary=a.group.members[0])
            for a in assignments
            if node in a.group.members[1:] or node in a.group.witnesses
        ]
        return self.orchestrator.signed(
            plan_pb2.NodePlan(
                node=node,
                site="s1",
                trust_domain=DOMAIN,
                generation=self.generation,
                issued_at_ms=int(time.time() * 1000),
                assignments=own,
                assignment_count=len(own),
                standby_roles=roles,
                standby_role_count=len(roles),
                roster=[peer for peer in roster if peer.node != node],
                endpoints=[self.orchestrator.endpoint],
                **more,  # type: ignore[arg-type]
            )
        )

    async def use(
        self,
        *assignments: plan_pb2.Assignment,
        only: Mapping[str, list[plan_pb2.Assignment]] | None = None,
        **more: object,
    ) -> None:
        """Every box has its plan, and says so. `only`: what some are told instead."""
        roster = [self.peer(name) for name in self.boxes]
        for name, box in self.boxes.items():
            visit = box.visit
            assert visit is not None
            acks = len(visit.of("plan_ack"))
            told = (only or {}).get(name, assignments)
            visit.say(plan=self.plan(name, roster, told, **more))
            await eventually(lambda v=visit, n=acks: len(v.of("plan_ack")) > n, SLOW_S)  # type: ignore[misc]
            assert visit.of("plan_ack")[-1].accepted, visit.of("plan_ack")[-1]

    async def settled(self) -> None:
        """Everybody has a stream with everybody."""
        count = len(self.boxes) - 1
        await eventually(lambda: all(self.hears(box, count) for box in self.boxes.values()), SLOW_S)

    def hears(self, box: Box, count: int) -> bool:
        """Whether it has a stream with so many."""
        lines = [line for line in box.log().splitlines() if "logger=agent.site.links" in line]
        opened = sum("message=peer " in line for line in lines)
        return opened - sum('message="peer lost"' in line for line in lines) >= count


def _as_seen_by(node: str, assignment: plan_pb2.Assignment) -> plan_pb2.Assignment:
    """Who only votes need not know what it is."""
    seen = plan_pb2.Assignment()
    seen.CopyFrom(assignment)
    if node in assignment.group.witnesses:
        seen.template_json = b""
    return seen
