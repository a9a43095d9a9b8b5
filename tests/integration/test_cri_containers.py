"""The CRI adapter against a real containerd: what containers may do and how they end."""

import asyncio
import time

import pytest

from agent.runtime.cri.adapter import CriRuntime
from agent.runtime.port import (
    ContainerFailure,
    ContainerPhase,
    ContainerSpec,
    Device,
    Mount,
    NotFound,
    Resources,
)
from devcluster.image import HELLO
from tests.cri_support import Pods, eventually, read_log, shell_container

pytestmark = pytest.mark.containerd


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [("exit 0", 0, "Completed"), ("exit 7", 7, "Error"), ("kill -9 $$; sleep 9", 137, "Error")],
)
async def test_exit_code_and_reason(pods: Pods, script: str, code: int, reason: str) -> None:
    # A process 1 does not feel its own SIGKILL, hence the shell inside the shell.
    container_id, _ = await pods.shell(f"sh -c '{script}'; exit $?")
    state = await pods.ended(container_id)
    assert (state.exit_code, state.reason) == (code, reason)
    assert state.finished_at >= state.started_at > 0


async def test_exit_shows_in_the_listing(cri: CriRuntime, pods: Pods) -> None:
    container_id, _ = await pods.shell("sleep 0.3; exit 9")

    async def seen() -> int:
        states = [c for p in await cri.list_pods() for c in p.containers]
        return next(c.exit_code for c in states if c.id == container_id)

    assert await eventually(seen, lambda code: code != 0) == 9


async def test_an_end_is_heard_at_once(cri: CriRuntime, pods: Pods) -> None:
    container_id, _ = await pods.shell("sleep 1000")
    other, _ = await pods.shell("sleep 1000")
    ids = {container_id, other}

    async def phases() -> dict[str, ContainerPhase]:
        return {c.id: c.phase for p in await cri.list_pods() for c in p.containers if c.id in ids}

    await eventually(phases, lambda found: set(found.values()) == {ContainerPhase.RUNNING})
    assert cri.hears_ends
    while await cri.changed(0.5):  # what the starts have caused
        continue
    await cri.stop_container(container_id, 0.0)
    assert await cri.changed(20.0)
    expected = {container_id: ContainerPhase.EXITED, other: ContainerPhase.RUNNING}
    await eventually(phases, lambda found: found == expected)
    assert cri.hears_ends


async def test_out_of_memory_is_named(cri: CriRuntime, pods: Pods) -> None:
    container_id, _ = await pods.shell("tail /dev/zero", resources=Resources(memory_bytes=16 << 20))

    async def reason() -> str:
        states = [c for p in await cri.list_pods() for c in p.containers]
        return next(c.reason for c in states if c.id == container_id)

    assert await eventually(reason, lambda r: r == "OOMKilled") == "OOMKilled"
    assert (await cri.container_status(container_id)).exit_code == 137


async def test_limits_reach_the_kernel(pods: Pods) -> None:
    resources = Resources(cpu_millis=250, cpu_limit_millis=500, memory_bytes=64 << 20)
    script = (
        "cd /sys/fs/cgroup; cat memory.max cpu.max 2>/dev/null ||"
        " cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares"
    )
    _, log = await pods.ended_with_log(script, resources=resources)
    assert log.split() in (["67108864", "50000", "256"], ["67108864", "50000", "100000"])


async def test_containers_are_confined_by_default(pods: Pods) -> None:
    script = (
        "touch /proc/sys/kernel/hostname 2>&1; ls -A /sys/firmware;"
        " grep -E 'Seccomp:|NoNewPrivs' /proc/self/status; mount -t tmpfs x /tmp 2>&1; ps | wc -l"
    )
    _, log = await pods.ended_with_log(script)
    lines = log.splitlines()
    assert "Read-only file system" in lines[0]
    assert lines[1].split() == ["NoNewPrivs:", "1"] and lines[2].split() == ["Seccomp:", "2"]
    assert "permission denied" in lines[3].lower() or "not permitted" in lines[3].lower()
    assert int(lines[-1]) < 8  # only its own processes


async def test_user_and_read_only_root(pods: Pods) -> None:
    script = "id -u; touch /x 2>&1; pwd; echo $GREETING"
    _, log = await pods.ended_with_log(
        script,
        run_as_user=65534,
        read_only_root=True,
        working_dir="/tmp",
        env=(("GREETING", "goededag"),),
    )
    assert log.splitlines() == ["65534", "touch: /x: Read-only file system", "/tmp", "goededag"]


async def test_mounts_and_devices(pods: Pods) -> None:
    (pods.folder / "data").mkdir()
    (pods.folder / "data" / "in").write_text("hello")
    mounts = (
        Mount(str(pods.folder / "data"), "/ro"),
        Mount(str(pods.folder / "data"), "/rw", read_only=False),
    )
    _, log = await pods.ended_with_log(
        "cat /ro/in; echo; touch /ro/x 2>&1; echo there > /rw/out; ls -l /dev/mine",
        mounts=mounts,
        devices=(Device("/dev/null", "/dev/mine"),),
    )
    lines = log.splitlines()
    assert lines[:2] == ["hello", "touch: /ro/x: Read-only file system"]
    assert lines[2].startswith("c") and "1,   3" in lines[2]
    assert (pods.folder / "data" / "out").read_text() == "there\n"


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        ({"command": ("nope",)}, "ContainerStart", "command 'nope' not found in the image"),
        ({"command": ("/opt/x",)}, "ContainerStart", "command '/opt/x' not found in the image"),
        ({"command": ("/etc/passwd",)}, "ContainerStart", "is not executable"),
        ({"mounts": (Mount("/proc/nope", "/x"),)}, "ContainerCreate", "host path '/proc/nope'"),
        ({"devices": (Device("/dev/nope", "/x"),)}, "ContainerCreate", "/dev/nope"),
        ({"image": "polder.local/absent:1"}, "ContainerCreate", "not found"),
        ({"cdi_devices": ("example.com/x=1",)}, "ContainerCreate", "CDI"),
        ({"privileged": True}, "ContainerCreate", "privileged"),
    ],
)
async def test_failed_start_says_why_and_leaves_nothing(
    cri: CriRuntime, pods: Pods, fields: dict[str, object], reason: str, words: str
) -> None:
    spec = pods.spec()
    pod_id = await pods.run(spec)
    bad = shell_container("sleep 1", **fields)
    with pytest.raises(ContainerFailure) as caught:
        await cri.start_container(pod_id, spec, bad)
    assert caught.value.reason == reason and words in caught.value.message
    (pod,) = [p for p in await cri.list_pods() if p.id == pod_id]
    assert pod.containers == ()
    await cri.start_container(pod_id, spec, shell_container("sleep 1"))  # its name is free


async def test_duplicate_start_does_not_harm_the_running_one(cri: CriRuntime, pods: Pods) -> None:
    spec = pods.spec()
    pod_id = await pods.run(spec)
    first = await cri.start_container(pod_id, spec, shell_container("sleep 1000"))
    with pytest.raises(ContainerFailure, match="reserved"):
        await cri.start_container(pod_id, spec, shell_container("sleep 1000"))
    assert (await cri.container_status(first)).phase is ContainerPhase.RUNNING


async def test_stop_lets_the_process_finish(cri: CriRuntime, pods: Pods) -> None:
    container_id, _ = await pods.shell(
        "trap 'echo bye; exit 3' TERM; echo ready; while true; do sleep 0.02; done"
    )
    path = (await cri.container_status(container_id)).log_path
    await eventually(lambda: read_log(path), lambda log: "ready" in log)
    await cri.stop_container(container_id, 10)
    state = await cri.container_status(container_id)
    assert (state.phase, state.exit_code) == (ContainerPhase.EXITED, 3)
    assert "bye" in await eventually(lambda: read_log(path), lambda log: "bye" in log)


async def test_stop_kills_after_the_grace(cri: CriRuntime, pods: Pods) -> None:
    container_id, _ = await pods.shell("trap '' TERM; while true; do sleep 0.05; done")
    begun = time.monotonic()
    await cri.stop_container(container_id, 1)
    assert 0.9 < time.monotonic() - begun < 5
    assert (await cri.container_status(container_id)).exit_code == 137


async def test_removed_container_is_gone_and_the_next_attempt_starts(
    cri: CriRuntime, pods: Pods
) -> None:
    spec = pods.spec()
    pod_id = await pods.run(spec)
    first = await cri.start_container(pod_id, spec, ContainerSpec("app", HELLO, 0))
    await cri.remove_container(first)
    with pytest.raises(NotFound):
        await cri.container_status(first)
    second = await cri.start_container(pod_id, spec, ContainerSpec("app", HELLO, 1))
    (pod,) = [p for p in await cri.list_pods() if p.id == pod_id]
    assert [c.id for c in pod.containers] == [second]


async def test_probe_gives_code_and_bounded_output(cri: CriRuntime, pods: Pods) -> None:
    container_id, _ = await pods.shell("sleep 1000")
    run = cri.exec_sync
    assert await run(container_id, ["sh", "-c", "echo out; exit 4"], 5) == (4, b"out\n")
    assert await run(container_id, ["true"], 5) == (0, b"")
    _, output = await run(container_id, ["dd", "if=/dev/zero", "bs=100k", "count=1"], 5)
    assert len(output) == 10 * 1024
    with pytest.raises(TimeoutError, match=r"0\.3 s"):
        await run(container_id, ["sleep", "20"], 0.3)
    with pytest.raises(ContainerFailure, match="'nope' not found"):
        await run(container_id, ["nope"], 5)
    with pytest.raises(NotFound):
        await run("gone", ["true"], 5)


async def test_probes_run_side_by_side(cri: CriRuntime, pods: Pods) -> None:
    container_id, _ = await pods.shell("sleep 1000")
    results = await asyncio.gather(
        *(cri.exec_sync(container_id, ["sh", "-c", f"exit {n}"], 10) for n in range(5))
    )
    assert [code for code, _ in results] == list(range(5))
