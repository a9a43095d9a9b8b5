"""Between the port's values and CRI messages. Pure; used by the adapter alone."""

import json
import re
from collections.abc import Iterable, Mapping

from agent.runtime.cri.pb import api_pb2 as pb
from agent.runtime.port import (
    ContainerPhase,
    ContainerSpec,
    ContainerState,
    ImageUser,
    PodSpec,
    PodState,
    PortMapping,
    Resources,
)

MANAGED_LABEL = "polder.eu/managed"
HOST_PORTS_ANNOTATION = "polder.eu/host-ports"
HOST_NETWORK_ANNOTATION = "polder.eu/host-network"
HOST_NETWORK_IP = "127.0.0.1"
"""What a pod has as address that shares the node's network: where probes reach it."""
# Whoever is not root may bind port 80 in a network namespace of its own; as Docker does it.
POD_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start": "0"}

CFS_PERIOD_US = 100_000
CFS_QUOTA_US_MIN = 1_000  # the kernel refuses less
CPU_SHARES_MIN = 2
CPU_SHARES_PER_CPU = 1_024

# containerd and CRI-O mask nothing by themselves: the client must say it. The same paths as the
# defaults of Kubernetes (pkg/securitycontext) and Docker.
MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_PHASES = {
    pb.CONTAINER_CREATED: ContainerPhase.CREATED,
    pb.CONTAINER_RUNNING: ContainerPhase.RUNNING,
    pb.CONTAINER_EXITED: ContainerPhase.EXITED,
}


def seconds(nanoseconds: int) -> float:
    """CRI's nanoseconds -> unix seconds; 0 (or Go's zero time, which is negative) stays 0."""
    return nanoseconds / 1e9 if nanoseconds > 0 else 0.0


def sandbox_config(spec: PodSpec) -> pb.PodSandboxConfig:
    """The same config must go to RunPodSandbox and to each CreateContainer."""
    annotations = dict(spec.annotations)
    if any(p.host_port for p in spec.ports):
        annotations[HOST_PORTS_ANNOTATION] = format_host_ports(spec.ports)
    if spec.host_network:
        annotations[HOST_NETWORK_ANNOTATION] = "true"
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=spec.name, uid=spec.uid, namespace=spec.namespace),
        # With the node's network comes the node's name: the runtime refuses another.
        hostname="" if spec.host_network else spec.hostname or spec.name[:63],
        log_directory=spec.log_directory,
        labels={**spec.labels, MANAGED_LABEL: "true"},
        annotations=annotations,
        port_mappings=[
            port_mapping(p) for p in spec.ports if p.host_port and not spec.host_network
        ],
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent=spec.cgroup_parent,
            security_context=pb.LinuxSandboxSecurityContext(
                namespace_options=_namespaces(spec),
                readonly_rootfs=True,
                seccomp=_seccomp(unconfined=False),
            ),
            sysctls={} if spec.host_network else POD_SYSCTLS,
        ),
    )
    if spec.dns_servers:
        config.dns_config.servers.extend(spec.dns_servers)
    return config


def port_mapping(port: PortMapping) -> pb.PortMapping:
    return pb.PortMapping(
        protocol=pb.UDP if port.protocol == "UDP" else pb.TCP,
        container_port=port.container_port,
        host_port=port.host_port,
        host_ip=port.host_ip,
    )


def format_host_ports(ports: Iterable[PortMapping]) -> str:
    """`TCP//18080,UDP/10.0.0.1/53`: kept on the sandbox, since CRI does not list its mappings."""
    return ",".join(f"{p.protocol}/{p.host_ip}/{p.host_port}" for p in ports if p.host_port)


def parse_host_ports(text: str) -> list[PortMapping]:
    """The inverse; what does not parse is skipped, since anyone may have written it."""
    found: list[PortMapping] = []
    for item in text.split(","):
        parts = item.split("/")
        if len(parts) == 3 and parts[2].isdigit():
            found.append(PortMapping(0, int(parts[2]), parts[0], parts[1]))
    return found


def container_config(spec: ContainerSpec, pod: PodSpec) -> pb.ContainerConfig:
    """No container can gain rights that it does not start with: no_new_privs, whatever it asks."""
    security = pb.LinuxContainerSecurityContext(
        capabilities=pb.Capability(
            drop_capabilities=["ALL"],
            add_capabilities=spec.capabilities,
            # Without these, whoever is not root has none of them after the first exec.
            add_ambient_capabilities=spec.capabilities,
        ),
        namespace_options=_namespaces(pod),
        readonly_rootfs=spec.read_only_root,
        no_new_privs=True,
        masked_paths=MASKED_PATHS,
        readonly_paths=READ_ONLY_PATHS,
        seccomp=_seccomp(unconfined=spec.unconfined),
        run_as_username=spec.run_as_username,
    )
    if spec.run_as_user is not None:
        security.run_as_user.value = spec.run_as_user
    if spec.run_as_group is not None:
        security.run_as_group.value = spec.run_as_group
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=spec.name, attempt=spec.attempt),
        image=pb.ImageSpec(image=spec.image),
        command=spec.command,
        args=spec.args,
        working_dir=spec.working_dir,
        envs=[pb.KeyValue(key=k, value=v.encode()) for k, v in spec.env],
        mounts=[
            pb.Mount(container_path=m.container_path, host_path=m.host_path, readonly=m.read_only)
            for m in spec.mounts
        ],
        devices=[
            pb.Device(
                container_path=d.container_path, host_path=d.host_path, permissions=d.permissions
            )
            for d in spec.devices
        ],
        CDI_devices=[pb.CDIDevice(name=name) for name in spec.cdi_devices],
        labels={**spec.labels, MANAGED_LABEL: "true"},
        annotations=spec.annotations,
        log_path=f"{spec.name}_{spec.attempt}.log",
        tty=spec.tty,
        stop_signal=_signal(spec.stop_signal),
        linux=pb.LinuxContainerConfig(
            resources=linux_resources(spec.resources), security_context=security
        ),
    )


def linux_resources(resources: Resources) -> pb.LinuxContainerResources:
    """cpu_millis -> shares (1000m = 1024), cpu_limit_millis -> CFS quota per 100 ms period."""
    result = pb.LinuxContainerResources(
        memory_limit_in_bytes=resources.memory_bytes, oom_score_adj=resources.oom_score_adj
    )
    if resources.cpu_millis:
        shares = resources.cpu_millis * CPU_SHARES_PER_CPU // 1_000
        result.cpu_shares = max(CPU_SHARES_MIN, shares)
    if resources.cpu_limit_millis:
        result.cpu_period = CFS_PERIOD_US
        quota = resources.cpu_limit_millis * CFS_PERIOD_US // 1_000
        result.cpu_quota = max(CFS_QUOTA_US_MIN, quota)
    return result


def _signal(name: str) -> pb.Signal.ValueType:
    """`SIGTERM` or `TERM`; an unknown one falls back to the image's own. Old runtimes ignore it."""
    full = "SIGNAL_SIG" + name.upper().removeprefix("SIG").replace("+", "PLUS")
    return dict(pb.Signal.items()).get(full, pb.SIGNAL_RUNTIME_DEFAULT)


def _namespaces(pod: PodSpec) -> pb.NamespaceOption:
    """Network and IPC per pod, processes per container; or the node's."""
    return pb.NamespaceOption(
        network=pb.NODE if pod.host_network else pb.POD,
        pid=pb.NODE if pod.host_pid else pb.CONTAINER,
        ipc=pb.NODE if pod.host_ipc else pb.POD,
    )


def _seccomp(*, unconfined: bool) -> pb.SecurityProfile:
    profile = pb.SecurityProfile
    return profile(profile_type=profile.Unconfined if unconfined else profile.RuntimeDefault)


def image_user(image: pb.Image) -> ImageUser:
    return ImageUser(image.uid.value if image.HasField("uid") else None, image.username)


def shares_network(item: pb.PodSandbox) -> bool:
    """Whether the pod has no address of its own."""
    return item.annotations.get(HOST_NETWORK_ANNOTATION) == "true"


def pod_state(item: pb.PodSandbox, ip: str, containers: Iterable[ContainerState]) -> PodState:
    return PodState(
        id=item.id,
        name=item.metadata.name,
        namespace=item.metadata.namespace,
        uid=item.metadata.uid,
        ready=item.state == pb.SANDBOX_READY,
        labels=dict(item.labels),
        annotations=dict(item.annotations),
        created_at=seconds(item.created_at),
        ip=ip or (HOST_NETWORK_IP if shares_network(item) else ""),
        containers=tuple(containers),
    )


def container_state(status: pb.ContainerStatus, pod_id: str, image: str = "") -> ContainerState:
    """From ContainerStatus, which does not say the pod: the caller knows it from the list."""
    started_at, finished_at = seconds(status.started_at), seconds(status.finished_at)
    if finished_at:
        # The runtime notes the start after the fact: a short process has ended before it "began".
        started_at = min(started_at, finished_at)
    return ContainerState(
        id=status.id,
        pod_id=pod_id,
        name=status.metadata.name,
        attempt=status.metadata.attempt,
        phase=_PHASES.get(status.state, ContainerPhase.UNKNOWN),
        image=image or status.image.image or status.image_ref,
        labels=dict(status.labels),
        annotations=dict(status.annotations),
        created_at=seconds(status.created_at),
        started_at=started_at,
        finished_at=finished_at,
        exit_code=status.exit_code,
        reason=status.reason,
        message=status.message,
        log_path=status.log_path,
    )


def phase_of(item: pb.Container) -> ContainerPhase:
    return _PHASES.get(item.state, ContainerPhase.UNKNOWN)


def cdi_objection(runtime_name: str, version: str, config: str) -> str:
    """Why this runtime would silently ignore CDI devices; empty when it injects them.

    config: the JSON in containerd's verbose Status. containerd knows the field since 1.7,
    where CDI is off by default; CRI-O always handles it.
    """
    if runtime_name != "containerd":
        return ""
    release = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if release < (1, 7):
        return f"CDI devices need containerd 1.7 or later, this node has {version}"
    default = "true" if release >= (2, 0) else "false"
    found = re.search(r'"enableCDI"\s*:\s*(true|false)', config)
    if (found[1] if found else default) == "false":
        return "CDI is switched off in containerd's configuration (enable_cdi)"
    return ""


def image_architecture(info: Mapping[str, str]) -> str:
    """The architecture in a verbose ImageStatus; empty when the runtime does not tell."""
    try:
        return str(json.loads(info.get("info", "{}"))["imageSpec"]["architecture"])
    except (ValueError, KeyError, TypeError):
        return ""


def pid_of(info: Mapping[str, str]) -> int:
    """Of a container's first process, from a verbose ContainerStatus; 0 when it is not told."""
    try:
        return int(json.loads(info.get("info", "{}"))["pid"])
    except (ValueError, KeyError, TypeError):
        return 0
