"""Rollout and UndoRollout over the wire, without agents: what is known, edits, and who may."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.api.apply import REVISIONS_KEPT
from orchestrator.domain.rollout_state import Past, Phase, RolloutState, Standing
from orchestrator.records import KeptRecord
from orchestrator.store import keys
from orchestrator.store.port import Delete, Put
from polder.v1 import operator_pb2
from tests.integration.orchestrator_rig import Rig, manifest, ref, refusal, running, until, workload

# Without replicas nothing is gated, and nothing is proven: the leader leaves it as the test says.
NONE: dict[str, Any] = {"replicas": 0}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as made:
        yield made


async def rollout(rig: Rig, name: str = "web", stub: Any = None, **more: Any) -> Any:
    request = operator_pb2.RolloutRequest(ref=ref("Workload", name), **more)
    return await (stub or rig.admin()).Rollout(request)


async def undo(rig: Rig, name: str = "web", stub: Any = None, **more: Any) -> Any:
    request = operator_pb2.UndoRolloutRequest(ref=ref("Workload", name), **more)
    return await (stub or rig.admin()).UndoRollout(request)


async def proving(rig: Rig, number: int) -> None:
    """The leader has seen a revision, and nothing holds it up."""
    parts, leader = rig.orchestrator.parts, rig.orchestrator.leader
    found = parts.cache.resource("Workload", "default", "web")
    assert found is not None

    def there() -> bool:
        state = leader.rollout(found.uid)
        return state is not None and (state.newest, state.phase) == (number, Phase.PROVING)

    await until(there, f"revision {number} is to be proven")


async def prove(rig: Rig, *numbers: int, failed: int = 0) -> None:
    """Write a record that says so, as if the leader had seen it."""
    parts = rig.orchestrator.parts
    found = parts.cache.resource("Workload", "default", "web")
    assert found is not None
    newest = found.template_revision
    history = []
    for number in range(1, newest + 1):
        revision = parts.cache.revision_of(found.uid, number)
        assert revision is not None
        standing = Standing.PROVEN if number in numbers else Standing.SUPERSEDED
        standing = Standing.FAILED if number == failed else standing
        cause = "it crashed" if number == failed else ""
        history.append(Past(number, revision.digest, revision.digest, standing, cause))
    state = RolloutState(
        newest, newest, Phase.PROVEN, proven=max(numbers), history=tuple(history), since_ms=5
    )
    key = keys.rollout(found.uid)
    await rig.put(key, KeptRecord(key, state.to_dict()).to_bytes())
    leader = rig.orchestrator.leader
    await until(lambda: leader.rollout(found.uid) == state, "the leader took it over")


async def test_status_and_history(rig: Rig) -> None:
    await rig.apply(workload("web", **NONE))
    await rig.apply(workload("web", image="app:2", **NONE))
    await proving(rig, 2)
    status = (await rollout(rig)).status
    assert (status.target_revision, status.proven_revision) == (2, 0)
    # Nothing is proven, and nothing is waited for, where no replica is asked for.
    assert status.settled and status.seconds_left == 600.0 and status.replicas_wanted == 0
    await prove(rig, 1, 2)
    answer = await rollout(rig, revision=1)
    assert answer.status.settled and answer.status.succeeded and answer.now_ms
    assert [(r.number, r.state, list(r.images)) for r in answer.revisions] == [
        (2, "Proven", ["app:2"]),
        (1, "Proven", ["app:1"]),
    ]
    assert answer.revisions[0].created_by == "operator/admin"
    assert json.loads(answer.template_json)["containers"][0]["image"] == "app:1"
    assert (await refusal(rollout(rig, revision=7))).code is grpc.StatusCode.NOT_FOUND


async def test_a_frozen_rollout_says_so(rig: Rig) -> None:
    await rig.apply(workload("web"))
    await rig.admin().Freeze(operator_pb2.FreezeRequest(reason="audit"))
    await rig.apply(workload("web", image="app:2"))
    message = (await rollout(rig)).status.message
    assert "frozen by operator/admin (audit)" in message and "edgectl thaw" in message


async def test_undo_returns_to_the_last_proven_one(rig: Rig) -> None:
    for number in (1, 2, 3, 4):
        await rig.apply(workload("web", image=f"app:{number}", **NONE))
    await prove(rig, 1, 2, failed=3)
    tried = await undo(rig, dry_run=True)
    assert (tried.from_revision, tried.to_revision) == (4, 2)
    assert (await rollout(rig)).status.newest_revision == 4
    done = await undo(rig)
    assert (done.from_revision, done.to_revision) == (4, 2)
    template = json.loads(done.resource.spec_json)["template"]
    assert template["containers"][0]["image"] == "app:2"
    assert done.resource.metadata.changed_by == "operator/admin"
    assert (await rollout(rig)).status.newest_revision == 5
    again = await undo(rig, to_revision=3)
    assert list(again.warnings) == ["revision 3 failed before: it crashed"]


async def test_undo_says_why_it_does_not(rig: Rig) -> None:
    await rig.apply(workload("web", **NONE))
    first = await refusal(undo(rig))
    assert first.reason == "NoEarlierRevision"
    await rig.apply(workload("web", image="app:2", **NONE))
    same = await refusal(undo(rig, to_revision=2))
    assert same.reason == "Unchanged" and "history" in same.detail.hint
    missing = await refusal(undo(rig, to_revision=9))
    assert missing.reason == "NotFound" and "there are: 2, 1" in missing.detail.hint
    stale = await refusal(undo(rig, expected_revision=1))
    assert stale.reason == "Conflict" and "operator/admin" in stale.message
    assert (await refusal(undo(rig, name="other"))).reason == "NotFound"
    await rig.apply(manifest("Namespace", "empty"))
    request = operator_pb2.RolloutRequest(ref=ref("Namespace", "empty"))
    assert (await refusal(rig.admin().Rollout(request))).reason == "BadKind"


async def test_jobs_have_no_rollout(rig: Rig) -> None:
    await rig.apply(workload("once", run="once"))
    found = await refusal(rollout(rig, name="once"))
    assert found.reason == "NoRollout" and "runs once" in found.message


async def test_viewers_look_and_operators_undo(rig: Rig) -> None:
    await rig.apply(workload("web", **NONE))
    await rig.apply(workload("web", image="app:2", **NONE))
    viewer = rig.operators(await rig.operator("vic", "viewer:default"))
    operator = rig.operators(await rig.operator("ann", "operator:default"))
    stranger = rig.operators(await rig.operator("eve", "operator:elsewhere"))
    assert (await rollout(rig, stub=viewer)).status.newest_revision == 2
    assert (await refusal(undo(rig, stub=viewer))).reason == "Forbidden"
    assert (await refusal(rollout(rig, stub=stranger))).reason == "Forbidden"
    assert (await refusal(undo(rig, stub=stranger))).reason == "Forbidden"
    done = await undo(rig, stub=operator)
    assert done.resource.metadata.changed_by == "operator/ann"
    newest = (await rollout(rig)).revisions[0]
    assert (newest.number, newest.created_by) == (3, "operator/ann")


async def test_a_paused_undo_says_that_nothing_moves_yet(rig: Rig) -> None:
    await rig.apply(workload("web", update={"paused": True}, **NONE))
    await rig.apply(workload("web", image="app:2", update={"paused": True}, **NONE))
    assert (await rollout(rig)).status.paused
    (warning,) = (await undo(rig)).warnings
    assert "paused" in warning and "resume" in warning


async def test_two_operators_at_once_and_the_second_learns_of_the_first(rig: Rig) -> None:
    await rig.apply(workload("web", **NONE))
    first = rig.operators(await rig.operator("ann", "operator:default"))
    request = operator_pb2.GetRequest(ref=ref("Workload", "web"))
    read = (await rig.admin().Get(request)).resource.metadata.revision
    await rig.apply(workload("web", image="app:2", **NONE), stub=first, expected=read)
    late = await refusal(rig.apply(workload("web", image="app:3", **NONE), expected=read))
    assert late.reason == "Conflict" and "changed by operator/ann at 20" in late.message


async def test_apply_never_forgets_a_revision_that_may_be_returned_to(rig: Rig) -> None:
    await rig.apply(workload("web", **NONE))
    await prove(rig, 1)
    for number in range(2, 14):
        await rig.apply(workload("web", image=f"app:{number}", **NONE))
    kept = [item.number for item in (await rollout(rig)).revisions]
    assert kept == [*range(13, 3, -1), 1]
    assert (await undo(rig)).to_revision == 1


async def test_a_proven_revision_stays_while_the_history_knows_it(rig: Rig) -> None:
    """It may be the way back, if the last proven one is the same as what fails."""
    for number in range(1, REVISIONS_KEPT + 1):
        await rig.apply(workload("web", **NONE, image=f"app:{number}"))
        await proving(rig, number)
    await prove(rig, 1, 9)
    await rig.apply(workload("web", **NONE, image="app:11"))
    cache = rig.orchestrator.parts.cache
    found = cache.resource("Workload", "default", "web")
    assert found is not None and found.template_revision == REVISIONS_KEPT + 1
    assert cache.revision_of(found.uid, 1) is not None


async def test_a_rollout_that_turns_back_during_an_apply_keeps_its_template(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, REVISIONS_KEPT + 1):
        await rig.apply(workload("web", **NONE, image=f"app:{number}"))
        await proving(rig, number)
    parts = rig.orchestrator.parts
    found = parts.cache.resource("Workload", "default", "web")
    assert found is not None
    oldest, txn = keys.revision(found.uid, 1), parts.store.txn
    raced: list[Any] = []

    async def racing(compares: Any, ops: Any) -> Any:
        if Delete(oldest) in ops and not raced:
            raced.append(ops)
            state = RolloutState(REVISIONS_KEPT, 1, phase=Phase.ROLLING_BACK)
            record = KeptRecord(keys.rollout(found.uid), state.to_dict())
            await txn([], [Put(record.key, record.to_bytes())])
        return await txn(compares, ops)

    monkeypatch.setattr(parts.store, "txn", racing)
    await rig.apply(workload("web", **NONE, image="app:11"))
    assert raced and parts.cache.revision_of(found.uid, 1) is not None
