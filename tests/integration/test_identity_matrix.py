"""Every RPC times every kind of caller, generated from the proto descriptors.

An RPC without a row in `EXPECTED` fails the test: whoever adds one decides who may call it.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from grpc import aio

from orchestrator.identity.authority import LeafRequest, create_region, create_root, load_authority
from orchestrator.identity.pem import new_key
from polder.identity import MemberId
from polder.v1 import agent_pb2, member_pb2, member_pb2_grpc, operator_pb2
from tests.integration.orchestrator_rig import (
    Credentials,
    Rig,
    apply_request,
    detail_of,
    manifest,
    ref,
    running,
    workload,
)

SERVICES = (
    agent_pb2.DESCRIPTOR.services_by_name["AgentService"],
    operator_pb2.DESCRIPTOR.services_by_name["OperatorService"],
    member_pb2.DESCRIPTOR.services_by_name["MemberService"],
)
METHODS = [f"{s.full_name}/{m.name}" for s in SERVICES for m in s.methods]

# Who there is. What each shows is made in `callers` below.
HANDSHAKE_FAILS = ("no certificate", "foreign CA", "expired certificate")
UNAUTHENTICATED = ("revoked node", "revoked operator", "unlisted node", "other site's node")
NODES = ("node",)
MEMBERS = ("member",)
OPERATORS = (
    "viewer",  # of default
    "operator",  # of default
    "operator of another namespace",
    "viewer of another namespace",
    "admin",
)
ALL = (*HANDSHAKE_FAILS, *UNAUTHENTICATED, *NODES, *MEMBERS, *OPERATORS)

A, P = "OperatorService", "polder.v1."
# Who is let in with a request that touches namespace `default`. Everybody else is refused.
EXPECTED: dict[str, frozenset[str]] = {
    f"{P}AgentService/Join": frozenset(),  # on the mTLS port; the join port is tested below
    f"{P}AgentService/Session": frozenset(NODES),
    f"{P}AgentService/Relay": frozenset(NODES),
    f"{P}AgentService/Package": frozenset(NODES),
    f"{P}{A}/Apply": frozenset({"operator", "admin"}),
    f"{P}{A}/Get": frozenset({"viewer", "operator", "admin"}),
    f"{P}{A}/List": frozenset({"viewer", "operator", "admin"}),
    f"{P}{A}/Watch": frozenset({"viewer", "operator", "admin"}),
    f"{P}{A}/Delete": frozenset({"operator", "admin"}),
    f"{P}{A}/Logs": frozenset({"viewer", "operator", "admin"}),
    f"{P}{A}/Exec": frozenset({"operator", "admin"}),
    f"{P}{A}/Events": frozenset({"viewer", "operator", "admin"}),
    f"{P}{A}/CreateJoinToken": frozenset({"admin"}),
    f"{P}{A}/Revoke": frozenset({"admin"}),
    f"{P}{A}/IssueOperator": frozenset({"admin"}),
    f"{P}{A}/WhoAmI": frozenset(OPERATORS),
    f"{P}{A}/Why": frozenset({"viewer", "operator", "admin"}),
    f"{P}{A}/Plan": frozenset({"operator", "admin"}),
    f"{P}{A}/Simulate": frozenset({"viewer", "operator", "admin"}),
    f"{P}{A}/Concentration": frozenset({"viewer", "operator", "admin"}),
    f"{P}{A}/Compliance": frozenset({"viewer", "operator", "admin"}),
    f"{P}{A}/Rollout": frozenset({"viewer", "operator", "admin"}),
    f"{P}{A}/UndoRollout": frozenset({"operator", "admin"}),
    f"{P}{A}/Freeze": frozenset({"operator", "admin"}),
    f"{P}{A}/Thaw": frozenset({"operator", "admin"}),
    f"{P}{A}/Guards": frozenset({"viewer", "operator", "admin"}),
    # The namespace is that of what is approved: see test_guards_api.py.
    f"{P}{A}/Approve": frozenset({"operator", "operator of another namespace", "admin"}),
    f"{P}{A}/Fence": frozenset({"operator", "admin"}),
    f"{P}{A}/Overrides": frozenset(OPERATORS),
    f"{P}{A}/ResolveOverride": frozenset({"operator", "admin"}),
    f"{P}{A}/Story": frozenset({"viewer", "operator", "admin"}),
    f"{P}{A}/Regions": frozenset(OPERATORS),
    f"{P}{A}/Drill": frozenset({"admin"}),
    f"{P}{A}/EndDrill": frozenset({"admin"}),
    f"{P}{A}/ForgetMember": frozenset({"admin"}),
    f"{P}{A}/PutRelease": frozenset({"admin"}),
    f"{P}{A}/Releases": frozenset(OPERATORS),
    f"{P}{A}/DeleteRelease": frozenset({"admin"}),
    f"{P}{A}/UpgradeAgents": frozenset({"admin"}),
    f"{P}{A}/AgentUpgrades": frozenset(OPERATORS),
    f"{P}MemberService/Follow": frozenset(MEMBERS),
    f"{P}MemberService/Forward": frozenset(MEMBERS),
}
_DEFAULT_WORKLOAD = ref("Workload", "w", "default")
REQUESTS: dict[str, Any] = {
    "Apply": apply_request(workload("w"), dry_run=True),
    "Get": operator_pb2.GetRequest(ref=_DEFAULT_WORKLOAD),
    "List": operator_pb2.ListRequest(kind="Workload", namespace="default"),
    "Watch": operator_pb2.WatchRequest(kind="Workload", namespace="default"),
    "Delete": operator_pb2.DeleteRequest(ref=_DEFAULT_WORKLOAD, dry_run=True),
    "Logs": operator_pb2.LogsRequest(namespace="default", replica="w-0"),
    "Exec": operator_pb2.ExecRequest(
        start=operator_pb2.ExecStart(
            namespace="default",
            replica="w-0",
            options=agent_pb2.ExecOptions(command=["true"]),
        )
    ),
    "Events": operator_pb2.EventsRequest(namespace="default"),
    "Why": operator_pb2.WhyRequest(ref=_DEFAULT_WORKLOAD),
    "Plan": operator_pb2.PlanRequest(documents=apply_request(workload("w")).documents),
    "Simulate": operator_pb2.SimulateRequest(
        namespace="default", losses=[operator_pb2.SimulatedLoss(kind="country", name="NL")]
    ),
    "Concentration": operator_pb2.ConcentrationRequest(namespace="default"),
    "Compliance": operator_pb2.ComplianceRequest(namespace="default"),
    "Rollout": operator_pb2.RolloutRequest(ref=_DEFAULT_WORKLOAD),
    "UndoRollout": operator_pb2.UndoRolloutRequest(ref=_DEFAULT_WORKLOAD, dry_run=True),
    "Freeze": operator_pb2.FreezeRequest(namespace="default"),
    "Thaw": operator_pb2.ThawRequest(namespace="default"),
    "Guards": operator_pb2.GuardsRequest(namespace="default"),
    "Approve": operator_pb2.ApproveRequest(id="none"),
    "Fence": operator_pb2.FenceRequest(namespace="default", replica="w-0"),
    "ResolveOverride": operator_pb2.ResolveOverrideRequest(namespace="default", replica="w-0"),
    "Story": operator_pb2.StoryRequest(ref=_DEFAULT_WORKLOAD),
    "Session": agent_pb2.SessionRequest(heartbeat=agent_pb2.Heartbeat()),
    "Relay": agent_pb2.RelayRequest(open=agent_pb2.RelayOpen(relay_id="none")),
    "Follow": member_pb2.FollowRequest(member="m9"),
    "Forward": member_pb2.ForwardRequest(open=member_pb2.ForwardOpen(node="none")),
}
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def test_every_rpc_has_a_row() -> None:
    assert set(EXPECTED) == set(METHODS)


@dataclass
class Answer:
    code: grpc.StatusCode
    reason: str = ""


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as made:
        await made.site()
        await made.apply(manifest("Namespace", "other"), workload("w", replicas=0))
        yield made


async def callers(rig: Rig, folder: Path) -> dict[str, Credentials | None]:
    create_root(folder, rig.authority.trust_domain, time.time())
    create_region(folder, "local", time.time())
    foreign = load_authority(folder, "local")
    key = new_key()
    request = LeafRequest(rig.operator_id("admin"), key.public_key(), 3600, ("admin",))
    foreign_chain = foreign.issue(request, time.time()).chain_der
    member, _ = rig.issue(MemberId(rig.authority.trust_domain, "local", "m9"))
    expired_at = time.time() - 3600
    expired_key = new_key()
    expired = rig.authority.issue(
        LeafRequest(rig.operator_id("old"), expired_key.public_key(), 60, ("admin",)), expired_at
    )
    made: dict[str, Credentials | None] = {
        "no certificate": None,
        "foreign CA": Credentials(key, foreign_chain),
        "expired certificate": Credentials(expired_key, expired.chain_der),
        "node": await rig.node("n1"),
        "revoked node": await rig.node("n2"),
        "unlisted node": rig.issue(rig.node_id("n1"))[0],
        "other site's node": rig.issue(rig.node_id("n1", "elsewhere"))[0],
        "member": member,
        "viewer": await rig.operator("vera", "viewer:default"),
        "operator": await rig.operator("otto", "operator:default"),
        "operator of another namespace": await rig.operator("olga", "operator:other"),
        "viewer of another namespace": await rig.operator("viki", "viewer:other"),
        "revoked operator": await rig.operator("gone", "admin"),
        "admin": rig.admin_credentials(),
    }
    for kind, name in (("Node", "n2"), ("Operator", "gone")):
        await rig.admin().Revoke(operator_pb2.RevokeRequest(ref=ref(kind, name)))
    return made


async def call(channel: aio.Channel, method: str) -> Answer:
    """The first answer: of a stream its first message is enough."""
    service, _, name = method.partition("/")
    found = next(s for s in SERVICES if s.full_name == service).methods_by_name[name]
    request = REQUESTS.get(name, message_factory.GetMessageClass(found.input_type)())
    kind = ("stream" if found.client_streaming else "unary") + (
        "_stream" if found.server_streaming else "_unary"
    )
    response_class = message_factory.GetMessageClass(found.output_type)
    invoke = getattr(channel, kind)(
        f"/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response_class.FromString,
    )
    try:
        if found.client_streaming and not found.server_streaming:
            await invoke(_only(request), timeout=10)
        elif found.client_streaming:
            await _first(invoke(_only(request), timeout=10))
        elif found.server_streaming:
            await _first(invoke(request, timeout=10))
        else:
            await invoke(request, timeout=10)
        return Answer(grpc.StatusCode.OK)
    except aio.AioRpcError as error:
        try:
            reason = detail_of(error).reason
        except AssertionError:
            reason = ""
        return Answer(error.code(), reason)


async def _only(request: Any) -> AsyncIterator[Any]:
    yield request
    await asyncio.sleep(60)  # the other side ends the stream, or the caller does


async def _first(stream: Any) -> None:
    """A stream that said something, or ended without an error, was let in."""
    async for _ in stream:
        stream.cancel()
        return


async def test_every_rpc_times_every_caller(rig: Rig, tmp_path: Path) -> None:
    made = await callers(rig, tmp_path / "foreign")
    assert set(made) == set(ALL)
    wrong = []
    for who, credentials in made.items():
        channel = rig.channel(credentials)
        answers = await asyncio.gather(*(call(channel, method) for method in METHODS))
        for method, answer in zip(METHODS, answers, strict=True):
            if who in HANDSHAKE_FAILS:
                as_expected = answer.code is grpc.StatusCode.UNAVAILABLE and not answer.reason
            elif who in UNAUTHENTICATED and not method.endswith("/Join"):
                as_expected = answer.code is grpc.StatusCode.UNAUTHENTICATED
            elif who in EXPECTED[method]:
                as_expected = answer.code not in (*REFUSED, grpc.StatusCode.UNAVAILABLE)
            else:
                as_expected = answer.code in REFUSED
            if not as_expected:
                wrong.append(f"{method} by {who}: {answer}")
    assert not wrong, "\n".join(wrong)


async def test_a_member_follows_under_its_own_name_only(rig: Rig) -> None:
    member, _ = rig.issue(MemberId(rig.authority.trust_domain, "local", "m9"))
    namesake, _ = rig.issue(MemberId(rig.authority.trust_domain, "local", rig.config.member_name))
    for credentials, name in ((member, "m8"), (namesake, rig.config.member_name)):
        channel = rig.channel(credentials)
        stub = member_pb2_grpc.MemberServiceStub(channel)
        with pytest.raises(aio.AioRpcError) as caught:
            await _first(stub.Follow(member_pb2.FollowRequest(member=name), timeout=10))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_the_join_port_serves_join_and_nothing_else(rig: Rig) -> None:
    channel = rig.channel(None, join=True)
    for method in METHODS:
        answer = await call(channel, method)
        if method.endswith("/Join"):
            assert answer.reason == "TokenUnknown"
        elif "/AgentService/" in f"/{method.partition('.v1.')[2]}":
            assert answer.code in REFUSED, method
        else:
            assert answer.code is grpc.StatusCode.UNIMPLEMENTED, method


async def test_an_unknown_rpc_is_refused(rig: Rig) -> None:
    channel = rig.channel(rig.admin_credentials())
    with pytest.raises(aio.AioRpcError) as caught:
        await channel.unary_unary("/polder.v1.OperatorService/Drop")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
