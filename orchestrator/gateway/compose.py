"""Makes a NodePlan's bytes from what the Store holds: the same on every member, byte for byte.

Called by `plans.py`. Nothing here asks a clock: a plan is dated when the leader decided it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.records import AssignmentRecord, NodePlacement, StoredResource, TemplateRevision
from orchestrator.scheduling.secrets import fact_names, secret_names
from polder.manifest import InvalidManifest, PodTemplate
from polder.v1 import plan_pb2

RevisionOf = Callable[[str, int], TemplateRevision | None]
ResourceOf = Callable[[str, str], StoredResource | None]
FactOf = Callable[[str], str | None]
"""What is known of the node and its site by name, such as `site.country`; None: it is not."""
DemandsOf = Callable[[AssignmentRecord], tuple[bytes, bytes]]
"""The policy of a replica and the facts of the node's site, as JSON; twice empty for no policy."""


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


def nothing_demanded(_: AssignmentRecord) -> tuple[bytes, bytes]:
    """A DemandsOf, where there are no policies."""
    return b"", b""


def no_resource(_namespace: str, _name: str) -> None:
    """A ResourceOf, where there are none of that kind."""


def nothing_known(_: str) -> None:
    """A FactOf, where nothing is known."""


def compose(
    placement: NodePlacement,
    around: Surroundings,
    revision_of: RevisionOf,
    secret_of: ResourceOf,
    demands_of: DemandsOf = nothing_demanded,
    config_of: ResourceOf = no_resource,
    fact_of: FactOf = nothing_known,
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
    )
    secrets: set[tuple[str, str]] = set()
    configs: set[tuple[str, str]] = set()
    facts: set[str] = set()
    for assignment in placement.assignments:
        revision = _revision(assignment, revision_of)
        template = _template(assignment, revision)
        secrets |= {(assignment.namespace, name) for name in secret_names(template)}
        configs |= {(assignment.namespace, name) for name in template.named_configs()}
        facts.update(fact_names(template))
        policy, site_facts = demands_of(assignment)
        plan.assignments.add(
            namespace=assignment.namespace,
            workload=assignment.workload,
            workload_uid=assignment.workload_uid,
            replica=assignment.replica,
            replica_uid=assignment.replica_uid,
            epoch=assignment.epoch,
            revision=assignment.revision,
            template_json=revision.template_json,
            standbys=assignment.standbys,
            policy_json=policy,
            facts_json=site_facts,
            replaces=assignment.replaces,
            run_once=assignment.once,
        )
    for stop in placement.stops:
        plan.stops.add(
            namespace=stop.namespace,
            replica=stop.replica,
            replica_uid=stop.replica_uid,
            cause=stop.cause,
            message=stop.message,
            requested_at_ms=stop.requested_at_ms,
        )
    for namespace, name in sorted(secrets):
        _add_secret(plan, secret_of(namespace, name))
    for namespace, name in sorted(configs):
        _add_config(plan, config_of(namespace, name))
    for name in sorted(facts):
        value = fact_of(name)
        if value is not None:
            plan.facts[name] = value
    return plan.SerializeToString(deterministic=True)


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
