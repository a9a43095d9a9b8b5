"""Apply, Get, List, Watch and Delete over the wire, on a real Store."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.api.apply import DOCUMENT_BYTES_MAX, REVISIONS_KEPT
from orchestrator.store import keys
from polder.v1 import common_pb2, operator_pb2
from tests.integration.orchestrator_rig import (
    PROVIDER_SPEC,
    Rig,
    manifest,
    ref,
    refusal,
    running,
    until,
    workload,
)

CREATED = operator_pb2.APPLY_OUTCOME_CREATED
CONFIGURED = operator_pb2.APPLY_OUTCOME_CONFIGURED
UNCHANGED = operator_pb2.APPLY_OUTCOME_UNCHANGED


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as made:
        yield made


async def get(rig: Rig, kind: str, name: str, namespace: str = "", stub: Any = None) -> Any:
    request = operator_pb2.GetRequest(ref=ref(kind, name, namespace))
    return (await (stub or rig.admin()).Get(request)).resource


def outcomes(response: operator_pb2.ApplyResponse) -> list[int]:
    return [result.outcome for result in response.results]


# --- apply --------------------------------------------------------------------------------------


async def test_apply_creates_then_changes_nothing_then_configures(rig: Rig) -> None:
    first = await rig.apply(workload("hello", replicas=0))
    assert outcomes(first) == [CREATED]
    again = await rig.apply(workload("hello", replicas=0))
    assert outcomes(again) == [UNCHANGED]
    assert (
        again.results[0].resource.metadata.revision == first.results[0].resource.metadata.revision
    )
    scaled = await rig.apply(workload("hello", replicas=1))
    assert outcomes(scaled) == [CONFIGURED]
    about = scaled.results[0].resource.metadata
    assert (about.generation, about.uid) == (2, first.results[0].resource.metadata.uid)
    labelled = manifest(
        "Workload",
        "hello",
        spec=json.loads(scaled.results[0].resource.spec_json),
        labels={"a": "b"},
    )
    assert (await rig.apply(labelled)).results[0].resource.metadata.generation == 2


async def test_a_template_is_kept_as_a_revision_and_old_ones_go(rig: Rig) -> None:
    cache = rig.orchestrator.parts.cache
    await rig.apply(workload("hello", replicas=0))
    await rig.apply(workload("hello", replicas=1))
    record = cache.resource("Workload", "default", "hello")
    assert record is not None and record.template_revision == 1
    for number in range(2, REVISIONS_KEPT + 4):
        await rig.apply(workload("hello", replicas=0, image=f"app:{number}"))

        def seen(newest: int = number, uid: str = record.uid) -> bool:
            rollout = cache.kept_at(keys.rollout(uid))
            body = rollout.body if rollout is not None else {}
            return (body.get("newest"), body.get("phase")) == (newest, "Proving")

        # What came before is needed until the next one is everywhere, also if that is nowhere.
        await until(seen, f"revision {number} is everywhere")
    record = cache.resource("Workload", "default", "hello")
    assert record is not None and record.template_revision == REVISIONS_KEPT + 3
    assert cache.revision_of(record.uid, record.template_revision) is not None
    assert cache.revision_of(record.uid, 1) is None


async def test_one_bad_document_stops_all_and_names_every_fault(rig: Rig) -> None:
    bad = workload("bad", replicas=-1)
    bad["spec"]["template"]["containers"][0]["imag"] = "typo"
    refused = await refusal(rig.apply(workload("good"), bad))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "InvalidManifest",
    )
    found = {(v.document, v.path) for v in refused.detail.violations}
    assert {(1, "spec.replicas"), (1, "spec.template.containers[0].imag")} <= found
    nothing = rig.admin().Get(operator_pb2.GetRequest(ref=ref("Workload", "good", "default")))
    assert (await refusal(nothing)).reason == "NotFound"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"apiVersion": "polder.eu/v1"}',
        b'"' + b"x" * DOCUMENT_BYTES_MAX + b'"',
    ],
    ids=["empty", "cut", "null", "list", "not UTF-8", "deep", "no kind", "large"],
)
async def test_what_is_no_manifest_is_refused(rig: Rig, raw: bytes) -> None:
    request = operator_pb2.ApplyRequest(documents=[operator_pb2.Document(json=raw)])
    assert (await refusal(rig.admin().Apply(request))).reason == "InvalidManifest"


async def test_a_document_named_twice_is_refused(rig: Rig) -> None:
    refused = await refusal(rig.apply(workload("a"), workload("a", namespace="default")))
    assert refused.reason == "InvalidManifest" and "document 0" in refused.message


async def test_what_is_referred_to_must_exist_or_come_along(rig: Rig) -> None:
    assert "namespace" in (await refusal(rig.apply(workload("w", namespace="new")))).message
    site = manifest("Site", "s", spec={"provider": "telco", "country": "NL"})
    assert "provider" in (await refusal(rig.apply(site))).message
    together = await rig.apply(
        workload("w", namespace="new"),
        manifest("Namespace", "new"),
        site,
        manifest("Provider", "telco", spec=PROVIDER_SPEC),
    )
    assert outcomes(together) == [CREATED] * 4


async def test_a_workload_may_come_before_its_namespace(rig: Rig) -> None:
    documents = (workload("w", namespace="new", replicas=0), manifest("Namespace", "new"))
    for dry_run in (True, False):
        answer = await rig.apply(*documents, dry_run=dry_run)
        assert [r.outcome for r in answer.results] == [CREATED, CREATED]
        stored = rig.orchestrator.parts.cache.resource("Workload", "new", "w")
        assert (stored is None) == dry_run


async def test_a_dry_run_says_what_would_happen_and_writes_nothing(rig: Rig) -> None:
    before = rig.orchestrator.parts.cache.resource("Workload", "default", "dry")
    response = await rig.apply(workload("dry"), dry_run=True)
    assert outcomes(response) == [CREATED] and before is None
    nothing = rig.admin().Get(operator_pb2.GetRequest(ref=ref("Workload", "dry", "default")))
    assert (await refusal(nothing)).reason == "NotFound"


async def test_an_expected_revision_guards_against_others(rig: Rig) -> None:
    first = (await rig.apply(workload("w", replicas=0), expected=-1)).results[0].resource
    exists = await refusal(rig.apply(workload("w"), expected=-1))
    assert (exists.code, exists.reason) == (grpc.StatusCode.ABORTED, "Conflict")
    await rig.apply(workload("w", replicas=1), expected=first.metadata.revision)
    stale = await refusal(rig.apply(workload("w", replicas=2), expected=first.metadata.revision))
    assert stale.reason == "Conflict" and stale.detail.hint


async def test_concurrent_applies_lose_no_update(rig: Rig) -> None:
    stub = rig.admin()
    await rig.apply(workload("w", replicas=0), stub=stub)
    answers = await asyncio.gather(
        *(rig.apply(workload("w", replicas=n), stub=stub) for n in range(1, 101))
    )
    generations = {a.results[0].resource.metadata.generation for a in answers}
    assert len(generations) == 100 and max(generations) == 101


async def test_many_documents_in_one_request(rig: Rig) -> None:
    documents = [workload(f"w{n}", replicas=0) for n in range(150)]
    assert outcomes(await rig.apply(*documents)) == [CREATED] * 150


async def test_nodes_are_edited_and_never_created(rig: Rig) -> None:
    await rig.site()
    assert "join" in (await refusal(rig.apply(manifest("Node", "n1", spec={"site": "x"})))).message
    await rig.node("n1")
    moved = manifest("Node", "n1", spec={"site": "elsewhere"})
    assert "spec.site" in (await refusal(rig.apply(moved))).message
    spec = {"site": "ams-1", "unschedulable": True}
    response = await rig.apply(manifest("Node", "n1", spec=spec, labels={"zone": "a"}))
    labels = response.results[0].resource.metadata.labels
    assert labels["zone"] == "a" and labels["polder.eu/site"] == "ams-1"


async def test_what_the_system_makes_cannot_be_applied(rig: Rig) -> None:
    for kind in ("Replica", "Operator"):
        refused = await refusal(rig.apply(manifest(kind, "x", spec={"workload": "w"})))
        assert refused.reason == "InvalidManifest"


async def test_an_oversized_message_is_refused_and_others_are_served(rig: Rig) -> None:
    document = operator_pb2.Document(json=b"x" * (5 << 20))
    call = rig.admin().Apply(operator_pb2.ApplyRequest(documents=[document]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await rig.apply(workload("still-served"))


# --- who may ------------------------------------------------------------------------------------


async def test_a_tenant_writes_in_its_namespace_only(rig: Rig) -> None:
    await rig.apply(manifest("Namespace", "mine"), manifest("Namespace", "theirs"))
    stub = rig.operators(await rig.operator("otto", "operator:mine", "viewer:default"))
    await rig.apply(workload("w", namespace="mine"), stub=stub)
    for document in (
        workload("w", namespace="theirs"),
        workload("w", namespace="default"),
        manifest("Namespace", "mine", spec={"description": "x"}),
        manifest("Provider", "p", spec=PROVIDER_SPEC),
    ):
        refused = await refusal(rig.apply(document, stub=stub))
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "Forbidden",
        )
    both = rig.apply(
        workload("fine", namespace="mine"), workload("w", namespace="theirs"), stub=stub
    )
    assert (await refusal(both)).reason == "Forbidden"
    found = await stub.List(operator_pb2.ListRequest(kind="Workload"))
    assert {r.metadata.name for r in found.resources} == {"w"}
    spaces = await stub.List(operator_pb2.ListRequest(kind="Namespace"))
    assert {r.metadata.name for r in spaces.resources} == {"mine", "default"}
    asked = stub.List(operator_pb2.ListRequest(kind="Workload", namespace="theirs"))
    assert (await refusal(asked)).reason == "Forbidden"


async def test_a_secrets_values_are_for_operators(rig: Rig) -> None:
    await rig.apply(manifest("Secret", "s", spec={"data": {"password": "hunter2"}}))
    viewer = rig.operators(await rig.operator("vera", "viewer:default"))
    operator = rig.operators(await rig.operator("otto", "operator:default"))
    seen = json.loads((await get(rig, "Secret", "s", stub=viewer)).spec_json)
    assert list(seen["data"]) == ["password"] and "hunter2" not in json.dumps(seen)
    listed = await viewer.List(operator_pb2.ListRequest(kind="Secret"))
    assert b"hunter2" not in listed.SerializeToString()
    assert b"hunter2" in (await get(rig, "Secret", "s", stub=operator)).spec_json


# --- list and watch -----------------------------------------------------------------------------


async def test_a_list_pages_and_selects(rig: Rig) -> None:
    documents = [
        manifest(
            "Workload",
            f"w{n:02}",
            spec=workload("x", replicas=0)["spec"],
            labels={"even": str(n % 2 == 0).lower()},
        )
        for n in range(25)
    ]
    await rig.apply(*documents)
    stub, names, token = rig.admin(), [], ""
    for expected in (10, 10, 5):
        page = await stub.List(
            operator_pb2.ListRequest(kind="Workload", limit=10, continue_token=token)
        )
        assert len(page.resources) == expected
        names += [r.metadata.name for r in page.resources]
        token = page.continue_token
    assert not token and names == [f"w{n:02}" for n in range(25)]
    request = operator_pb2.ListRequest(kind="Workload", label_selector="even in (true),!x")
    assert len((await stub.List(request)).resources) == 13
    for bad in (
        operator_pb2.ListRequest(kind="Pod"),
        operator_pb2.ListRequest(kind="Workload", label_selector="a in b"),
        operator_pb2.ListRequest(kind="Workload", continue_token="%%%"),
    ):
        assert (await refusal(stub.List(bad))).code is grpc.StatusCode.INVALID_ARGUMENT


class Watch:
    """A watch that is read in steps."""

    def __init__(self, stub: Any, **fields: str) -> None:
        self._call = stub.Watch(operator_pb2.WatchRequest(**fields))

    async def next(self) -> tuple[int, str]:
        response = await asyncio.wait_for(self._call.read(), 10)
        return response.type, response.resource.metadata.name


async def test_a_watch_shows_what_is_there_a_mark_and_every_change(rig: Rig) -> None:
    await rig.apply(workload("a", replicas=0))
    watch = Watch(rig.admin(), kind="Workload")
    assert await watch.next() == (operator_pb2.WATCH_TYPE_ADDED, "a")
    assert await watch.next() == (operator_pb2.WATCH_TYPE_SYNCED, "")
    await rig.apply(workload("b", replicas=0))
    assert await watch.next() == (operator_pb2.WATCH_TYPE_ADDED, "b")
    await rig.apply(workload("a", replicas=0, image="app:2"))
    assert await watch.next() == (operator_pb2.WATCH_TYPE_MODIFIED, "a")
    await rig.admin().Delete(operator_pb2.DeleteRequest(ref=ref("Workload", "b", "default")))
    kinds = [await watch.next()]
    while kinds[-1][0] != operator_pb2.WATCH_TYPE_DELETED:
        kinds.append(await watch.next())
    assert kinds[-1][1] == "b"  # before that, a's rollout may have gone on


async def test_a_watch_by_label_reports_what_leaves_it(rig: Rig) -> None:
    spec = workload("x", replicas=0)["spec"]
    await rig.apply(manifest("Workload", "a", spec=spec, labels={"team": "one"}))
    watch = Watch(rig.admin(), kind="Workload", label_selector="team=one")
    assert await watch.next() == (operator_pb2.WATCH_TYPE_ADDED, "a")
    assert await watch.next() == (operator_pb2.WATCH_TYPE_SYNCED, "")
    await rig.apply(manifest("Workload", "a", spec=spec, labels={"team": "two"}))
    assert await watch.next() == (operator_pb2.WATCH_TYPE_DELETED, "a")


async def test_a_replica_without_a_node_is_shown_with_the_reason(rig: Rig) -> None:
    await rig.apply(workload("lonely", replicas=2))
    shown = await get(rig, "Replica", "lonely-1")
    assert json.loads(shown.status_json)["phase"] == "Unplaced"
    assert json.loads(shown.spec_json)["node"] == ""
    gone = rig.admin().Get(operator_pb2.GetRequest(ref=ref("Replica", "lonely-2", "default")))
    assert (await refusal(gone)).reason == "NotFound"
    status = json.loads((await get(rig, "Workload", "lonely")).status_json)
    assert (status["replicas"], status["placed"], status["phase"]) == (2, 0, "Pending")


# --- delete -------------------------------------------------------------------------------------


async def delete(rig: Rig, kind: str, name: str, namespace: str = "", **more: Any) -> Any:
    request = operator_pb2.DeleteRequest(ref=ref(kind, name, namespace), **more)
    return await rig.admin().Delete(request)


async def test_what_something_refers_to_stays(rig: Rig) -> None:
    await rig.site()
    await rig.node("n1")
    await rig.apply(manifest("Namespace", "full"), workload("w", namespace="full", replicas=0))
    for kind, name, user in (
        ("Provider", "telco", "site/ams-1"),
        ("Site", "ams-1", "node/n1"),
        ("Namespace", "full", "workload/w"),
        ("Namespace", "default", "always"),
    ):
        refused = await refusal(delete(rig, kind, name))
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "InUse",
        )
        assert user in refused.message
        shown = await get(rig, kind, name)
        assert shown.metadata.deletion_requested_at_ms == 0


async def test_what_nothing_refers_to_goes_at_once(rig: Rig) -> None:
    await rig.apply(manifest("Namespace", "empty"), manifest("Secret", "s"))
    dry = await delete(rig, "Secret", "s", dry_run=True)
    assert dry.finished and (await get(rig, "Secret", "s")).metadata.name == "s"
    for kind, name in (("Namespace", "empty"), ("Secret", "s")):
        assert (await delete(rig, kind, name)).finished
        assert (await refusal(delete(rig, kind, name))).reason == "NotFound"


async def test_a_workload_is_marked_and_the_leader_takes_it_away(rig: Rig) -> None:
    store = rig.orchestrator.parts.store
    await rig.apply(workload("w", replicas=0))
    stale = await refusal(delete(rig, "Workload", "w", expected_revision=1))
    assert stale.reason == "Conflict"
    answer = await delete(rig, "Workload", "w")
    marked = answer.resource.metadata
    assert not answer.finished and marked.deletion_requested_at_ms
    assert (marked.changed_by, marked.changed_at_ms) == (
        "operator/admin",
        marked.deletion_requested_at_ms,
    )
    deadline = asyncio.get_running_loop().time() + 10
    while await store.get(keys.spec("Workload", "default", "w")) is not None:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


async def test_a_resource_that_is_being_deleted_takes_no_changes(rig: Rig) -> None:
    await rig.apply(manifest("Namespace", "leaving"))
    space = rig.orchestrator.parts.cache.resource("Namespace", "", "leaving")
    assert space is not None
    # As a deletion leaves it that was cut off between its two steps.
    marked = replace(space, deletion_requested_at_ms=1)
    await rig.put(keys.spec("Namespace", "", "leaving"), marked.to_bytes())
    refused = await refusal(rig.apply(manifest("Namespace", "leaving", spec={"description": "x"})))
    assert refused.reason == "BeingDeleted"
    assert "namespace" in (await refusal(rig.apply(workload("w", namespace="leaving")))).message
    assert (await delete(rig, "Namespace", "leaving")).finished


async def test_operators_are_listed_to_admins_only(rig: Rig) -> None:
    viewer = rig.operators(await rig.operator("vera", "viewer:default"))
    listed = await rig.admin().List(operator_pb2.ListRequest(kind="Operator"))
    shown = {r.metadata.name: json.loads(r.spec_json)["roles"] for r in listed.resources}
    assert shown == {"admin": ["admin"], "vera": ["viewer:default"]}
    refused = await refusal(viewer.List(operator_pb2.ListRequest(kind="Operator")))
    assert refused.reason == "Forbidden"


# --- events -------------------------------------------------------------------------------------


async def test_a_workloads_events_are_also_those_of_its_replicas(rig: Rig) -> None:
    await rig.site("ams-1")
    await rig.node("n1")
    record = rig.orchestrator.parts.events.record
    names = ("web-0", "web-12", "web-n1", "web-ams-1", "web-1-0", "website-0", "other-0")
    for name in names:
        record("Replica", "default", name, common_pb2.EVENT_TYPE_NORMAL, "Started", name, "test")
    record("Replica", "else", "web-0", common_pb2.EVENT_TYPE_NORMAL, "Started", "elsewhere", "test")
    record("Workload", "default", "web", common_pb2.EVENT_TYPE_NORMAL, "Deleted", "web", "test")

    async def told(**about: str) -> list[str]:
        request = operator_pb2.EventsRequest(object=ref(**about))
        answers = rig.admin().Events(request)
        return [event.message async for answer in answers for event in answer.events]

    mine = await told(kind="Workload", name="web", namespace="default")
    assert mine == ["web-0", "web-12", "web-n1", "web-ams-1", "web"]
    assert await told(kind="Replica", name="web-0", namespace="default") == ["web-0"]
