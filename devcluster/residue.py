"""Finding and removing what a containerd left behind: processes, mounts, cgroups, pods.

Every function takes a path or a pid that belongs to one instance, and touches nothing else.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc

from agent.runtime.cri.pb import api_pb2, api_pb2_grpc

POLL_S = 0.02


@contextlib.contextmanager
def cri(socket: str) -> Iterator[api_pb2_grpc.RuntimeServiceStub]:
    """A stub on the CRI socket, for the few calls that tests and the quickstart make themselves."""
    options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"unix://{socket}", options=options) as channel:
        yield api_pb2_grpc.RuntimeServiceStub(channel)


def not_ready_reason(socket: str) -> str:
    """Why CRI cannot run pods yet; empty when it can."""
    try:
        with cri(socket) as stub:
            status = stub.Status(api_pb2.StatusRequest(), timeout=2).status
    except grpc.RpcError as error:
        return f"CRI does not answer ({error.code().name})"
    waiting = [f"{c.type}: {c.message}" for c in status.conditions if not c.status]
    return "; ".join(waiting)


def remove_all_pods(socket: str) -> None:
    """Stop and remove every sandbox, so that CNI takes its rules and addresses back."""
    with cri(socket) as stub:
        for pod in stub.ListPodSandbox(api_pb2.ListPodSandboxRequest(), timeout=10).items:
            stub.StopPodSandbox(api_pb2.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=30)
            stub.RemovePodSandbox(
                api_pb2.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=30
            )


def command_line(pid: int) -> list[str]:
    """The arguments of a process; empty when it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def live_pid(pid_file: Path, *, must_mention: str) -> int:
    """The pid in the file if such a process runs with that argument (pids are reused), else 0."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return 0
    return pid if must_mention in command_line(pid) else 0


def end_process(pid: int, signal_number: int, timeout_s: float) -> None:
    """Send the signal, wait, then SIGKILL. Reaps it when it is our child."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal_number)
    deadline = time.monotonic() + timeout_s
    while _alive(pid):
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            deadline += timeout_s
        time.sleep(POLL_S)


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def kill_shims(socket: str) -> None:
    """Kill the shims that serve this socket, with their containers."""
    parents = _parents()
    for pid in parents:
        arguments = command_line(pid)
        if not arguments or "containerd-shim" not in arguments[0] or socket not in arguments:
            continue
        for victim in [*_descendants(pid, parents), pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        end_process(pid, signal.SIGKILL, 5.0)


def kill_namespace(name: str, timeout_s: float = 5.0) -> None:
    """All that runs in a network namespace, and the containers of its shims; reaped.

    All at once: each is stopped before the first is killed, so that none starts another meanwhile.
    """
    victims: set[int] = set()
    while fresh := _inside(name) - victims:
        victims |= fresh
        _signal(fresh, signal.SIGSTOP)
    _signal(victims, signal.SIGKILL)
    for pid in victims:
        end_process(pid, signal.SIGKILL, timeout_s)


def _inside(name: str) -> set[int]:
    command = ["ip", "netns", "pids", name]
    listed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    parents, inside = _parents(), [int(pid) for pid in listed.split()]
    return {*inside, *(d for pid in inside for d in _descendants(pid, parents))}


def _signal(pids: Iterable[int], signal_number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)


def _parents() -> dict[int, int]:
    """pid -> parent's pid, of every process."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def _descendants(pid: int, parents: dict[int, int]) -> list[int]:
    children = [child for child, parent in parents.items() if parent == pid]
    return [d for child in children for d in (*_descendants(child, parents), child)]


def container_ids(state: Path) -> list[str]:
    """Ids of the containers whose shim directories still lie in this state directory."""
    return [path.name for path in state.glob("io.containerd.runtime.v2.task/*/*")]


def unmount_below(folder: Path) -> None:
    """Unmount everything below the folder, deepest first."""
    prefix = f"{folder}/"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    for point in sorted((p for p in points if p.startswith(prefix)), key=len, reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


def remove_cgroups(ids: list[str]) -> None:
    """Remove the (empty) cgroups of containers whose shim was killed before it could."""
    for container in ids:
        for path in Path("/sys/fs/cgroup").glob(f"*/k8s.io/{container}"):
            with contextlib.suppress(OSError):
                path.rmdir()


def remove_cgroup(name: str) -> None:
    """It and all below it, of every hierarchy, as far as they are empty."""
    roots = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")]
    for top in (root / name for root in roots if (root / "cgroup.procs").exists()):
        for path in sorted([top, *top.glob("**/")], key=lambda p: len(p.parts), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
