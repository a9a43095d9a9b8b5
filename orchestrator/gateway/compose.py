"""Makes a NodePlan's bytes from what the Store holds: the same on every member, byte for byte.

Called by `plans.py`. Nothing here asks a clock: a plan is dated when the leader decided it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.roles import Neighbourhood
from orchestrator.records import AssignmentRecord, NodePlacement, StoredResource, TemplateRevision
from orchestrator.scheduling.secrets import fact_names, secret_names
from polder.manifest import InvalidManifest, PodTemplate
from polder.overrides import to_message
from polder.v1 import plan_pb2

RevisionOf = Callable[[str, int], TemplateRevision | None]
ResourceOf = Callable[[str, str], StoredResource | None]
FactOf = Callable[[str], str | None]
"""What is known of the node and its site by name, such as `site.country`; None: it is not."""
DemandsOf = Callable[[AssignmentRecord], tuple[bytes, bytes]]
"""The policy of a replica and the facts of the node's site, as JSON; twice empty for no policy."""
AddRoles = Callable[[plan_pb2.NodePlan, str], None]
"""Writes into the plan of a node what it says of its site; see `roles.RoleBook.add_to`."""


class CannotCompose(Exception):
    """The plan would be incomplete, so none is sent. `reason` is CamelCase: MissingRevision,
    UnreadableRecord, Oversized."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a plan says beside the placement. `endpoints` are nearest first."""

    site: str
    trust_domain: str
    endpoints: tuple[str, ...]
    # 0: as agents have it by themselves.
    autonomy_s: float = 0.0


def nothing_demanded(_: AssignmentRecord) -> tuple[bytes, bytes]:
    """A DemandsOf, where there are no policies."""
    return b"", b""


def no_resource(_namespace: str, _name: str) -> None:
    """A ResourceOf, where there are none of that kind."""


def nothing_known(_: str) -> None:
    """A FactOf, where nothing is known."""


def nobody_else(_plan: plan_pb2.NodePlan, _node: str) -> None:
    """An AddRoles, where every node is alone."""


def compose(
    placement: NodePlacement,
    around: Surroundings,
    revision_of: RevisionOf,
    secret_of: ResourceOf,
    demands_of: DemandsOf = nothing_demanded,
    config_of: ResourceOf = no_resource,
    fact_of: FactOf = nothing_known,
    add_roles: AddRoles = nobody_else,
) -> bytes:
    """Raises CannotCompose.

    A Secret or Config that does not exist and a fact that is not known are left out: the agent
    says so then.
    """
    plan = plan_pb2.NodePlan(
        node=placement.node,
        site=around.site,
        generation=placement.generation,
        issued_at_ms=placement.decided_at_ms,
        trust_domain=around.trust_domain,
        assignment_count=len(placement.assignments),
        stop_count=len(placement.stops),
        endpoints=around.endpoints,
        autonomy_ms=int(around.autonomy_s * 1000),
    )
    named = _Named()
    for assignment in placement.assignments:
        revision = _revision(assignment, revision_of)
        named.take(assignment, _template(assignment, revision))
        _fill(plan.assignments.add(), assignment, revision, demands_of)
    for stop in placement.stops:
        plan.stops.add(
            namespace=stop.namespace,
            replica=stop.replica,
            replica_uid=stop.replica_uid,
            cause=stop.cause,
            message=stop.message,
            requested_at_ms=stop.requested_at_ms,
        )
    named.add_to(plan, secret_of, config_of, fact_of)
    add_roles(plan, placement.node)
    return plan.SerializeToString(deterministic=True)


def compose_roles(
    plan: plan_pb2.NodePlan,
    found: Neighbourhood,
    revision_of: RevisionOf,
    secret_of: ResourceOf,
    demands_of: DemandsOf = nothing_demanded,
    config_of: ResourceOf = no_resource,
    fact_of: FactOf = nothing_known,
) -> CannotCompose | None:
    """Adds the roster, the roles with what they name beside what the plan carries already, and what
    operators of the site decided.

    A role that cannot be composed whole is left out: it must not cost what runs. The last such
    fault is returned.
    """
    plan.overrides.extend(to_message(override.decision) for override in found.overrides)
    for peer in found.roster:
        plan.roster.add(node=peer.node, endpoints=peer.endpoints, certificate=peer.certificate)
    named, fault = _Named(), None
    for role in found.roles:
        made = plan_pb2.StandbyRole(primary=role.primary)
        try:
            if role.witness:
                _name(made.assignment, role.assignment)
            else:
                revision = _revision(role.assignment, revision_of)
                own = _Named()
                own.take(role.assignment, _template(role.assignment, revision))
                own.add_to(plan_pb2.NodePlan(), secret_of, config_of, fact_of)  # can it be read?
                _fill(made.assignment, role.assignment, revision, demands_of)
                named.take(role.assignment, revision.decoded)
        except CannotCompose as error:
            fault = error
            continue
        plan.standby_roles.append(made)
    plan.standby_role_count = len(plan.standby_roles)
    named.add_to(plan, secret_of, config_of, fact_of)
    return fault


def _name(made: plan_pb2.Assignment, assignment: AssignmentRecord) -> None:
    """All of it but what it runs."""
    made.namespace = assignment.namespace
    made.workload = assignment.workload
    made.workload_uid = assignment.workload_uid
    made.replica = assignment.replica
    made.replica_uid = assignment.replica_uid
    made.epoch = assignment.epoch
    made.revision = assignment.revision
    made.standbys.extend(assignment.standbys)
    made.replaces = assignment.replaces
    made.run_once = assignment.once
    group = assignment.group
    if group is not None:
        made.group.CopyFrom(
            plan_pb2.FailoverGroup(
                number=group.number,
                members=group.members,
                witnesses=group.witnesses,
                exclusive=group.exclusive,
                on_return=group.on_return,
                stop_after_ms=int(group.stop_after_s * 1000),
                forced=group.forced,
                before=[
                    plan_pb2.Electorate(number=former.number, voters=former.voters)
                    for former in group.before
                ],
            )
        )


def _fill(
    made: plan_pb2.Assignment,
    assignment: AssignmentRecord,
    revision: TemplateRevision,
    demands_of: DemandsOf,
) -> None:
    _name(made, assignment)
    made.template_json = revision.template_json
    made.policy_json, made.facts_json = demands_of(assignment)


class _Named:
    """What templates name beside themselves."""

    def __init__(self) -> None:
        self._secrets: set[tuple[str, str]] = set()
        self._configs: set[tuple[str, str]] = set()
        self._facts: set[str] = set()

    def take(self, assignment: AssignmentRecord, template: PodTemplate) -> None:
        namespace = assignment.namespace
        self._secrets |= {(namespace, name) for name in secret_names(template)}
        self._configs |= {(namespace, name) for name in template.named_configs()}
        self._facts.update(fact_names(template))

    def add_to(
        self,
        plan: plan_pb2.NodePlan,
        secret_of: ResourceOf,
        config_of: ResourceOf,
        fact_of: FactOf,
    ) -> None:
        """What the plan does not carry yet. Raises CannotCompose."""
        secrets = {(item.namespace, item.name) for item in plan.secrets}
        configs = {(item.namespace, item.name) for item in plan.configs}
        for namespace, name in sorted(self._secrets - secrets):
            _add_secret(plan, secret_of(namespace, name))
        for namespace, name in sorted(self._configs - configs):
            _add_config(plan, config_of(namespace, name))
        for name in sorted(self._facts):
            value = fact_of(name)
            if value is not None:
                plan.facts[name] = value


def _revision(assignment: AssignmentRecord, revision_of: RevisionOf) -> TemplateRevision:
    found = revision_of(assignment.workload_uid, assignment.revision)
    if found is None:
        message = f"revision {assignment.revision} of {assignment.namespace}/{assignment.workload}"
        raise CannotCompose("MissingRevision", f"{message} is not in the store")
    return found


def _template(assignment: AssignmentRecord, revision: TemplateRevision) -> PodTemplate:
    try:
        return revision.decoded
    except InvalidManifest as error:
        message = f"revision {assignment.revision} of {assignment.namespace}/{assignment.workload}"
        raise CannotCompose("UnreadableRecord", f"{message} cannot be read: {error}") from error


def _add_secret(plan: plan_pb2.NodePlan, secret: StoredResource | None) -> None:
    spec = _spec(secret)
    if secret is not None and spec is not None:
        data = {key: value.encode() for key, value in spec.data.items()}
        plan.secrets.add(namespace=secret.namespace, name=secret.name, type=spec.type, data=data)


def _add_config(plan: plan_pb2.NodePlan, config: StoredResource | None) -> None:
    spec = _spec(config)
    if config is not None and spec is not None:
        plan.configs.add(namespace=config.namespace, name=config.name, data=spec.data)


def _spec(found: StoredResource | None) -> Any:
    """None for what does not exist, or not for long any more."""
    if found is None or found.deletion_requested_at_ms:
        return None
    try:
        return found.decoded
    except InvalidManifest as error:
        message = f"{found.kind} {found.namespace}/{found.name} cannot be read"
        raise CannotCompose("UnreadableRecord", message) from error
