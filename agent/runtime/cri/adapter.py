"""The Runtime port over a CRI v1 socket: containerd 1.6 or later, CRI-O.

Made once by `agent/main.py`, inside the running event loop. It sees and touches only pods with
the label `polder.eu/managed=true`, which it puts on everything that it creates, so a kubelet or
Docker on the same runtime is left alone. It holds no state that matters: a new object on the same
socket sees the same pods, which is how an agent adopts them after its own restart.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import grpc

from agent.channel import NO_PROBES
from agent.runtime.cri import errors, hostports, stubs, translate
from agent.runtime.cri.ends import EndWatch
from agent.runtime.cri.events import ChangeWaiter
from agent.runtime.cri.observe import Observer
from agent.runtime.cri.pb import api_pb2 as pb
from agent.runtime.port import (
    ContainerFailure,
    ContainerSpec,
    ContainerState,
    ExecSession,
    ImageFailure,
    ImageUse,
    ImageUser,
    NotFound,
    PodSpec,
    PodState,
    PortMapping,
    PullPolicy,
    RegistryAuth,
    RuntimeInfo,
    SandboxFailure,
)

log = logging.getLogger(__name__)

QUICK_S = 5.0  # reads
CHANGE_S = 30.0  # create, start, remove: a slow SD card needs most of it
SANDBOX_S = 60.0  # includes CNI
PULL_S = 900.0  # a gigabyte over a poor uplink
STOP_MARGIN_S = 15.0  # on top of the grace period: the runtime reaps after SIGKILL
PROBE_MARGIN_S = 2.0
PROBE_OUTPUT_BYTES_MAX = 10 * 1024

_CHANNEL_OPTIONS = (
    ("grpc.default_authority", "localhost"),  # containerd refuses the escaped socket path
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    *NO_PROBES,
    # The runtime is next door: after its restart, be back within a moment.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class CriRuntime:
    """Implements agent.runtime.port.Runtime.

    endpoint: `unix:///run/containerd/containerd.sock` or a plain path.
    """

    makes_cgroups = True

    def __init__(self, endpoint: str, *, pull_timeout_s: float = PULL_S) -> None:
        target = endpoint if "://" in endpoint else f"unix://{endpoint}"
        self._channel = grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
        self._runtime = stubs.runtime_service(self._channel)
        self._images = stubs.image_service(self._channel)
        self._pull_timeout_s = pull_timeout_s
        self._changes = ChangeWaiter(self._runtime)
        self._ends = EndWatch(self._changes.tell)
        self._observer = Observer(self._fetch_ip, self._fetch_container, self._ends)
        self._port_check = asyncio.Lock()
        self._starting: dict[str, PodSpec] = {}

    async def info(self) -> RuntimeInfo:
        try:
            version = await self._runtime.Version(pb.VersionRequest(), timeout=QUICK_S)
            status = await self._runtime.Status(pb.StatusRequest(), timeout=QUICK_S)
        except grpc.aio.AioRpcError as error:
            raise errors.general(error) from error
        conditions = {c.type: c for c in status.status.conditions}
        complaints = [f"{c.type}: {c.message}" for c in conditions.values() if not c.status]
        return RuntimeInfo(
            version=f"{version.runtime_name} {version.runtime_version}",
            runtime_ready="RuntimeReady" in conditions and conditions["RuntimeReady"].status,
            network_ready="NetworkReady" in conditions and conditions["NetworkReady"].status,
            message="; ".join(complaints),
        )

    # ---- observing ----

    async def list_pods(self) -> Sequence[PodState]:
        selector = {translate.MANAGED_LABEL: "true"}
        try:
            # One after the other: on one connection the runtime gains nothing from two at once, and
            # containers listed after their pods are never without one.
            pods = await self._list_sandboxes()
            containers = await self._runtime.ListContainers(
                pb.ListContainersRequest(filter=pb.ContainerFilter(label_selector=selector)),
                timeout=QUICK_S,
            )
            return await self._observer.merge(pods, list(containers.containers))
        except grpc.aio.AioRpcError as error:
            raise errors.general(error) from error

    async def _list_sandboxes(self) -> list[pb.PodSandbox]:
        selector = {translate.MANAGED_LABEL: "true"}
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=selector))
        return list((await self._runtime.ListPodSandbox(request, timeout=QUICK_S)).items)

    async def _fetch_ip(self, pod_id: str) -> str:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id)
        response = await self._runtime.PodSandboxStatus(request, timeout=QUICK_S)
        return response.status.network.ip

    async def _fetch_container(self, container_id: str) -> pb.ContainerStatusResponse:
        request = pb.ContainerStatusRequest(container_id=container_id, verbose=True)
        return await self._runtime.ContainerStatus(request, timeout=QUICK_S)

    async def container_status(self, container_id: str) -> ContainerState:
        """CRI does not tell the pod here: `pod_id` stays empty, `image` may be any alias.

        Raises NotFound.
        """
        try:
            found = await self._fetch_container(container_id)
            return translate.container_state(found.status, "")
        except grpc.aio.AioRpcError as error:
            raise errors.general(error) from error

    async def changed(self, timeout_s: float) -> bool:
        return await self._changes.wait(timeout_s)

    @property
    def hears_ends(self) -> bool:
        return self._observer.hears_ends

    # ---- images ----

    async def ensure_image(
        self, image: str, policy: PullPolicy, auth: RegistryAuth | None, arch: str
    ) -> str:
        """The image's id, so that what was checked is what starts. arch: `amd64`, `arm64`, ...

        With ALWAYS and a registry that cannot be asked, what is on the node counts: a box that
        boots without a network starts what its plan says.
        """
        if policy is not PullPolicy.ALWAYS:
            found = await self._local_image(image, arch)
            if found:
                return found
            if policy is PullPolicy.NEVER:
                raise ImageFailure("ImageNeverPull", f"{image}: not on this node and pull is Never")
        try:
            await self._pull(image, auth)
        except ImageFailure as failure:
            if failure.reason != "ImageRegistry" or not await self._local_image(image, arch):
                raise
            log.warning("the image on the node is used", extra={"error": failure.message})
        found = await self._local_image(image, arch)
        if not found:
            raise ImageFailure("ImageNotFound", f"{image}: vanished right after the pull")
        return found

    async def _local_image(self, image: str, arch: str) -> str:
        """Its id, empty if absent. Raises ImageFailure for one of another architecture."""
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=image), verbose=True)
        try:
            response = await self._images.ImageStatus(request, timeout=QUICK_S)
        except grpc.aio.AioRpcError as error:
            raise errors.image(error, image) from error
        if not response.HasField("image"):
            return ""
        built_for = translate.image_architecture(response.info)
        if built_for and arch and built_for != arch:
            raise ImageFailure(
                "ImagePlatform", f"{image}: built for {built_for}, this node is {arch}"
            )
        return response.image.id

    async def image_user(self, image: str) -> ImageUser:
        """As the image's configuration says; a group that it names is left to the runtime."""
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=image))
        try:
            response = await self._images.ImageStatus(request, timeout=QUICK_S)
        except grpc.aio.AioRpcError as error:
            raise errors.image(error, image) from error
        if not response.HasField("image"):
            raise ImageFailure("ImageNotFound", f"{image}: not on this node any more")
        return translate.image_user(response.image)

    async def _pull(self, image: str, auth: RegistryAuth | None) -> None:
        request = pb.PullImageRequest(image=pb.ImageSpec(image=image))
        if auth is not None:
            request.auth.username, request.auth.password = auth.username, auth.password
        try:
            await self._images.PullImage(request, timeout=self._pull_timeout_s)
        except grpc.aio.AioRpcError as error:
            raise errors.image(error, image) from error

    async def image_use(self) -> Sequence[ImageUse]:
        try:
            response = await self._images.ImageFsInfo(pb.ImageFsInfoRequest(), timeout=QUICK_S)
        except grpc.aio.AioRpcError as error:
            raise errors.general(error) from error
        return [
            ImageUse(used_bytes=fs.used_bytes.value, mountpoint=fs.fs_id.mountpoint)
            for fs in response.image_filesystems
        ]

    # ---- pods ----

    async def run_pod(self, spec: PodSpec) -> str:
        try:
            Path(spec.log_directory).mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            raise SandboxFailure("SandboxCreate", f"log directory: {error}") from error
        async with self._ports_reserved(spec):
            request = pb.RunPodSandboxRequest(config=translate.sandbox_config(spec))
            try:
                response = await self._runtime.RunPodSandbox(request, timeout=SANDBOX_S)
            except grpc.aio.AioRpcError as error:
                await self._sweep(spec.uid)
                raise errors.sandbox(error) from error
            except asyncio.CancelledError:
                await asyncio.shield(self._sweep(spec.uid))
                raise
        return response.pod_sandbox_id

    @contextlib.asynccontextmanager
    async def _ports_reserved(self, spec: PodSpec) -> AsyncIterator[None]:
        """Raises SandboxFailure HostPortInUse. Until it ends, no other start gets these ports."""
        if not any(p.host_port for p in spec.ports):
            yield
            return
        async with self._port_check:
            complaint = hostports.conflict(
                spec.ports, await self._held_ports(spec.uid), hostports.listeners()
            )
            if complaint:
                raise SandboxFailure("HostPortInUse", complaint)
            self._starting[spec.uid] = spec
        try:
            yield
        finally:
            del self._starting[spec.uid]

    async def _held_ports(self, own_uid: str) -> list[tuple[str, PortMapping]]:
        """Ports of every other pod that exists or is being started.

        A dead sandbox still holds them: its rules go when it is removed.
        """
        held = [(s.name, p) for s in self._starting.values() for p in s.ports if p.host_port]
        try:
            sandboxes = await self._list_sandboxes()
        except grpc.aio.AioRpcError as error:
            raise errors.general(error) from error
        for item in sandboxes:
            if item.metadata.uid != own_uid:
                text = item.annotations.get(translate.HOST_PORTS_ANNOTATION, "")
                held += [(item.metadata.name, p) for p in translate.parse_host_ports(text)]
        return held

    async def _sweep(self, uid: str) -> None:
        """Remove what a failed start may have left; best effort, since the caller raises anyway."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            for item in await self._list_sandboxes():
                if item.metadata.uid == uid:
                    await self._remove_sandbox(item.id)

    async def remove_pod(self, pod_id: str) -> None:
        try:
            await self._remove_sandbox(pod_id)
        except grpc.aio.AioRpcError as error:
            raise errors.general(error) from error

    async def _remove_sandbox(self, pod_id: str) -> None:
        """Only after a stop that succeeded: stopping is what makes CNI give everything back."""
        with _nothing_if_gone():
            await self._runtime.StopPodSandbox(
                pb.StopPodSandboxRequest(pod_sandbox_id=pod_id), timeout=SANDBOX_S
            )
        with _nothing_if_gone():
            await self._runtime.RemovePodSandbox(
                pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id), timeout=CHANGE_S
            )

    # ---- containers ----

    async def start_container(self, pod_id: str, pod: PodSpec, spec: ContainerSpec) -> str:
        if spec.privileged:
            raise ContainerFailure("ContainerCreate", "privileged containers are not supported")
        if spec.cdi_devices and (objection := await self.cdi_objection()):
            raise ContainerFailure("ContainerCreate", objection)
        request = pb.CreateContainerRequest(
            pod_sandbox_id=pod_id,
            config=translate.container_config(spec, pod),
            sandbox_config=translate.sandbox_config(pod),
        )
        try:
            created = await self._runtime.CreateContainer(request, timeout=CHANGE_S)
        except grpc.aio.AioRpcError as error:
            await self._discard_created(pod_id, spec)
            raise errors.container(error, "ContainerCreate") from error
        container_id = created.container_id
        try:
            await self._runtime.StartContainer(
                pb.StartContainerRequest(container_id=container_id), timeout=CHANGE_S
            )
        except grpc.aio.AioRpcError as error:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._remove(container_id)
            raise errors.container(error, "ContainerStart") from error
        return container_id

    async def cdi_objection(self) -> str:
        """Why the runtime would not hand out devices by CDI; empty when it does. Raises
        RuntimeFailure."""
        try:
            version = await self._runtime.Version(pb.VersionRequest(), timeout=QUICK_S)
            status = await self._runtime.Status(pb.StatusRequest(verbose=True), timeout=QUICK_S)
        except grpc.aio.AioRpcError as error:
            raise errors.general(error) from error
        return translate.cdi_objection(
            version.runtime_name, version.runtime_version, status.info.get("config", "")
        )

    async def _discard_created(self, pod_id: str, spec: ContainerSpec) -> None:
        """After a create whose answer was lost. Never touches one that was started."""
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(pod_sandbox_id=pod_id))
        with contextlib.suppress(grpc.aio.AioRpcError):
            listed = await self._runtime.ListContainers(request, timeout=QUICK_S)
            for item in listed.containers:
                same = (item.metadata.name, item.metadata.attempt) == (spec.name, spec.attempt)
                if same and item.state == pb.CONTAINER_CREATED:
                    await self._remove(item.id)

    async def stop_container(self, container_id: str, grace_s: float) -> None:
        """CRI counts whole seconds: grace_s is rounded up."""
        grace = max(0, math.ceil(grace_s))
        request = pb.StopContainerRequest(container_id=container_id, timeout=grace)
        try:
            with _nothing_if_gone():
                await self._runtime.StopContainer(request, timeout=grace + STOP_MARGIN_S)
        except grpc.aio.AioRpcError as error:
            raise errors.general(error) from error

    async def remove_container(self, container_id: str) -> None:
        """Kills it first if it runs. No error if it is gone."""
        try:
            await self._remove(container_id)
        except grpc.aio.AioRpcError as error:
            raise errors.general(error) from error

    async def _remove(self, container_id: str) -> None:
        with _nothing_if_gone():
            await self._runtime.RemoveContainer(
                pb.RemoveContainerRequest(container_id=container_id), timeout=CHANGE_S
            )

    async def reopen_log(self, container_id: str) -> None:
        request = pb.ReopenContainerLogRequest(container_id=container_id)
        try:
            await self._runtime.ReopenContainerLog(request, timeout=QUICK_S)
        except grpc.aio.AioRpcError as error:
            raise errors.general(error) from error

    # ---- exec ----

    async def exec(
        self, container_id: str, command: Sequence[str], *, stdin: bool, tty: bool
    ) -> ExecSession:
        """Raises NotFound, ContainerFailure ExecFailed (not running), RuntimeUnavailable."""
        from agent.runtime.cri.exec import open_session  # late: most agents never exec

        request = pb.ExecRequest(
            container_id=container_id,
            cmd=command,
            tty=tty,
            stdin=stdin,
            stdout=True,
            stderr=not tty,
        )
        try:
            url = (await self._runtime.Exec(request, timeout=QUICK_S)).url
        except grpc.aio.AioRpcError as error:
            raise _exec_failure(error) from error
        return await open_session(url, stdin=stdin, tty=tty)

    async def exec_sync(
        self, container_id: str, command: Sequence[str], timeout_s: float
    ) -> tuple[int, bytes]:
        """CRI counts whole seconds: timeout_s is enforced here too. Raises ContainerFailure
        ExecFailed when the command cannot run, NotFound, TimeoutError."""
        request = pb.ExecSyncRequest(
            container_id=container_id, cmd=command, timeout=max(1, math.ceil(timeout_s))
        )
        call = self._runtime.ExecSync(request, timeout=math.ceil(timeout_s) + PROBE_MARGIN_S)
        try:
            async with asyncio.timeout(timeout_s):
                response = await call
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {timeout_s:g} s") from error
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError(f"no answer within {timeout_s:g} s") from error
            raise _exec_failure(error) from error
        return response.exit_code, (response.stdout + response.stderr)[:PROBE_OUTPUT_BYTES_MAX]

    async def close(self) -> None:
        """Drop the connection; containers run on."""
        self._ends.close()
        await self._changes.close()
        await self._channel.close(None)


@contextlib.contextmanager
def _nothing_if_gone() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise


def _exec_failure(error: grpc.aio.AioRpcError) -> Exception:
    failure = errors.general(error)
    if isinstance(failure, NotFound) or errors.unavailable(error) is not None:
        return failure
    return ContainerFailure("ExecFailed", errors.explain_start(failure.message))
