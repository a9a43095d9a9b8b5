"""Which replica an operator means, and whether that caller may touch it. Used by reach and change.

A caller that may see nothing of a namespace is told so before anything else: what is not there and
what is not shown look alike.
"""

from collections.abc import Callable

from agent.domain.plan import ParsedPlan
from agent.domain.view import Phase, ReplicaView
from agent.local.callers import READ, Caller
from agent.local.journal import Target
from agent.local.refusals import not_allowed, not_found
from agent.supervisor import Supervisor

ALIVE = (Phase.RUNNING, Phase.ORPHANED, Phase.PENDING, Phase.STOPPING)


class Replicas:
    """`plan`: the one in use, if there is one."""

    def __init__(self, supervisor: Supervisor, plan: Callable[[], ParsedPlan | None]) -> None:
        self._supervisor = supervisor
        self._plan = plan

    def named(self, namespace: str, replica: str) -> list[Target]:
        """What this node knows by that name; what runs here first."""
        found = {}
        for view in self._supervisor.views():
            if (view.namespace, view.replica) == (namespace, replica):
                target = Target(namespace, view.workload, view.workload_uid, replica)
                found[target] = 0 if view.present else 1
        plan = self._plan()
        if plan is not None:
            roles = (role.assignment for role in plan.roles.values())
            for a in (*plan.assignments.values(), *roles):
                if (a.namespace, a.replica) == (namespace, replica):
                    found.setdefault(Target(namespace, a.workload, a.workload_uid, replica), 2)
        return sorted(found, key=lambda target: found[target])

    def target(self, caller: Caller, action: str, namespace: str, replica: str) -> Target:
        """The one that is meant. Raises Refused: NotAllowed, NotFound."""
        if not namespace or not caller.reads_in(namespace):
            self._refuse(caller, READ, namespace, "")
        known = self.named(namespace, replica)
        readable = [target for target in known if caller.may(READ, namespace, target.workload)]
        if not readable:
            if known and caller.grant is not None:
                self._refuse(caller, action, namespace, known[0].workload)
            text = f"this node knows of no replica {namespace}/{replica}"
            raise not_found("NotFound", text, "another node of the site may: ask that")
        for target in readable:
            if caller.may(action, namespace, target.workload):
                return target
        return self._refuse(caller, action, namespace, readable[0].workload)

    def view(self, target: Target, uid: str) -> ReplicaView:
        """What is here of it; with `uid` that stay alone. Raises Refused: NotHere."""
        views = [
            view
            for view in self._supervisor.views()
            if view.present
            and (view.namespace, view.replica) == (target.namespace, target.replica)
            and view.workload_uid == target.workload_uid
            and uid in ("", view.uid)
        ]
        if not views:
            text = f"{target.namespace}/{target.replica} does not run on this node"
            raise not_found("NotHere", text, "ask the node that runs it")
        return max(views, key=lambda view: (view.ready, view.phase in ALIVE, view.epoch))

    def _refuse(self, caller: Caller, action: str, namespace: str, workload: str) -> Target:
        message, hint = caller.objection(action, namespace, workload)
        raise not_allowed(message, hint)
