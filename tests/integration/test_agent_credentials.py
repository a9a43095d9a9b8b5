"""The one-shot cryptography process, the identity on disk, and joining."""

import asyncio
import json
import time

import grpc
import pytest

from agent.identity_store import (
    CredentialsRefused,
    IdentityFailure,
    IdentityStore,
    NotJoined,
    SubprocessPlanVerifier,
    run_credentials,
)
from agent.join import JoinFailed, already_joined, default_node_name, join
from agent.plan_verifier import PlanRejected
from polder.errors import detail
from polder.identity import NodeId
from polder.tokens import JoinToken
from polder.v1 import plan_pb2
from tests.emulated import patience
from tests.integration.agent_fakes import DOMAIN, Ca, Orchestrator, write_identity


@pytest.fixture
def ca() -> Ca:
    return Ca()


@pytest.fixture
async def server(ca: Ca):
    orchestrator = await Orchestrator(ca).start()
    yield orchestrator
    await orchestrator.stop()


def token_for(server: Orchestrator, **changes: object) -> JoinToken:
    facts: dict[str, object] = {
        "secret": "s3cret",
        "site": "s1",
        "node": "",
        "endpoints": (f"127.0.0.1:{server.join_port}",),
        "ca": server.ca.der,
        "expires_at_ms": int((time.time() + 600) * 1000),
    }
    return JoinToken(**(facts | changes))  # type: ignore[arg-type]


# --- verification ---------------------------------------------------------------------------------


async def test_verifies_plans_in_another_process(tmp_path, ca, server) -> None:
    write_identity(tmp_path, ca, ["127.0.0.1:1"])
    verifier = SubprocessPlanVerifier(IdentityStore(tmp_path))
    signed = server.signed(plan_pb2.NodePlan(node="box-1", generation=4))
    assert await verifier.verify(signed, at=time.time()) == signed.node_plan

    tampered = plan_pb2.SignedNodePlan()
    tampered.CopyFrom(signed)
    tampered.node_plan += b"\x18\x05"
    with pytest.raises(PlanRejected) as refused:
        await verifier.verify(tampered, at=time.time())
    assert refused.value.reason == "BadSignature"

    with pytest.raises(PlanRejected) as refused:
        await verifier.verify(signed, at=time.time() + 86_400)
    assert refused.value.reason == "ExpiredChain"


async def test_a_plan_signed_under_another_root_or_by_a_node_is_refused(
    tmp_path, ca, server
) -> None:
    write_identity(tmp_path, ca, ["127.0.0.1:1"])
    verifier = SubprocessPlanVerifier(IdentityStore(tmp_path))
    foreign = Orchestrator(Ca()).signed(plan_pb2.NodePlan(node="box-1", generation=4))
    with pytest.raises(PlanRejected) as refused:
        await verifier.verify(foreign, at=time.time())
    assert refused.value.reason == "BadChain"

    server.chain = [ca.issue(server.key.public_key(), f"spiffe://{DOMAIN}/site/s1/node/evil")]
    by_node = server.signed(plan_pb2.NodePlan(node="box-1", generation=4))
    with pytest.raises(PlanRejected) as refused:
        await verifier.verify(by_node, at=time.time())
    assert refused.value.reason == "WrongSigner"


async def test_a_verifier_that_does_not_answer_says_nothing_about_the_plan(
    tmp_path, ca, server
) -> None:
    write_identity(tmp_path, ca, ["127.0.0.1:1"])
    verifier = SubprocessPlanVerifier(IdentityStore(tmp_path), timeout_s=0.001)
    with pytest.raises(PlanRejected) as refused:
        await verifier.verify(server.signed(plan_pb2.NodePlan()), at=time.time())
    assert refused.value.reason == "VerifierFailed"


async def test_damaged_input_is_refused_and_an_unknown_command_fails() -> None:
    with pytest.raises(CredentialsRefused):
        await run_credentials("inspect", {}, [b"not a certificate"], timeout_s=10)
    with pytest.raises(IdentityFailure):
        await run_credentials("no-such-command", {}, timeout_s=10)


# --- the store ------------------------------------------------------------------------------------


async def test_a_crash_before_the_switch_leaves_the_old_pair(tmp_path, ca) -> None:
    serial = write_identity(tmp_path, ca, ["127.0.0.1:1"])
    store = IdentityStore(tmp_path)
    await store.stage()  # and then the power goes
    again = IdentityStore(tmp_path)
    assert again.load().serial == serial
    staged = await again.stage()
    key = again.load().key_pem
    with pytest.raises(CredentialsRefused):  # a certificate for another key
        chain = ca.issue(Ca().key.public_key(), f"spiffe://{DOMAIN}/site/s1/node/box-1")
        await staged.commit([chain], [ca.der], ["127.0.0.1:1"])
    assert IdentityStore(tmp_path).load().key_pem == key


def test_endpoints_are_replaced_and_never_by_nothing(tmp_path, ca) -> None:
    write_identity(tmp_path, ca, ["127.0.0.1:1"])
    store = IdentityStore(tmp_path)
    store.update_endpoints([])
    store.update_endpoints(["10.0.0.1:1", "10.0.0.2:1"])
    assert IdentityStore(tmp_path).load().endpoints == ("10.0.0.1:1", "10.0.0.2:1")


def test_no_identity_and_a_damaged_one_are_told_apart(tmp_path, ca) -> None:
    with pytest.raises(NotJoined):
        IdentityStore(tmp_path).load()
    write_identity(tmp_path, ca, ["127.0.0.1:1"])
    (tmp_path / "identity" / "node.json").write_text("{")
    with pytest.raises(IdentityFailure) as damaged:
        IdentityStore(tmp_path).load()
    assert not isinstance(damaged.value, NotJoined)


# --- join -----------------------------------------------------------------------------------------


async def test_joins_once_and_says_so_the_second_time(tmp_path, server) -> None:
    async def admit(request, context):  # type: ignore[no-untyped-def]
        assert request.token_secret == "s3cret"
        return server.admit(request, request.node)

    server.on_join = admit
    token = token_for(server)
    store = IdentityStore(tmp_path)
    joined = await join(store, token, node="box-7", version="1")
    assert joined.identity.id == NodeId(DOMAIN, "s1", "box-7")
    assert joined.identity.endpoints == (server.endpoint,)
    assert (tmp_path / "identity" / "key.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "identities").stat().st_mode & 0o777 == 0o700

    again = already_joined(IdentityStore(tmp_path), token, "box-7")
    assert again is not None and again.already
    for other in (token_for(server, site="s2"), token_for(server, ca=Ca().der)):
        with pytest.raises(JoinFailed, match="this box has joined as"):
            already_joined(store, other, "")
    with pytest.raises(JoinFailed, match="this box has joined as"):
        already_joined(store, token, "box-8")


async def test_a_region_that_answers_nothing_is_passed_over(tmp_path, server) -> None:
    async def admit(request, context):  # type: ignore[no-untyped-def]
        return server.admit(request, request.node)

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    held: list[asyncio.StreamWriter] = []
    server.on_join = admit
    silent = await asyncio.start_server(hold, "127.0.0.1", 0)
    dead = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    try:
        started = time.monotonic()
        token = token_for(server, endpoints=(dead, f"127.0.0.1:{server.join_port}"))
        joined = await join(IdentityStore(tmp_path / "a"), token, node="box-7", version="1")
        assert joined.identity.id.node == "box-7" and time.monotonic() - started < patience(10)
        with pytest.raises(JoinFailed, match=f"{dead} did not answer within 5 s"):
            await join(
                IdentityStore(tmp_path / "b"), token_for(server, endpoints=(dead,)),
                node="box-8", version="1",
            )  # fmt: skip
    finally:
        for writer in held:
            writer.transport.abort()
        silent.close()


async def test_the_servers_reason_and_hint_are_shown(tmp_path, server) -> None:
    async def refuse(request, context):  # type: ignore[no-untyped-def]
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED,
            "the join token was used already",
            detail("TokenUnknown", "make a new one: edgectl token create"),
        )

    server.on_join = refuse
    with pytest.raises(JoinFailed) as failed:
        await join(IdentityStore(tmp_path), token_for(server), node="box-7", version="1")
    assert "TokenUnknown" in str(failed.value) and "edgectl token create" in str(failed.value)
    assert not list((tmp_path / "identities").iterdir())


async def test_another_ca_is_named_as_such(tmp_path, server) -> None:
    token = token_for(server, ca=Ca("other").der)
    with pytest.raises(JoinFailed, match="not signed by the CA that this token pins"):
        await join(IdentityStore(tmp_path), token, node="box-7", version="1")


async def test_the_next_endpoint_is_tried(tmp_path, server) -> None:
    async def admit(request, context):  # type: ignore[no-untyped-def]
        return server.admit(request, request.node)

    server.on_join = admit
    endpoints = ("127.0.0.1:1", f"127.0.0.1:{server.join_port}")
    token = token_for(server, endpoints=endpoints)
    joined = await join(IdentityStore(tmp_path), token, node="box-7", version="1")
    assert joined.identity.id.node == "box-7"


async def test_unreachable_expired_and_misnamed(tmp_path, server) -> None:
    store = IdentityStore(tmp_path)
    with pytest.raises(JoinFailed, match="cannot be reached"):
        token = token_for(server, endpoints=("127.0.0.1:1",))
        await join(store, token, node="box-7", version="1")
    with pytest.raises(JoinFailed, match="expired 60 s ago by this box's clock"):
        token = token_for(server)
        late = token.expires_at_ms / 1000 + 60
        await join(store, token, node="box-7", version="1", now=late)
    with pytest.raises(JoinFailed, match=r"clock says 1970-01-01 00:02:00 UTC.*set the clock"):
        await join(store, token_for(server), node="box-7", version="1", now=120.0)
    with pytest.raises(JoinFailed, match="the token is for node 'a'"):
        await join(store, token_for(server, node="a"), node="b", version="1")
    with pytest.raises(JoinFailed, match="no node name"):
        await join(store, token_for(server), node="Bad Name", version="1")


async def test_a_certificate_for_somebody_else_is_not_stored(tmp_path, server) -> None:
    async def cheat(request, context):  # type: ignore[no-untyped-def]
        answer = server.admit(request, "victim")
        answer.node = "box-7"
        return answer

    server.on_join = cheat
    with pytest.raises(JoinFailed, match="names spiffe://"):
        await join(IdentityStore(tmp_path), token_for(server), node="box-7", version="1")
    with pytest.raises(NotJoined):
        IdentityStore(tmp_path).load()


def test_host_names_become_node_names() -> None:
    assert default_node_name("Ward_3.Hospital") == "ward-3.hospital"
    with pytest.raises(JoinFailed):
        default_node_name("???")


def test_node_json_holds_no_secret(tmp_path, ca) -> None:
    write_identity(tmp_path, ca, ["127.0.0.1:1"])
    facts = json.loads((tmp_path / "identity" / "node.json").read_text())
    assert set(facts) == {"identity", "serial", "not_before", "not_after"}
