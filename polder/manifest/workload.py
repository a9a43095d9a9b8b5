"""The kind Workload: what runs, with what, how often and where.

Read by the scheduler (all of it) and by the agent (the template). Field sentences are what
`edgectl explain` prints; checks of more than one field are in `violations()` of their class.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from polder.manifest.names import (
    ABSOLUTE_PATH,
    ABSOLUTE_PATH_HELP,
    ENV_NAME,
    ENV_NAME_HELP,
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
from polder.manifest.placement import Failover, Placement
from polder.manifest.policy import SovereigntySpec
from polder.manifest.quantity import cpu_millis, duration_s, memory_bytes
from polder.manifest.schema import Violation, spec

MAX_REPLICAS = 1_000_000


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
class EnvVar:
    """An environment variable of a container."""

    name: str = spec("The variable's name.", pattern=ENV_NAME, pattern_help=ENV_NAME_HELP)
    value: str = spec("Its value.", default="")
    secret: SecretKeyRef | None = spec("Take the value from a Secret.", default=None)

    def violations(self) -> Iterator[Violation]:
        if self.value and self.secret is not None:
            yield Violation("", "has both value and secret; give one")


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


@dataclass(frozen=True, slots=True)
class SecurityContext:
    """With which rights the container runs."""

    run_as_user: int | None = spec(
        "Numeric user id. Default: the image's.", default=None, minimum=0, maximum=2**31 - 1
    )
    read_only_root_filesystem: bool = spec("Mount the root read-only.", default=False)


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
    stop_signal: str = spec(
        "Signal that asks it to end. Default: the image's, or SIGTERM.",
        default="",
        choices=("", "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL"),
    )

    def violations(self) -> Iterator[Violation]:
        yield from _duplicates("ports[{}].name", [p.name for p in self.ports])
        yield from _duplicates("env[{}].name", [e.name for e in self.env])
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
    image_pull_secrets: tuple[str, ...] = spec(
        "Secrets of type Registry in the same namespace.",
        default=(),
        max_items=16,
        pattern=LABEL,
        pattern_help=LABEL_HELP,
    )
    stop_grace: float = _duration(10.0, "Time between the stop signal and SIGKILL.", maximum=3600.0)

    def violations(self) -> Iterator[Violation]:
        yield from _duplicates("containers[{}].name", [c.name for c in self.containers])
        seen: set[tuple[int, str]] = set()
        for i, container in enumerate(self.containers):
            for j, port in enumerate(container.ports):
                wanted = (port.host_port, port.protocol)
                if port.host_port and wanted in seen:
                    text = f"{port.host_port}/{port.protocol} is already taken in this pod"
                    yield Violation(f"containers[{i}].ports[{j}].hostPort", text)
                seen.add(wanted)

    def host_ports(self) -> tuple[Port, ...]:
        return tuple(p for c in self.containers for p in c.ports if p.host_port)


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """Containers that run somewhere, and how many. One of replicas, perSite and perNode."""

    template: PodTemplate = spec("What every replica runs.")
    replicas: int | None = spec(
        "How many. Default: 1.", default=None, minimum=0, maximum=MAX_REPLICAS
    )
    per_site: int | None = spec(
        "So many at every site that qualifies.", default=None, minimum=0, maximum=1000
    )
    per_node: int | None = spec(
        "So many on every node that qualifies.", default=None, minimum=0, maximum=100
    )
    priority: int = spec(
        "Placed before workloads of lower priority.",
        default=0,
        minimum=-1_000_000,
        maximum=1_000_000,
    )
    placement: Placement = spec("Where replicas may run.", default=Placement())
    failover: Failover = spec("Who takes over.", default=Failover())
    sovereignty: SovereigntySpec = spec(
        "What it demands of sites and their providers. The namespace's floor holds beside it.",
        default=SovereigntySpec(),
    )

    def violations(self) -> Iterator[Violation]:
        given = [
            key
            for key, value in (
                ("replicas", self.replicas),
                ("perSite", self.per_site),
                ("perNode", self.per_node),
            )
            if value is not None
        ]
        if len(given) > 1:
            yield Violation("", f"has {' and '.join(given)}; give one of them")


def _duplicates(path: str, values: list[str]) -> Iterator[Violation]:
    """Every value that was there before; empty ones are free. `{}` in the path is the index."""
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value and value in seen:
            yield Violation(path.format(index), f"{value!r} is already taken")
        seen.add(value)
