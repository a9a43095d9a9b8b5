"""Where replicas of a workload may run: the part of its spec that only the scheduler reads.

Field sentences are what `edgectl explain` prints. Every field here is enforced by a filter in
`orchestrator/scheduling/`, which says its reason by the field's path.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from polder.manifest.names import (
    LABEL,
    LABEL_HELP,
    LABEL_VALUE,
    LABEL_VALUE_HELP,
    QUALIFIED,
    QUALIFIED_HELP,
)
from polder.manifest.quantity import duration_s
from polder.manifest.schema import Violation, spec

ARCHITECTURES = ("amd64", "arm64")


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


OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")


def _operator() -> str:
    value: str = spec("How it is compared. Gt and Lt compare whole numbers.", choices=OPERATORS)
    return value


def _operands() -> tuple[str, ...]:
    value: tuple[str, ...] = spec(
        "What it is compared with: some for In and NotIn, one number for Gt and Lt, else none.",
        default=(),
        max_items=100,
        max_length=256,
    )
    return value


def _operand_faults(operator: str, values: tuple[str, ...]) -> Iterator[Violation]:
    if operator in ("In", "NotIn") and not values:
        yield Violation("values", f"{operator} needs at least one value")
    elif operator in ("Exists", "DoesNotExist") and values:
        yield Violation("values", f"{operator} takes no value")
    elif operator in ("Gt", "Lt") and (len(values) != 1 or whole_number(values[0]) is None):
        yield Violation("values", f"{operator} needs exactly one whole number")


def whole_number(text: str) -> int | None:
    """What Gt and Lt compare; None when the text is no number of at most 18 digits."""
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 18:
        return None
    return int(text)


@dataclass(frozen=True, slots=True)
class LabelExpression:
    """A demand on one label of a node. NotIn and DoesNotExist admit nodes without the label."""

    key: str = spec("The label's key.", pattern=QUALIFIED, pattern_help=QUALIFIED_HELP)
    operator: str = _operator()
    values: tuple[str, ...] = _operands()

    def violations(self) -> Iterator[Violation]:
        yield from _operand_faults(self.operator, self.values)


@dataclass(frozen=True, slots=True)
class DeviceExpression:
    """A demand on a node's devices of one resource name. Every one of them has to meet it."""

    device: str = spec(
        "The resource name, such as polder.eu/gpu.", pattern=QUALIFIED, pattern_help=QUALIFIED_HELP
    )
    attribute: str = spec(
        "vendor, or what else the agent found out: `edgectl describe node` shows it.",
        pattern=QUALIFIED,
        pattern_help=QUALIFIED_HELP,
    )
    operator: str = _operator()
    values: tuple[str, ...] = _operands()

    def violations(self) -> Iterator[Violation]:
        yield from _operand_faults(self.operator, self.values)


@dataclass(frozen=True, slots=True)
class Affinity:
    """A relation to replicas of workloads in the same namespace, in one place or apart."""

    workloads: dict[str, str] = spec(
        "Labels of the workloads that are meant; this one may be among them.",
        min_items=1,
        max_items=20,
        key_pattern=QUALIFIED,
        key_help=QUALIFIED_HELP,
        pattern=LABEL_VALUE,
        pattern_help=LABEL_VALUE_HELP,
    )
    by: str = spec(
        "What counts as one place.", choices=("node", "site", "region", "provider", "country")
    )
    required: bool = spec("Otherwise it is only preferred.", default=True)

    def violations(self) -> Iterator[Violation]:
        if not self.workloads:
            yield Violation("workloads", "names no label; at least one is needed")


@dataclass(frozen=True, slots=True)
class Near:
    """A bound on the round trip to a site, estimated from the coordinates of both."""

    site: str = spec("The Site to be near to.", pattern=LABEL, pattern_help=LABEL_HELP)
    rtt_ms_max: float = spec(
        "Milliseconds there and back, at most.", minimum=0, maximum=10_000, unit="ms"
    )


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
    match_expressions: tuple[LabelExpression, ...] = spec(
        "Further demands on a node's labels.", default=(), max_items=50
    )
    device_expressions: tuple[DeviceExpression, ...] = spec(
        "Demands on a node's devices.", default=(), max_items=50
    )
    near: Near | None = spec("How far from a site at most.", default=None)
    tolerations: tuple[Toleration, ...] = spec("Taints to accept.", default=(), max_items=50)
    spread: Spread | None = spec("How to spread replicas.", default=None)
    affinity: tuple[Affinity, ...] = spec(
        "Only where such replicas are. Judged when a replica is placed.", default=(), max_items=20
    )
    anti_affinity: tuple[Affinity, ...] = spec(
        "Only where no such replicas are; nor do they come later where this one is.",
        default=(),
        max_items=20,
    )
    prefer_green: bool = spec(
        "Sites with the least carbon per kWh first, then those with the most renewable energy.",
        default=False,
    )


@dataclass(frozen=True, slots=True)
class Failover:
    """Who takes over. Standbys are chosen by the same rules as the replica."""

    standbys: int = spec(
        "Nodes that are named for each replica, as far as there are so many. Their room is not "
        "reserved.",
        default=0,
        minimum=0,
        maximum=8,
    )
    scope: str = spec(
        "Where they are: in the replica's site or region, or anywhere; then in other sites first.",
        default="site",
        choices=("site", "region", "any"),
    )
    exclusive: bool = spec(
        "At most one runs at any time: whoever has the lease of a majority of the nodes that may "
        "hold it. It stops where it cannot be renewed.",
        default=False,
    )
    lost_after: float | None = spec(
        "How long a node is silent before what ran there is started elsewhere; not less than the "
        "installation's own time. An exclusive replica is only if whenIsolated stops it.",
        default=None,
        parse=duration_s,
        shown_type="duration such as 30s",
        unit="s",
        minimum=10,
        maximum=30 * 86_400,
    )
    when_isolated: str = spec(
        "keep: it runs on however long its site hears no orchestrator. stop: it stops after "
        "stopAfter, so that it may be started elsewhere.",
        default="keep",
        choices=("keep", "stop"),
    )
    stop_after: float = spec(
        "With whenIsolated: stop, how long.",
        default=300.0,
        parse=duration_s,
        shown_type="duration such as 5m",
        unit="s",
        minimum=30,
        maximum=7 * 86_400,
    )
    on_return: str = spec(
        "Of two that run after a partition, the one that stays: the one that has been ready for "
        "longer, or the other.",
        default="older",
        choices=("older", "newer"),
    )

    def violations(self) -> Iterator[Violation]:
        if self.exclusive and self.scope != "site":
            yield Violation("exclusive", "needs scope: site; only nodes of one site vote together")
