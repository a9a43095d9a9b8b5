"""Whether a NodePlan may be used, and what it says, as values that the state machine can keep.

Called by `agent/state.py` for plans that arrive and for those read from disk, after the signature
was verified. Every refusal leaves the plan in use as it is: a delayed, foreign, cut or unreadable
plan changes nothing.

    payload            result
    older generation   Refused Stale
    same bytes         Unchanged
    same generation    Unchanged when older or other only in time; Accepted when it renews
                       endpoints, secrets, configs, policies, facts or overrides; Refused
                       Conflict when it names other assignments or stops
    newer generation   Accepted, or Refused: Unreadable, WrongDomain, WrongNode, Truncated,
                       TooLarge, DuplicateReplica, CauseMissing

A replica may be assigned twice, by two uids: the newer one `replaces` the older one, which the plan
stops once the newer one is ready. That is no duplicate; one uid that is named twice is.

One assignment whose template cannot be read does not spoil the rest: it is accepted with `error`
set and shown as failed. A plan that names nothing is accepted and stops nothing; `dropped` says
what it left unnamed, for an alert.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from google.protobuf.message import DecodeError

from agent.domain.roster import Group, Key, Neighbourhood, group_of, neighbourhood_of
from polder.identity import NodeId
from polder.manifest import InvalidManifest, PodTemplate, decode, digest
from polder.overrides import BadOverride, Override, from_message
from polder.v1 import plan_pb2

MAX_REPLICAS = 10_000  # per node; far above what a box can run
MAX_ERROR = 1024
STOPPED_LOCALLY = "StoppedLocally"  # why what an operator stopped at the site does not run


@dataclass(frozen=True, slots=True)
class Assignment:
    """One replica that this node must run. `template` None: it cannot be read, see `error`."""

    namespace: str
    workload: str
    workload_uid: str
    replica: str
    replica_uid: str
    epoch: int
    revision: int
    template: PodTemplate | None
    digest: str
    standbys: tuple[str, ...] = ()
    error: str = ""
    # Uid of the stay that this one replaces; when that one is on this node too, both run until the
    # plan stops it.
    replaces: str = ""
    # Its containers run to their end, and are not started again.
    run_once: bool = False
    # See sovereign.py. Empty: nothing is demanded of the site.
    policy_json: bytes = b""
    facts_json: bytes = field(default=b"", repr=False)
    # Who may take it over; None: nobody.
    group: Group | None = None
    # Uid of the stay that the site itself replaced by this one. Never in a plan that was signed.
    takes_over: str = ""

    @property
    def key(self) -> Key:
        """The replica, whichever stay of it this is."""
        return (self.workload_uid, self.replica)


@dataclass(frozen=True, slots=True)
class Stop:
    """One replica that must not run here, and why. `requested_at` in unix seconds."""

    namespace: str
    replica: str
    replica_uid: str
    cause: str
    message: str
    requested_at: float


@dataclass(frozen=True, slots=True)
class Hold:
    """The site's word against an assignment: it must not run here for now. `waits`: it only must
    not start; what runs of it after all runs on."""

    cause: str
    message: str
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Role:
    """A replica of another node. `assignment` is as `primary` has it; without a template this
    node only votes on it."""

    assignment: Assignment
    primary: str


@dataclass(frozen=True, slots=True)
class Secret:
    namespace: str
    name: str
    type: str
    data: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Config:
    """Values that templates mount as files or take variables from."""

    namespace: str
    name: str
    data: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ParsedPlan:
    """A plan that was accepted. `payload` is what was signed; `issued_at` in unix seconds.

    `facts`: what is known of the node and its site, by name (`site.country`), for variables.
    """

    generation: int
    issued_at: float
    assignments: Mapping[str, Assignment]
    stops: Mapping[str, Stop]
    secrets: Mapping[tuple[str, str], Secret]
    endpoints: tuple[str, ...]
    payload: bytes = field(repr=False)
    configs: Mapping[tuple[str, str], Config] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    site: Neighbourhood = field(default_factory=Neighbourhood)
    roles: Mapping[Key, Role] = field(default_factory=dict)
    # By replica uid. Never in a plan that was signed: see `site/overlay.py`.
    held: Mapping[str, Hold] = field(default_factory=dict)
    # What operators decided at the site, as the orchestrator knows it.
    overrides: tuple[Override, ...] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    """`dropped`: replica uids that the plan in use assigns and that this one names nowhere."""

    plan: ParsedPlan
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The plan says what is already in use."""


@dataclass(frozen=True, slots=True)
class Refused:
    """`reason` is CamelCase, for PlanAck."""

    reason: str
    message: str


def consider(
    current: ParsedPlan | None, identity: NodeId, payload: bytes
) -> Accepted | Unchanged | Refused:
    """What to do with a verified payload, given the plan in use."""
    if current is not None and payload == current.payload:
        return Unchanged()
    try:
        message = plan_pb2.NodePlan.FromString(payload)
    except DecodeError as error:
        return Refused("Unreadable", f"the plan is no NodePlan: {error}")
    refusal = _check(message, identity, current)
    if refusal is not None:
        return refusal
    plan = _parse(message, payload, identity)
    if current is None:
        return Accepted(plan)
    if plan.generation == current.generation:
        return _same_generation(current, plan)
    named = plan.assignments.keys() | plan.stops.keys()
    if current.assignments and not named and not plan.endpoints:
        # Protobuf reads a plan that was cut before its lists as one with empty lists.
        return Refused("Truncated", "the plan names neither replicas nor endpoints")
    return Accepted(plan, tuple(sorted(current.assignments.keys() - named)))


def issued_at(payload: bytes) -> float:
    """When the plan says that it was issued, unix seconds; 0 when it cannot be read."""
    try:
        return plan_pb2.NodePlan.FromString(payload).issued_at_ms / 1000
    except DecodeError:
        return 0.0


def _check(
    message: plan_pb2.NodePlan, identity: NodeId, current: ParsedPlan | None
) -> Refused | None:
    if message.trust_domain != identity.trust_domain:
        return Refused(
            "WrongDomain",
            f"the plan is for {message.trust_domain!r}; this node is in {identity.trust_domain!r}",
        )
    if (message.node, message.site) != (identity.node, identity.site):
        return Refused(
            "WrongNode",
            f"the plan is for node {message.node!r} at site {message.site!r}; "
            f"this is {identity.node!r} at {identity.site!r}",
        )
    if message.generation <= 0:
        return Refused("Unreadable", f"generation {message.generation} is not positive")
    if current is not None and message.generation < current.generation:
        return Refused(
            "Stale", f"generation {message.generation} is older than {current.generation}, in use"
        )
    found = (len(message.assignments), len(message.stops), len(message.standby_roles))
    announced = (message.assignment_count, message.stop_count, message.standby_role_count)
    if found != announced:
        return Refused(
            "Truncated",
            "the plan announces {} assignments, {} stops and {} roles, ".format(*announced)
            + "and holds {}, {} and {}".format(*found),
        )
    if sum(found) > MAX_REPLICAS:
        return Refused("TooLarge", f"{sum(found)} replicas; {MAX_REPLICAS} at most are accepted")
    return _check_entries(message)


def _check_entries(message: plan_pb2.NodePlan) -> Refused | None:
    seen: set[str] = set()
    named = [(a.replica, a.replica_uid) for a in message.assignments]
    named += [(s.replica, s.replica_uid) for s in message.stops]
    for replica, uid in named:
        if not uid:
            return Refused("Unreadable", f"replica {replica!r} has no uid")
        if uid in seen:
            return Refused("DuplicateReplica", f"replica uid {uid} is named twice")
        seen.add(uid)
    for stop in message.stops:
        if not stop.cause:
            return Refused("CauseMissing", f"the stop of {stop.replica} gives no cause")
    return None


def _same_generation(current: ParsedPlan, plan: ParsedPlan) -> Accepted | Unchanged | Refused:
    """Members compose a generation alike; only its time, and what is read when it is composed, may
    differ: endpoints, secrets, configs, policies, facts and operators' overrides."""
    same = plan.assignments == current.assignments
    if plan.stops != current.stops or not (same or _same_replicas(current, plan)):
        return Refused(
            "Conflict", f"two plans of generation {plan.generation} name different replicas"
        )
    renews = not same or _read_late(plan) != _read_late(current)
    if renews and plan.issued_at >= current.issued_at:
        return Accepted(plan)
    return Unchanged()


def _read_late(plan: ParsedPlan) -> tuple[object, ...]:
    given = (plan.endpoints, plan.secrets, plan.configs, plan.facts)
    return *given, plan.site, plan.roles, plan.overrides


def _same_replicas(current: ParsedPlan, plan: ParsedPlan) -> bool:
    def bare(found: ParsedPlan) -> dict[str, Assignment]:
        return {
            uid: replace(item, policy_json=b"", facts_json=b"")
            for uid, item in found.assignments.items()
        }

    return bare(current) == bare(plan)


def _parse(message: plan_pb2.NodePlan, payload: bytes, identity: NodeId) -> ParsedPlan:
    roles = [Role(_assignment(r.assignment, {}), r.primary) for r in message.standby_roles]
    same: dict[bytes, bytes] = {}  # replicas of one node share the facts of their site
    return ParsedPlan(
        generation=message.generation,
        issued_at=message.issued_at_ms / 1000,
        assignments={a.replica_uid: _assignment(a, same) for a in message.assignments},
        stops={
            s.replica_uid: Stop(
                s.namespace, s.replica, s.replica_uid, s.cause, s.message, s.requested_at_ms / 1000
            )
            for s in message.stops
        },
        secrets={
            (s.namespace, s.name): Secret(s.namespace, s.name, s.type, dict(s.data))
            for s in message.secrets
        },
        endpoints=tuple(message.endpoints),
        payload=payload,
        configs={
            (c.namespace, c.name): Config(c.namespace, c.name, dict(c.data))
            for c in message.configs
        },
        facts=dict(message.facts),
        site=neighbourhood_of(message.roster, message.autonomy_ms, identity),
        roles={role.assignment.key: role for role in roles},
        overrides=tuple(_overrides(message.overrides)),
    )


def _overrides(messages: Iterable[plan_pb2.Override]) -> Iterator[Override]:
    """One that a newer orchestrator has words for is left out: it must not cost what runs."""
    for message in messages:
        try:
            yield from_message(message)
        except BadOverride:
            continue


def _assignment(message: plan_pb2.Assignment, same: dict[bytes, bytes]) -> Assignment:
    template: PodTemplate | None = None
    error = ""
    try:
        template = decode(PodTemplate, json.loads(message.template_json))
    except InvalidManifest as invalid:
        error = str(invalid)[:MAX_ERROR]
    except (ValueError, RecursionError) as broken:  # not JSON, not UTF-8, or nested absurdly
        error = f"the template is not JSON: {broken}"[:MAX_ERROR]
    return Assignment(
        namespace=message.namespace,
        workload=message.workload,
        workload_uid=message.workload_uid,
        replica=message.replica,
        replica_uid=message.replica_uid,
        epoch=message.epoch,
        revision=message.revision,
        template=template,
        digest=digest(template) if template is not None else "",
        standbys=tuple(message.standbys),
        error=error,
        replaces=message.replaces,
        run_once=message.run_once,
        policy_json=same.setdefault(message.policy_json, message.policy_json),
        facts_json=same.setdefault(message.facts_json, message.facts_json),
        group=group_of(message.group),
    )
