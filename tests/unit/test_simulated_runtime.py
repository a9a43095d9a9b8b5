"""The simulated runtime keeps the port's promises, so that tests on it mean something."""

import asyncio
from dataclasses import replace

import pytest

from agent.runtime.port import (
    ContainerFailure,
    ContainerPhase,
    ContainerSpec,
    ContainerState,
    ImageFailure,
    NotFound,
    PodSpec,
    PortMapping,
    PullPolicy,
    Runtime,
    RuntimeUnavailable,
    SandboxFailure,
)
from agent.runtime.simulated import SimulatedRuntime

POD = PodSpec("web-0", "shop", "u1", {"a": "b"}, {}, "/logs/web-0", (PortMapping(80, 8080),))
APP = ContainerSpec("app", "app:1", 0)


@pytest.fixture
def runtime() -> SimulatedRuntime:
    return SimulatedRuntime(clock=lambda: 1000.0)


async def started(runtime: SimulatedRuntime, image: str = "app:1") -> tuple[str, str]:
    pod_id = await runtime.run_pod(POD)
    return pod_id, await runtime.start_container(pod_id, POD, replace(APP, image=image))


def test_it_is_a_runtime(runtime: SimulatedRuntime) -> None:
    checked: Runtime = runtime
    assert checked is runtime


async def test_life_of_a_pod(runtime: SimulatedRuntime) -> None:
    pod_id, container_id = await started(runtime)
    (pod,) = await runtime.list_pods()
    assert (pod.id, pod.uid, pod.ready, pod.labels) == (pod_id, "u1", True, {"a": "b"})
    (container,) = pod.containers
    assert (container.phase, container.started_at) == (ContainerPhase.RUNNING, 1000.0)
    assert container.log_path == "/logs/web-0/app_0.log"
    await runtime.stop_container(container_id, 5)
    assert (await runtime.container_status(container_id)).exit_code == 0
    await runtime.remove_container(container_id)
    with pytest.raises(NotFound):
        await runtime.container_status(container_id)
    await runtime.remove_pod(pod_id)
    await runtime.remove_pod(pod_id)
    assert await runtime.list_pods() == []


async def test_crash_and_instant_exit(runtime: SimulatedRuntime) -> None:
    _, container_id = await started(runtime)
    runtime.crash(container_id, 137, "OOMKilled")
    state = await runtime.container_status(container_id)
    assert (state.phase, state.exit_code, state.reason) == (ContainerPhase.EXITED, 137, "OOMKilled")
    with pytest.raises(NotFound):
        runtime.crash(container_id)
    runtime.exits["job:1"] = 3
    pod_id = await runtime.run_pod(replace(POD, uid="u2", ports=()))
    job = await runtime.start_container(pod_id, POD, replace(APP, image="job:1"))
    assert (await runtime.container_status(job)).exit_code == 3


async def test_reboot_breaks_sandboxes(runtime: SimulatedRuntime) -> None:
    pod_id, _ = await started(runtime)
    runtime.reboot()
    (pod,) = await runtime.list_pods()
    assert not pod.ready and pod.containers[0].phase is ContainerPhase.EXITED
    with pytest.raises(ContainerFailure):
        await runtime.start_container(pod_id, POD, replace(APP, attempt=1))


async def test_host_ports_conflict(runtime: SimulatedRuntime) -> None:
    runtime.busy_ports.add(("TCP", 8080))
    with pytest.raises(SandboxFailure, match="by a process"):
        await runtime.run_pod(POD)
    runtime.busy_ports.clear()
    pod_id = await runtime.run_pod(POD)
    with pytest.raises(SandboxFailure, match="by pod web-0"):
        await runtime.run_pod(replace(POD, uid="u2"))
    await runtime.remove_pod(pod_id)
    await runtime.run_pod(replace(POD, uid="u2"))


async def test_images(runtime: SimulatedRuntime) -> None:
    async def ensure(image: str, policy: PullPolicy) -> str:
        return await runtime.ensure_image(image, policy, None, "amd64")

    with pytest.raises(ImageFailure, match="Never"):
        await ensure("app:1", PullPolicy.NEVER)
    runtime.images["bad:1"] = ImageFailure("ImageAuth", "no")
    with pytest.raises(ImageFailure, match="no"):
        await ensure("bad:1", PullPolicy.IF_NOT_PRESENT)
    for policy in (PullPolicy.IF_NOT_PRESENT, PullPolicy.IF_NOT_PRESENT, PullPolicy.ALWAYS):
        assert await ensure("app:1", policy) == "app:1"
    assert runtime.pulls == ["bad:1", "app:1", "app:1"]
    runtime.preload("local:1")
    await ensure("local:1", PullPolicy.NEVER)


async def test_asked_failures_come_once_each(runtime: SimulatedRuntime) -> None:
    runtime.fail_next("run_pod", SandboxFailure("NetworkSetup", "full"))
    with pytest.raises(SandboxFailure, match="full"):
        await runtime.run_pod(POD)
    await runtime.run_pod(POD)
    runtime.available = False
    with pytest.raises(RuntimeUnavailable):
        await runtime.list_pods()
    runtime.available = True
    assert len(await runtime.list_pods()) == 1


async def test_changed_wakes_up(runtime: SimulatedRuntime) -> None:
    assert not await runtime.changed(0)
    waiter = asyncio.create_task(runtime.changed(10))
    _, container_id = await started(runtime)
    assert await waiter
    await runtime.changed(0)
    runtime.crash(container_id)
    assert await runtime.changed(0)
    assert not await runtime.changed(0)


async def test_exec(runtime: SimulatedRuntime) -> None:
    def answer(container: ContainerState, command: object) -> tuple[int, bytes]:
        return 4, f"{container.name} {command}".encode()

    runtime.exec_handler = answer
    _, container_id = await started(runtime)
    assert await runtime.exec_sync(container_id, ["x"], 1) == (4, b"app ['x']")
    session = await runtime.exec(container_id, ["x"], stdin=True, tty=True)
    await session.write(b"more")
    await session.close_stdin()
    assert [data async for _, data in session.output()] == [b"app ['x']", b"more"]
    assert session.exit_code == 4
    runtime.crash(container_id)
    with pytest.raises(ContainerFailure):
        await runtime.exec_sync(container_id, ["x"], 1)


async def test_a_container_that_lasts_a_while_ends_as_told(runtime: SimulatedRuntime) -> None:
    runtime.exits["job:1"], runtime.lasts["job:1"] = 3, 0.01
    _, container_id = await started(runtime, "job:1")
    assert (await runtime.container_status(container_id)).phase is ContainerPhase.RUNNING
    assert await runtime.changed(1.0), "its start"
    assert await runtime.changed(1.0), "its end"
    ended = await runtime.container_status(container_id)
    assert (ended.phase, ended.exit_code) == (ContainerPhase.EXITED, 3)


async def test_nobody_sees_how_a_container_ends_when_power_is_lost(
    runtime: SimulatedRuntime,
) -> None:
    _, running = await started(runtime)
    runtime.reboot()
    ended = await runtime.container_status(running)
    assert (ended.exit_code, ended.reason) == (255, "Unknown")
