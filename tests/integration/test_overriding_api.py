"""Operators see and settle what sites decided: the RPCs, the conditions, and `edgectl override`."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgectl import config_file
from edgectl.__main__ import main
from orchestrator.domain.overrides import LocalOverride, overrides_in
from orchestrator.records import AssignmentRecord, NodePlacement
from orchestrator.store import keys
from polder.overrides import Override
from polder.v1 import operator_pb2, plan_pb2
from tests.integration.edgectl_server import FakeInstallation
from tests.integration.orchestrator_rig import Rig, manifest, refusal, running, until, workload

SITE = "ams-1"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as made:
        await made.site()
        await made.node("n1")
        await made.apply(manifest("Namespace", "ward"))
        both = [workload("web", namespace=space, replicas=2) for space in ("ward", "default")]
        await made.apply(*both)
        yield made


def uid(rig: Rig, namespace: str = "ward") -> str:
    found = rig.orchestrator.parts.cache.resource("Workload", namespace, "web")
    assert found is not None
    return found.uid


def stopped(rig: Rig, namespace: str = "ward", **more: Any) -> LocalOverride:
    facts = {"stamp": 3, "node": "n1", "by": "operator/ann", "reason": "smoke", "at_ms": 5_000}
    decision = Override("stopped", "true", uid(rig, namespace), namespace, "web-0", **facts)  # type: ignore[arg-type]
    return LocalOverride(SITE, replace(decision, **more), heard_ms=9, judged=True)


def frozen() -> LocalOverride:
    facts = {"stamp": 1, "node": "n1", "by": "break-glass/12ab"}
    return LocalOverride(SITE, Override("frozen", "true", **facts), judged=True)  # type: ignore[arg-type]


async def decided(rig: Rig, *overrides: LocalOverride) -> None:
    for override in overrides:
        await rig.put(override.key, override.record().to_bytes())


def known(rig: Rig) -> list[LocalOverride]:
    return overrides_in(rig.orchestrator.parts.cache.kept(keys.OVERRIDES))


async def listed(rig: Rig, stub: Any = None, namespace: str = "") -> list[str]:
    request = operator_pb2.OverridesRequest(namespace=namespace)
    answer = await (stub or rig.admin()).Overrides(request)
    return [
        f"{info.site} {info.override.namespace} {info.workload} {info.override.field}"
        for info in answer.overrides
    ]


def resolve(rig: Rig, stub: Any = None, **asked: Any) -> Any:
    asked = {"namespace": "ward", "replica": "web-0", **asked}
    return (stub or rig.admin()).ResolveOverride(operator_pb2.ResolveOverrideRequest(**asked))


async def conditions(rig: Rig, kind: str, name: str, namespace: str = "ward") -> dict[str, Any]:
    shown = rig.orchestrator.parts.catalog.get(kind, namespace, name)
    assert shown is not None and shown.status is not None
    return {c["type"]: c for c in shown.status.get("conditions", ())}


async def test_everybody_sees_what_concerns_him(rig: Rig) -> None:
    await rig.site("x")
    await rig.node("n2", "x")
    await decided(rig, stopped(rig), stopped(rig, "default"), frozen(), replace(frozen(), site="x"))
    await decided(rig, stopped(rig, replica="web-1", value=""))
    everything = [f"{SITE}   frozen", f"{SITE} default web stopped", f"{SITE} ward web stopped"]
    assert sorted(await listed(rig)) == [*everything, "x   frozen"]
    assert await listed(rig, namespace="ward") == [f"{SITE} ward web stopped"]
    tenant = rig.operators(await rig.operator("tim", "viewer:ward"))
    assert sorted(await listed(rig, tenant)) == [everything[0], everything[2], "x   frozen"]
    refused = await refusal(tenant.Overrides(operator_pb2.OverridesRequest(namespace="default")))
    assert refused.reason == "Forbidden"


async def test_who_may_settle_what(rig: Rig) -> None:
    await decided(rig, stopped(rig), frozen())
    viewer = rig.operators(await rig.operator("tim", "viewer:ward"))
    assert (await refusal(resolve(rig, viewer, drop=True))).reason == "Forbidden"
    tenant = rig.operators(await rig.operator("tom", "operator:ward"))
    of_site = {"namespace": "", "replica": "", "site": SITE}
    assert (await refusal(resolve(rig, tenant, drop=True, **of_site))).reason == "Forbidden"
    await resolve(rig, tenant, drop=True)
    await resolve(rig, drop=True, **of_site)
    assert await listed(rig) == [] and all(not item.decision.stands for item in known(rig))


async def test_dropped_it_is_taken_back_above_what_the_site_knows(rig: Rig) -> None:
    before = stopped(rig, conflict="it was placed on node z")
    await decided(rig, before)
    answer = await resolve(rig, drop=True, dry_run=True, reason="fixed")
    assert "taken back" in answer.message and known(rig)[0].decision.stands
    await resolve(rig, drop=True, reason="fixed")
    (after,) = known(rig)
    assert after.decision.rank > before.decision.rank
    assert (after.decision.by, after.decision.node) == ("operator/admin", "")
    assert not after.decision.stands and not after.decision.conflict
    refused = await refusal(resolve(rig, drop=True))
    assert refused.reason == "NotFound" and "edgectl override list" in refused.detail.hint
    events = rig.orchestrator.parts.events.list(kind="Replica", namespace="ward", name="web-0")
    (told,) = [event for event in events if event.reason == "LocalOverrideDropped"]
    assert "stopped by operator/ann at n1: smoke" in told.message and "fixed" in told.message


async def test_accepted_it_stands_as_it_is(rig: Rig) -> None:
    await decided(rig, stopped(rig))
    assert "nothing contradicts it" in (await refusal(resolve(rig))).message
    before = stopped(rig, conflict="it was placed on node z", replica="web-1")
    await decided(rig, before)
    answer = await resolve(rig, replica="web-1")
    assert answer.override.accepted == "it was placed on node z"
    (after,) = [item for item in known(rig) if item.decision.replica == "web-1"]
    assert after.decision.rank == before.decision.rank and after.decision.stands
    assert not after.decision.conflict


async def test_of_several_somebody_has_to_say_which(rig: Rig) -> None:
    moved = stopped(rig, field="placedOn", value="n1")
    await decided(rig, stopped(rig), moved)
    refused = await refusal(resolve(rig, drop=True))
    assert (
        refused.reason == "InvalidArgument" and "placedOn at ams-1, stopped at" in refused.message
    )
    await resolve(rig, drop=True, field="placedOn")
    assert await listed(rig) == [f"{SITE} ward web stopped"]
    assert (await refusal(resolve(rig, replica=""))).reason == "InvalidArgument"


async def test_conditions_say_it_of_workload_replica_and_site(rig: Rig) -> None:
    record = AssignmentRecord("ward", "web", uid(rig), "web-0", "u1", 7, 1)
    await rig.put(keys.placement("n1"), NodePlacement("n1", 1, (record,)).to_bytes())
    assert "LocalOverride" not in await conditions(rig, "Workload", "web")
    await decided(rig, stopped(rig, conflict="it was placed on node z"))
    of_workload = await conditions(rig, "Workload", "web")
    told = of_workload["LocalOverride"]
    assert (told["reason"], told["source"], told["status"]) == ("Stopped", "agent/n1", True)
    assert told["message"] == "web-0: stopped by operator/ann at n1: smoke"
    assert told["lastTransitionAt"] == 5_000
    assert of_workload["OverrideConflict"]["message"] == "web-0: it was placed on node z"
    of_replica = await conditions(rig, "Replica", "web-0")
    assert of_replica["LocalOverride"]["message"] == "stopped by operator/ann at n1: smoke"
    assert "LocalOverride" not in await conditions(rig, "Workload", "web", "default")
    await resolve(rig, drop=True)
    assert "LocalOverride" not in await conditions(rig, "Replica", "web-0")
    await decided(rig, frozen())
    assert (await conditions(rig, "Site", SITE, ""))["LocalOverride"]["reason"] == "Frozen"
    assert (await conditions(rig, "Replica", "web-0"))["LocalOverride"]["reason"] == "Frozen"


async def test_who_changes_the_workload_is_told(rig: Rig) -> None:
    await decided(rig, stopped(rig))
    answer = await rig.apply(
        *(workload("web", namespace=n, replicas=3) for n in ("ward", "default"))
    )
    (warning,) = answer.results[0].warnings
    assert warning.startswith("web-0 is stopped by operator/ann at n1: smoke; that goes on until")
    assert not answer.results[1].warnings


async def test_a_watcher_hears_of_it(rig: Rig) -> None:
    hub = rig.orchestrator.parts.hub
    heard: list[str] = []

    async def follow() -> None:
        request = operator_pb2.WatchRequest(kind="Workload", namespace="ward")
        async for change in rig.admin().Watch(request):
            heard.append(change.resource.status_json.decode())

    following = asyncio.create_task(follow())
    await until(lambda: hub.watchers == 1 and bool(heard), "it follows")
    await decided(rig, stopped(rig))
    await until(lambda: any("LocalOverride" in status for status in heard), "it is told")
    following.cancel()


# --- the verb ------------------------------------------------------------------------------------


def test_the_verb_lists_and_settles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[operator_pb2.ResolveOverrideRequest] = []
    of_replica = plan_pb2.Override(
        namespace="ward", replica="db-0", field="placedOn", value="edge-2", by="operator/ann",
        node="edge-1", reason="disk", conflict="placed on node z", at_ms=1,
    )  # fmt: skip
    of_site = plan_pb2.Override(field="frozen", value="true", by="break-glass/1", node="edge-1")
    infos = [operator_pb2.OverrideInfo(override=o, site="s1") for o in (of_replica, of_site)]

    def overrides(request: Any, _context: Any) -> operator_pb2.OverridesResponse:
        return operator_pb2.OverridesResponse(overrides=infos, now_ms=60_001)

    def settle(request: Any, _context: Any) -> operator_pb2.ResolveOverrideResponse:
        asked.append(request)
        return operator_pb2.ResolveOverrideResponse(message="done")

    fake = FakeInstallation()
    try:
        fake.stop()  # and again, so that the server takes up the methods that are set
        setattr(fake.api, "Overrides", overrides)  # noqa: B010
        setattr(fake.api, "ResolveOverride", settle)  # noqa: B010
        fake.server, fake.port = fake._serve(fake.api)
        path = tmp_path / "config.yaml"
        config_file.write_private(path, config_file.render(fake.context()), overwrite=True)
        monkeypatch.setenv("EDGECTL_CONFIG", str(path))
        assert main(["override", "list"]) == 0
        head, first, second = capfd.readouterr().out.splitlines()
        assert head.split()[0] == "NAME" and head.split()[-1] == "AGE"
        assert "ward/db-0" in first and "placed on edge-2" in first and first.endswith("60s")
        assert second.startswith("site/s1") and "frozen" in second
        assert main(["override", "list", "-o", "json"]) == 0
        assert '"conflict": "placed on node z"' in capfd.readouterr().out
        assert main(["override", "drop", "replica/db-0", "-n", "ward", "--reason", "ok"]) == 0
        assert main(["override", "accept", "site/s1", "--dry-run"]) == 0
        assert capfd.readouterr().out == "done\ndone (dry run)\n"
        assert main(["override", "drop", "site/s1", "--site", "s2"]) == 2
        infos.clear()
        assert main(["override", "list"]) == 0
        assert capfd.readouterr().out == ""
    finally:
        fake.stop()
    one, two = asked
    assert (one.namespace, one.replica, one.site, one.drop) == ("ward", "db-0", "", True)
    assert (two.namespace, two.replica, two.site, two.drop) == ("", "", "s1", False)
    assert one.reason == "ok" and two.dry_run
