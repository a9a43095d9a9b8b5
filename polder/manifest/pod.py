"""What a replica runs: its containers, with what, and with which rights.

Read by the agent, and by the scheduler for what it needs of a node. Field sentences are what
`edgectl explain` prints; checks of more than one field are in `violations()` of their class.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from polder.manifest.names import (
    ABSOLUTE_PATH,
    ABSOLUTE_PATH_HELP,
    ENV_NAME,
    ENV_NAME_HELP,
    FACT,
    FACT_HELP,
    HTTP_PATH,
    HTTP_PATH_HELP,
    IMAGE,
    IMAGE_HELP,
    LABEL,
    LABEL_HELP,
    PORT_NAME,
    PORT_NAME_HELP,
    QUALIFIED,
    QUALIFIED_HELP,
    port_reference,
)
from polder.manifest.quantity import cpu_millis, duration_s, memory_bytes
from polder.manifest.schema import Violation, spec
from polder.manifest.volumes import Volume, VolumeMount


def _duration(default: float, doc: str, **rule: object) -> float:
    value: float = spec(
        doc, default=default, parse=duration_s, shown_type="duration such as 30s", unit="s", **rule
    )
    return value


@dataclass(frozen=True, slots=True)
class Port:
    """A port that a container listens on."""

    container_port: int = spec("The port inside the container.", minimum=1, maximum=65535)
    name: str = spec(
        "What probes call it.", default="", pattern=PORT_NAME, pattern_help=PORT_NAME_HELP
    )
    host_port: int = spec(
        "The node's port that leads to it. 0: none. One replica per node can have it.",
        default=0,
        minimum=0,
        maximum=65535,
    )
    protocol: str = spec("TCP or UDP.", default="TCP", choices=("TCP", "UDP"))


@dataclass(frozen=True, slots=True)
class SecretKeyRef:
    """One value of a Secret in the same namespace."""

    name: str = spec("The Secret's name.", pattern=LABEL, pattern_help=LABEL_HELP)
    key: str = spec("The key in its data.", max_length=253)


@dataclass(frozen=True, slots=True)
class ConfigKeyRef:
    """One value of a Config in the same namespace."""

    name: str = spec("The Config's name.", pattern=LABEL, pattern_help=LABEL_HELP)
    key: str = spec("The key in its data.", max_length=253)


@dataclass(frozen=True, slots=True)
class EnvVar:
    """An environment variable of a container. It is read when the container starts."""

    name: str = spec("The variable's name.", pattern=ENV_NAME, pattern_help=ENV_NAME_HELP)
    value: str = spec("Its value.", default="")
    secret: SecretKeyRef | None = spec("Take the value from a Secret.", default=None)
    config: ConfigKeyRef | None = spec("Take the value from a Config.", default=None)
    fact: str = spec(
        "Take the value from what is known of the node, its site or the replica.",
        default="",
        pattern=FACT,
        pattern_help=FACT_HELP,
    )

    def violations(self) -> Iterator[Violation]:
        given = [key for key in ("value", "secret", "config", "fact") if getattr(self, key)]
        if len(given) > 1:
            yield Violation("", f"has {' and '.join(given)}; give one of them")


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """Succeeds on an HTTP status from 200 to 399."""

    port: str = spec(
        "A port's name or number.",
        parse=port_reference,
        shown_type="port name or number",
    )
    path: str = spec(
        "The path to get.",
        default="/",
        max_length=2048,
        pattern=HTTP_PATH,
        pattern_help=HTTP_PATH_HELP,
    )


@dataclass(frozen=True, slots=True)
class TcpProbe:
    """Succeeds when the port accepts a connection."""

    port: str = spec(
        "A port's name or number.",
        parse=port_reference,
        shown_type="port name or number",
    )


@dataclass(frozen=True, slots=True)
class ExecProbe:
    """Succeeds when the command exits with 0."""

    command: tuple[str, ...] = spec("The command and its arguments.", min_items=1)


@dataclass(frozen=True, slots=True)
class Probe:
    """A check that the agent repeats. Exactly one of http, tcp and exec."""

    http: HttpProbe | None = spec("An HTTP request.", default=None)
    tcp: TcpProbe | None = spec("A TCP connection.", default=None)
    exec: ExecProbe | None = spec("A command in the container.", default=None)
    initial_delay: float = _duration(0.0, "How long after the start the first check comes.")
    period: float = _duration(5.0, "Time between checks.", minimum=0.1)
    timeout: float = _duration(1.0, "A check that takes longer has failed.", minimum=0.01)
    failure_threshold: int = spec(
        "Failures in a row that count.", default=3, minimum=1, maximum=1000
    )
    success_threshold: int = spec(
        "Successes in a row that count.", default=1, minimum=1, maximum=1000
    )

    def violations(self) -> Iterator[Violation]:
        given = [name for name in ("http", "tcp", "exec") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            yield Violation("", f"needs exactly one of http, tcp, exec; found {found}")


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """What a container needs. The node keeps it free for this container."""

    cpu: int = spec(
        "Cores, reserved as CPU shares.",
        default=0,
        parse=cpu_millis,
        shown_type="quantity such as 500m",
    )
    cpu_limit: int = spec(
        "Hard limit on cores. 0: may use what is idle.",
        default=0,
        parse=cpu_millis,
        shown_type="quantity such as 1",
    )
    memory: int = spec(
        "Reserved and enforced: over it the container is killed. 0: neither.",
        default=0,
        parse=memory_bytes,
        shown_type="quantity such as 256Mi",
    )
    disk: int = spec(
        "Disk for images, logs and writable layer, reserved.",
        default=0,
        parse=memory_bytes,
        shown_type="quantity such as 1Gi",
    )
    devices: dict[str, int] = spec(
        "Countable devices by resource name, such as polder.eu/gpu.",
        default_factory=dict,
        minimum=1,
        maximum=1024,
        max_items=16,
        key_pattern=QUALIFIED,
        key_help=QUALIFIED_HELP,
    )

    def violations(self) -> Iterator[Violation]:
        if self.cpu_limit and self.cpu_limit < self.cpu:
            yield Violation("cpuLimit", "is less than cpu, what is reserved")
        if 0 < self.memory < 4 << 20:
            yield Violation("memory", "is under 4Mi; no container starts in that")


CAPABILITY = re.compile(r"[A-Z][A-Z_]{1,31}")
CAPABILITY_HELP = "a Linux capability such as NET_BIND_SERVICE, without CAP_"


@dataclass(frozen=True, slots=True)
class SecurityContext:
    """With which rights the container runs. It never gains more than it starts with."""

    run_as_user: int | None = spec(
        "Numeric user id. Default: the image's if it is not root, otherwise 65532.",
        default=None,
        minimum=0,
        maximum=2**31 - 1,
    )
    run_as_group: int | None = spec(
        "Numeric group id. Default: the user's.", default=None, minimum=0, maximum=2**31 - 1
    )
    read_only_root_filesystem: bool | None = spec(
        "Whether the root is mounted read-only; volumes are for what is written. Default: true.",
        default=None,
    )
    capabilities: tuple[str, ...] = spec(
        "Linux capabilities to have; all others are dropped. The namespace must allow them.",
        default=(),
        max_items=40,
        pattern=CAPABILITY,
        pattern_help=CAPABILITY_HELP,
    )
    seccomp: str = spec(
        "Unconfined must be allowed by the namespace.",
        default="RuntimeDefault",
        choices=("RuntimeDefault", "Unconfined"),
    )

    @property
    def read_only_root(self) -> bool:
        """None is not written as true: what runs would get another digest, and restart."""
        return self.read_only_root_filesystem is not False


@dataclass(frozen=True, slots=True)
class Container:
    """One container of a pod."""

    name: str = spec("Unique in the pod.", pattern=LABEL, pattern_help=LABEL_HELP)
    image: str = spec("Image reference; by digest is best.", pattern=IMAGE, pattern_help=IMAGE_HELP)
    image_pull_policy: str = spec(
        "When to pull.",
        default="IfNotPresent",
        choices=("IfNotPresent", "Always", "Never"),
    )
    command: tuple[str, ...] = spec("Replaces the image's entrypoint.", default=())
    args: tuple[str, ...] = spec("Replaces the image's arguments.", default=())
    working_dir: str = spec(
        "Replaces the image's working directory.",
        default="",
        pattern=ABSOLUTE_PATH,
        pattern_help=ABSOLUTE_PATH_HELP,
    )
    env: tuple[EnvVar, ...] = spec("Environment variables.", default=())
    ports: tuple[Port, ...] = spec("Ports that it listens on.", default=(), max_items=100)
    resources: ResourceRequest = spec("What it needs.", default=ResourceRequest())
    readiness_probe: Probe | None = spec("Gates readiness.", default=None)
    liveness_probe: Probe | None = spec("Restarts the container when it fails.", default=None)
    security: SecurityContext = spec("Rights.", default=SecurityContext())
    volume_mounts: tuple[VolumeMount, ...] = spec(
        "Where it sees the pod's volumes.", default=(), max_items=50
    )
    stop_signal: str = spec(
        "Signal that asks it to end. Default: the image's, or SIGTERM.",
        default="",
        choices=("", "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL"),
    )

    def violations(self) -> Iterator[Violation]:
        yield from _duplicates("ports[{}].name", [p.name for p in self.ports])
        yield from _duplicates("env[{}].name", [e.name for e in self.env])
        paths = [mount.mount_path for mount in self.volume_mounts]
        yield from _duplicates("volumeMounts[{}].mountPath", paths)
        names = {p.name for p in self.ports if p.name}
        for key, probe in (
            ("readinessProbe", self.readiness_probe),
            ("livenessProbe", self.liveness_probe),
        ):
            if probe is None:
                continue
            for kind, check in (("http", probe.http), ("tcp", probe.tcp)):
                if check is not None and not check.port.isdecimal() and check.port not in names:
                    text = f"names the port {check.port!r}, which is not in ports"
                    yield Violation(f"{key}.{kind}.port", text)

    def port_number(self, reference: str) -> int:
        """The container's port behind a probe's reference. Raises KeyError."""
        if reference.isdecimal():
            return int(reference)
        for port in self.ports:
            if port.name == reference:
                return port.container_port
        raise KeyError(reference)


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """What every replica runs."""

    containers: tuple[Container, ...] = spec(
        "The pod's containers; they share its network.", min_items=1, max_items=16
    )
    init_containers: tuple[Container, ...] = spec(
        "Run one after the other, each to its end, before the containers start. They have no "
        "probes.",
        default=(),
        max_items=16,
    )
    volumes: tuple[Volume, ...] = spec(
        "Files and directories for its containers.", default=(), max_items=32
    )
    image_pull_secrets: tuple[str, ...] = spec(
        "Secrets of type Registry in the same namespace.",
        default=(),
        max_items=16,
        pattern=LABEL,
        pattern_help=LABEL_HELP,
    )
    stop_delay: float = _duration(
        0.0,
        "Time between being reported as not ready and the stop signal, so that those who send "
        "requests turn elsewhere first.",
        maximum=3600.0,
    )
    stop_grace: float = _duration(10.0, "Time between the stop signal and SIGKILL.", maximum=3600.0)
    host_network: bool = spec("Share the node's network, if the namespace allows.", default=False)
    host_pid: bool = spec(
        "See the node's processes, if the namespace allows.", default=False, key="hostPID"
    )
    host_ipc: bool = spec(
        "Share the node's IPC, if the namespace allows.", default=False, key="hostIPC"
    )
    restarted_at: str = spec(
        "Another text is another revision (`edgectl rollout restart`).",
        default="",
        max_length=64,
    )

    def violations(self) -> Iterator[Violation]:
        every = [*self.containers, *self.init_containers]
        first = len(self.containers)
        for violation in _duplicates("{}", [c.name for c in every]):
            index = int(violation.path)
            where = f"containers[{index}]" if index < first else f"initContainers[{index - first}]"
            yield Violation(f"{where}.name", violation.message)
        yield from _duplicates("volumes[{}].name", [v.name for v in self.volumes])
        yield from self._port_violations()
        volumes = {volume.name for volume in self.volumes}
        for index, container in enumerate(every):
            where = f"containers[{index}]" if index < first else f"initContainers[{index - first}]"
            for j, mount in enumerate(container.volume_mounts):
                if mount.name not in volumes:
                    text = f"names the volume {mount.name!r}, which is not in volumes"
                    yield Violation(f"{where}.volumeMounts[{j}].name", text)
            if index >= first and (container.readiness_probe or container.liveness_probe):
                yield Violation(where, "is an init container: it runs to its end, without probes")

    def _port_violations(self) -> Iterator[Violation]:
        seen: set[tuple[int, str]] = set()
        for i, container in enumerate(self.containers):
            for j, port in enumerate(container.ports):
                number = self._host_port(port)
                wanted = (number, port.protocol)
                path = f"containers[{i}].ports[{j}].hostPort"
                if self.host_network and port.host_port not in (0, port.container_port):
                    yield Violation(path, "must be the containerPort with hostNetwork, or left out")
                elif number and wanted in seen:
                    yield Violation(path, f"{number}/{port.protocol} is already taken in this pod")
                seen.add(wanted)

    def _host_port(self, port: Port) -> int:
        return port.container_port if self.host_network else port.host_port

    def host_ports(self) -> tuple[Port, ...]:
        """Ports that it takes of its node; all of them when it shares the node's network."""
        return tuple(
            replace(port, host_port=self._host_port(port))
            for container in self.containers
            for port in container.ports
            if self._host_port(port)
        )

    def named_configs(self) -> tuple[str, ...]:
        """Configs that its variables and volumes come from, each once, in order of name."""
        names = {v.config.name for v in self.volumes if v.config is not None}
        names |= {e.config.name for e in self._env() if e.config is not None}
        return tuple(sorted(names))

    def local_volumes(self) -> tuple[str, ...]:
        """Names of volumes that tie a replica to the node that has their data."""
        return tuple(volume.name for volume in self.volumes if volume.local is not None)

    def host_paths(self) -> tuple[str, ...]:
        """Paths of the box that it wants to see."""
        return tuple(v.host_path.path for v in self.volumes if v.host_path is not None)

    def demands(self) -> tuple[str, ...]:
        """What its namespace must allow, in the words of `NamespaceSpec.allow`."""
        every = [c.security for c in (*self.containers, *self.init_containers)]
        wanted = {
            "hostNetwork": self.host_network,
            "hostPID": self.host_pid,
            "hostIPC": self.host_ipc,
            "hostPath": bool(self.host_paths()),
            "capabilities": any(security.capabilities for security in every),
            "unconfined": any(security.seccomp == "Unconfined" for security in every),
        }
        return tuple(name for name, asked in wanted.items() if asked)

    def _env(self) -> Iterator[EnvVar]:
        for container in (*self.containers, *self.init_containers):
            yield from container.env


def _duplicates(path: str, values: list[str]) -> Iterator[Violation]:
    """Every value that was there before; empty ones are free. `{}` in the path is the index."""
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value and value in seen:
            yield Violation(path.format(index), f"{value!r} is already taken")
        seen.add(value)
