"""The kinds and their fields: the schema that files, wire, store, scheduler and agent share.

A field's sentence is what `edgectl explain` prints. Checks that need more than one field are in
`violations()` of the class that holds them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from polder.countries import country_code
from polder.manifest.quantity import cpu_millis, duration_s, memory_bytes
from polder.manifest.schema import Violation, spec
from polder.manifest.text import shown

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_HELP = "a name of lower-case letters, digits and '-', 63 characters at most"
HOST_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
HOST_NAME_HELP = "a name of lower-case letters, digits, '-' and '.'"
QUALIFIED = re.compile(
    r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
QUALIFIED_HELP = "a name such as app or example.eu/app"
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
LABEL_VALUE_HELP = "a label value: letters, digits, '-', '_' and '.', 63 characters at most"
# A name of digits alone would be taken for a number where ports are referred to.
PORT_NAME = re.compile(r"(?=[-0-9]*[a-z])[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
PORT_NAME_HELP = f"{LABEL_HELP}, with a letter in it"
_PORT_NUMBER = re.compile(r"[1-9][0-9]{0,4}")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,252}")
ENV_NAME_HELP = "a variable name of letters, digits, '_' and '.'"
COUNTRY_TYPE = "country code such as NL"
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\-]{0,511}")
IMAGE_HELP = "an image reference such as registry.example/app@sha256:..."
# Goes into a request line as it is.
HTTP_PATH = re.compile(r"/[!-~]*")
HTTP_PATH_HELP = "a path that starts with '/', of ASCII characters without spaces"
ABSOLUTE_PATH = re.compile(r"/.*", re.DOTALL)
ABSOLUTE_PATH_HELP = "an absolute path"

ARCHITECTURES = ("amd64", "arm64")
MAX_REPLICAS = 1_000_000


def _duration(default: float, doc: str, **rule: object) -> float:
    value: float = spec(
        doc, default=default, parse=duration_s, shown_type="duration such as 30s", unit="s", **rule
    )
    return value


def port_reference(raw: object) -> str:
    """A port's name, or its number as text. Raises ValueError."""
    if isinstance(raw, int) and not isinstance(raw, bool) and 1 <= raw <= 65535:
        return str(raw)
    if isinstance(raw, str):
        if _PORT_NUMBER.fullmatch(raw) and int(raw) <= 65535:
            return raw
        if PORT_NAME.fullmatch(raw):
            return raw
    raise ValueError(f"{shown(raw)} is neither a port's name nor a number from 1 to 65535")


# --- Workload ---------------------------------------------------------------------------------


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
class Toleration:
    """Lets replicas onto nodes with a matching taint. An empty key matches every taint."""

    key: str = spec("The taint's key.", default="", pattern=QUALIFIED, pattern_help=QUALIFIED_HELP)
    value: str | None = spec(
        "The taint's value. Default: any.",
        default=None,
        pattern=LABEL_VALUE,
        pattern_help=LABEL_VALUE_HELP,
    )
    effect: str = spec(
        "The taint's effect. Default: any.", default="", choices=("", "NoSchedule", "NoExecute")
    )


@dataclass(frozen=True, slots=True)
class Spread:
    """Keeps the counts of replicas per topology value within maxSkew of each other."""

    by: str = spec(
        "What to spread over.", choices=("node", "site", "region", "provider", "country")
    )
    max_skew: int = spec("Largest difference between counts.", default=1, minimum=1, maximum=10000)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where replicas may run."""

    arch: tuple[str, ...] = spec(
        "Architectures that the image exists for. Default: any.",
        default=(),
        choices=ARCHITECTURES,
    )
    node_selector: dict[str, str] = spec(
        "Labels that a node must have.",
        default_factory=dict,
        max_items=50,
        key_pattern=QUALIFIED,
        key_help=QUALIFIED_HELP,
        pattern=LABEL_VALUE,
        pattern_help=LABEL_VALUE_HELP,
    )
    tolerations: tuple[Toleration, ...] = spec("Taints to accept.", default=(), max_items=50)
    spread: Spread | None = spec("How to spread replicas.", default=None)


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


# --- the other kinds --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """The legal entity that runs sites."""

    legal_name: str = spec("As registered.", max_length=256)
    seat_country: str = spec(
        "Where it has its registered seat.", parse=country_code, shown_type=COUNTRY_TYPE
    )


@dataclass(frozen=True, slots=True)
class Coordinates:
    """WGS 84, in degrees."""

    latitude: float = spec("North is positive.", minimum=-90, maximum=90)
    longitude: float = spec("East is positive.", minimum=-180, maximum=180)


@dataclass(frozen=True, slots=True)
class SiteSpec:
    """One edge location of one provider."""

    provider: str = spec("The Provider's name.", pattern=LABEL, pattern_help=LABEL_HELP)
    country: str = spec("Where it stands.", parse=country_code, shown_type=COUNTRY_TYPE)
    region: str = spec(
        "The nearest region of orchestrators.", default="", pattern=LABEL, pattern_help=LABEL_HELP
    )
    coordinates: Coordinates | None = spec("Where exactly.", default=None)


@dataclass(frozen=True, slots=True)
class Taint:
    """Keeps replicas away that do not tolerate it."""

    key: str = spec("Such as maintenance.", pattern=QUALIFIED, pattern_help=QUALIFIED_HELP)
    effect: str = spec(
        "NoSchedule: no new replicas. NoExecute: also moves those that are there.",
        choices=("NoSchedule", "NoExecute"),
    )
    value: str = spec(
        "Compared by tolerations.", default="", pattern=LABEL_VALUE, pattern_help=LABEL_VALUE_HELP
    )


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One box. Nodes come into being by joining, not by apply."""

    site: str = spec(
        "Where it stands; fixed when it joins.", pattern=LABEL, pattern_help=LABEL_HELP
    )
    unschedulable: bool = spec("No new replicas (`edgectl cordon`).", default=False)
    draining: bool = spec("Its replicas move away (`edgectl drain`).", default=False)
    taints: tuple[Taint, ...] = spec("What keeps replicas away.", default=(), max_items=50)


@dataclass(frozen=True, slots=True)
class NamespaceSpec:
    """A tenant's part of the installation."""

    description: str = spec("For people.", default="", max_length=1024)


@dataclass(frozen=True, slots=True)
class SecretSpec:
    """Small confidential values. Only nodes that run a workload which names it receive it."""

    type: str = spec(
        "Opaque, or Registry with the keys server, username and password.",
        default="Opaque",
        choices=("Opaque", "Registry"),
    )
    data: dict[str, str] = spec(
        "Values by key, as text.", default_factory=dict, max_items=100, max_length=262_144
    )

    def violations(self) -> Iterator[Violation]:
        if self.type == "Registry":
            for key in ("server", "username", "password"):
                if not self.data.get(key):
                    yield Violation("data", f"a Registry secret needs the key {key!r}")


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One numbered instance of a Workload. Read-only: the scheduler makes them."""

    workload: str = spec("Whose instance it is.")
    node: str = spec("Where it is assigned. Empty: nowhere yet.", default="")
    epoch: int = spec("Fencing number of its holder.", default=0)
    revision: int = spec("The workload's revision that it should run.", default=0)


@dataclass(frozen=True, slots=True)
class OperatorSpec:
    """A person or program with an operator certificate. Read-only: `edgectl operator create`."""

    roles: tuple[str, ...] = spec("admin, operator:NAMESPACE, viewer:NAMESPACE.", default=())


@dataclass(frozen=True, slots=True)
class KindInfo:
    """`applyable`: operators may create it by apply. `editable`: only change it."""

    name: str
    plural: str
    short: tuple[str, ...]
    namespaced: bool
    spec_class: type
    applyable: bool = True
    editable: bool = True
    names: re.Pattern[str] = LABEL
    names_help: str = LABEL_HELP


KINDS: dict[str, KindInfo] = {
    info.name: info
    for info in (
        KindInfo("Provider", "providers", ("prov",), False, ProviderSpec),
        KindInfo("Site", "sites", (), False, SiteSpec),
        KindInfo(
            "Node",
            "nodes",
            ("no",),
            False,
            NodeSpec,
            applyable=False,
            names=HOST_NAME,
            names_help=HOST_NAME_HELP,
        ),
        KindInfo("Namespace", "namespaces", ("ns",), False, NamespaceSpec),
        KindInfo("Workload", "workloads", ("wl",), True, WorkloadSpec),
        KindInfo("Secret", "secrets", (), True, SecretSpec),
        KindInfo(
            "Replica",
            "replicas",
            ("rep",),
            True,
            ReplicaSpec,
            applyable=False,
            editable=False,
            names=HOST_NAME,
            names_help=HOST_NAME_HELP,
        ),
        KindInfo(
            "Operator", "operators", ("op",), False, OperatorSpec, applyable=False, editable=False
        ),
    )
}


def kind_named(word: str) -> KindInfo | None:
    """The kind for what an operator types: `Workload`, `workload`, `workloads` or `wl`."""
    folded = word.lower()
    for info in KINDS.values():
        if folded in (info.name.lower(), info.plural, *info.short):
            return info
    return None


def _duplicates(path: str, values: list[str]) -> Iterator[Violation]:
    """Every value that was there before; empty ones are free. `{}` in the path is the index."""
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value and value in seen:
            yield Violation(path.format(index), f"{value!r} is already taken")
        seen.add(value)
