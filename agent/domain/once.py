"""How a replica that is to run once ended. Called by `reconcile.py` before it decides.

The answer follows from the exit codes that the runtime knows, so an agent that restarts, and a box
that boots, come to the same one. For the same reason a container of such a replica whose liveness
fails is killed at once: after a stop signal it might end with 0 and look well later.

What was cut off by a reboot has no exit that says anything: that replica runs again, from its first
container. Programs that run once must bear being run twice (at least once).
"""

from agent.domain import labels
from agent.domain.containers import Turn, count_end, describe, end_of, grace_s, stop_run
from agent.domain.record import Cause, Record, Verdict, containers_of, runs_of
from agent.runtime.port import ContainerPhase, ContainerState, PodState

# A start that the runtime refuses so often in a row is refused for good.
START_TRIES = 3
# What containerd says of a container whose end it did not see.
UNSEEN_REASON, UNSEEN_CODE = "Unknown", 255


def verdict(record: Record, pod: PodState | None) -> Verdict | None:
    """None: it does not run once, has not ended, or nobody knows how it ended."""
    if pod is None or not record.once:
        return None
    first, names = _names(record, pod)
    newest = {run.name: run for name in (*first, *names) for run in runs_of(pod, name)[:1]}
    running = tuple(r for r in newest.values() if r.phase is ContainerPhase.RUNNING)
    for name in (*first, *names):
        cause = _failure(record, pod, name, newest.get(name))
        if cause is not None:
            return Verdict(False, cause, running)
    if names and all(_ended_well(newest.get(name)) for name in names):
        return Verdict(True, Cause("Completed"))
    return None


def _names(record: Record, pod: PodState) -> tuple[list[str], list[str]]:
    """Init containers and containers: of the template, or, if that is unknown, of the pod."""
    template = record.runs.template if record.runs is not None else None
    if template is not None:
        return [c.name for c in template.init_containers], [c.name for c in template.containers]
    first = {c.name for c in pod.containers if labels.INIT in c.labels}
    return sorted(first), sorted({c.name for c in pod.containers} - first)


def _failure(record: Record, pod: PodState, name: str, run: ContainerState | None) -> Cause | None:
    memory = record.memory(name)
    if run is None:
        if memory.crash.failures < START_TRIES:
            return None
        return Cause(memory.crash.reason, f"container {name}: {memory.crash.message}")
    unseen = not pod.ready and (run.reason, run.exit_code) == (UNSEEN_REASON, UNSEEN_CODE)
    if run.phase is not ContainerPhase.EXITED or run.exit_code == 0 or unseen:
        return None
    end = end_of(memory, run, "")
    return Cause(end.reason or "Error", f"container {name} {describe(end)}")


def _ended_well(run: ContainerState | None) -> bool:
    return run is not None and run.phase is ContainerPhase.EXITED and run.exit_code == 0


def finish(record: Record, pod: PodState, ended: Verdict, turn: Turn, may_act: bool) -> None:
    """Read how its containers ended; stop those that run on although one has failed."""
    template = record.runs.template if record.runs is not None else None
    for container in containers_of(template) if template is not None else ():
        for run in runs_of(pod, container.name)[:1]:
            memory = record.memory(container.name)
            if run.phase is ContainerPhase.EXITED and memory.counted != run.id:
                count_end(record, container, memory, run, turn)
    for run in ended.running if may_act else ():
        cause = Cause("ReplicaFailed", ended.cause.message)
        stop_run(record, run, cause, grace_s(record.runs, pod), turn)
