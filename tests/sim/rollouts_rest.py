"""The end of a simulated life: the disturbances stop, and everything must come to rest.

Used by `rollouts.py`.
"""

from orchestrator.records import AssignmentRecord, StoredResource
from tests.sim.rollouts_agents import Rec
from tests.sim.rollouts_jobs import unfinished
from tests.sim.rollouts_records import is_numbered, is_wanted, kept_body
from tests.sim.rollouts_world import World

LONGER_S = 15.0
"""Between the leader's ticks, where nothing happens any more but what it expects itself."""
SETTLED = ("Proven", "RolledBack", "Failed")


def heal(world: World) -> None:
    """Boxes come back or are given up; operators take back what they stopped."""
    world.idle_s = LONGER_S
    world.store.refuse = lambda _ops: False
    for name in ("", "default", "b"):
        world.thaw(name)
    for agent in list(world.agents.values()):
        if not agent.powered and world.dice.random() < 0.3:
            world.operator.delete("Node", "", agent.name)
            continue
        agent.power_on()
        agent.connect()
    for record in list(world.mirror.resources("Workload")):
        if "schedule" in record.spec:
            world.operator.delete("Workload", record.namespace, record.name)
            continue
        if record.spec.get("run") == "once":
            continue
        update = {k: v for k, v in record.spec.get("update", {}).items() if k != "paused"}
        if not record.deletion_requested_at_ms:
            world.operator.change("Workload", record.namespace, record.name, update=update)
    for kind in ("Site", "Provider"):
        for record in list(world.mirror.resources(kind)):
            world.operator.change(kind, "", record.name, unschedulable=None)


def check_rest(world: World) -> list[str]:
    """What is not yet as asked, and not explained either; empty when all is."""
    world.approve_all()
    problems = []
    explained = {(e.namespace, e.workload): e.code for e in world.last.plan.explanations}
    for workload in world.mirror.resources("Workload"):
        if workload.deletion_requested_at_ms:
            problems.append(f"{workload.name} is still being deleted")
        elif workload.spec.get("run") == "once":
            problems += unfinished(world, workload)
        else:
            reason = explained.get((workload.namespace, workload.name), "")
            problems += _check_workload(world, workload, reason)
    for placement in world.mirror.placements():
        agent = world.agents.get(placement.node)
        node = world.mirror.resource("Node", "", placement.node)
        if agent is None or node is None:
            problems.append(f"a placement of {placement.node}, which is gone")
            continue
        if placement.stops and agent.powered:
            names = [stop.replica for stop in placement.stops]
            problems.append(f"{names} still stop on {agent.name}")
        if node.spec.get("draining"):
            problems += _check_drained(world, agent.name, explained, placement.assignments)
    return problems


def _check_drained(
    world: World,
    node: str,
    explained: dict[tuple[str, str], str],
    assignments: tuple[AssignmentRecord, ...],
) -> list[str]:
    found = []
    for item in assignments:
        workload = world.mirror.resource("Workload", item.namespace, item.workload)
        per_node = workload is not None and "perNode" in workload.spec
        if not per_node and not explained.get((item.namespace, item.workload)):
            found.append(f"{item.replica} is on {node}, which is drained, without a reason")
    return found


def _check_workload(world: World, workload: StoredResource, explained: str) -> list[str]:
    body = kept_body(world, workload)
    phase = str(body.get("phase", ""))
    name, problems = workload.name, []
    if workload.spec.get("replicas") == 0:
        phase = ""  # what has no replica cannot go on, proves nothing, and need not
    waits = explained and phase in ("Progressing", "RollingBack")
    if phase and phase not in SETTLED and not waits:
        return [f"{name} is {phase}"]
    if phase in ("RolledBack", "Failed") and not (body.get("reason") or body.get("message")):
        problems.append(f"{name} is {phase} without a reason: {body}")
    held: dict[str, list[tuple[str, AssignmentRecord]]] = {}
    for placement in world.mirror.placements():
        for item in placement.assignments:
            if item.workload_uid == workload.uid:
                held.setdefault(item.replica, []).append((placement.node, item))
    for replica, stays in held.items():
        if len(stays) > 1 and not explained and phase != "Failed":
            problems.append(f"{replica} has {len(stays)} holders")
        if not is_wanted(workload, replica):
            problems.append(f"{replica} is not wanted any more")
    if explained or phase == "Failed":
        return problems
    if is_numbered(workload):
        for index in range(int(workload.spec.get("replicas", 1))):
            if f"{name}-{index}" not in held:
                problems.append(f"{name}-{index} has no place, and no reason is given")
    for replica, stays in held.items():
        problems += _check_replica(world, workload, phase, replica, stays)
    return problems


def _check_replica(
    world: World,
    workload: StoredResource,
    phase: str,
    replica: str,
    stays: list[tuple[str, AssignmentRecord]],
) -> list[str]:
    node, item = stays[0]
    agent = world.agents.get(node)
    rec = agent.recs.get(item.replica_uid) if agent is not None else None
    revision = world.mirror.revision_of(workload.uid, item.revision)
    assert revision is not None
    problems = []
    if phase == "Proven" and item.revision != workload.template_revision:
        problems.append(f"{replica} is at revision {item.revision} of a proven rollout")
    image = world.image(revision.decoded.containers[0].image)
    if image.kind != "good" and not (
        phase in ("Proven", "RolledBack") and image.kind == "crash_late"
    ):
        problems.append(f"{replica} runs {image.name}: {phase}")
    elif image.kind == "good" and not _runs(rec, revision.digest):
        problems.append(f"{replica} on {node} does not serve")
    return problems


def _runs(rec: Rec | None, digest: str) -> bool:
    return rec is not None and rec.serves and rec.pod is not None and rec.pod.want.digest == digest
