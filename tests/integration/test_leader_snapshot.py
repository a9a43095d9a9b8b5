"""What the leader's snapshot says of a node, from what the Store and its agent say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from orchestrator.cache import Cache
from orchestrator.domain.inventory import host_paths, problems
from orchestrator.domain.liveness import Liveness
from orchestrator.fleet import Fleet
from orchestrator.leader_snapshot import SnapshotBuilder, template_from
from orchestrator.records import AssignmentRecord, NodePlacement, StoredResource
from orchestrator.scheduling.snapshot import Observed, Resources
from orchestrator.scheduling.tick import Stray
from orchestrator.store import keys
from orchestrator.store.port import Put, Store
from orchestrator.store.sqlite import open_sqlite
from polder.epochs import decided_at
from polder.manifest import PodTemplate, decode
from polder.v1 import agent_pb2
from tests.integration.gateway_harness import eventually

NOW = 1_000.0


def heartbeat(*conditions: str) -> agent_pb2.Heartbeat:
    return agent_pb2.Heartbeat(
        conditions=[agent_pb2.NodeCondition(type=name, status=True) for name in conditions]
    )


async def test_a_runtime_that_is_down_and_up_again_reaches_the_scheduler(tmp_path: Path) -> None:
    store = await open_sqlite(tmp_path / "polder.db")
    node = StoredResource("Node", "", "n1", "u", {"site": "s"})
    await store.txn((), (Put(keys.spec("Node", "", "n1"), node.to_bytes()),))
    cache, fleet = Cache(store, lambda: NOW), Fleet(NOW)
    await cache.start()
    try:
        builder = SnapshotBuilder(cache, fleet)
        seen = fleet.heard("n1", NOW)
        for conditions, expected in (((), False), (("RuntimeDown",), True), (("Other",), False)):
            seen.heartbeat = heartbeat(*conditions)
            (found,) = builder.build(NOW, NOW).nodes
            assert found.not_ready is expected
    finally:
        await cache.stop()
        await store.close()


async def test_the_silence_of_a_node_is_the_same_whatever_the_wall_clock_says(
    tmp_path: Path,
) -> None:
    """By `now - since` a replica's patience with a lost node is counted (scheduling/moves.py)."""
    async with builder_of(tmp_path, node(), site()) as (builder, fleet, _):
        fleet.listening_since -= 1_000.0
        seen = fleet.heard("n1", NOW)
        assert seen.heard_at is not None
        seen.heard_at -= 60.0
        for now in (NOW, NOW + 86_400, NOW - 86_400, NOW):
            (found,) = builder.build(now, 0.0).nodes
            assert found.liveness is Liveness.LOST
            assert now - found.since == pytest.approx(60.0, abs=5.0)
        fleet.heard("n1", NOW)
        (found,) = builder.build(NOW, 0.0).nodes
        assert (found.liveness, found.since) == (Liveness.LIVE, 0.0)


# --- sites, windows, deadlines --------------------------------------------------------------------


@asynccontextmanager
async def builder_of(
    tmp_path: Path, *resources: StoredResource
) -> AsyncIterator[tuple[SnapshotBuilder, Fleet, Store]]:
    store = await open_sqlite(tmp_path / "polder.db")
    for item in resources:
        await store.txn((), (Put(keys.spec(*item.ref), item.to_bytes()),))
    cache, fleet = Cache(store, lambda: NOW), Fleet(NOW)
    await cache.start()
    try:
        yield SnapshotBuilder(cache, fleet), fleet, store
    finally:
        await cache.stop()
        await store.close()


def site(**spec: object) -> StoredResource:
    return StoredResource("Site", "", "s", "us", {"provider": "p", "country": "NL", **spec})


def node(**spec: object) -> StoredResource:
    return StoredResource("Node", "", "n1", "un", {"site": "s", **spec})


async def test_a_window_opens_and_closes_by_itself(tmp_path: Path) -> None:
    window = {"start": "1970-01-01T00:20:00Z", "end": "1970-01-01T00:30:00Z", "drain": True}
    async with builder_of(tmp_path, node(), site(maintenance=[window])) as (builder, _, _):
        standings = []
        for now in (1199.0, 1200.0, 1799.0, 1800.0):
            (found,) = builder.build(now, 0.0).nodes
            standings.append((found.cordoned, found.draining))
        text = "maintenance of site s until 1970-01-01T00:30:00Z"
        assert standings == [("", False), (text, True), (text, True), ("", False)]


async def test_cordons_of_site_and_provider_are_told_apart(tmp_path: Path) -> None:
    spec = {"legalName": "P", "seatCountry": "NL", "unschedulable": True}
    provider = StoredResource("Provider", "", "p", "up", spec)
    async with builder_of(tmp_path, node(), site(unschedulable=True), provider) as made:
        (found,) = made[0].build(NOW, 0.0).nodes
        assert found.cordoned == "site s is cordoned; provider p is cordoned"
        assert not found.draining and not found.unschedulable


async def test_a_drain_is_overdue_after_its_deadline(tmp_path: Path) -> None:
    drained = node(draining=True, drainDeadline="1970-01-01T00:20:00Z")
    async with builder_of(tmp_path, drained, site()) as (builder, _, _):
        overdue = [builder.build(now, 0.0).nodes[0].drain_overdue for now in (1199.0, 1200.0)]
        assert overdue == [False, True]


# --- replicas -------------------------------------------------------------------------------------


async def test_how_long_a_replica_is_ready_is_counted_by_the_steady_clock(tmp_path: Path) -> None:
    async with builder_of(tmp_path, node(), site()) as (builder, fleet, store):
        stay = AssignmentRecord("default", "w", "uw", "w-0", "u1", 1, 1)
        placement = NodePlacement("n1", 1, (stay,))
        await store.txn((), (Put(keys.placement("n1"), placement.to_bytes()),))
        await eventually(lambda: builder.build(NOW, 0.0).placements, "the placement is mirrored")
        seen = fleet.heard("n1", NOW)

        def report(ready: bool, phase: str = "RUNNING", **more: object) -> None:
            seen.replicas["u1"] = agent_pb2.ReplicaStatus(
                replica_uid="u1", revision=1, ready=ready,
                phase=agent_pb2.ReplicaPhase.Value(f"REPLICA_PHASE_{phase}"), **more,
            )  # fmt: skip

        def ready_for_s(now: float, steady: float) -> float:
            return builder.build(now, 0.0, steady).observed[("n1", "u1")].ready_for_s

        report(True)
        assert ready_for_s(NOW, 50.0) == 0.0
        assert ready_for_s(NOW + 86_400, 53.0) == 3.0  # the wall clock was set by a day
        assert builder.build(NOW, 0.0).observed[("n1", "u1")].ready_for_s == inf
        report(False, reason="Terminating", restarts=2)
        found = builder.build(NOW, 0.0, 54.0).observed[("n1", "u1")]
        assert found.terminating and found.restarts == 2 and found.ready_for_s == 0.0
        report(True)
        assert ready_for_s(NOW, 55.0) == 0.0
        report(True)
        assert ready_for_s(NOW, 58.0) == 3.0, "it said the same once more"
        again = builder.build(NOW, 57.0, 60.0).observed[("n1", "u1")]
        assert again.ready_for_s == 0.0, "another time of leading: nobody watched in between"
        assert builder.build(NOW, 57.0, 60.0 + 7200.0).observed[("n1", "u1")].ready_for_s == 7200.0
        builder.build(NOW, 0.0, 55.0)
        report(False, "FAILED")
        found = builder.build(NOW, 0.0, 56.0).observed[("n1", "u1")]
        assert found.finished and found.failed
        report(False, "SUCCEEDED")
        found = builder.build(NOW, 0.0, 57.0).observed[("n1", "u1")]
        assert found.finished and not found.failed


async def test_what_stays_the_same_is_looked_at_once_and_a_longer_min_ready_is_counted_on(
    tmp_path: Path,
) -> None:
    workload = StoredResource("Workload", "default", "slow", "us", {
        "template": {"containers": [{"name": "c", "image": "r.example/c@sha256:" + "0" * 64}]},
        "update": {"minReady": "10m"},
    })  # fmt: skip
    async with builder_of(tmp_path, node(), site()) as (builder, fleet, store):
        stay = AssignmentRecord("default", "w", "uw", "w-0", "u1", 1, 1)
        placement = NodePlacement("n1", 1, (stay,))
        await store.txn((), (Put(keys.placement("n1"), placement.to_bytes()),))
        await eventually(lambda: builder.build(NOW, 0.0).placements, "the placement is mirrored")
        seen = fleet.heard("n1", NOW)
        status = agent_pb2.ReplicaStatus(replica_uid="u1", revision=1, ready=True)
        seen.replicas["u1"] = status

        def look(steady: float) -> Observed:
            return builder.build(NOW, 0.0, steady).observed[("n1", "u1")]

        look(0.0)
        long = look(100.0)
        assert long.ready_for_s == 100.0 and look(200.0) is long
        await store.txn((), (Put(keys.spec(*workload.ref), workload.to_bytes()),))
        await eventually(lambda: builder.build(NOW, 0.0).workloads, "the workload is mirrored")
        assert look(300.0).ready_for_s == 300.0
        del seen.replicas["u1"]
        assert not builder.build(NOW, 0.0, 301.0).observed
        seen.replicas["u1"] = status
        assert look(302.0).ready_for_s == 0.0


async def test_whose_image_is_not_for_its_node_is_named_as_long_as_it_says_so(
    tmp_path: Path,
) -> None:
    async with builder_of(tmp_path, node(), site()) as (builder, fleet, store):
        stays = tuple(
            AssignmentRecord("default", "w", "uw", f"w-{n}", f"u{n}", 1, 1) for n in range(3)
        )
        placement = NodePlacement("n1", 1, stays)
        await store.txn((), (Put(keys.placement("n1"), placement.to_bytes()),))
        await eventually(lambda: builder.build(NOW, 0.0).placements, "the placement is mirrored")
        seen = fleet.heard("n1", NOW)

        def say(uid: str, phase: str, reason: str = "") -> None:
            number = agent_pb2.ReplicaPhase.Value(f"REPLICA_PHASE_{phase}")
            seen.replicas[uid] = agent_pb2.ReplicaStatus(
                replica_uid=uid, revision=1, phase=number, reason=reason
            )

        say("u0", "PENDING", "ImagePlatform")
        say("u1", "RUNNING", "ImagePlatform")  # a word from before, and proof of the contrary
        say("u2", "PENDING", "ImageMissing")
        say("nobody", "PENDING", "ImagePlatform")  # no record names it
        for steady in (1.0, 2.0, None):  # new, unchanged, and as the operator API looks
            assert builder.build(NOW, 0.0, steady).foreign == {("n1", "u0")}
        say("u2", "PENDING", "ImagePlatform")
        assert builder.build(NOW, 0.0, 3.0).foreign == {("n1", "u0"), ("n1", "u2")}
        say("u0", "RUNNING")
        del seen.replicas["u2"]
        assert builder.build(NOW, 0.0, 4.0).foreign == frozenset()


async def test_volumes_and_what_a_namespace_allows(tmp_path: Path) -> None:
    spec = {"replica": "db-0", "volume": "data", "node": "n1"}
    volume = StoredResource("Volume", "lab", "db-0-data", "uv", spec)
    space = StoredResource("Namespace", "", "lab", "ul", {"allow": ["hostPath"]})
    async with builder_of(tmp_path, volume, space) as (builder, _, _):
        found = builder.build(NOW, 0.0)
        assert found.volumes == {("lab", "db-0"): "n1"}
        assert found.namespaces["lab"].allow == {"hostPath"}


def test_init_containers_ask_for_the_largest_and_containers_for_the_sum() -> None:
    def container(name: str, cpu: str, memory: str, **more: object) -> dict[str, object]:
        return {"name": name, "image": "x", "resources": {"cpu": cpu, "memory": memory, **more}}

    spec = {
        "containers": [container("a", "100m", "64Mi"), container("b", "100m", "64Mi")],
        "initContainers": [
            container("x", "500m", "32Mi"),
            container("y", "50m", "32Mi", devices={"polder.eu/gpu": 1}),
        ],
        "volumes": [{"name": "d", "local": {}}, {"name": "h", "hostPath": {"path": "/dev/x"}}],
        "hostNetwork": True,
    }
    made = template_from(decode(PodTemplate, spec))
    assert made.request == Resources(500, 128 << 20, 0, {"polder.eu/gpu": 1})
    assert made.local_volumes == ("d",) and made.host_paths == ("/dev/x",)
    assert made.demands == ("hostNetwork", "hostPath")


def test_paths_that_a_box_lets_pods_see() -> None:
    told = agent_pb2.NodeInventory(host_paths=["/srv/data:ro", "/dev/ttyS0"])
    assert host_paths(told) == ("/dev/ttyS0", "/srv/data")
    assert any(
        "no absolute path" in text
        for text in problems(agent_pb2.NodeInventory(arch="arm64", host_paths=["dev"]))
    )


# --- a Store that was restored from a backup ------------------------------------------------------


async def test_epochs_are_decided_above_all_that_agents_tell_of(tmp_path: Path) -> None:
    record = AssignmentRecord("ns", "w", "uid", "w-0", "u1", decided_at(1), 1)
    async with builder_of(tmp_path, node(), site()) as (builder, fleet, store):
        placed = NodePlacement("n1", 3, (record,))
        await store.txn((), (Put(keys.placement("n1"), placed.to_bytes()),))
        cache = builder._cache
        await cache.wait_for(await store.revision())
        seen = fleet.heard("n1", NOW)
        seen.acked_generation = 3
        seen.replicas["u1"] = agent_pb2.ReplicaStatus(replica_uid="u1", epoch=decided_at(1) + 4)
        assert builder.build(NOW, 0.0, 0.0).revision == cache.revision, "not behind"
        later = decided_at(cache.revision + 70) + 4
        seen.replicas["u1"] = agent_pb2.ReplicaStatus(replica_uid="u1", epoch=later)
        first = builder.build(NOW, 0.0, 1.0).revision
        assert decided_at(first) > later
        assert builder.build(NOW, 0.0, 2.0).revision == first, "once"
        stray = Stray(
            "n1", "ns", "w", "uid", "w-1", "u2", decided_at(first + 5), 1, 3, "", True, 1.0
        )
        second = builder.build(NOW, 0.0, 3.0, [stray]).revision
        assert decided_at(second) > stray.epoch
        # What is decided then stands in a placement, of which the next leader's mirror knows.
        record = replace(record, epoch=decided_at(second))
        placed = NodePlacement("n1", 4, (record,))
        await store.txn((), (Put(keys.placement("n1"), placed.to_bytes()),))
        mirror = Cache(store, lambda: NOW)
        await mirror.start()
        try:
            next_leader = SnapshotBuilder(mirror, Fleet(NOW))
            assert decided_at(next_leader.build(NOW, 0.0, 0.0).revision) > record.epoch
        finally:
            await mirror.stop()
