"""Private containerd instances: side by side, repaired, in a namespace, gone without a trace."""

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from agent.runtime.cri.adapter import CriRuntime
from agent.runtime.port import ContainerPhase, PortMapping
from devcluster import network, residue
from devcluster.containerd import PrivateContainerd
from devcluster.image import HELLO, hello_image
from devcluster.ports import free_port
from tests.cri_support import Pods, eventually, shell_container

pytestmark = pytest.mark.containerd


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[PrivateContainerd]:
    made = PrivateContainerd(tmp_path / "containerd")
    yield made
    made.stop(wipe=True)


def traces(instance: PrivateContainerd) -> list[str]:
    """Everything on this machine that still carries the instance's name or directories."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    rules = network.run(["iptables-save"], "").splitlines()
    links = network.run(["ip", "-br", "link"], "").splitlines()
    processes = network.run(["ps", "-eo", "args"], "").splitlines()
    marks = (instance.name, str(instance.directory))
    everything = mounts + rules + links + processes
    return [line for line in everything if any(mark in line for mark in marks)]


async def run_one_pod(instance: PrivateContainerd, folder: Path, port: int) -> str:
    runtime = CriRuntime(instance.socket)
    try:
        pods = Pods(runtime, folder)
        spec = pods.spec(PortMapping(8080, port))
        pod_id = await pods.run(spec)
        return await runtime.start_container(pod_id, spec, shell_container("sleep 1000"))
    finally:
        await runtime.close()


async def test_stop_leaves_no_trace(instance: PrivateContainerd, tmp_path: Path) -> None:
    instance.start()
    instance.import_images([hello_image()])
    await run_one_pod(instance, tmp_path, free_port())
    assert traces(instance)
    instance.stop(wipe=True)
    assert traces(instance) == [] and not instance.directory.exists()
    instance.stop()  # again is no error


async def test_stop_cleans_up_after_a_killed_daemon(
    instance: PrivateContainerd, tmp_path: Path
) -> None:
    instance.start()
    instance.import_images([hello_image()])
    container_id = await run_one_pod(instance, tmp_path, free_port())
    instance.kill_daemon()
    instance.stop(wipe=True)
    assert traces(instance) == []
    assert not list(Path("/sys/fs/cgroup").glob(f"*/k8s.io/{container_id}"))


def test_start_reuses_and_repairs(instance: PrivateContainerd) -> None:
    instance.start()
    first = instance.pid
    PrivateContainerd(instance.directory).start()
    assert instance.pid == first
    instance.kill_daemon()
    assert instance.pid == 0
    instance.paths.pid.write_text("1")  # a number that another process has by now
    assert instance.pid == 0
    instance.start()
    assert instance.pid not in (0, 1, first)


async def test_pods_after_a_power_cut_can_be_replaced(
    instance: PrivateContainerd, tmp_path: Path
) -> None:
    """What a boot leaves: the runtime's records on disk, nothing under /run, no process."""
    instance.start()
    instance.import_images([hello_image()])
    port = free_port()
    await run_one_pod(instance, tmp_path, port)
    instance.kill_daemon()
    residue.kill_shims(str(instance.paths.socket))
    residue.unmount_below(instance.paths.state)
    network.remove(instance.bridge, "")
    shutil.rmtree(instance.paths.run)

    instance.start()
    runtime = CriRuntime(instance.socket)
    try:
        (pod,) = await runtime.list_pods()
        assert not pod.ready
        assert [c.phase for c in pod.containers] == [ContainerPhase.EXITED]
        await runtime.remove_pod(pod.id)
        assert await runtime.list_pods() == []
    finally:
        await runtime.close()
    await run_one_pod(instance, tmp_path, port)


def test_instances_live_side_by_side(
    containerd: PrivateContainerd, instance: PrivateContainerd
) -> None:
    instance.start()
    subnets = {network.bridge_subnet(each.bridge, "") for each in (containerd, instance)}
    assert len(subnets) == 2 and containerd.pid != instance.pid
    assert not instance.has_image(HELLO) and containerd.has_image(HELLO)
    instance.stop(wipe=True)
    assert residue.not_ready_reason(str(containerd.paths.socket)) == ""


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"polder-{uuid.uuid4().hex[:6]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield f"/run/netns/{name}"
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.netns
async def test_instance_in_a_network_namespace(tmp_path: Path, namespace: str) -> None:
    instance = PrivateContainerd(tmp_path / "containerd", netns=namespace)
    try:
        instance.start()
        instance.import_images([hello_image()])
        runtime = CriRuntime(instance.socket)
        pods = Pods(runtime, tmp_path)
        spec = pods.spec(PortMapping(8080, 18080))
        pod_id = await pods.run(spec)
        await runtime.start_container(pod_id, spec, shell_container("exec /hello.sh"))
        fetch = ["busybox", "wget", "-qO-", "http://127.0.0.1:18080/healthz"]
        inside = partial(network.run, fetch, instance.netns, check=False)

        async def page() -> str:
            return inside()

        assert await eventually(page, bool) == "ok\n"
        assert network.run(fetch, "", check=False) == ""
        await runtime.close()
    finally:
        instance.stop(wipe=True)
    assert traces(instance) == []
