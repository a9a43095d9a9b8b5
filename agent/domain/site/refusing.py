"""Whether what a local operator wants can be done, asked before anything is written down.

Part of `machine.py`. A node answers from what it knows: what it refuses, another node of the site
may be able to do.
"""

from collections.abc import Iterable
from dataclasses import replace

from agent.domain.plan import ParsedPlan
from agent.domain.roster import Key
from agent.domain.site.case import Case, Scene
from agent.domain.site.messages import Refusal
from agent.domain.site.operators import epochs_of, heard_able
from agent.domain.site.overlay import source_of
from agent.domain.view import Phase, ReplicaView
from polder.overrides import FROZEN, PLACED_ON, STOPPED, Override

ENDED = (Phase.SUCCEEDED, Phase.FAILED)


def find(
    plan: ParsedPlan | None, views: Iterable[ReplicaView], namespace: str, replica: str
) -> Key | None:
    """The replica of that name, which this node runs, may take over or votes on. Of two workloads
    that had it one after the other, the later one."""
    roles = plan.roles.values() if plan is not None else ()
    own = plan.assignments.values() if plan is not None else ()
    named = [(a.epoch, a.key) for a in (*own, *(role.assignment for role in roles))
             if (a.namespace, a.replica) == (namespace, replica)]  # fmt: skip
    if not named:
        named = [(view.epoch, (view.workload_uid, view.replica)) for view in views
                 if (view.namespace, view.replica) == (namespace, replica)]  # fmt: skip
    return max(named)[1] if named else None


def based(wanted: Override, plan: ParsedPlan, case: Case | None) -> Override:
    """With what this node's plan and its peers say of the replica: what is decided after that, by
    an orchestrator or by a takeover, was not known to the operator."""
    if case is None:
        return wanted
    source = source_of(plan, case.key)
    revision = source.revision if source is not None else 0
    return replace(wanted, base_revision=revision, base_epoch=max(epochs_of(case)))


def refusal(
    wanted: Override,
    case: Case | None,
    plan: ParsedPlan,
    scene: Scene,
    views: Iterable[ReplicaView],
) -> Refusal | None:
    """None: it can be done. `case`: of the replica, as this node knows it."""
    if wanted.field == FROZEN:
        if wanted.stands or scene.decided.frozen() is not None:
            return None
        return Refusal("NotFrozen", "nobody froze the site, as far as this node knows")
    here = [view for view in views if (view.workload_uid, view.replica) == wanted.subject]
    source = source_of(plan, wanted.subject)
    namespaces = {view.namespace for view in here} | ({source.namespace} if source else set())
    if case is None or (namespaces and namespaces != {wanted.namespace}):
        return Refusal("UnknownReplica", f"this node knows of no replica {wanted.replica}")
    if not wanted.stands:
        return _nothing_to_take_back(wanted, scene)
    if wanted.field == STOPPED:
        if any(view.phase in ENDED for view in here):
            return Refusal("Ended", f"{wanted.replica} ran once, and has ended")
        return None
    return _immovable(wanted.value, case, scene)


def _nothing_to_take_back(wanted: Override, scene: Scene) -> Refusal | None:
    if scene.decided.get(wanted.subject, wanted.field) is not None:
        return None
    what = {STOPPED: ("NotStopped", "stopped"), PLACED_ON: ("NotPlaced", "moved")}
    reason, verb = what[wanted.field]
    return Refusal(reason, f"nobody {verb} {wanted.replica}, as far as this node knows")


def _immovable(node: str, case: Case, scene: Scene) -> Refusal | None:
    """Why it cannot be moved there now."""
    replica = case.key[1]
    if scene.decided.stopped(case.key) is not None:
        return Refusal("StoppedLocally", f"{replica} is stopped: start it first")
    if scene.decided.frozen() is not None:
        return Refusal("Frozen", "the site is frozen: nothing is moved")
    if case.group is None or not case.startable:
        return Refusal("NoStandbys", f"no other node may run {replica}")
    if node not in case.group.members:
        allowed = ", ".join(case.group.members)
        return Refusal("NotAMember", f"{replica} may run on {allowed}, not on {node}")
    if _holds(node, case, scene):
        return Refusal("AlreadyThere", f"{node} has {replica}")
    if node == scene.node:
        why = scene.able(case.key)
        if why == "":
            return None
        return Refusal("NodeUnable", f"{node} cannot run {replica}: {why or 'not known yet'}")
    if not scene.peers.hears(node, scene.now):
        return Refusal("NodeSilent", f"{scene.node} does not hear {node}")
    if not heard_able(node, case, scene):
        ability = scene.theirs.ability(node, case.key)
        why = ability.reason if ability is not None else "it has not said that it could"
        return Refusal("NodeUnable", f"{node} cannot run {replica}: {why}")
    return None


def _holds(node: str, case: Case, scene: Scene) -> bool:
    """The newest stay of it is there, as far as is known."""
    stays = [(own.epoch, scene.node) for own in case.own if own.present]
    stays += [claim.rank for claim in case.theirs if scene.peers.hears(claim.node, scene.now)]
    return max(stays, default=(0, ""))[1] == node
