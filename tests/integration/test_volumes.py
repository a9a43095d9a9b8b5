"""Local volumes and what a namespace allows, over a real Store and the wire."""

from pathlib import Path

from orchestrator.leader import LeaderSettings
from orchestrator.records import AssignmentRecord, NodePlacement, StoredResource
from orchestrator.store import keys
from orchestrator.store.port import MAX_TXN_OPS
from polder.v1 import operator_pb2
from tests.integration.gateway_harness import eventually, region
from tests.integration.orchestrator_rig import manifest, ref, refusal, running

QUICK = LeaderSettings("m1", poll_s=0.05, idle_plan_every_s=0.2, lease_ttl_s=2.0)
WITH_DATA = {
    "containers": [
        {"name": "db", "image": "db:1", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    ],
    "volumes": [{"name": "data", "local": {}}],
}


async def test_a_volume_is_recorded_with_the_placement_and_goes_with_its_node(
    tmp_path: Path,
) -> None:
    async with region(tmp_path, leader_settings=QUICK) as home:
        first = await (await home.join("n1")).connect()
        await home.workload("db", WITH_DATA, replicas=1)
        record = await eventually(
            lambda: home.cache.resource("Volume", "default", "db-0-data"), "the volume is recorded"
        )
        assert record.spec == {"replica": "db-0", "volume": "data", "node": "n1"}
        assert record.decoded.node == "n1"
        placed = home.cache.placement("n1").assignments[0]
        assert placed.placed_at_ms > 0
        second = await (await home.join("n2")).connect()
        await home.delete("Node", "n1")
        await eventually(lambda: second.runs() == ["db-0"], "it runs on the other node")
        await eventually(
            lambda: (
                (moved := home.cache.resource("Volume", "default", "db-0-data"))
                and moved.spec["node"] == "n2"
            ),
            "its data is there from now on",
        )
        await home.workload("db", WITH_DATA, replicas=0)
        await eventually(lambda: second.runs() == [], "it stopped")
        assert home.cache.resource("Volume", "default", "db-0-data") is not None
        await (await home.join("n3")).connect()
        await home.delete("Node", "n2")
        await eventually(
            lambda: home.cache.resource("Volume", "default", "db-0-data") is None,
            "the data went with the node",
        )
        told = [event.reason for event in home.events.list(kind="Volume", namespace="default")]
        assert "VolumeReleased" in told
        await first.disconnect()


async def test_a_new_node_of_an_old_name_inherits_no_volume(tmp_path: Path) -> None:
    """Not even where it was the only node, and a plan without nodes would say nothing of nodes."""
    async with region(tmp_path, leader_settings=QUICK) as home:
        first = await (await home.join("n1")).connect()
        await home.workload("db", WITH_DATA, replicas=1)
        before = await eventually(
            lambda: home.cache.resource("Volume", "default", "db-0-data"), "the volume is recorded"
        )
        await eventually(lambda: first.runs() == ["db-0"], "runs")
        await home.workload("db", WITH_DATA, replicas=0)
        await eventually(lambda: first.runs() == [], "stopped; the data stays")
        await home.delete("Node", "n1")
        await eventually(lambda: home.cache.resource("Node", "", "n1") is None, "the node is gone")
        assert home.cache.resource("Volume", "default", "db-0-data") is None
        await first.disconnect()
        again = await (await home.join("n1")).connect()
        await home.workload("db", WITH_DATA, replicas=1)
        await eventually(lambda: again.runs() == ["db-0"], "it begins anew")
        after = home.cache.resource("Volume", "default", "db-0-data")
        assert after is not None and after.uid != before.uid
        await again.disconnect()


async def test_more_volumes_than_fit_into_a_transaction_come_in_several(tmp_path: Path) -> None:
    async with region(tmp_path, leader_settings=QUICK) as home:
        agent = await (await home.join("n1")).connect()
        count = MAX_TXN_OPS + 20
        await home.workload("db", WITH_DATA, replicas=count)
        await eventually(lambda: len(agent.runs()) == count, "all run")
        assert len(list(home.cache.resources("Volume"))) == count
        assert "PlanTooLarge" not in home.reasons("Node", "n1")
        await agent.disconnect()


async def test_a_volume_can_be_deleted_when_nobody_uses_it(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        volume = StoredResource(
            "Volume", "default", "db-0-data", "v",
            {"replica": "db-0", "volume": "data", "node": "zz"},
        )  # fmt: skip
        stay = AssignmentRecord("default", "db", "uid", "db-0", "u1", 1, 1)
        await rig.put(keys.placement("zz"), NodePlacement("zz", 1, (stay,)).to_bytes())
        await rig.put(keys.spec(*volume.ref), volume.to_bytes())
        request = operator_pb2.DeleteRequest(ref=ref("Volume", "db-0-data", "default"))
        refused = await refusal(rig.admin().Delete(request))
        assert refused.reason == "InUse" and "replica/db-0" in refused.message
        await rig.put(keys.placement("zz"), NodePlacement("zz", 2).to_bytes())
        done = await rig.admin().Delete(request)
        assert done.finished
        assert rig.orchestrator.parts.cache.resource(*volume.ref) is None


async def test_what_the_namespace_does_not_allow_is_refused_with_the_field(tmp_path: Path) -> None:
    container = {
        "name": "app",
        "image": "app:1",
        "security": {"capabilities": ["NET_ADMIN"], "seccomp": "Unconfined"},
    }
    template = {
        "containers": [container],
        "hostNetwork": True,
        "volumes": [{"name": "dev", "hostPath": {"path": "/dev/ttyS0"}}],
    }
    wanted = manifest("Workload", "meter", namespace="lab", spec={"template": template})
    async with running(tmp_path) as rig:
        await rig.apply(manifest("Namespace", "lab"))
        refused = await refusal(rig.apply(wanted))
        found = {(item.path, item.message) for item in refused.detail.violations}
        assert {field for field, _ in found} == {
            "spec.template.hostNetwork",
            "spec.template.volumes[0].hostPath",
            "spec.template.containers[0].security.capabilities",
            "spec.template.containers[0].security.seccomp",
        }
        assert all("namespace.spec.allow of lab does not list" in text for _, text in found)
        everything = ["hostNetwork", "hostPath", "capabilities", "unconfined"]
        space = manifest("Namespace", "lab", spec={"allow": everything})
        # Together: as it will be after the request.
        (_, given) = (await rig.apply(space, wanted)).results
        (warning,) = given.warnings
        assert warning.startswith("spec.template.containers[0].security.capabilities: containerd ")
        assert "runAsUser: 0" in warning
        await rig.apply(manifest("Namespace", "lab"))
        await rig.apply(wanted)  # unchanged: nothing new is asked for
        template["stopDelay"] = "5s"
        assert (await refusal(rig.apply(wanted))).reason == "InvalidManifest"


async def test_a_mount_where_the_epoch_is_told_is_refused_with_the_field(tmp_path: Path) -> None:
    mounts = [{"name": "tmp", "mountPath": "/run/polder/state"}]
    container = {"name": "app", "image": "app:1", "volumeMounts": mounts}
    template = {"containers": [container], "volumes": [{"name": "tmp", "scratch": {}}]}
    wanted = manifest("Workload", "meter", namespace="default", spec={"template": template})
    async with running(tmp_path) as rig:
        refused = await refusal(rig.apply(wanted))
        assert refused.reason == "InvalidManifest"
        (found,) = refused.detail.violations
        assert found.path == "spec.template.containers[0].volumeMounts[0].mountPath"
        mounts[0]["mountPath"] = "/run/state"
        await rig.apply(wanted)


async def test_capabilities_of_root_come_without_a_warning(tmp_path: Path) -> None:
    security = {"capabilities": ["NET_ADMIN"], "runAsUser": 0}
    template = {"containers": [{"name": "app", "image": "app:1", "security": security}]}
    async with running(tmp_path) as rig:
        space = manifest("Namespace", "lab", spec={"allow": ["capabilities"]})
        wanted = manifest("Workload", "meter", namespace="lab", spec={"template": template})
        assert [list(r.warnings) for r in (await rig.apply(space, wanted)).results] == [[], []]
