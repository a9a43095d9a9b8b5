"""Members, links and agents in virtual time; the leader on one of the members is the real one.

What decides is real: sessions and who has the newer one, what members tell and hear, liveness, the
leader's snapshot, its steps and its commits. Lines, leases and agents are models. A message takes
one step of a line, and a line that breaks loses what is on its way.
"""

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field

from orchestrator.domain.liveness import Periods
from orchestrator.election import Term
from orchestrator.fleet import Fleet
from orchestrator.gateway.reader import SessionReader
from orchestrator.gateway.sessions import LiveSession, Sessions
from orchestrator.gateway.settings import GatewaySettings
from orchestrator.gateway.superseding import Superseding
from orchestrator.leader_commit import Committer
from orchestrator.leader_world import WorldBuilder
from orchestrator.mesh.nodes_heard import Heard, NodesHeard
from orchestrator.mesh.nodes_told import NodesTold
from orchestrator.records import NodeStatusRecord
from orchestrator.scheduling.steer import Memory, Moment, steer
from orchestrator.store import keys
from orchestrator.store.port import Put
from polder.identity import NodeId
from polder.v1 import agent_pb2, member_pb2
from tests.sim.rollouts_store import FakeStore, Mirror, Operator

START = 1_795_305_600.0
STEP_S = 0.25
HEARTBEAT_S = 5.0
PERIODS = Periods()
TEMPLATE = {"containers": [{"name": "main", "image": "hello:1"}]}


class NoEvents:
    """Events are not looked at here."""

    def record(self, *_: object) -> None: ...


class Member:
    """One member: its fleet, its agents' sessions, what it told and heard."""

    def __init__(self, name: str, world: "World") -> None:
        self.name = name
        self.world = world
        # Clocks of members differ; steady ones mean nothing to each other.
        self.skew = world.dice.uniform(-3600.0, 3600.0)
        self.fleet = Fleet(self.wall(), lambda: world.now + self.skew)
        self.sessions = Sessions()
        self.superseding = Superseding(self.fleet, self.sessions, NoEvents(), name)
        self.heard = NodesHeard(self.fleet, world.mirror, self.superseding, self.wall)
        self.told = NodesTold(self.fleet)
        self.told.start()
        self.fleet.subscribe(self._on_node)
        self.settings = GatewaySettings(name, name, "sim", heartbeat_s=HEARTBEAT_S)

    def wall(self) -> float:
        return START + self.world.now + self.skew

    def _on_node(self, node: str) -> None:
        self.told.changed(node)

    def pulse(self) -> member_pb2.Pulse:
        pulse, steady = member_pb2.Pulse(), self.fleet.steady()
        for session in self.sessions:
            silence = steady - session.last_heard
            if silence > HEARTBEAT_S * 1.2 + 0.3:
                pulse.silent.add(node=session.node, silence_ms=int(silence * 1000))
        return pulse

    def look(self, present: set[str], links: "list[Link]") -> None:
        """As `Links` and the gateway's monitor do."""
        unheard = {
            link.source.name: "cannot be reached since then"
            for link in links
            if link.target is self and link.source.name in present and not link.peer_reachable
        }
        self.fleet.cannot_ask(unheard)
        for session in self.sessions:
            if self.fleet.steady() - session.last_heard > 3 * HEARTBEAT_S:
                session.close("HeartbeatTimeout", "half open")
                self.superseding.leave(session, self.wall())


class Link:
    """`target` follows `source`."""

    def __init__(self, source: Member, target: Member) -> None:
        self.source, self.target = source, target
        self.heard: Heard = target.heard.of(source.name)
        self.up = False
        self._queue: deque[member_pb2.NodesSaid | member_pb2.Pulse] = deque()
        self._whole: deque[str] | None = None

    @property
    def peer_reachable(self) -> bool:
        return self.heard.peer.reachable

    def rise(self) -> None:
        if not self.up:
            self.up = True
            self._whole = deque(self.source.told.nodes())
            self.target.heard.begin(self.heard)
            self._queue.append(self.source.pulse())

    def fall(self) -> None:
        if self.up:
            self.up, self._whole = False, None
            self._queue.clear()
            self.target.heard.end(self.heard)

    def again(self) -> None:
        """As a second stream beside the first does."""
        self.up = False
        self._queue.clear()
        self.rise()

    def put(self, message: member_pb2.NodesSaid | member_pb2.Pulse) -> None:
        if self.up:
            self._queue.append(message)

    def deliver(self, dice: random.Random) -> None:
        """What was said before this step; and the next few nodes of the whole."""
        for _ in range(len(self._queue)):
            message = self._queue.popleft()
            if isinstance(message, member_pb2.Pulse):
                self.target.heard.pulse(self.heard, message)
            else:
                self.target.heard.take(self.heard, message)
        if self._whole is None or not self.up:
            return
        said = member_pb2.NodesSaid()
        for _ in range(min(len(self._whole), dice.randrange(1, 8))):
            said.nodes.extend(self.source.told.whole(self._whole.popleft()))
        if not self._whole:
            said.complete, self._whole = True, None
        self._queue.append(said)


@dataclass
class Agent:
    """A box. It does what its placement says, and opens sessions as it is told or likes."""

    node: str
    alive: bool = True
    number: int = 0
    member: Member | None = None
    session: LiveSession | None = None
    reader: SessionReader | None = None
    connect_at: float | None = 0.0
    beat_at: float = 0.0
    replicas: dict[str, agent_pb2.ReplicaStatus] = field(default_factory=dict)
    generation: int = 0


class World:
    """`run` lets time pass. `changes`: what plans did to replicas, as text."""

    def __init__(self, seed: int, nodes: int = 18, members: int = 3) -> None:
        self.dice = random.Random(seed)
        self.now = 10_000.0
        self.store = FakeStore()
        self.mirror = Mirror(self.store, lambda: START + self.now)
        self.operator = Operator(self.store, self.mirror, lambda: START + self.now)
        self.members = [Member(f"m{i}", self) for i in range(members)]
        self.links = [
            Link(source, target)
            for source in self.members
            for target in self.members
            if source is not target
        ]
        self.present = {member.name for member in self.members}
        self.cut: dict[tuple[str, str], bool] = {}  # links that are down now
        self.refused: set[str] = set()  # members that agents cannot reach
        self.changes: list[str] = []
        self._ticks = 0
        self.operator.apply("Namespace", "", "default", {})
        self.operator.apply("Provider", "", "telco", {"legalName": "T", "seatCountry": "NL"})
        for i in range(3):
            self.operator.apply("Site", "", f"s{i}", {"provider": "telco", "country": "NL"})
        self.agents = [self._join(f"n{i:02d}", f"s{i % 3}") for i in range(nodes)]
        self.lead(self.members[0])

    def _join(self, node: str, site: str) -> Agent:
        self.operator.apply("Node", "", node, {"site": site})
        amounts = {"cpuMillis": 8000, "memoryBytes": 8 << 30, "diskBytes": 64 << 30}
        inventory = {"arch": "arm64", "capacity": amounts, "allocatable": amounts}
        status = NodeStatusRecord(node, "1", "b", inventory, int(START * 1000))
        self.store.transact([], [Put(keys.node_status(node), status.to_bytes())])
        return Agent(node, connect_at=self.now + self.dice.uniform(0, 2))

    def lead(self, member: Member) -> None:
        """It is elected now, and remembers nothing."""
        self.leader = member
        self.led_since = member.fleet.steady()
        self.builder = WorldBuilder(self.mirror, member.fleet, PERIODS)
        self.mirror.subscribe(self.builder.on_changes)
        self.memory = Memory()
        result = self.store.transact([], [Put(keys.LEADER, member.name.encode())])
        self.term = Term(result.revision, 0)
        self.committer = Committer(self.store, self.mirror, member.fleet, member.wall)  # type: ignore[arg-type]

    # --- time ------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds / STEP_S)):
            self.step()

    def step(self) -> None:
        self.now += STEP_S
        self._ticks += 1
        for agent in self.agents:
            self._agent(agent)
        self._mesh()
        if self._ticks % int(1 / STEP_S) == 0:
            for member in self.members:
                member.look(self.present, self.links)
            for link in self.links:
                if link.up and self.dice.random() < 0.3 and link.target.heard.unclaimed(link.heard):
                    link.again()
            self._tick()

    def _mesh(self) -> None:
        for link in self.links:
            down = self.cut.get((link.source.name, link.target.name), False)
            (link.fall if down else link.rise)()
            link.deliver(self.dice)
        for member in self.members:
            said = list(member.told.differences())
            pulse = member.pulse() if self._ticks % int(1 / STEP_S) == 0 else None
            for link in self.links:
                if link.source is member:
                    if said:
                        link.put(member_pb2.NodesSaid(nodes=said))
                    if pulse is not None:
                        link.put(pulse)

    def _tick(self) -> None:
        wall, steady = self.leader.wall(), self.leader.fleet.steady()
        view = self.builder.build(wall, self.led_since, steady)
        decided = steer(view, self.memory, Moment(wall, steady))
        self.memory = decided.memory
        plan = decided.plan
        at = f"{self.now - 10_000.0:.0f} s:"
        self.changes += [f"{at} place {p.assignment.replica} on {p.node}" for p in plan.place]
        self.changes += [f"{at} stop {s.assignment.replica} on {s.node}" for s in plan.stop]
        asyncio.run(self.committer.write(decided.batches, self.term, lambda _: None))
        asyncio.run(self.committer.commit(plan, view.snapshot, self.term))

    # --- agents ----------------------------------------------------------------------------------

    def _agent(self, agent: Agent) -> None:
        if not agent.alive:
            return
        session = agent.session
        if session is not None and (session.is_closed() or agent.member is None):
            self.disconnect(agent)
        if agent.session is None:
            if agent.connect_at is not None and self.now >= agent.connect_at:
                self.connect(agent, self._some_member())
        elif self.now >= agent.beat_at and agent.reader is not None:
            agent.beat_at = self.now + HEARTBEAT_S
            self._say(agent, heartbeat=agent_pb2.Heartbeat(sequence=1))
        self._obey(agent)

    def _some_member(self) -> Member | None:
        open_ = [m for m in self.members if m.name not in self.refused]
        return self.dice.choice(open_) if open_ else None

    def connect(self, agent: Agent, member: Member | None) -> None:
        """Its next session; the one that it has is left after, without a word at times."""
        agent.connect_at = self.now + self.dice.uniform(0.2, 2.0)
        if member is None:
            return
        agent.number += 1
        hello = agent_pb2.Hello(
            instance_id=agent.node,
            session_number=agent.number,
            plan_generation=agent.generation,
            replicas=list(agent.replicas.values()),
        )
        identity = NodeId("sim", "s", agent.node)
        session = LiveSession(identity, "1", hello, member.fleet.steady())
        session.generation_sent = 1 << 40
        if member.superseding.enter(session) is not None:
            return
        reader = SessionReader(
            session, self.mirror, member.fleet, NoEvents(), None,  # type: ignore[arg-type]
            member.wall, member.settings, lambda _: None,
        )  # fmt: skip
        reader.greet(hello)
        if agent.session is not None and self.dice.random() < 0.7:
            self.disconnect(agent)
        agent.member, agent.session, agent.reader = member, session, reader
        agent.beat_at = self.now + HEARTBEAT_S

    def disconnect(self, agent: Agent) -> None:
        """The member notices at once."""
        if agent.session is not None and agent.member is not None:
            agent.member.superseding.leave(agent.session, agent.member.wall())
        agent.session = agent.member = agent.reader = None
        agent.connect_at = self.now + self.dice.uniform(0.2, 3.0)

    def _say(self, agent: Agent, **what: object) -> None:
        assert agent.reader is not None and agent.session is not None and agent.member is not None

        async def requests():  # type: ignore[no-untyped-def]
            yield agent_pb2.SessionRequest(**what)  # type: ignore[arg-type]

        asyncio.run(agent.reader.run(requests()))

    def _obey(self, agent: Agent) -> None:
        """A plan reaches the box while it has a session."""
        placement = self.mirror.placement(agent.node)
        if agent.reader is None or agent.generation == placement.generation:
            return
        agent.generation = placement.generation
        changed, wanted = [], {item.replica_uid for item in placement.assignments}
        gone = [uid for uid in agent.replicas if uid not in wanted]
        for uid in gone:
            del agent.replicas[uid]
        for item in placement.assignments:
            if item.replica_uid not in agent.replicas:
                status = agent_pb2.ReplicaStatus(
                    namespace=item.namespace, workload=item.workload, replica=item.replica,
                    workload_uid=item.workload_uid, replica_uid=item.replica_uid, ready=True,
                    phase=agent_pb2.REPLICA_PHASE_RUNNING, revision=item.revision, epoch=item.epoch,
                )  # fmt: skip
                agent.replicas[item.replica_uid] = status
                changed.append(status)
        gone += [stop.replica_uid for stop in placement.stops]
        self._say(agent, plan_ack=agent_pb2.PlanAck(generation=agent.generation, accepted=True))
        update = agent_pb2.ReplicaStatusUpdate(changed=changed, gone=gone)
        self._say(agent, replica_status=update)

    def hosts(self) -> dict[str, list[str]]:
        """Replicas by node, as placed."""
        return {p.node: sorted(a.replica for a in p.assignments) for p in self.mirror.placements()}
