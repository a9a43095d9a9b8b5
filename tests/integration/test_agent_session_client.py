"""The session client against a real gRPC server with mutual TLS."""

import asyncio
from pathlib import Path

import grpc
import pytest

from agent.connection_policy import REFUSALS_SOON
from agent.identity_store import IdentityStore
from agent.relay import RelayHub
from agent.session import SessionClient
from agent.session_stream import Timing
from polder.v1 import agent_pb2, common_pb2, plan_pb2
from tests.integration.agent_fakes import Ca, Orchestrator, eventually, write_identity

QUICK = Timing(
    welcome_max_s=2.0, write_s=2.0, keepalive_s=0.5, keepalive_timeout_s=0.5, drain_s=2.0,
    renew_answer_s=3.0,
)  # fmt: skip


class FakeNode:
    def __init__(self) -> None:
        self.replicas: list[agent_pb2.ReplicaStatus] = []
        self.plans: list[plan_pb2.SignedNodePlan] = []

    def hello(self) -> agent_pb2.Hello:
        return agent_pb2.Hello(agent_version="0", instance_id="i", replicas=self.replicas)

    def gone(self) -> list[str]:
        return []

    def heartbeat(self) -> agent_pb2.Heartbeat:
        return agent_pb2.Heartbeat(usage=agent_pb2.Usage(cpu_millis=1))

    def offer_plan(self, signed: plan_pb2.SignedNodePlan) -> None:
        self.plans.append(signed)


class NoSources:
    def logs(self, options):  # type: ignore[no-untyped-def]
        raise AssertionError

    async def exec(self, options):  # type: ignore[no-untyped-def]
        raise AssertionError


@pytest.fixture
def ca() -> Ca:
    return Ca()


@pytest.fixture
async def server(ca: Ca):
    orchestrator = await Orchestrator(ca).start()
    yield orchestrator
    await orchestrator.stop()


class Running:
    """A client in a task."""

    def __init__(self, state_dir: Path, **options: object) -> None:
        self.node = FakeNode()
        self.hub = RelayHub(NoSources())
        self.store = IdentityStore(state_dir)
        self.states: list[object] = []
        options.setdefault("timing", QUICK)
        self.client = SessionClient(
            self.store,
            self.node,
            self.hub,
            on_state=self.states.append,
            **options,  # type: ignore[arg-type]
        )

    async def __aenter__(self) -> "Running":
        self.task = asyncio.create_task(self.client.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.stop(flush_s=0.5)
        await asyncio.wait_for(self.task, 5)


async def test_introduces_itself_then_beats_and_reports_deltas(tmp_path, ca, server) -> None:
    write_identity(tmp_path, ca, [server.endpoint])
    async with Running(tmp_path) as running:
        running.node.replicas = [agent_pb2.ReplicaStatus(replica_uid="u1")]
        await eventually(lambda: server.visits and len(server.visits[0].of("heartbeat")) >= 3)
        visit = server.visits[0]
        assert [r.replica_uid for r in visit.hello.replicas] == ["u1"]
        beats = visit.of("heartbeat")
        assert [b.sequence for b in beats] == list(range(1, len(beats) + 1))
        assert len({b.ByteSize() for b in beats[:5]}) == 1

        for restarts in range(50):
            status = agent_pb2.ReplicaStatus(replica_uid="u1", restarts=restarts)
            running.client.publish_replicas([status])
        running.client.publish_replicas([], ["u2"])
        running.client.publish_event(common_pb2.Event(reason="Test"))
        running.client.publish_ack(agent_pb2.PlanAck(generation=7, accepted=True))
        await eventually(lambda: visit.of("events") and visit.of("replica_status"))
        updates = visit.of("replica_status")
        assert len(updates) <= 2
        assert updates[-1].changed[0].restarts == 49
        assert updates[-1].gone == ["u2"]
        assert visit.of("plan_ack")[0].generation == 7


async def test_hands_plans_in(tmp_path, ca, server) -> None:
    write_identity(tmp_path, ca, [server.endpoint])
    async with Running(tmp_path) as running:
        await eventually(lambda: server.visits)
        server.visits[0].say(plan=plan_pb2.SignedNodePlan(generation=3))
        await eventually(lambda: running.node.plans)
        assert running.node.plans[0].generation == 3


async def test_moves_to_the_next_endpoint_when_the_first_is_gone(tmp_path, ca, server) -> None:
    other = await Orchestrator(ca).start()
    write_identity(tmp_path, ca, [other.endpoint, server.endpoint])
    try:
        async with Running(tmp_path) as running:
            await eventually(lambda: other.visits)
            await other.stop()
            await eventually(lambda: server.visits and running.client.state.connected)
            assert running.client.state.endpoint == server.endpoint
    finally:
        await other.stop()


async def test_a_member_that_is_cut_off_itself_is_no_orchestrator(tmp_path, ca, server) -> None:
    write_identity(tmp_path, ca, [server.endpoint])
    async with Running(tmp_path) as running:
        await eventually(lambda: running.client.state.hears_orchestrator)
        server.visits[0].say(standing=agent_pb2.MemberStanding(cut_off=True))
        await eventually(lambda: running.client.state.member_cut_off)
        assert running.client.state.connected and not running.client.state.hears_orchestrator
        assert running.states[-1].member_cut_off  # type: ignore[attr-defined]
        server.cut_off = True  # and the next session begins so
        server.visits[0].say(goodbye=agent_pb2.Goodbye(reason="Shutdown", retry_after_ms=1))
        await eventually(lambda: len(server.visits) == 2 and running.client.state.connected)
        assert not running.client.state.hears_orchestrator
        server.visits[1].say(standing=agent_pb2.MemberStanding(cut_off=False))
        await eventually(lambda: running.client.state.hears_orchestrator)


async def test_comes_back_to_the_only_endpoint_with_a_complete_hello(tmp_path, ca, server) -> None:
    write_identity(tmp_path, ca, [server.endpoint])
    async with Running(tmp_path) as running:
        await eventually(lambda: running.client.state.connected)
        port = server.port
        await server.stop()
        await eventually(lambda: not running.client.state.connected)
        running.client.publish_event(common_pb2.Event(reason="WhileAway"))
        running.client.publish_replicas([agent_pb2.ReplicaStatus(replica_uid="u1")])
        running.node.replicas = [agent_pb2.ReplicaStatus(replica_uid="u1", ready=True)]
        await server.start(port)
        await eventually(lambda: len(server.visits) >= 2 and server.visits[-1].of("events"))
        assert server.visits[-1].hello.replicas[0].ready
        assert not server.visits[-1].of("replica_status")


async def test_a_goodbye_is_honoured(tmp_path, ca, server) -> None:
    write_identity(tmp_path, ca, [server.endpoint])
    async with Running(tmp_path) as running:
        await eventually(lambda: running.client.state.connected)
        goodbye = agent_pb2.Goodbye(reason="Shutdown", retry_after_ms=700)
        loop = asyncio.get_running_loop()
        started = loop.time()
        server.visits[0].say(goodbye=goodbye)
        await eventually(lambda: len(server.visits) == 2)
        assert 0.7 <= loop.time() - started < 3


async def test_a_refusal_does_not_spin(tmp_path, ca, server) -> None:
    server.refuse = grpc.StatusCode.PERMISSION_DENIED
    write_identity(tmp_path, ca, [server.endpoint])
    async with Running(tmp_path) as running:
        await eventually(lambda: "PERMISSION_DENIED" in running.client.state.last_error)
        await eventually(lambda: len(server.visits) == REFUSALS_SOON)
        await asyncio.sleep(0.5)
        assert len(server.visits) == REFUSALS_SOON


async def test_a_silent_server_is_left(tmp_path, ca, server) -> None:
    mute = Orchestrator(ca)
    mute.silent = True
    await mute.start()
    write_identity(tmp_path, ca, [mute.endpoint, server.endpoint])
    try:
        async with Running(tmp_path) as running:
            await eventually(lambda: running.client.state.endpoint == server.endpoint)
            await eventually(lambda: mute.visits[0].over)  # the abandoned call was cancelled
    finally:
        await mute.stop()


async def test_another_ca_is_not_trusted(tmp_path, ca, server) -> None:
    impostor = await Orchestrator(Ca("other root")).start()
    write_identity(tmp_path, ca, [impostor.endpoint, server.endpoint])
    try:
        async with Running(tmp_path) as running:
            await eventually(lambda: running.client.state.connected)
            assert running.client.state.endpoint == server.endpoint
            assert not impostor.visits
    finally:
        await impostor.stop()


async def test_a_half_open_connection_is_noticed(tmp_path, ca, server) -> None:
    """A middlebox that forgets the connection: bytes go in, and nothing ever comes back."""
    frozen = asyncio.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not frozen.is_set():
                writer.write(data)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    proxy = await asyncio.start_server(forward, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    write_identity(tmp_path, ca, [f"127.0.0.1:{port}", server.endpoint])
    async with Running(tmp_path) as running:
        await eventually(lambda: running.client.state.connected)
        frozen.set()
        running.client.publish_event(common_pb2.Event(reason="Swallowed"))
        await eventually(lambda: running.client.state.endpoint == server.endpoint)
        await eventually(lambda: "Swallowed" in told(server))
    proxy.close()


def told(server: Orchestrator) -> list[str]:
    """Reasons of events, over all sessions."""
    batches = [batch for visit in server.visits for batch in visit.of("events")]
    return [event.reason for batch in batches for event in batch.events]  # type: ignore[attr-defined]


async def test_what_was_told_is_not_told_again_when_a_session_ends_in_order(
    tmp_path, ca, server
) -> None:
    write_identity(tmp_path, ca, [server.endpoint])
    async with Running(tmp_path) as running:
        await eventually(lambda: running.client.state.connected)
        running.client.publish_event(common_pb2.Event(reason="Once"))
        await eventually(lambda: told(server) == ["Once"])
        server.visits[0].say(goodbye=agent_pb2.Goodbye(reason="Shutdown", retry_after_ms=1))
        await eventually(lambda: len(server.visits) == 2 and running.client.state.connected)
        running.client.publish_event(common_pb2.Event(reason="Later"))
        await eventually(lambda: "Later" in told(server))
    assert told(server) == ["Once", "Later"]


async def test_renews_at_a_third_of_life_without_a_gap(tmp_path, ca, server) -> None:
    serial = write_identity(tmp_path, ca, [server.endpoint], life_s=60, age_s=30)
    async with Running(tmp_path) as running:
        await eventually(lambda: len(server.visits) == 2 and server.visits[0].over)
        old, new = server.visits
        assert old.serial == serial != new.serial
        assert running.store.load().serial == new.serial
        running.client.publish_replicas([agent_pb2.ReplicaStatus(replica_uid="after")])
        await eventually(lambda: new.of("replica_status"))
        assert all(state.connected for state in running.states)
        names = sorted(p.name for p in (tmp_path / "identities").iterdir())
        assert names == ["000002"]
        mode = (tmp_path / "identity" / "key.pem").stat().st_mode & 0o777
        assert mode == 0o600


async def test_a_copy_of_a_disk_waits_and_says_why(tmp_path, ca, server, caplog) -> None:
    """Nothing else happens on the box: it goes on, and asks again when it was told to."""
    write_identity(tmp_path, ca, [server.endpoint])
    text = "node n1 is connected from another box: edge-agent join --force"
    goodbye = agent_pb2.Goodbye(reason="IdentityCopied", message=text, retry_after_ms=700)
    server.greeting = agent_pb2.SessionResponse(goodbye=goodbye)
    async with Running(tmp_path) as running:
        await eventually(lambda: running.states and running.states[-1].last_error)
        assert running.states[-1].last_error == f"{server.endpoint}: IdentityCopied: {text}"
        (record,) = [r for r in caplog.records if r.getMessage() == "no session"]
        assert record.levelname == "WARNING" and record.reason == "IdentityCopied"
        assert record.detail == text and 0.7 <= record.wait_s <= 1.0
        server.greeting = None
        await eventually(lambda: running.client.state.connected)
        assert not running.client.state.last_error


async def test_superseding_goodbye_to_the_old_session_during_renewal(tmp_path, ca, server) -> None:
    write_identity(tmp_path, ca, [server.endpoint], life_s=60, age_s=30)

    async def supersede() -> None:
        await eventually(lambda: len(server.visits) == 2)
        server.visits[0].say(goodbye=agent_pb2.Goodbye(reason="Superseded"))

    async with Running(tmp_path) as running:
        await supersede()
        await eventually(lambda: server.visits[0].over)
        await asyncio.sleep(0.3)
        assert len(server.visits) == 2
        assert running.client.state.connected


async def test_a_clock_that_is_ahead_does_not_renew_without_end(tmp_path, ca, server) -> None:
    """By the box's clock every new certificate is past a third of its life at once."""
    server.renewed_age_s = 1800.0
    write_identity(tmp_path, ca, [server.endpoint], life_s=60, age_s=30)
    async with Running(tmp_path) as running:
        await eventually(lambda: len(server.visits) == 2 and server.visits[0].over)
        await asyncio.sleep(1.0)  # several renewals fit in
        assert len(server.visits) == 2
        assert running.client.state.connected


async def test_a_refused_renewal_keeps_the_old_identity(tmp_path, ca, server) -> None:
    server.renew_error = "not now"
    serial = write_identity(tmp_path, ca, [server.endpoint], life_s=60, age_s=30)
    async with Running(tmp_path) as running:
        await eventually(lambda: server.visits and server.visits[0].of("renew"))
        await eventually(lambda: len(list((tmp_path / "identities").iterdir())) == 1)
        assert running.store.load().serial == serial
        assert running.client.state.connected
        assert len(server.visits) == 1
