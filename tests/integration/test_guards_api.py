"""Freezes, held stops and approvals as operators meet them, and edgectl's verbs for them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest

from edgectl import config_file
from edgectl.__main__ import main
from orchestrator.domain.holds import Hold, HoldKind, Scope
from orchestrator.domain.inventory import stored_form
from orchestrator.domain.liveness import Liveness
from orchestrator.records import NodeStatusRecord
from orchestrator.store import keys
from polder.v1 import agent_pb2, operator_pb2
from tests.integration.edgectl_server import FakeInstallation, now_ms
from tests.integration.orchestrator_rig import (
    Rig,
    apply_request,
    manifest,
    ref,
    refusal,
    running,
    until,
    workload,
)

COUNT = 30
HASTY = {"heartbeat_interval": "200ms", "silent_after": "500ms"}


async def box(rig: Rig, name: str) -> None:
    """A node that is live and has room, without an agent behind it."""
    await rig.node(name)
    plenty = agent_pb2.Resources(cpu_millis=64_000, memory_bytes=64 << 30, disk_bytes=500 << 30)
    inventory = agent_pb2.NodeInventory(arch="amd64", capacity=plenty, allocatable=plenty)
    record = NodeStatusRecord(name, "0.1", "boot", stored_form(inventory), 1)
    await rig.put(keys.node_status(name), record.to_bytes())
    rig.orchestrator.parts.fleet.heard(name, time.time()).heard_at = time.monotonic() + 600
    rig.orchestrator.parts.fleet.touch(name)


def placed(rig: Rig, name: str) -> int:
    index = rig.orchestrator.parts.catalog.index
    return len(index.workload("default", name).placed)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as made:
        await made.site()
        for name in ("n1", "n2"):
            await box(made, name)
        yield made


async def scaled(rig: Rig, count: int, **more: Any) -> operator_pb2.ApplyResponse:
    return await rig.apply(workload("app", replicas=count), **more)


async def guards(rig: Rig, stub: Any = None, namespace: str = "") -> operator_pb2.GuardsResponse:
    request = operator_pb2.GuardsRequest(namespace=namespace)
    return await (stub or rig.admin()).Guards(request)


def warnings(response: Any) -> list[str]:
    return [text for result in response.results for text in result.warnings]


# --- held stops -----------------------------------------------------------------------------------


async def test_a_scale_down_above_the_share_waits_for_its_approval(rig: Rig) -> None:
    await scaled(rig, COUNT)
    await until(lambda: placed(rig, "app") == COUNT, "placed")
    documents = apply_request(workload("app", replicas=3)).documents
    foretold = await rig.admin().Plan(operator_pb2.PlanRequest(documents=documents))
    assert warnings(foretold) == [
        "27 of 30 replicas of the whole fleet would stop at once (ScaledDown): "
        "they would run on until `edgectl approve`"
    ]
    await scaled(rig, 3)
    cache = rig.orchestrator.parts.cache
    await until(lambda: bool(cache.kept(keys.HOLDS)), "held")
    (hold,) = (await guards(rig)).holds
    assert (hold.scope, hold.stops, hold.replicas) == ("fleet", 27, 30)
    assert list(hold.workloads) == ["default/app"] and not hold.approved_by
    assert placed(rig, "app") == COUNT
    metrics = generate_latest(rig.orchestrator.parts.metrics.registry).decode()
    assert 'polder_holds{kind="stops"} 1.0' in metrics
    reasons = [event.reason for event in rig.orchestrator.parts.events.list()]
    assert reasons.count("StopsHeld") == 1 and "Held" in reasons
    shown = (await rig.admin().Get(operator_pb2.GetRequest(ref=ref("Workload", "app")))).resource
    assert f"edgectl approve {hold.id}" in shown.status_json.decode()

    tenant = rig.operators(await rig.operator("otto", "operator:default"))
    (seen,) = (await guards(rig, tenant)).holds
    assert seen.id == hold.id
    stranger = rig.operators(await rig.operator("olga", "operator:other"))
    assert not (await guards(rig, stranger)).holds
    request = operator_pb2.ApproveRequest(id=hold.id)
    refused = await refusal(tenant.Approve(request))
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED  # the fleet is the admin's
    answer = await rig.admin().Approve(request)
    assert "27 replicas stop" in answer.message
    await until(lambda: placed(rig, "app") == 3, "they stop")
    await until(lambda: not cache.kept(keys.HOLDS), "nothing is held any more")
    assert "Approved" in [event.reason for event in rig.orchestrator.parts.events.list()]


async def test_a_tenant_approves_what_is_its_own(rig: Rig) -> None:
    hold = Hold(
        "stops-x", HoldKind.STOPS, Scope.NAMESPACE, "default", "m", workloads=("default/a",)
    )
    stub = rig.operators(await rig.operator("otto", "operator:default"))
    viewer = rig.operators(await rig.operator("vera", "viewer:default"))
    stranger = rig.operators(await rig.operator("olga", "operator:other"))
    request = operator_pb2.ApproveRequest(id=hold.id)
    for who in (viewer, stranger):
        await rig.put(hold.key, hold.record().to_bytes())
        # The leader may be quicker, and take away what it does not want held.
        assert (await refusal(who.Approve(request))).reason in ("Forbidden", "NotFound")
    unknown = await refusal(stub.Approve(operator_pb2.ApproveRequest(id="nothing")))
    assert unknown.reason == "NotFound" and "edgectl guards" in unknown.detail.hint


# --- silent nodes ---------------------------------------------------------------------------------


def silent(rig: Rig, *nodes: str) -> None:
    fleet = rig.orchestrator.parts.fleet
    for name in nodes:
        fleet.heard(name, time.time()).heard_at = time.monotonic() - 60
        fleet.touch(name)


def heard(rig: Rig, *nodes: str) -> None:
    fleet = rig.orchestrator.parts.fleet
    for name in nodes:
        fleet.heard(name, time.time()).heard_at = time.monotonic() + 600
        fleet.touch(name)


async def conditions(rig: Rig, node: str) -> dict[str, Any]:
    answer = await rig.admin().Get(operator_pb2.GetRequest(ref=ref("Node", node)))
    found = json.loads(answer.resource.status_json)["conditions"]
    return {condition["type"]: condition for condition in found}


async def eventually_condition(rig: Rig, node: str, kind: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while kind not in (found := await conditions(rig, node)):
        assert time.monotonic() < deadline, f"never {kind}: {found}"
        await asyncio.sleep(0.05)
    shown: dict[str, Any] = found[kind]
    return shown


async def test_a_site_that_falls_silent_is_doubted_until_somebody_knows(tmp_path: Path) -> None:
    async with running(tmp_path, **HASTY, lost_after="1s") as rig:
        await rig.site()
        for name in ("n1", "n2", "n3"):
            await box(rig, name)
        await rig.apply(workload("app", replicas=6))
        await until(lambda: placed(rig, "app") == 6, "placed")
        index = rig.orchestrator.parts.catalog.index
        before = {p.node for p in index.workload("default", "app").placed.values()}
        assert before == {"n1", "n2", "n3"}
        silent(rig, "n1", "n2")
        cache = rig.orchestrator.parts.cache
        said = await eventually_condition(rig, "n1", "Suspect")
        await until(lambda: bool(cache.kept(keys.HOLDS)), "it is kept, too")
        (silence,) = (await guards(rig)).silences
        assert (silence.scope, silence.name) == ("site", "ams-1")
        assert (silence.silent, silence.nodes) == (2, 3) and silence.until_ms
        assert f"`edgectl approve {silence.id}`" in said["message"]
        assert said["source"] == f"leader/{rig.config.member_name}"
        explaining, metrics = rig.orchestrator.parts.explaining, rig.orchestrator.parts.metrics

        def waits_for() -> list[str]:
            return [item["reason"] for item in explaining.waiting("default", "app")]

        await until(lambda: "NodeSuspect" in waits_for(), "what waits for it says so")
        shown = 'polder_holds{kind="silence"} 1.0'
        await until(lambda: shown in generate_latest(metrics.registry).decode(), "it is counted")
        await rig.admin().Approve(operator_pb2.ApproveRequest(id=silence.id))
        await until(
            lambda: {p.node for p in index.workload("default", "app").placed.values()} == {"n3"},
            "those that are gone are left",
        )
        heard(rig, "n1", "n2")
        await until(lambda: not cache.kept(keys.HOLDS), "and nothing is doubted any more")


async def test_a_node_that_comes_and_goes_says_so_once(tmp_path: Path) -> None:
    async with running(tmp_path, **HASTY, lost_after="20s") as rig:
        await rig.site()
        await box(rig, "n1")

        def state() -> Liveness | None:
            known = rig.orchestrator.leader._memory.guards.nodes.get("n1")
            return known.state if known is not None else None

        await until(lambda: state() is Liveness.LIVE, "live")
        for _ in range(5):
            silent(rig, "n1")
            await until(lambda: state() is Liveness.SILENT, "silent")
            heard(rig, "n1")
            await until(lambda: state() is Liveness.LIVE, "live again")
        said = await eventually_condition(rig, "n1", "Flapping")
        assert said["message"] == "it fell silent 5 times in the last 10 minutes"
        told = rig.orchestrator.parts.events.list(kind="Node", name="n1")
        assert [event.reason for event in told].count("NodeFlapping") == 1
        assert sum(e.count for e in told if e.reason == "NodeSilent") == 2


# --- freezes --------------------------------------------------------------------------------------


async def test_a_freeze_holds_and_warns_and_ends(rig: Rig) -> None:
    await scaled(rig, 4)
    await until(lambda: placed(rig, "app") == 4, "placed")
    admin = rig.admin()
    freeze = (await admin.Freeze(operator_pb2.FreezeRequest(reason="incident 4711"))).freeze
    assert (freeze.by, freeze.reason) == ("operator/admin", "incident 4711")
    again = (await admin.Freeze(operator_pb2.FreezeRequest(reason="another"))).freeze
    assert again == freeze
    told = (
        "everything is frozen by operator/admin (incident 4711): "
        "nothing changes until `edgectl thaw`"
    )
    assert told in warnings(await scaled(rig, 2))
    assert told not in warnings(await scaled(rig, 2))  # nothing was written
    drained = manifest("Node", "n1", spec={"site": "ams-1", "draining": True})
    assert told in warnings(await rig.apply(drained))
    await rig.apply(workload("gone", replicas=1))
    request = operator_pb2.DeleteRequest(ref=ref("Workload", "gone"))
    assert list((await admin.Delete(request)).warnings) == [told]
    said = rig.orchestrator.parts.explaining
    await until(
        lambda: "Frozen" in [item["reason"] for item in said.waiting("default", "app")],
        "the leader saw what is wanted, and left it",
    )
    assert placed(rig, "app") == 4 and placed(rig, "gone") == 0
    shown = (await admin.Get(operator_pb2.GetRequest(ref=ref("Workload", "app")))).resource
    assert "is frozen by operator/admin" in json.loads(shown.status_json)["frozen"]
    assert (await admin.Thaw(operator_pb2.ThawRequest())).thawed
    assert not (await admin.Thaw(operator_pb2.ThawRequest())).thawed
    await until(lambda: placed(rig, "app") == 2, "what was asked for meanwhile")
    cache = rig.orchestrator.parts.cache
    await until(lambda: cache.resource("Workload", "default", "gone") is None, "deleted")


async def test_who_may_freeze_what(rig: Rig) -> None:
    tenant = rig.operators(await rig.operator("otto", "operator:default"))
    refused = await refusal(tenant.Freeze(operator_pb2.FreezeRequest()))
    assert refused.reason == "Forbidden"
    own = operator_pb2.FreezeRequest(namespace="default", reason="ours")
    assert (await tenant.Freeze(own)).freeze.by == "operator/otto"
    missing = await refusal(rig.admin().Freeze(operator_pb2.FreezeRequest(namespace="nowhere")))
    assert missing.reason == "NotFound"
    stranger = rig.operators(await rig.operator("olga", "viewer:other"))
    assert not (await guards(rig, stranger)).freezes
    (seen,) = (await guards(rig, tenant)).freezes
    assert (seen.namespace, seen.reason) == ("default", "ours")
    response = await rig.apply(manifest("Namespace", "ward"))
    assert not warnings(response)  # another namespace
    assert warnings(await scaled(rig, 1))
    assert (await tenant.Thaw(operator_pb2.ThawRequest(namespace="default"))).thawed


async def test_the_freeze_of_a_namespace_goes_with_it(rig: Rig) -> None:
    """Whoever makes one of that name later has frozen nothing."""
    await rig.apply(manifest("Namespace", "ward"))
    await rig.admin().Freeze(operator_pb2.FreezeRequest(namespace="ward"))
    await rig.admin().Delete(operator_pb2.DeleteRequest(ref=ref("Namespace", "ward")))
    assert not (await guards(rig)).freezes
    assert not warnings(await rig.apply(manifest("Namespace", "ward")))


async def test_a_freeze_survives_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        await rig.admin().Freeze(operator_pb2.FreezeRequest(reason="bad night"))
    async with running(tmp_path) as rig:
        (freeze,) = (await guards(rig)).freezes
        assert (freeze.namespace, freeze.reason) == ("", "bad night")


# --- edgectl --------------------------------------------------------------------------------------


class Api:
    """What edgectl is answered; the orchestrator's rules are tested above."""

    def __init__(self, fake: FakeInstallation) -> None:
        self.frozen: dict[str, operator_pb2.FreezeInfo] = {}
        self.answer = operator_pb2.GuardsResponse()
        self.approved: list[str] = []
        for name in ("Freeze", "Thaw", "Guards", "Approve"):
            setattr(fake.api, name, getattr(self, name))

    def Freeze(self, request: Any, context: Any) -> operator_pb2.FreezeResponse:
        info = operator_pb2.FreezeInfo(
            namespace=request.namespace, by="operator/ada", reason=request.reason, since_ms=now_ms()
        )
        self.frozen[request.namespace] = info
        return operator_pb2.FreezeResponse(freeze=info)

    def Thaw(self, request: Any, context: Any) -> operator_pb2.ThawResponse:
        found = self.frozen.pop(request.namespace, None)
        return operator_pb2.ThawResponse(thawed=found is not None)

    def Guards(self, request: Any, context: Any) -> operator_pb2.GuardsResponse:
        answer = operator_pb2.GuardsResponse(now_ms=now_ms(), freezes=self.frozen.values())
        answer.MergeFrom(self.answer)
        return answer

    def Approve(self, request: Any, context: Any) -> operator_pb2.ApproveResponse:
        self.approved.append(request.id)
        return operator_pb2.ApproveResponse(message="27 replicas stop")


@pytest.fixture
def fake() -> Iterator[FakeInstallation]:
    installation = FakeInstallation()
    yield installation
    installation.stop()


@pytest.fixture
def api(fake: FakeInstallation) -> Api:
    return Api(fake)


@pytest.fixture
def run(
    fake: FakeInstallation,
    api: Api,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    path = tmp_path / "config.yaml"
    fake.stop()  # and again, so that the server takes up the methods that were set
    fake.server, fake.port = fake._serve(fake.api)
    config_file.write_private(path, config_file.render(fake.context()), overwrite=True)
    monkeypatch.setenv("EDGECTL_CONFIG", str(path))

    def command(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main(list(words))
        except SystemExit as error:
            code = int(str(error.code))
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return command


def test_freeze_and_thaw(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("freeze", "--reason", "bad night")
    assert (code, out) == (0, "everything frozen by operator/ada: bad night\n")
    assert "nothing else changes until edgectl thaw\n" in err
    code, out, err = run("freeze", "-n", "ward")
    assert (code, out) == (0, "namespace/ward frozen by operator/ada\n")
    assert "edgectl thaw --namespace ward" in err
    code, out, err = run("thaw", "--namespace", "ward")
    assert (code, out) == (0, "namespace/ward thawed\n")
    assert err == "everything is still frozen; edgectl thaw\n"
    assert run("thaw")[:2] == (0, "everything thawed\n")
    assert run("thaw") == (0, "everything was not frozen\n", "")


def test_guards_and_approve(run: Callable[..., tuple[int, str, str]], api: Api) -> None:
    assert run("guards") == (0, "", "Nothing is frozen, and nothing is held back.\n")
    run("freeze", "-n", "ward", "--reason", "inventory")
    api.answer.holds.add(
        id="stops-1a2b",
        scope="site",
        name="nl-1",
        message="27 of 30 replicas of site nl-1 would stop at once (ScaledDown)",
        workloads=[f"ward/w{n}" for n in range(5)],
        since_ms=now_ms() - 90_000,
    )
    api.answer.silences.add(
        id="silence-3c4d", scope="everything", nodes=9, silent=9, since_ms=now_ms()
    )
    code, out, err = run("guards")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["FROZEN", "BY", "FOR", "REASON"]
    assert lines[1].split() == ["namespace/ward", "operator/ada", "0s", "inventory"]
    assert lines[3].split() == ["ID", "WHAT", "HELD", "APPROVED", "MESSAGE"]
    assert lines[4].startswith("stops-1a2b") and lines[4].endswith(
        "would stop at once (ScaledDown): ward/w0, ward/w1, ward/w2 and 2 more"
    )
    assert "9 of 9 nodes are silent: nothing moves off them until one is heard" in lines[5]
    code, out, _ = run("guards", "-o", "json")
    assert code == 0 and json.loads(out)["holds"][0]["id"] == "stops-1a2b"
    assert run("guards", "-o", "wide")[0] == 2
    code, out, _ = run("approve", "stops-1a2b", "silence-3c4d")
    assert code == 0 and api.approved == ["stops-1a2b", "silence-3c4d"]
    assert out.startswith("stops-1a2b approved: 27 replicas stop\n")
    assert run("approve")[0] == 2
    assert run("__complete", "holds")[1].split() == ["stops-1a2b", "silence-3c4d"]


def test_what_is_deleted_in_a_freeze_warns(
    run: Callable[..., tuple[int, str, str]], fake: FakeInstallation, monkeypatch: Any
) -> None:
    fake.api.put("Workload", "hello", {}, {})
    deleted = fake.api.Delete

    def warning(request: Any, context: Any) -> operator_pb2.DeleteResponse:
        response = deleted(request, context)
        response.warnings.append("everything is frozen by operator/ada: nothing changes until ...")
        return response

    fake.api.Delete = warning  # type: ignore[method-assign]
    fake.stop()
    fake.server, fake.port = fake._serve(fake.api)
    code, out, err = run("--endpoint", fake.endpoint, "delete", "workload/hello")
    assert (code, out) == (0, "workload/hello deleted\n")
    assert err.startswith("warning: workload/hello: everything is frozen")
