"""`edgectl fence` from the call to the record: who may, what is told, and what is done."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edgectl import config_file
from edgectl.__main__ import main
from orchestrator.api.fencing import RISK
from orchestrator.domain.fences import fenced_uids
from orchestrator.domain.overrides import LocalOverride
from orchestrator.records import AssignmentRecord, GroupRecord, NodePlacement, StopRecord
from orchestrator.store import keys
from polder.overrides import Override
from polder.v1 import operator_pb2
from tests.integration.edgectl_server import FakeInstallation
from tests.integration.orchestrator_rig import Rig, refusal, running, until

GROUP = GroupRecord(1, ("n1", "n2"), ("n3",), exclusive=True)
HERE = AssignmentRecord("default", "db", "uid-db", "db-0", "u1", 7, 1, group=GROUP)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as made:
        await made.site()
        await made.node("n1")
        yield made


async def has(rig: Rig, placement: NodePlacement) -> None:
    await rig.put(keys.placement(placement.node), placement.to_bytes())
    parts = rig.orchestrator.parts
    await until(lambda: parts.cache.placement(placement.node).generation > 0, "it is seen")


def fence(rig: Rig, force: bool, replica: str = "db-0") -> Any:
    request = operator_pb2.FenceRequest(namespace="default", replica=replica, force=force)
    return rig.admin().Fence(request)


def fenced(rig: Rig) -> frozenset[str]:
    return fenced_uids(rig.orchestrator.parts.cache.kept(keys.FENCES))


async def test_without_force_it_says_what_it_risks_and_does_nothing(rig: Rig) -> None:
    await has(rig, NodePlacement("n1", 1, (HERE,)))
    answer = await fence(rig, force=False)
    assert not answer.fenced and "default/db-0 on n1" in answer.message
    assert RISK in answer.warnings and any("n1 has not been heard" in w for w in answer.warnings)
    assert not fenced(rig)


async def test_with_force_the_stays_of_now_are_vouched_for(rig: Rig) -> None:
    stop = StopRecord("default", "db", "db-0", "u0", "Moved", "", 1, "uid-db", 1, GROUP)
    await has(rig, NodePlacement("n1", 1, (HERE,), (stop,)))
    answer = await fence(rig, force=True)
    assert answer.fenced and RISK in answer.warnings
    assert fenced(rig) == {"u0", "u1"}
    assert (await fence(rig, force=True)).fenced, "once more is harmless"
    assert fenced(rig) == {"u0", "u1"}
    (event,) = [
        e for e in rig.orchestrator.parts.events.list(namespace="default") if e.reason == "Fenced"
    ]
    assert "vouches that default/db-0 on n1 does not run any more" in event.message


async def test_what_is_heard_is_not_fenced(rig: Rig) -> None:
    await has(rig, NodePlacement("n1", 1, (HERE,)))
    rig.orchestrator.parts.fleet.heard("n1", time.time()).heard_at = time.monotonic() + 600
    refused = await refusal(fence(rig, force=True))
    assert refused.reason == "InUse" and "edgectl drain n1" in refused.detail.hint
    assert not fenced(rig)


async def test_what_operators_of_its_site_stopped_is_not_fenced_but_dropped_first(rig: Rig) -> None:
    """It would not be placed, whatever was vouched for; the command must not say that it is."""
    await has(rig, NodePlacement("n1", 1, (HERE,)))
    facts = {"stamp": 3, "node": "n1", "by": "operator/ann", "reason": "smoke", "at_ms": 5_000}
    decision = Override("stopped", "true", "uid-db", "default", "db-0", **facts)  # type: ignore[arg-type]
    elsewhere, there = LocalOverride("x", decision), LocalOverride("ams-1", decision)
    for override in (elsewhere, there):
        await rig.put(override.key, override.record().to_bytes())
    for force in (False, True):
        refused = await refusal(fence(rig, force))
        assert refused.reason == "StoppedLocally" and "operator/ann" in str(refused)
        assert "edgectl override drop db-0" in refused.detail.hint
    assert not fenced(rig)
    dropped = there.taken_back("operator/bob", "", 6_000)
    await rig.put(dropped.key, dropped.record().to_bytes())
    assert (await fence(rig, force=True)).fenced


async def test_only_exclusive_replicas_are_fenced(rig: Rig) -> None:
    refused = await refusal(fence(rig, force=True, replica="web-0"))
    assert refused.reason == "NotFound" and "failover.exclusive" in refused.detail.hint


# --- the verb ------------------------------------------------------------------------------------


def test_the_verb_warns_and_without_force_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[operator_pb2.FenceRequest] = []

    def answer(request: Any, _context: Any) -> operator_pb2.FenceResponse:
        asked.append(request)
        text = "taken for gone" if request.force else "nothing was done"
        return operator_pb2.FenceResponse(fenced=request.force, message=text, warnings=["two run"])

    fake = FakeInstallation()
    try:
        fake.stop()  # and again, so that the server takes up the method that is set
        setattr(fake.api, "Fence", answer)  # noqa: B010
        fake.server, fake.port = fake._serve(fake.api)
        path = tmp_path / "config.yaml"
        config_file.write_private(path, config_file.render(fake.context()), overwrite=True)
        monkeypatch.setenv("EDGECTL_CONFIG", str(path))
        assert main(["fence", "replica/db-0"]) == 1
        told = capfd.readouterr()
        assert told.out == "nothing was done\n" and "Warning: two run" in told.err
        assert main(["fence", "db-0", "--force", "-n", "ward"]) == 0
        assert capfd.readouterr().out == "taken for gone\n"
    finally:
        fake.stop()
    assert [(a.namespace, a.replica, a.force) for a in asked][-1] == ("ward", "db-0", True)
