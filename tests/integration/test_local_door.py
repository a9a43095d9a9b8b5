"""Who is let in at a node itself, for how long, and what is written down: one agent, real TLS."""

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent import connections
from agent.local import arriving, reach
from agent.local import door as doors
from agent.local.server import CONNECTIONS_MAX, REQUEST_MAX_BYTES
from agent.local.tries import Tries
from polder.signing import UntrustedSignature
from polder.v1 import agent_pb2, local_pb2
from tests.integration.agent_fakes import Ca, Orchestrator, eventually
from tests.integration.local_node import SLOW_S, Node
from tests.integration.local_rig import HOUR_MS, Client, Person, Refusal, token
from tests.integration.test_connections import connect, is_open


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr(gc, "freeze", lambda: None)
    ca = Ca()
    server = await Orchestrator(ca).start()
    made = Node(tmp_path, ca, server)
    await made.start()
    yield made
    await made.stop()
    await server.stop()


@pytest.fixture
async def ann(node: Node) -> Client:
    """An operator of umc who is in."""
    await node.use_plan()
    return await node.entered(Person(node.ca, "ann", "operator:umc"))


# --- the node to the operator, the operator to the node -------------------------------------------


async def test_a_node_says_who_it_is_and_lets_its_operators_in(node: Node) -> None:
    client = await node.client()
    assert (await client.introduce()).id.node == "box-1"
    said = await client.enter(Person(node.ca, "ann", "operator:umc", "viewer:city"))
    assert (said.by, list(said.roles)) == ("operator/ann", ["operator:umc", "viewer:city"])
    assert 590_000 < said.expires_in_ms <= 600_000 and not said.warnings
    shown = await client.show()
    assert (shown.node, shown.site, shown.isolated_ms) == ("box-1", "s1", 0)
    assert shown.autonomy_left_ms == 7 * 86_400_000


async def test_another_installation_does_not_believe_the_node(node: Node) -> None:
    client = Client(f"127.0.0.1:{node.port}", node.visit.hello.inventory.site_certificate, Ca())
    with pytest.raises(UntrustedSignature):
        await client.introduce()
    await client.close()


async def test_nothing_is_told_to_who_is_not_in(node: Node) -> None:
    client = await node.client()
    opened = local_pb2.ReachOpen(namespace="umc", replica="triage-0", logs=agent_pb2.LogOptions())
    for session in ("", "0" * 64):
        client.session = session
        for call in (client.show(), client.recall(), client.change("stop", "umc/triage-0")):
            with pytest.raises(Refusal) as refused:
                await call
            assert refused.value.reason == "UnknownSession"
        with pytest.raises(Refusal) as refused:
            _ = [m async for m in client.reach(opened)]
        assert refused.value.reason == "UnknownSession"


async def test_a_proof_is_good_once_and_for_this_node_alone(node: Node) -> None:
    client = await node.client()
    person = Person(node.ca, "ann", "admin")
    await client.enter(person)
    with pytest.raises(Refusal) as refused:  # the same challenge again
        await client.try_with(local_pb2.EnterRequest(operator=client.proof(person)))
    assert refused.value.reason == "BadChallenge"
    await client.introduce()
    proof = client.proof(person)
    proof.signature = client.proof(Person(node.ca, "eve", "admin")).signature
    with pytest.raises(Refusal) as refused:
        await client.try_with(local_pb2.EnterRequest(operator=proof))
    assert refused.value.reason == "BadCredential"


async def test_three_wrong_tries_are_enough_for_a_minute(node: Node) -> None:
    client = await node.client()
    stranger = Person(Ca(), "ann", "admin")
    for _ in range(3):
        with pytest.raises(Refusal) as refused:
            await client.enter(stranger)
        assert refused.value.reason == "BadCredential"
    with pytest.raises(Refusal) as refused:
        await client.enter(Person(node.ca, "ann", "admin"))
    assert refused.value.reason == "TooManyTries" and "try again in" in refused.value.hint
    told = [e.reason for b in node.visit.of("events") for e in b.events]
    assert told.count("LocalEntryRefused") == 3


async def test_who_comes_often_with_good_reason_is_let_in(node: Node) -> None:
    person = Person(node.ca, "ann", "viewer:umc")
    for _ in range(5):
        await node.entered(person)


async def test_an_expired_certificate_is_refused_while_orchestrators_are_heard(node: Node) -> None:
    client = await node.client()
    with pytest.raises(Refusal) as refused:
        await client.enter(Person(node.ca, "ann", "admin", life_s=10, age_s=60))
    assert refused.value.reason == "Expired"


async def test_one_that_expired_since_the_site_is_alone_is_let_in_with_a_warning(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.server.stop()
    await eventually(lambda: not node.agent.client.state.connected, SLOW_S)
    moments = node.agent.local._door._moments
    monkeypatch.setattr(moments, "_alone_s", lambda: 600.0)
    client = await node.client()
    said = await client.enter(Person(node.ca, "ann", "admin", life_s=10, age_s=60))
    assert "expired" in said.warnings[0] and said.expires_in_ms > 0
    monkeypatch.setattr(moments, "_alone_s", lambda: 8 * 86_400.0)
    with pytest.raises(Refusal) as refused:  # that long was never promised
        await client.enter(Person(node.ca, "ann", "admin", life_s=10, age_s=60))
    assert refused.value.reason == "Expired"


@pytest.mark.parametrize(
    "change",
    [
        {"certificate_chain": []},
        {"certificate_chain": [b"no certificate"]},
        {"certificate_chain": [b""] * 9},
        {"challenge": b""},
        {"challenge": b"x" * 32},
        {"signature": b""},
        {"signature": b"x" * 70_000},
    ],
)
async def test_a_proof_that_is_none(node: Node, change: dict[str, Any]) -> None:
    client = await node.client()
    await client.introduce()
    proof = client.proof(Person(node.ca, "ann", "admin"))
    for name, value in change.items():
        proof.ClearField(name)
        proof.MergeFrom(local_pb2.OperatorProof(**{name: value}))
    with pytest.raises(Refusal) as refused:
        await client.try_with(local_pb2.EnterRequest(operator=proof))
    assert refused.value.reason in ("BadCredential", "BadChallenge", "InvalidArgument")


async def test_whoever_calls_all_the_time_must_wait(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.agent.local._door, "_calls", Tries(2))
    client = await node.client()
    for _ in range(2):
        await client.introduce()
    for call in (client.introduce(), client.try_with(local_pb2.EnterRequest())):
        with pytest.raises(Refusal) as refused:
            await call
        assert refused.value.reason == "TooManyTries"


async def test_a_certificate_without_a_role_opens_nothing(node: Node) -> None:
    client = await node.client()
    with pytest.raises(Refusal) as refused:
        await client.enter(Person(node.ca, "ann", "janitor"))
    assert refused.value.reason == "NotAllowed"


async def test_who_was_revoked_is_put_out_and_stays_out(node: Node, ann: Client) -> None:
    person = Person(node.ca, "bob", "admin")
    bob = await node.entered(person)
    serials = [e.caller.serial for e in node.agent.local._door._sessions.values()]
    assert len(serials) == 2
    opened = local_pb2.ReachOpen(
        namespace="umc", replica="triage-0", exec=agent_pb2.ExecOptions(command=["sh"], stdin=True)
    )
    stream = asyncio.create_task(anext(bob.reach(opened)))
    directory = agent_pb2.SiteDirectory(revoked_serials=[serials[1].upper()])
    node.visit.say(site_directory=directory)
    with pytest.raises(Refusal) as refused:
        await stream
    assert refused.value.reason == "Revoked"
    with pytest.raises(Refusal) as refused:
        await bob.show()
    assert refused.value.reason == "Revoked"
    await ann.show()
    await node.stop()
    await node.start()
    late = await node.client()
    with pytest.raises(Refusal) as refused:  # it is on the disk
        await late.enter(person)
    assert refused.value.reason == "Revoked"


@pytest.mark.parametrize("how", ["heard", "over", "session"])
async def test_what_an_expired_certificate_opened_has_an_end(
    node: Node, ann: Client, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It is let in while nobody could get another one: not when an orchestrator is heard again or
    the autonomy is over, and for a session at a time."""
    monkeypatch.setattr(reach, "LOOK_EVERY_S", 0.05)
    moments = node.agent.local._door._moments
    monkeypatch.setattr(moments, "_alone_s", lambda: 600.0)
    if how == "session":
        monkeypatch.setattr(doors, "SESSION_S", 3.0)
    eve = await node.entered(Person(node.ca, "eve", "operator:umc", life_s=10, age_s=60))
    path = Path(node.agent.supervisor.find("u-triage").log_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("2026-11-22T13:00:00.000000000Z stdout F hello\n")
    logs = agent_pb2.LogOptions(tail_lines=-1, follow=True)
    stream = eve.reach(local_pb2.ReachOpen(namespace="umc", replica="triage-0", logs=logs))
    assert (await anext(stream)).stdout == b"hello\n"
    if how != "session":
        alone_s = 0.0 if how == "heard" else 8 * 86_400.0
        monkeypatch.setattr(moments, "_alone_s", lambda: alone_s)
    with pytest.raises(Refusal) as refused:
        await asyncio.wait_for(anext(stream), SLOW_S)
    assert refused.value.reason == "Expired"
    if how != "session":
        with pytest.raises(Refusal) as refused:
            await eve.show()
        assert refused.value.reason == "Expired"
    await ann.show()


async def test_a_neighbour_with_very_many_connections_keeps_nobody_out(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing, or nothing that TLS understands."""
    monkeypatch.setattr(connections, "LOOK_EVERY_S", 0.05)
    held = connect(node.port, "127.0.0.9", 2 * CONNECTIONS_MAX)
    client = await node.client()

    async def is_in() -> bool:
        try:
            await client.enter(Person(node.ca, "ann", "admin"))
        except Refusal as refused:
            assert refused.code is grpc.StatusCode.UNAVAILABLE, refused
            return False
        return True

    try:
        async with asyncio.timeout(SLOW_S):
            while not await is_in():  # noqa: ASYNC110 - nothing tells when there is room
                await asyncio.sleep(0.05)
        assert sum(map(is_open, held)) <= connections.EACH
    finally:
        for one in held:
            one.close()


async def test_calls_that_never_arrive_keep_nobody_out(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may connect, and gRPC would wait for what is called for without end."""
    monkeypatch.setattr(arriving, "FROM_ONE_NETWORK", 2)
    monkeypatch.setattr(arriving, "ARRIVING_S", 0.5)
    client = await node.client()
    begin = client.channel.stream_unary("/polder.v1.LocalService/Enter")
    calls = [begin() for _ in range(3)]
    codes = sorted([(await call.code()).name for call in calls])
    assert codes == ["DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"]
    await client.introduce()
    with pytest.raises(Refusal) as refused:
        await client.try_with(local_pb2.EnterRequest(break_glass_token="x" * REQUEST_MAX_BYTES))
    assert refused.value.code.name == "RESOURCE_EXHAUSTED"


async def test_sessions_end_and_are_few(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "SESSIONS_MAX", 2)
    person = Person(node.ca, "ann", "admin")
    first, second, _ = [await node.entered(person) for _ in range(3)]
    with pytest.raises(Refusal) as refused:  # it would have ended first
        await first.show()
    assert refused.value.reason == "UnknownSession"
    await second.show()
    other = await node.entered(Person(node.ca, "bob", "viewer:umc"))
    for _ in range(2):
        await node.entered(person)
    await other.show()  # not pushed out by who has more
    monkeypatch.setattr(doors, "SESSION_S", 0.0)
    ended = await node.entered(person)
    with pytest.raises(Refusal) as refused:
        await ended.show()
    assert refused.value.reason == "UnknownSession"
    await other.show()


# --- break-glass ----------------------------------------------------------------------------------


async def test_a_break_glass_token_opens_what_it_says_and_is_journaled(node: Node) -> None:
    await node.use_plan()
    client = await node.client()
    text = token(node.ca, "exec", "umc", "triage", serial="ab" * 16)
    said = await client.enter(text)
    assert said.by == "break-glass/" + "ab" * 16 and list(said.roles) == ["exec of umc/triage"]
    assert [r.status.replica for r in (await client.show()).replicas] == ["triage-0"]
    for verb, replica in (
        ("stop", "umc/triage-0"),
        ("stop", "umc/lab-0"),
        ("stop", "city/lamps-0"),
    ):
        with pytest.raises(Refusal) as refused:
            await client.change(verb, replica)
        assert refused.value.reason == "NotAllowed", replica
    with pytest.raises(Refusal) as refused:
        await client.change("freeze")
    assert refused.value.reason == "NotAllowed"
    entered = (await client.recall()).journal[0]
    assert (entered.verb, entered.purpose) == ("enter", "ward 3 floods")
    assert entered.by == said.by


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"site": "s2"}, "WrongSite"),
        ({"issued_at_ms": 1_000, "expires_at_ms": 1_000 + HOUR_MS}, "Expired"),
        ({"trust_domain": "other.internal"}, "WrongSite"),
    ],
)
async def test_a_token_that_is_not_for_here_and_now(
    node: Node, change: dict[str, Any], reason: str
) -> None:
    client = await node.client()
    with pytest.raises(Refusal) as refused:
        await client.enter(token(node.ca, "stop", **change))
    assert refused.value.reason == reason


async def test_a_token_of_another_root_or_none_at_all(node: Node) -> None:
    client = await node.client()
    for text in (token(Ca(), "stop"), "polder-break-glass1.x", ""):
        with pytest.raises(Refusal) as refused:
            await client.enter(text)
        assert refused.value.reason in ("BadCredential", "InvalidArgument")
