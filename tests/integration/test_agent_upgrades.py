"""Upgrades of the fleet against a real orchestrator; the boxes are simulated."""

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest

from orchestrator.identity.authority import create_root
from orchestrator.identity.releases import issue, read_package
from orchestrator.store import keys
from polder.v1 import agent_pb2, operator_pb2
from tests.integration.orchestrator_rig import Rig, ref, refusal, running, until
from tests.integration.upgrade_boxes import Box, boxes, package, signed, upload, upload_requests

OLD, NEW, BAD = "0.1.0-1", "0.2.0-1", "0.3.0-1"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as made:
        yield made


# --- releases -------------------------------------------------------------------------------------


async def test_a_release_is_brought_shown_and_deleted(rig: Rig, tmp_path: Path) -> None:
    paths = [package(tmp_path, NEW, arch) for arch in ("amd64", "arm64")]
    release, found = signed(rig, paths)
    answer = await rig.admin().PutRelease(upload_requests(found))
    assert (answer.version, answer.created) == (NEW, True)
    amd64 = read_package(paths[0]).package
    again = upload_requests(found, amd64.sha256, paths[0].read_bytes())
    assert not (await rig.admin().PutRelease(again)).created
    (shown,) = (await rig.admin().Releases(operator_pb2.ReleasesRequest())).releases
    assert shown.version == NEW
    assert {p.arch: p.complete for p in shown.packages} == {"amd64": True, "arm64": False}
    cache = rig.orchestrator.parts.cache
    assert not any(key.startswith(keys.PACKAGES) for key in cache._values), "in the mirror"
    await rig.admin().DeleteRelease(operator_pb2.DeleteReleaseRequest(version=NEW))
    assert not (await rig.admin().Releases(operator_pb2.ReleasesRequest())).releases
    left = await rig.orchestrator.parts.store.range(keys.PACKAGES)
    assert not left.entries
    assert release.state_schema == 1


async def test_a_box_gets_the_bytes_from_where_it_left_off(rig: Rig, tmp_path: Path) -> None:
    await rig.site()
    release = await upload(rig, tmp_path, NEW)
    data = package(tmp_path, NEW).read_bytes()
    stub = rig.agents(await rig.node("n1"))
    sha256 = release.packages[0].sha256
    for offset in (0, 1, 262_143, 262_144, 300_000, len(data) - 1, len(data)):
        request = agent_pb2.PackageRequest(sha256=sha256, offset=offset)
        got = b"".join([part.data async for part in stub.Package(request)])
        assert got == data[offset:], offset
    for request, reason in (
        (agent_pb2.PackageRequest(sha256=sha256, offset=len(data) + 1), "InvalidArgument"),
        (agent_pb2.PackageRequest(sha256=sha256, offset=-1), "InvalidArgument"),
        (agent_pb2.PackageRequest(sha256="0" * 64), "NotFound"),
        (agent_pb2.PackageRequest(sha256="../../leader"), "NotFound"),
    ):
        assert (await refusal(stub.Package(request))).reason == reason


async def test_few_download_at_once(rig: Rig, tmp_path: Path) -> None:
    await rig.site()
    release = await upload(rig, tmp_path, NEW, size=24 << 20)
    request = agent_pb2.PackageRequest(sha256=release.packages[0].sha256)
    # Nobody reads on: flow control holds each, with a part in memory.
    open_calls = []
    for number in range(8):
        call = rig.agents(await rig.node(f"n{number}")).Package(request)
        assert (await call.read()).data
        open_calls.append(call)
    ninth = rig.agents(await rig.node("n8"))
    refused = await refusal(ninth.Package(request))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == "TooManyDownloads"
    open_calls[0].cancel()

    async def comes() -> bool:
        call = ninth.Package(request)
        try:
            return bool((await call.read()).data)
        except grpc.aio.AioRpcError:
            return False
        finally:
            call.cancel()

    deadline = time.monotonic() + 10
    while not await comes():
        assert time.monotonic() < deadline, "a place that is free is given"
        await asyncio.sleep(0.05)


async def test_what_is_not_believed_or_does_not_fit_is_refused(rig: Rig, tmp_path: Path) -> None:
    path = package(tmp_path, NEW)
    create_root(tmp_path / "foreign", rig.authority.trust_domain, time.time())
    _, foreign = issue(tmp_path / "foreign", [read_package(path)], time.time())
    refused = await refusal(rig.admin().PutRelease(upload_requests(foreign)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BadSignature")
    assert "sign-release" in refused.detail.hint

    release, found = signed(rig, [path])
    data, sha256 = path.read_bytes(), release.packages[0].sha256
    wrong = data[:-1] + bytes([data[-1] ^ 1])
    for body, reason, words in (
        (wrong, "WrongPackage", "not the one that was signed"),
        (data + b"more", "InvalidArgument", "larger than its release says"),
        (data[:-10], "InvalidArgument", "ended early"),
    ):
        refused = await refusal(rig.admin().PutRelease(upload_requests(found, sha256, body)))
        assert refused.reason == reason and words in refused.message
        (shown,) = (await rig.admin().Releases(operator_pb2.ReleasesRequest())).releases
        assert not shown.packages[0].complete
    other = hashlib.sha256(b"other").hexdigest()
    for _ in range(20):  # refused while the rest is on its way, and told all the same
        refused = await refusal(rig.admin().PutRelease(upload_requests(found, other, data)))
        assert "of no package of this release" in refused.message


async def test_what_is_here_is_not_written_over(rig: Rig, tmp_path: Path) -> None:
    await rig.site()
    release = await upload(rig, tmp_path, NEW)
    path, sha256 = package(tmp_path, NEW), release.packages[0].sha256
    _, found = signed(rig, [path])
    wrong = bytes(len(path.read_bytes()))
    refused = await refusal(rig.admin().PutRelease(upload_requests(found, sha256, wrong)))
    assert refused.reason == "WrongPackage"
    stub = rig.agents(await rig.node("n1"))
    request = agent_pb2.PackageRequest(sha256=sha256)
    assert b"".join([part.data async for part in stub.Package(request)]) == path.read_bytes()


async def test_who_stops_in_the_middle_keeps_nobody_else_from_it(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.api.releases.PAUSE_S_MAX", 0.5)
    release, found = signed(rig, [package(tmp_path, NEW)])

    async def stops() -> AsyncIterator[operator_pb2.PutReleaseRequest]:
        async for request in upload_requests(found, release.packages[0].sha256, b"begin"):
            yield request
        await asyncio.sleep(60)

    calls = [rig.admin().PutRelease(stops()) for _ in range(2)]
    refused = await asyncio.gather(*(refusal(call) for call in calls))
    assert {one.reason for one in refused} == {"UploadStopped"}
    await upload(rig, tmp_path, NEW)
    (shown,) = (await rig.admin().Releases(operator_pb2.ReleasesRequest())).releases
    assert shown.packages[0].complete


async def test_a_version_is_one_thing(rig: Rig, tmp_path: Path) -> None:
    await upload(rig, tmp_path, NEW)
    changed = package(tmp_path / "changed", NEW, Section="other")
    _, found = signed(rig, [changed])
    refused = await refusal(rig.admin().PutRelease(upload_requests(found)))
    assert refused.reason == "InUse" and "another package of 0.2.0-1 for amd64" in refused.message
    # Another architecture may be added.
    both = [package(tmp_path, NEW), package(tmp_path, NEW, "arm64")]
    _, found = signed(rig, both)
    await rig.admin().PutRelease(upload_requests(found))
    (shown,) = (await rig.admin().Releases(operator_pb2.ReleasesRequest())).releases
    assert {p.arch: p.complete for p in shown.packages} == {"amd64": True, "arm64": False}


async def test_what_was_signed_last_counts(rig: Rig, tmp_path: Path) -> None:
    path = package(tmp_path, NEW)
    _, first = signed(rig, [path])
    _, second = signed(rig, [path], downgrade=True, ahead_s=1.0)
    for found, created in ((first, True), (second, False), (second, False)):
        assert (await rig.admin().PutRelease(upload_requests(found))).created is created
    refused = await refusal(rig.admin().PutRelease(upload_requests(first)))
    assert refused.reason == "SignedLater"
    (shown,) = (await rig.admin().Releases(operator_pb2.ReleasesRequest())).releases
    assert shown.downgrade
    _, early = signed(rig, [path], ahead_s=2 * 86_400)
    refused = await refusal(rig.admin().PutRelease(upload_requests(early)))
    assert refused.reason == "SignedInTheFuture" and "ahead of our clock" in refused.message


# --- upgrades -------------------------------------------------------------------------------------


def begin(version: str = NEW, **more: Any) -> operator_pb2.UpgradeAgentsRequest:
    dry_run = more.pop("dry_run", False)
    asked = {"waves_permille": [1000], "at_once_permille": 0, "soak_s": 0, **more}
    return operator_pb2.UpgradeAgentsRequest(
        begin=operator_pb2.BeginUpgrade(version=version, **asked), dry_run=dry_run
    )


async def state(rig: Rig) -> operator_pb2.AgentUpgradeState:
    """Of the newest."""
    found = await rig.admin().AgentUpgrades(operator_pb2.AgentUpgradesRequest())
    first: operator_pb2.AgentUpgradeState = found.upgrades[0]
    return first


async def comes_to(
    rig: Rig, phase: str, look: Callable[[], None] = lambda: None
) -> operator_pb2.AgentUpgradeState:
    deadline = time.monotonic() + 60
    while (found := await state(rig)).phase != phase:
        look()
        assert time.monotonic() < deadline, f"never {phase}: {found}"
        await asyncio.sleep(0.02)
    return found


async def known(rig: Rig, version: str, count: int) -> None:
    """Until the orchestrator has heard so many boxes say a version, and what they are."""
    cache = rig.orchestrator.parts.cache

    def reported() -> bool:
        return all(cache.node_status(node.name) for node in cache.resources("Node"))

    await until(reported, "all have reported")

    async def counted() -> int:
        answer = await rig.admin().Releases(operator_pb2.ReleasesRequest())
        return int(answer.nodes_by_version[version])

    deadline = time.monotonic() + 20
    while await counted() != count:
        assert time.monotonic() < deadline, f"{count} nodes with {version}"
        await asyncio.sleep(0.02)


async def test_a_fleet_is_upgraded_in_waves(rig: Rig, tmp_path: Path) -> None:
    for version in (OLD, NEW):
        await upload(rig, tmp_path, version)
    async with boxes(rig, tmp_path / "boxes", 4, 3, OLD) as fleet:
        await known(rig, OLD, 12)
        answer = await rig.admin().UpgradeAgents(
            begin(waves_permille=[100, 500, 1000], at_once_permille=250, soak_s=1)
        )
        assert answer.state.nodes == 12
        (warning,) = answer.warnings  # the members of this tree are 0.1
        assert warning.startswith("agents of 0.2.0-1 are not supported beside these members")
        most, by_site, waves = 0, Counter[str](), set()

        def look() -> None:
            nonlocal most
            busy = [box for box in fleet if box.installing]
            most = max(most, len(busy))
            for site, count in Counter(box.site for box in busy).items():
                by_site[site] = max(by_site[site], count)
            done = sum(box.version == NEW for box in fleet)
            waves.add(done)

        for box in fleet:
            box.work_s = 0.3
        found = await comes_to(rig, "Done", look)
        assert (found.done, found.failed, found.waiting) == (12, 0, 0)
        assert {box.version for box in fleet} == {NEW}
        assert 1 <= most <= 3, "never more than the share at once"
        assert max(by_site.values()) == 1, "one of a site"
        assert {2, 6} <= waves, f"it stopped at each wave, and soaked: {sorted(waves)}"
        whole = package(tmp_path, NEW).read_bytes()
        assert all(box.fetched[0] == whole for box in fleet)
        # Its orders are swept.
        cache = rig.orchestrator.parts.cache
        await until(lambda: not cache.kept(keys.AGENT_VERSIONS), "orders swept")
        await known(rig, NEW, 12)
        shown = await rig.admin().Get(operator_pb2.GetRequest(ref=ref("Node", "s0-n0")))
        conditions = json.loads(shown.resource.status_json)["conditions"]
        (upgrading,) = (item for item in conditions if item["type"] == "Upgrading")
        assert (upgrading["status"], upgrading["reason"]) == (False, "Done")
        assert upgrading["message"] == "to 0.2.0-1"


async def test_a_bad_version_pauses_it_and_goes_no_further(rig: Rig, tmp_path: Path) -> None:
    for version in (OLD, BAD):
        await upload(rig, tmp_path, version)
    async with boxes(rig, tmp_path / "boxes", 3, 2, OLD) as fleet:
        await known(rig, OLD, 6)
        for box in fleet:
            box.bad.add(BAD)
        await rig.admin().UpgradeAgents(begin(BAD, waves_permille=[100, 1000]))
        found = await comes_to(rig, "Paused")
        assert found.reason == "TooManyFailed" and "NotWell" in found.message
        assert (found.done, found.failed) == (0, 1)
        assert found.shown[0].reason == "NotWell" and found.shown[0].phase == "Failed"
        assert {box.version for box in fleet} == {OLD}
        metrics = generate_latest(rig.orchestrator.parts.metrics.registry).decode()
        assert "polder_upgrades_paused 1.0" in metrics
        assert sum(bool(box.told) for box in fleet) == 1
        # Only that one tries once more after a resume, and it comes through now.
        for box in fleet:
            box.bad.clear()
        await rig.admin().UpgradeAgents(operator_pb2.UpgradeAgentsRequest(resume=found.id))
        found = await comes_to(rig, "Done")
        assert (found.done, found.failed) == (6, 0)
        assert max(order.attempt for box in fleet for order in box.told) == 2
        events = rig.orchestrator.parts.events
        reasons = {event.reason for event in events.list()}
        assert {"UpgradeRolledBack", "UpgradePaused", "UpgradeDone", "UpgradeFailed"} <= reasons


async def test_without_a_way_back_it_is_refused(rig: Rig, tmp_path: Path) -> None:
    await upload(rig, tmp_path, NEW)
    async with boxes(rig, tmp_path / "boxes", 1, 2, OLD):
        await known(rig, OLD, 2)
        refused = await refusal(rig.admin().UpgradeAgents(begin()))
        assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
        assert refused.reason == "MissingPackages"
        assert "no package of 0.1.0-1 for amd64 is here, for s0-n0, s0-n1" in refused.message
        assert "edgectl agent upload" in refused.detail.hint
        refused = await refusal(rig.admin().UpgradeAgents(begin("9.9")))
        assert refused.reason == "NotFound" and "there are: 0.2.0-1" in refused.message


async def test_a_dry_run_begins_nothing_and_a_second_one_is_refused(
    rig: Rig, tmp_path: Path
) -> None:
    for version in (OLD, NEW):
        await upload(rig, tmp_path, version)
    async with boxes(rig, tmp_path / "boxes", 1, 1, NEW) as fleet:
        await known(rig, NEW, 1)
        refused = await refusal(rig.admin().UpgradeAgents(begin(OLD)))
        assert refused.reason == "OlderRelease" and refused.message.endswith("for s0-n0")
        assert "sign-release --downgrade" in refused.detail.hint
        await upload(rig, tmp_path, OLD, downgrade=True)
        answer = await rig.admin().UpgradeAgents(begin(OLD, dry_run=True))
        assert "go back to 0.1.0-1" in answer.warnings[0]
        assert not (await rig.admin().AgentUpgrades(operator_pb2.AgentUpgradesRequest())).upgrades
        fleet[0].work_s = 60.0
        first = (await rig.admin().UpgradeAgents(begin(OLD))).state
        await until(lambda: fleet[0].installing, "it installs")
        refused = await refusal(rig.admin().UpgradeAgents(begin(OLD)))
        assert refused.reason == "InUse" and first.id in refused.message
        for version in (OLD, NEW):
            request = operator_pb2.DeleteReleaseRequest(version=version)
            assert (await refusal(rig.admin().DeleteRelease(request))).reason == "InUse"
        wrong = operator_pb2.UpgradeAgentsRequest(pause="7-beef")
        assert (await refusal(rig.admin().UpgradeAgents(wrong))).reason == "NotFound"
        ended = operator_pb2.UpgradeAgentsRequest(abort=first.id)
        answer = await rig.admin().UpgradeAgents(ended)
        assert answer.state.phase == "Aborted" and answer.state.under_way == 1
        assert (await rig.admin().UpgradeAgents(ended)).state.phase == "Aborted", "again"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"waves_permille": []}, "waves are"),
        ({"waves_permille": [100]}, "the last is 100%"),
        ({"waves_permille": [100, 100, 1000]}, "rising"),
        ({"waves_permille": [0, 1000]}, "rising"),
        ({"at_once_permille": 2000}, "0% to 100%"),
        ({"soak_s": -1}, "soak"),
        ({"patience_s": 1}, "patience"),
        ({"failures_max": -2}, "may fail"),
        ({"sites": ["nowhere"]}, "there is no site 'nowhere'"),
        ({"nodes": ["nobody"]}, "there is no node 'nobody'"),
    ],
)
async def test_what_none_may_ask(rig: Rig, wrong: dict[str, Any], words: str) -> None:
    refused = await refusal(rig.admin().UpgradeAgents(begin(**wrong)))
    assert words in refused.message


async def test_a_pause_calls_back_who_has_not_begun(rig: Rig, tmp_path: Path) -> None:
    for version in (OLD, NEW):
        await upload(rig, tmp_path, version)
    async with boxes(rig, tmp_path / "boxes", 1, 1, OLD) as fleet:
        await known(rig, OLD, 1)
        box = fleet[0]
        hold = _Held(box)
        first = (await rig.admin().UpgradeAgents(begin())).state
        await until(lambda: bool(box.told), "it is told")
        await rig.admin().UpgradeAgents(operator_pb2.UpgradeAgentsRequest(pause=first.id))
        await until(lambda: box.told[-1].withdrawn, "its order is withdrawn")
        hold.release()
        assert (await state(rig)).waiting + (await state(rig)).done == 0
        await rig.admin().UpgradeAgents(operator_pb2.UpgradeAgentsRequest(resume=first.id))
        assert (await comes_to(rig, "Done")).done == 1


class _Held:
    """A box that takes long to begin."""

    def __init__(self, box: Box) -> None:
        self._go = asyncio.Event()
        become = box._become

        async def later(said: agent_pb2.AgentUpgrade) -> None:
            await self._go.wait()
            await become(said)

        box._become = later  # type: ignore[method-assign]

    def release(self) -> None:
        self._go.set()


async def test_what_boxes_say_again_to_who_comes_later_is_no_event(tmp_path: Path) -> None:
    """They say it in each session for ever: a fleet that changes its region would fill the log."""

    def events(rig: Rig, node: str) -> list[tuple[str, int]]:
        found = rig.orchestrator.parts.events.list(kind="Node", name=node)
        return [(e.reason, e.count) for e in found if e.reason.startswith("Upgrade")]

    async with running(tmp_path) as rig:
        for version in (OLD, NEW, BAD):
            await upload(rig, tmp_path, version)
        async with boxes(rig, tmp_path / "boxes", 1, 2, OLD) as fleet:
            await known(rig, OLD, 2)
            await rig.admin().UpgradeAgents(begin())
            await comes_to(rig, "Done")
            fleet[1].bad.add(BAD)
            paused = (await rig.admin().UpgradeAgents(begin(BAD, nodes=["s0-n1"]))).state
            await comes_to(rig, "Paused")
            aborted = operator_pb2.UpgradeAgentsRequest(abort=paused.id)
            await rig.admin().UpgradeAgents(aborted)
            before = {box.name: events(rig, box.name) for box in fleet}
            assert before["s0-n0"] == [("UpgradeBegan", 1), ("Upgraded", 1)]
            assert ("UpgradeRolledBack", 1) in before["s0-n1"]
            await rig.restart()
            said = [rig.orchestrator.parts.fleet.observe(box.name) for box in fleet]
            await until(lambda: all(seen.upgrade is not None for seen in said), "said again")
            assert {box.name: events(rig, box.name) for box in fleet} == before


async def test_a_restarted_orchestrator_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        for version in (OLD, NEW):
            await upload(rig, tmp_path, version)
        async with boxes(rig, tmp_path / "boxes", 2, 2, OLD) as fleet:
            await known(rig, OLD, 4)
            for box in fleet:
                box.work_s = 0.3
            await rig.admin().UpgradeAgents(begin(waves_permille=[500, 1000], soak_s=1))
            await until(lambda: any(box.version == NEW for box in fleet), "one came through")
            await rig.restart()
            found = await comes_to(rig, "Done")
            assert (found.done, found.failed) == (4, 0)
            assert all(len({o.attempt for o in box.told}) == 1 for box in fleet)
