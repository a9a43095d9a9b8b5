"""The CRI adapter against a real containerd: pods, host ports, adoption, listing."""

import asyncio
import socket
import subprocess
import time
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from agent.runtime.cri.adapter import CriRuntime
from agent.runtime.cri.pb import api_pb2 as pb
from agent.runtime.port import (
    ContainerPhase,
    ContainerSpec,
    NotFound,
    PodState,
    PortMapping,
    RuntimeUnavailable,
    SandboxFailure,
)
from devcluster import residue
from devcluster.containerd import PrivateContainerd
from devcluster.image import HELLO
from devcluster.ports import free_port
from tests.cri_support import Pods, eventually, read_log, shell_container

pytestmark = pytest.mark.containerd


async def find(runtime: CriRuntime, pod_id: str) -> PodState | None:
    return next((p for p in await runtime.list_pods() if p.id == pod_id), None)


def fetch(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return str(response.read(), "utf-8")
    except OSError:
        return ""


def own_address() -> str:
    """The address that this host would use towards the world; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


async def test_info_names_the_runtime(cri: CriRuntime) -> None:
    info = await cri.info()
    assert info.version.startswith("containerd ")
    assert info.runtime_ready and info.network_ready and info.message == ""


async def test_pod_is_listed_as_it_was_asked_for(cri: CriRuntime, pods: Pods) -> None:
    spec = pods.spec(app="triage")
    pod_id = await pods.run(spec)
    container = ContainerSpec("app", HELLO, 3, labels={"x": "y"}, annotations={"hash": "1"})
    container_id = await cri.start_container(pod_id, spec, container)
    pod = await find(cri, pod_id)
    assert pod is not None and pod.ready and pod.ip.startswith("10.")
    assert (pod.name, pod.namespace, pod.uid) == (spec.name, spec.namespace, spec.uid)
    assert pod.labels == {**spec.labels, "polder.eu/managed": "true"}
    assert pod.annotations == spec.annotations
    assert abs(pod.created_at - time.time()) < 60
    (state,) = pod.containers
    assert (state.id, state.pod_id) == (container_id, pod_id)
    assert (state.name, state.attempt, state.image) == ("app", 3, HELLO)
    assert state.phase is ContainerPhase.RUNNING and state.started_at >= state.created_at > 0
    assert state.labels == {"x": "y", "polder.eu/managed": "true"}
    assert state.annotations == {"hash": "1"}
    assert state.log_path == f"{spec.log_directory}/app_3.log"


async def test_host_port_answers_on_loopback_and_host_address(cri: CriRuntime, pods: Pods) -> None:
    port = free_port()
    spec = pods.spec(PortMapping(8080, port))
    pod_id = await pods.run(spec)
    container = ContainerSpec("app", HELLO, 0, env=(("POLDER_REPLICA", "hello-7"),))
    await cri.start_container(pod_id, spec, container)
    for host in ("127.0.0.1", own_address()):
        page = await eventually(partial(asyncio.to_thread, fetch, f"http://{host}:{port}/"), bool)
        assert "Hello from hello-7" in page


async def test_port_of_another_pod_is_refused(pods: Pods) -> None:
    port = PortMapping(8080, free_port())
    first = pods.spec(port, name="first")
    await pods.run(first)
    with pytest.raises(SandboxFailure) as caught:
        await pods.run(pods.spec(port))
    assert caught.value.reason == "HostPortInUse"
    assert f"{port.host_port}/TCP is taken by pod first" in caught.value.message


async def test_two_simultaneous_starts_cannot_share_a_port(cri: CriRuntime, pods: Pods) -> None:
    port = PortMapping(8080, free_port())
    results = await asyncio.gather(
        *(pods.run(pods.spec(port)) for _ in range(4)), return_exceptions=True
    )
    refused = [r for r in results if isinstance(r, SandboxFailure)]
    assert len(refused) == 3 and {r.reason for r in refused} == {"HostPortInUse"}


async def test_port_of_a_local_process_is_refused(pods: Pods) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SandboxFailure, match="a process that listens on") as caught:
            await pods.run(pods.spec(PortMapping(8080, port)))
        assert caught.value.reason == "HostPortInUse"
    await pods.run(pods.spec(PortMapping(8080, port)))  # free again


async def test_failed_sandbox_leaves_nothing_behind(cri: CriRuntime, pods: Pods) -> None:
    spec = replace(pods.spec(), cgroup_parent="/../../nonsense\0")
    before = {p.id for p in await cri.list_pods()}
    with pytest.raises(SandboxFailure):
        await pods.run(spec)
    assert {p.id for p in await cri.list_pods()} == before


async def test_unusable_log_directory_is_a_sandbox_failure(pods: Pods) -> None:
    spec = replace(pods.spec(), log_directory="/proc/no/such")
    with pytest.raises(SandboxFailure, match="log directory"):
        await pods.run(spec)


async def test_removed_pod_leaves_no_cni_residue(
    cri: CriRuntime, pods: Pods, containerd: PrivateContainerd
) -> None:
    spec = pods.spec(PortMapping(8080, free_port()))
    pod_id = await pods.run(spec)
    await cri.start_container(pod_id, spec, ContainerSpec("app", HELLO, 0))
    pod = await find(cri, pod_id)
    assert pod is not None
    leases = containerd.paths.run / "ipam" / containerd.name
    assert (leases / pod.ip).exists()
    assert pod.ip in iptables_rules()
    await cri.remove_pod(pod_id)
    assert await find(cri, pod_id) is None
    assert not (leases / pod.ip).exists()
    assert f"{pod.ip}/32" not in iptables_rules() and pod_id not in iptables_rules()


def iptables_rules() -> str:
    return subprocess.run(["iptables-save"], check=True, capture_output=True, text=True).stdout


async def test_removing_what_is_gone_is_no_error(cri: CriRuntime) -> None:
    await cri.stop_container("gone", 1)
    await cri.remove_container("gone")
    await cri.remove_pod("gone")
    with pytest.raises(NotFound):
        await cri.container_status("gone")


async def test_new_adapter_adopts_running_pods(
    cri: CriRuntime, pods: Pods, containerd: PrivateContainerd
) -> None:
    port = PortMapping(8080, free_port())
    spec = pods.spec(port)
    pod_id = await pods.run(spec)
    await cri.start_container(pod_id, spec, shell_container("sleep 1000"))
    before = await find(cri, pod_id)
    successor = CriRuntime(containerd.socket)
    try:
        assert await find(successor, pod_id) == before
        with pytest.raises(SandboxFailure, match="taken by pod"):
            await successor.run_pod(pods.spec(port))
    finally:
        await successor.close()


async def test_pods_of_others_are_invisible(
    cri: CriRuntime, containerd: PrivateContainerd, tmp_path: Path
) -> None:
    metadata = pb.PodSandboxMetadata(name="foreign", uid=tmp_path.name, namespace="kube-system")
    config = pb.PodSandboxConfig(metadata=metadata, labels={"io.kubernetes.pod.name": "foreign"})
    before = [p.id for p in await cri.list_pods()]
    with residue.cri(str(containerd.paths.socket)) as stub:
        foreign = stub.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
        try:
            assert [p.id for p in await cri.list_pods()] == before
        finally:
            stub.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=foreign))
            stub.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=foreign))


async def test_containers_survive_the_runtime(
    cri: CriRuntime, pods: Pods, containerd: PrivateContainerd
) -> None:
    container_id, _ = await pods.shell("trap 'exit 4' USR1; while true; do sleep 0.05; done")
    started = (await cri.container_status(container_id)).started_at
    containerd.kill_daemon()
    with pytest.raises(RuntimeUnavailable):
        await cri.list_pods()
    containerd.start()
    pod = next(p for p in await listed(cri) if any(c.id == container_id for c in p.containers))
    assert pod.ready
    state = await cri.container_status(container_id)
    assert (state.phase, state.started_at) == (ContainerPhase.RUNNING, started)


async def listed(cri: CriRuntime) -> list[PodState]:
    """As the supervisor does: unavailable now means try again."""

    async def attempt() -> list[PodState] | None:
        try:
            return list(await cri.list_pods())
        except RuntimeUnavailable:
            return None

    pods = await eventually(attempt, lambda found: found is not None)
    assert pods is not None
    return pods


async def test_listing_ten_pods_is_cheap(cri: CriRuntime, pods: Pods) -> None:
    for _ in range(10):
        spec = pods.spec()
        pod_id = await pods.run(spec)
        await cri.start_container(pod_id, spec, shell_container("sleep 1000"))
    assert len(await cri.list_pods()) >= 10
    costs = []
    for _ in range(50):
        begun = time.perf_counter()
        await cri.list_pods()
        costs.append(time.perf_counter() - begun)
    median_ms = sorted(costs)[25] * 1e3
    assert median_ms < 10, f"{median_ms:.1f} ms"


async def test_changed_polls_where_there_are_no_events(cri: CriRuntime) -> None:
    begun = time.monotonic()
    told = await cri.changed(0.2)
    assert told or time.monotonic() - begun >= 0.2


async def test_log_lines_have_cri_format(pods: Pods) -> None:
    state, log = await pods.ended_with_log("echo one; echo two >&2; printf three")
    assert sorted(log.splitlines()) == ["one", "three", "two"]
    first = Path(state.log_path).read_text().splitlines()[0].split(" ")
    assert first[0].endswith("Z") and first[1] in ("stdout", "stderr") and first[2] in ("F", "P")


async def test_reopened_log_goes_on_in_a_new_file(cri: CriRuntime, pods: Pods) -> None:
    container_id, _ = await pods.shell("n=0; while true; do n=$((n+1)); echo $n; sleep 0.02; done")
    path = Path((await cri.container_status(container_id)).log_path)
    await eventually(lambda: asyncio.to_thread(path.exists), bool)
    rotated = path.rename(path.with_suffix(".1"))
    await cri.reopen_log(container_id)
    log = await eventually(lambda: read_log(str(path)), bool)
    last = (await read_log(str(rotated))).splitlines()[-1]
    assert int(log.splitlines()[0]) == int(last) + 1


async def test_image_use_counts_bytes(cri: CriRuntime) -> None:
    (use,) = await cri.image_use()
    assert use.used_bytes > 1 << 20 or use.used_bytes == 0  # statistics come every ten seconds
    assert use.mountpoint.startswith("/")
