"""What this node answers to Show and Recall: itself, its peers, its replicas, what happened.

Called by `agent/local/server.py`, for callers that were let in. Everything is put together when it
is asked for: an idle node keeps only the latest events for it.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from agent import translate
from agent.domain.plan import Assignment, ParsedPlan
from agent.domain.roster import Key
from agent.domain.site.known import Known
from agent.domain.view import ReplicaView
from agent.local.callers import Caller
from agent.local.directory import Directory
from agent.local.journal import Journal
from agent.local.refusals import not_allowed
from agent.local.replicas import Replicas
from agent.node import AgentNode
from agent.site.loop import SiteLoop
from agent.supervisor import Supervisor
from polder import __version__
from polder.identity import NodeId
from polder.overrides import to_message
from polder.v1 import agent_pb2, common_pb2, local_pb2, plan_pb2

EVENTS_MAX = 256
RECALL_DEFAULT = 100
RUNS, STANDBY, WITNESS = "Runs", "Standby", "Witness"
_NOTHING = Known()


@dataclass(frozen=True, slots=True)
class Sources:
    """What is asked. `plan`: the one in use."""

    identity: NodeId
    supervisor: Supervisor
    site: SiteLoop
    node: AgentNode
    directory: Directory
    journal: Journal
    replicas: Replicas
    plan: Callable[[], ParsedPlan | None]


class Showing:
    """`saw` gets every event of this agent."""

    def __init__(self, sources: Sources) -> None:
        self._from = sources
        self._events: deque[common_pb2.Event] = deque(maxlen=EVENTS_MAX)

    def saw(self, event: common_pb2.Event) -> None:
        self._events.append(event)

    # ---- Show ----

    def show(self, caller: Caller, namespace: str) -> local_pb2.ShowResponse:
        """Raises Refused for a namespace of which the caller may see nothing."""
        self._check(caller, namespace)
        sources = self._from
        plan, site = sources.plan(), sources.site

        def wanted(where: str, workload: str) -> bool:
            return namespace in ("", where) and caller.reads(where, workload)

        answer = local_pb2.ShowResponse(
            node=sources.identity.node,
            site=sources.identity.site,
            agent_version=__version__,
            now_ms=translate.ms(time.time()),
            plan_generation=plan.generation if plan is not None else 0,
            plan_issued_at_ms=translate.ms(plan.issued_at) if plan is not None else 0,
            isolated_ms=translate.ms(site.isolated_s()),
            autonomy_left_ms=translate.ms(max(0.0, site.autonomy_s() - site.isolated_s())),
            conditions=sources.supervisor.conditions.all(),
            peers=self._peers(plan),
            usage=sources.node.usage(),
            allocatable=sources.node.allocatable(),
            arch=sources.node.inventory.arch,
        )
        for replica in self._replicas(plan):
            if wanted(replica.status.namespace, replica.status.workload):
                answer.replicas.append(replica)
        workloads = {
            (r.status.workload_uid, r.status.replica): r.status.workload for r in answer.replicas
        }
        for override in site.overrides():
            if wanted(override.namespace, workloads.get(override.subject, "")):
                answer.overrides.append(to_message(override))
        return answer

    def _peers(self, plan: ParsedPlan | None) -> Iterator[local_pb2.LocalPeer]:
        """Those that share replicas with this node, and whoever else is at the site."""
        heard = self._from.site.heard()
        told = self._from.directory.nodes
        shares = plan.site.peers if plan is not None else {}
        for name in sorted({*shares, *told} - {self._from.identity.node}):
            yield local_pb2.LocalPeer(
                node=name,
                shares=name in shares,
                heard=heard.get(name, False),
                local_endpoints=told.get(name, ()),
            )

    def _replicas(self, plan: ParsedPlan | None) -> Iterator[local_pb2.LocalReplica]:
        supervisor, at = self._from.supervisor, time.time()
        known = self._from.site.known()
        templates = _templates(plan)
        assigned = plan.assignments if plan else {}
        roles = {key: role.assignment for key, role in plan.roles.items()} if plan else {}
        here: set[Key] = set()
        for view in supervisor.views():
            key = (view.workload_uid, view.replica)
            here.add(key)
            found = assigned.get(view.uid) or roles.get(key)
            yield self._running(view, found, known.get(key, _NOTHING), templates, at)
        standbys = {(s.workload_uid, s.replica): s for s in self._from.site.standbys()}
        for key, assignment in roles.items():
            if key not in here:
                who = known.get(key, _NOTHING)
                yield _stood_by_for(assignment, who, standbys.get(key), templates)

    def _running(
        self,
        view: ReplicaView,
        found: Assignment | None,
        who: Known,
        templates: "_Templates",
        at: float,
    ) -> local_pb2.LocalReplica:
        key = (view.workload_uid, view.replica)
        node = self._from.identity.node
        alone = Known(node, view.epoch, view.ready) if view.present else _NOTHING
        return _local_replica(
            translate.replica_status(view, at, self._from.supervisor.now),
            RUNS,
            found,
            who if who.holder else alone,
            templates.get(view.uid) or templates.get(key) or b"",
        )

    # ---- Recall ----

    def recall(self, caller: Caller, request: local_pb2.RecallRequest) -> local_pb2.RecallResponse:
        """Raises Refused for a namespace of which the caller may see nothing."""
        self._check(caller, request.namespace)
        limit = min(request.limit, EVENTS_MAX) if request.limit > 0 else RECALL_DEFAULT

        @cache  # most of what is kept is about a few replicas
        def wanted(namespace: str, replica: str) -> bool:
            if request.namespace not in ("", namespace) or request.replica not in ("", replica):
                return False
            return self._may_read(caller, namespace, replica)

        events = [e for e in self._events if wanted(e.object.namespace, e.object.name)]
        journal = [e for e in self._from.journal if wanted(e.namespace, e.replica)]
        return local_pb2.RecallResponse(
            events=events[-limit:],
            journal=journal[-limit:],
            now_ms=translate.ms(time.time()),
        )

    def _may_read(self, caller: Caller, namespace: str, replica: str) -> bool:
        """Of one that is gone the workload is not known any more: only who may read all of its
        namespace is shown it."""
        if not namespace:
            return True
        known = self._from.replicas.named(namespace, replica)
        workloads = {target.workload for target in known} or {""}
        return any(caller.reads(namespace, workload) for workload in workloads)

    def _check(self, caller: Caller, namespace: str) -> None:
        if namespace and not caller.reads_in(namespace):
            raise not_allowed(*caller.objection("read", namespace, ""))


_Templates = dict[str | Key, bytes]
"""As the plan has them, by the uid of what it assigns and the key of what it names as a role."""


def _templates(plan: ParsedPlan | None) -> _Templates:
    found: _Templates = {}
    if plan is not None:
        message = plan_pb2.NodePlan.FromString(plan.payload)
        for role in message.standby_roles:
            a = role.assignment
            found[(a.workload_uid, a.replica)] = a.template_json
        for a in message.assignments:
            found[a.replica_uid] = a.template_json
    return found


def _stood_by_for(
    assignment: Assignment,
    who: Known,
    standby: agent_pb2.StandbyStatus | None,
    templates: _Templates,
) -> local_pb2.LocalReplica:
    status = agent_pb2.ReplicaStatus(
        namespace=assignment.namespace,
        workload=assignment.workload,
        workload_uid=assignment.workload_uid,
        replica=assignment.replica,
        revision=assignment.revision,
    )
    role = WITNESS if assignment.template is None else STANDBY
    made = _local_replica(status, role, assignment, who, templates.get(assignment.key) or b"")
    if standby is not None:
        made.standby.CopyFrom(standby)
    return made


def _local_replica(
    status: agent_pb2.ReplicaStatus,
    role: str,
    assignment: Assignment | None,
    who: Known,
    template: bytes,
) -> local_pb2.LocalReplica:
    group = assignment.group if assignment is not None else None
    members: Iterable[str] = group.members if group is not None else ()
    left_s = who.lease_left_s
    return local_pb2.LocalReplica(
        status=status,
        role=role,
        exclusive=group is not None and group.exclusive,
        members=members,
        holder=who.holder,
        holder_epoch=who.epoch,
        holder_ready=who.ready,
        lease_left_ms=translate.ms(left_s) if left_s is not None else -1,
        template_json=template,
    )
