"""What a replica asks and why a node refuses it, as values that every part of scheduling shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.scheduling.snapshot import Namespace, Snapshot, Template, Workload
from polder.manifest import Placement
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty import tighten

Value = str | float | None
NO_POLICY = SovereigntySpec()


@dataclass(frozen=True, slots=True)
class Reason:
    """`code` is CamelCase and counted; `text` is for people.

    `knob` is the field of the manifest that would admit the node, empty when none would; `value` is
    what it would have to say, None when the demand would have to go.
    """

    code: str
    text: str
    knob: str = ""
    value: Value = None


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """How many nodes fail for a reason, and the text of one of them."""

    code: str
    nodes: int
    example: str


@dataclass(frozen=True, slots=True)
class Need:
    """What a replica asks: where it may run, what it takes, what it demands of the site.

    `policy` is the workload's own, `floor` its namespace's: both hold (`effective`).
    """

    placement: Placement
    template: Template
    policy: SovereigntySpec = NO_POLICY
    floor: SovereigntySpec = NO_POLICY
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    # What the template demands and its namespace does not allow: then no node will do.
    forbidden: tuple[str, ...] = ()
    # The only sites that its rollout admits, if elsewhere it is to wait. None: no matter which.
    admitted: frozenset[str] | None = None

    @property
    def effective(self) -> SovereigntySpec:
        """The two policies as one."""
        return merged(self.floor, self.policy)


def need_of(snapshot: Snapshot, workload: Workload, template: Template) -> Need:
    """The need of a workload's next replica, with the floor of its namespace."""
    namespace = snapshot.namespaces.get(workload.namespace)
    floor = namespace.floor if namespace is not None else NO_POLICY
    return Need(
        workload.placement,
        template,
        workload.sovereignty,
        floor,
        workload.namespace,
        workload.labels,
        forbidden(namespace, template),
        workload.admitted if workload.held_elsewhere else None,
    )


def forbidden(namespace: Namespace | None, template: Template) -> tuple[str, ...]:
    """What of the template's demands its namespace does not allow."""
    if not template.demands:
        return ()
    allowed = namespace.allow if namespace is not None else frozenset[str]()
    return tuple(name for name in template.demands if name not in allowed)


def forbidden_reason(namespace: str, name: str) -> Reason:
    """In the same words at apply, in a plan and in `edgectl why`."""
    text = f"the template asks for {name}, which namespace.spec.allow of {namespace} does not list"
    return Reason("NotAllowed", text, f"namespace.spec.allow.{name}")


def effective_policy(snapshot: Snapshot, workload: Workload) -> SovereigntySpec:
    """What holds for a workload: its own demands and those of its namespace's floor."""
    namespace = snapshot.namespaces.get(workload.namespace)
    return merged(namespace.floor if namespace else NO_POLICY, workload.sovereignty)


def merged(floor: SovereigntySpec, policy: SovereigntySpec) -> SovereigntySpec:
    """Both at once. Most have one or none of the two, and merging is not free."""
    if floor is NO_POLICY or floor == NO_POLICY:
        return policy
    if policy is NO_POLICY or policy == NO_POLICY:
        return floor
    return tighten(floor, policy)
