"""The same of the agent for arm64, emulated: memory only, and what the emulation adds to it.

`bench footprint --arch arm64` on a machine of another architecture. Agent and switch are the
package's, installed in a Debian of arm64 (`devcluster/emulation.py`) under qemu-user. Their
containers are this machine's: `Passing` stands between the agent and the runtime, and says of
images that they are for arm64. Nothing else of arm64 runs here, so no page is shared with others.

What of a process is the guest's is told by address: qemu lays out an aarch64 program below
GUEST_END, and itself, its heap and the code that it translated to above it. CPU says nothing here.
"""

import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from agent.runtime.cri.pb import api_pb2
from bench.memory import PROC, parse
from bench.report import progress
from devcluster.client import apply_request, workload
from devcluster.containerd import PrivateContainerd
from devcluster.daemon import Daemon
from devcluster.debian_root import Root
from devcluster.emulation import agent_package, arm64_programs, debian
from devcluster.image import HELLO, hello_image, host_architecture
from devcluster.installation import Installation
from polder.v1 import operator_pb2, operator_pb2_grpc

ARCH = "arm64"
NODE = "arm-1"
GUEST_END = 0x0000_0100_0000_0000
"""1 TiB: above the highest that qemu gives a program, far below where it is loaded itself."""
READY_S = 600.0
SETTLE_S = 90.0
"""Longer than for an agent that is not emulated: its start takes so much longer."""


class Passing(grpc.GenericRpcHandler):
    """Passes CRI calls on as they are, but for the architecture of images."""

    def __init__(self, socket: str) -> None:
        options = [("grpc.default_authority", "localhost")]
        self._channel = grpc.insecure_channel(socket, options=options)

    def service(
        self, details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        method = details.method or ""
        if method.endswith("/GetContainerEvents"):
            events = partial(self._stream, self._channel.unary_stream(method))
            return grpc.unary_stream_rpc_method_handler(events)
        return grpc.unary_unary_rpc_method_handler(
            partial(self._answer, method, self._channel.unary_unary(method))
        )

    def _answer(self, method: str, call: Any, request: bytes, context: Any) -> bytes:
        try:
            answer: bytes = call(request, timeout=context.time_remaining())
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        return self.renamed(answer) if method.endswith("/ImageStatus") else answer

    def _stream(self, call: Any, request: bytes, context: Any) -> Any:
        try:
            yield from call(request)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())

    @staticmethod
    def renamed(answer: bytes) -> bytes:
        """The answer to ImageStatus, of an image for ARCH."""
        status = api_pb2.ImageStatusResponse.FromString(answer)
        if "info" in status.info:
            body = json.loads(status.info["info"])
            body.get("imageSpec", {})["architecture"] = ARCH
            status.info["info"] = json.dumps(body)
        return status.SerializeToString()


def measure(containers: int) -> dict[str, Any]:
    """Raises OSError, TimeoutError and CalledProcessError."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="polder-bench-")))
        stack.enter_context(arm64_programs())
        progress(f"a Debian of {ARCH}, with the agent's package")
        lower, package = debian(ARCH, folder), agent_package(folder / "package")
        root = stack.enter_context(Root(str(lower), shared=(folder,)))
        root.install(package)
        installation = Installation(folder / "polder")
        stack.callback(installation.stop)
        return {"arch": ARCH, "emulated": True, **_measure(installation, root, containers)}


def _measure(installation: Installation, root: Root, containers: int) -> dict[str, Any]:
    installation.start_orchestrator()
    installation.apply_site()
    folder = installation.directory / NODE
    state = installation.agent(NODE, runtime="simulated").state_dir  # known, so that it can join
    containerd = PrivateContainerd(folder / "containerd")
    containerd.start()
    containerd.import_images([hello_image()])
    server = _serve(containerd.socket, folder / "cri.sock")
    switch = _program(installation, root, "switch", "--state-dir", str(state))
    agent = _program(installation, root, "run", *_settings(folder, state))
    try:
        progress(f"joining, and starting {containers} containers")
        installation.join(NODE)
        for daemon in (switch, agent):
            daemon.start(lambda daemon=daemon: daemon.pid != 0)  # type: ignore[misc]
        _deploy(installation.context().stub(), containers)
        progress(f"measuring in {SETTLE_S:.0f} s")
        time.sleep(SETTLE_S)
        agents, switches = _sizes(agent.pid), _sizes(switch.pid)
    finally:
        agent.stop()
        switch.stop()
        server.stop(None)
        containerd.stop(wipe=True)
    return {
        "pss_mb": _mb(agents.guest + switches.guest),
        "agent_pss_mb": _mb(agents.guest),
        "switch_pss_mb": _mb(switches.guest),
        "emulator_mb": _mb(agents.emulator + switches.emulator),
        "containers": containers,
        "peers": 0,
        "containers_arch": host_architecture(),
    }


def _settings(folder: Path, state: Path) -> list[str]:
    file = folder / "agent.toml"
    file.write_text('local_listen = "127.0.0.1:7446"\n')  # as on a box
    options = ["--state-dir", str(state), "--log-dir", str(folder / "pods"), "--config", str(file)]
    return [*options, "--log-format", "logfmt", "--runtime-socket", f"unix://{folder}/cri.sock"]


def _program(installation: Installation, root: Root, *words: str) -> Daemon:
    """One verb of the package's `edge-agent`, in the background."""
    command = root.inside("/usr/bin/edge-agent", *words)
    marker = words[words.index("--state-dir") + 1]
    return Daemon(f"arm-{words[0]}", installation.directory, command, marker=marker)


def _serve(runtime: str, socket: Path) -> grpc.Server:
    server = grpc.server(ThreadPoolExecutor(max_workers=32), handlers=[Passing(runtime)])
    server.add_insecure_port(f"unix://{socket}")
    server.start()
    return server


def _deploy(stub: operator_pb2_grpc.OperatorServiceStub, containers: int) -> None:
    """Raises TimeoutError when they are not ready in time."""
    for number in range(containers):
        stub.Apply(apply_request(workload(f"idle-{number}", image=HELLO)), timeout=10)
    deadline = time.monotonic() + READY_S
    ready = 0
    while ready < containers:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{ready} of {containers} containers are ready")
        time.sleep(0.5)
        listed = stub.List(operator_pb2.ListRequest(kind="Replica"), timeout=10).resources
        ready = sum(bool(json.loads(item.status_json).get("ready")) for item in listed)


@dataclass(frozen=True, slots=True)
class Sizes:
    """In KiB, as the kernel counts them for each process (PSS)."""

    guest: int
    emulator: int


def sizes(smaps: str) -> Sizes:
    """From the text of /proc/PID/smaps of an emulated process."""
    spans = list(parse(smaps.splitlines()))
    guest = sum(span.pss_kb for span in spans if span.end <= GUEST_END)
    return Sizes(guest, sum(span.pss_kb for span in spans) - guest)


def _sizes(pid: int) -> Sizes:
    return sizes((PROC / str(pid) / "smaps").read_text())


def _mb(kib: int) -> float:
    return round(kib / 1024, 1)
