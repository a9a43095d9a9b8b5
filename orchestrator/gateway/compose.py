"""Makes a NodePlan's bytes from what the Store holds: the same on every member, byte for byte.

Called by `plans.py`. Nothing here asks a clock: a plan is dated when the leader decided it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.records import AssignmentRecord, NodePlacement, StoredResource, TemplateRevision
from orchestrator.scheduling.secrets import secret_names
from polder.manifest import InvalidManifest
from polder.v1 import plan_pb2

RevisionOf = Callable[[str, int], TemplateRevision | None]
SecretOf = Callable[[str, str], StoredResource | None]
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


def compose(
    placement: NodePlacement,
    around: Surroundings,
    revision_of: RevisionOf,
    secret_of: SecretOf,
    demands_of: DemandsOf = nothing_demanded,
) -> bytes:
    """Raises CannotCompose. A Secret that does not exist is left out: the agent says so then."""
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
    named: set[tuple[str, str]] = set()
    for assignment in placement.assignments:
        revision = _revision(assignment, revision_of)
        named |= {(assignment.namespace, name) for name in _secrets(assignment, revision)}
        policy, facts = demands_of(assignment)
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
            facts_json=facts,
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
    for namespace, name in sorted(named):
        _add_secret(plan, secret_of(namespace, name))
    return plan.SerializeToString(deterministic=True)


def _revision(assignment: AssignmentRecord, revision_of: RevisionOf) -> TemplateRevision:
    found = revision_of(assignment.workload_uid, assignment.revision)
    if found is None:
        message = f"revision {assignment.revision} of {assignment.namespace}/{assignment.workload}"
        raise CannotCompose("MissingRevision", f"{message} is not in the store")
    return found


def _secrets(assignment: AssignmentRecord, revision: TemplateRevision) -> tuple[str, ...]:
    try:
        return secret_names(revision.decoded)
    except InvalidManifest as error:
        message = f"revision {assignment.revision} of {assignment.namespace}/{assignment.workload}"
        raise CannotCompose("UnreadableRecord", f"{message} cannot be read: {error}") from error


def _add_secret(plan: plan_pb2.NodePlan, secret: StoredResource | None) -> None:
    if secret is None or secret.deletion_requested_at_ms:
        return
    try:
        spec = secret.decoded
    except InvalidManifest as error:
        message = f"Secret {secret.namespace}/{secret.name} cannot be read"
        raise CannotCompose("UnreadableRecord", message) from error
    data = {key: value.encode() for key, value in spec.data.items()}
    plan.secrets.add(namespace=secret.namespace, name=secret.name, type=spec.type, data=data)
