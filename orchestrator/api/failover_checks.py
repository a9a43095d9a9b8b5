"""What a workload's failover cannot keep of what it seems to promise. Called by apply."""

from orchestrator.scheduling.groups import VOTERS_MIN
from polder.manifest import WorkloadSpec


def unkept(spec: WorkloadSpec) -> list[str]:
    """Warnings, each with the field that it is about."""
    failover = spec.failover
    return [
        f"spec.failover.{field}: {text}"
        for field, text in (_of_exclusive(spec) if failover.exclusive else _of_others(spec))
    ]


def _of_exclusive(spec: WorkloadSpec) -> list[tuple[str, str]]:
    failover, found = spec.failover, []
    if not failover.standbys:
        text = "while its node is lost nobody takes an exclusive replica over; give standbys: 1 or "
        found.append(("standbys", f"{text}more, at sites of {VOTERS_MIN} nodes or more"))
    elif spec.template.local_volumes():
        text = "the data of its local volumes stays on its node, so nobody takes it over"
        found.append(("standbys", text))
    if failover.lost_after is not None and failover.when_isolated == "keep":
        text = "has no effect: an exclusive replica that may still run is not started elsewhere; "
        found.append(("lostAfter", f"{text}see whenIsolated: stop"))
    if spec.update.max_unavailable in ("0", "0%"):
        text = "an exclusive replica stops before it starts anew, whatever update.maxUnavailable is"
        found.append(("exclusive", text))
    return found


def _of_others(spec: WorkloadSpec) -> list[tuple[str, str]]:
    failover, found = spec.failover, []
    why = ""
    if spec.per_node is not None:
        why = "perNode replicas belong to their node"
    elif spec.run == "once":
        why = "a job's replica is placed anew when its node is lost, and not before"
    elif spec.template.local_volumes():
        why = "the data of its local volumes stays on its node"
    if failover.standbys and why:
        found.append(("standbys", f"nobody takes it over: {why}"))
    alone = not failover.standbys or failover.scope != "site" or why
    if failover.when_isolated == "stop" and alone:
        text = "has no effect: it is for replicas with standbys at their own site"
        found.append(("whenIsolated", text))
    return found
