"""Who comes in and who is thrown out: operator certificates, roles, revocation of open streams."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cryptography.x509 import load_der_x509_certificate
from grpc import aio

from orchestrator.authz import Caller
from orchestrator.identity.authority import serial_text
from orchestrator.identity.pem import new_key
from polder.v1 import agent_pb2, operator_pb2
from tests.integration.orchestrator_rig import (
    Credentials,
    Rig,
    certificate_request,
    ref,
    refusal,
    running,
    until,
)

RESOURCES = agent_pb2.Resources(cpu_millis=1000, memory_bytes=1 << 30, disk_bytes=1 << 30)
INVENTORY = agent_pb2.NodeInventory(
    arch="amd64", os="linux", capacity=RESOURCES, allocatable=RESOURCES
)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as made:
        await made.site()
        yield made


async def test_who_am_i(rig: Rig) -> None:
    stub = rig.operators(await rig.operator("otto", "operator:default", "viewer:other"))
    answer = await stub.WhoAmI(operator_pb2.WhoAmIRequest())
    assert answer.identity == "spiffe://polder.internal/operator/otto"
    assert list(answer.roles) == ["operator:default", "viewer:other"]
    assert answer.expires_at_ms > time.time() * 1000
    assert answer.region == "local" and answer.server_version


@pytest.mark.parametrize(
    ("name", "roles", "ttl_ms", "reason"),
    [
        ("x", [], 0, "BadRole"),
        ("x", ["root"], 0, "BadRole"),
        ("x", ["operator:UPPER"], 0, "BadRole"),
        ("Not A Name", ["admin"], 0, "BadName"),
        ("x", ["admin"], 91 * 86_400_000, "BadTtl"),
        ("x", ["admin"], -1, "BadTtl"),
    ],
)
async def test_a_bad_request_for_an_operator(
    rig: Rig, name: str, roles: list[str], ttl_ms: int, reason: str
) -> None:
    request = operator_pb2.IssueOperatorRequest(
        name=name, roles=roles, ttl_ms=ttl_ms, csr=certificate_request()
    )
    refused = await refusal(rig.admin().IssueOperator(request))
    assert refused.reason == reason
    assert "e+0" not in refused.message


async def test_the_event_of_an_operator_names_its_roles(rig: Rig) -> None:
    await rig.operator("otto", "operator:default", "viewer:other")
    request = operator_pb2.EventsRequest(object=ref("Operator", "otto"))

    async def told() -> list[str]:
        answers = rig.admin().Events(request)
        return [event.message async for answer in answers for event in answer.events]

    deadline = time.monotonic() + 30
    while "roles operator:default, viewer:other" not in (messages := await told()):
        assert time.monotonic() < deadline, messages
        await asyncio.sleep(0.05)


@pytest.fixture
def unlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks through open streams now and then: they end when they are told to."""
    monkeypatch.setattr("orchestrator.calls._SWEEP_EVERY_S", 600.0)


async def test_an_operators_open_watch_ends_when_it_is_revoked(unlooked: None, rig: Rig) -> None:
    stub = rig.operators(await rig.operator("vera", "viewer:default"))
    watch = stub.Watch(operator_pb2.WatchRequest(kind="Node"))
    assert (await watch.read()).type == operator_pb2.WATCH_TYPE_SYNCED
    events = stub.Events(operator_pb2.EventsRequest(follow=True))
    await events.read()
    request = operator_pb2.RevokeRequest(ref=ref("Operator", "vera"), reason="left the company")
    answer = await rig.admin().Revoke(request)
    assert answer.closed_streams == 2
    for stream in (watch, events):
        with pytest.raises(aio.AioRpcError) as caught:
            await asyncio.wait_for(stream.read(), 30)
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "left the company" in (caught.value.details() or "")
    again = await refusal(stub.WhoAmI(operator_pb2.WhoAmIRequest()))
    assert again.reason == "Revoked"


async def test_a_revoked_operator_comes_back_with_a_new_certificate_only(rig: Rig) -> None:
    old = await rig.operator("vera", "viewer:default")
    await rig.admin().Revoke(operator_pb2.RevokeRequest(ref=ref("Operator", "vera")))
    new = await rig.operator("vera", "viewer:default")
    assert (await rig.operators(new).WhoAmI(operator_pb2.WhoAmIRequest())).identity
    refused = await refusal(rig.operators(old).WhoAmI(operator_pb2.WhoAmIRequest()))
    assert refused.reason == "Revoked"


async def test_what_was_revoked_is_known_by_serial_to_those_who_cannot_ask(rig: Rig) -> None:
    """Agents that are cut off have no list of what counts: they are told what does not."""
    await rig.operator("vera", "viewer:default")
    cache = rig.orchestrator.parts.cache
    before = cache.identity("operator", "vera")
    assert before is not None and not before.refused_serials
    await rig.admin().Revoke(operator_pb2.RevokeRequest(ref=ref("Operator", "vera")))
    await rig.operator("vera", "viewer:default")
    after = cache.identity("operator", "vera")
    assert after is not None and after.refused_serials == before.serials
    assert after.serials.keys().isdisjoint(before.serials)


async def test_a_break_glass_token_is_revoked_by_its_serial(rig: Rig) -> None:
    serial = "0f" * 16
    await rig.admin().Revoke(operator_pb2.RevokeRequest(ref=ref("BreakGlass", serial)))
    found = rig.orchestrator.parts.cache.identity("break-glass", serial)
    assert found is not None and list(found.refused_serials) == [serial]
    for bad in ("", "x", "../../leader"):
        request = operator_pb2.RevokeRequest(ref=ref("BreakGlass", bad))
        assert (await refusal(rig.admin().Revoke(request))).reason == "InvalidArgument"


async def test_certificates_of_one_operator_are_bounded(rig: Rig) -> None:
    for _ in range(8):
        await rig.operator("otto", "admin")
    request = operator_pb2.IssueOperatorRequest(
        name="otto", roles=["admin"], csr=certificate_request()
    )
    assert (await refusal(rig.admin().IssueOperator(request))).reason == "TooManyCertificates"


async def open_session(rig: Rig, credentials: Credentials) -> aio.StreamStreamCall:
    session = rig.agents(credentials).Session()
    hello = agent_pb2.Hello(agent_version="1", instance_id="i", inventory=INVENTORY)
    await session.write(agent_pb2.SessionRequest(hello=hello))
    assert (await session.read()).HasField("welcome")
    return session


async def drained(session: aio.StreamStreamCall) -> aio.AioRpcError | None:
    try:
        while await session.read() is not aio.EOF:
            pass
    except aio.AioRpcError as error:
        return error
    return None


async def test_a_nodes_session_ends_when_it_is_revoked(unlooked: None, rig: Rig) -> None:
    credentials = await rig.node("n1")
    other = await rig.node("n2")
    session, untouched = await open_session(rig, credentials), await open_session(rig, other)
    answer = await rig.admin().Revoke(operator_pb2.RevokeRequest(ref=ref("Node", "n1")))
    assert answer.closed_streams == 1
    error = await asyncio.wait_for(drained(session), 30)
    assert error is not None and error.code() is grpc.StatusCode.UNAUTHENTICATED
    again = rig.agents(credentials).Session()
    await again.write(agent_pb2.SessionRequest(hello=agent_pb2.Hello()))
    assert await drained(again) is not None
    assert not untouched.done()


async def test_a_nodes_session_ends_when_its_certificate_does(tmp_path: Path) -> None:
    async with running(tmp_path, node_certificate_life="3s") as rig:
        await rig.site()
        session = await open_session(rig, await rig.node("n1"))
        error = await asyncio.wait_for(drained(session), 30)
        assert error is not None and error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "expired" in (error.details() or "")


async def test_a_renewal_over_the_session_keeps_it(tmp_path: Path) -> None:
    async with running(tmp_path, node_certificate_life="6s") as rig:
        await rig.site()
        session = await open_session(rig, await rig.node("n1"))
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:
            key = new_key()
            renew = agent_pb2.RenewRequest(csr=certificate_request(key))
            await session.write(agent_pb2.SessionRequest(renew=renew))
            message = await asyncio.wait_for(session.read(), 5)
            while not message.HasField("renew"):
                message = await asyncio.wait_for(session.read(), 5)
            assert not message.renew.error
            await asyncio.sleep(0.8)
        assert not session.done()
        newest = Credentials(key, tuple(message.renew.certificate_chain))
        await open_session(rig, newest)
        cache = rig.orchestrator.parts.cache

        def only_the_newest() -> bool:
            record = cache.identity("node", "n1")
            return record is not None and len(record.serials) == 1

        await until(only_the_newest, "older serials are dropped when the newest is used")


async def test_streams_outlive_a_certificate_that_was_renewed(rig: Rig) -> None:
    """A log or an exec over the old connection ends in its own time, or with a revocation."""
    old = await rig.node("n1")
    session = await open_session(rig, old)
    caller = Caller(
        rig.node_id("n1"), serial_text(load_der_x509_certificate(old.chain_der[0])), (), 4e9
    )

    async def carry() -> None:
        with rig.orchestrator.parts.calls.registered(caller):
            await asyncio.Event().wait()

    relay = asyncio.create_task(carry())
    key = new_key()
    renew = agent_pb2.RenewRequest(csr=certificate_request(key))
    await session.write(agent_pb2.SessionRequest(renew=renew))
    while not (message := await session.read()).HasField("renew"):
        pass
    await open_session(rig, Credentials(key, tuple(message.renew.certificate_chain)))
    assert await asyncio.wait_for(drained(session), 5) is None  # a goodbye, no refusal
    cache = rig.orchestrator.parts.cache
    await until(
        lambda: (record := cache.identity("node", "n1")) is not None and len(record.serials) == 1,
        "the old serial is dropped",
    )
    await asyncio.sleep(0)
    assert not relay.done()
    await rig.admin().Revoke(operator_pb2.RevokeRequest(ref=ref("Node", "n1")))
    await asyncio.wait({relay}, timeout=5)
    assert relay.cancelled()


async def test_the_members_certificate_is_renewed_without_dropping_anything(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, member_certificate_life="3s") as rig:
        stub = rig.admin()
        watch = stub.Watch(operator_pb2.WatchRequest(kind="Node"))
        await watch.read()
        first = rig.orchestrator.parts.member.current
        await until(
            lambda: (
                time.time() > first.expires_at
                and rig.orchestrator.parts.member.current.expires_at > time.time()
            ),
            "the first certificate is over and a later one is in use",
        )
        assert not watch.done()
        fresh = rig.operators(rig.admin_credentials())
        assert (await fresh.WhoAmI(operator_pb2.WhoAmIRequest())).identity


async def test_streams_of_one_identity_are_bounded(rig: Rig) -> None:
    stub = rig.operators(await rig.operator("vera", "viewer:default"))
    watches = [stub.Watch(operator_pb2.WatchRequest(kind="Node")) for _ in range(128)]
    await asyncio.gather(*(watch.read() for watch in watches))
    refused = await refusal(stub.Watch(operator_pb2.WatchRequest(kind="Node")))
    assert refused.reason == "TooManyStreams"
    assert (await stub.WhoAmI(operator_pb2.WhoAmIRequest())).identity
