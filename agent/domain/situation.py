"""The transition table: in which situation a replica is, what is done about it, what may follow.

A situation is never stored as a decision; `classify` derives it from desired, actual and memory
after every event, and `reconcile.py` asks for the instructions of its row. Operations under way
hold their row back (see `reconcile.py`), they do not make a row of their own.

    situation   when                                        asks for                       then
    GONE        no pod; the plan does not assign it         PublishGone, DeleteLogs        (end)
    BLOCKED     no pod; template unreadable, secret         nothing; seen again with the   FETCHING
                missing, policy forbids a first start,      next plan, when a fact expires
                another stay of the replica has its host    or a pod is removed
                ports or its local volumes, or the site
                holds it: another node runs it
    FETCHING    no pod; an image is not on the box          EnsureImage, with backoff      CREATING
    WAITING     no pod; the last sandbox failed             nothing until the backoff ends CREATING
    CREATING    no pod; all images are there                RunPod                         SERVING
    SERVING     a ready pod of the wanted template          per container, below;          (stays)
                                                            UpdateFiles, when a Config or
                                                            Secret of its files changed
    FINISHED    a pod that is to run once, and how it       StopContainer for what still   (stays)
                ended is known                              runs after another failed
    REPLACING   a pod of another template than assigned,    EnsureImage of the new one;    RETIRING
                or that an operator restarts, or exclusive  the old pod is served
                and out of the switch's reach
    KEPT        a pod, and nothing better to run: no plan   the pod is served, if its      SERVING
                names it (orphan), or the new template      template is known
                cannot be used
    RETIRING    its pod must go: Stop in the plan, template nothing until the stop delay   GONE,
                changed, superseded, held by the site,      is over; StopContainer, then   BLOCKED,
                sandbox dead, double                        RemovePod                      FETCHING

A second pod of one replica (an answer got lost) is retired beside the first, whatever its row. Only
retiring, an unhealthy container and a failed neighbour in a pod that is to run once lead to a stop.
The delay is for those who send requests: it counts from when the replica was last reported ready,
and not at all for a sandbox that is dead or a pod that is one too many.

Two stays of one replica name (two uids; the newer replaces the older) are two replicas here: each
has a row of its own.

Init containers come first, one after the other: of those, the first that has not ended with 0 is
treated, and no other container. Per container of a served pod:

    situation   when                                        asks for
    ABSENT      it has no run                               EnsureImage, StartContainer
    UP          it runs                                     RunProbe when due
    UNHEALTHY   it runs; liveness has failed                StopContainer
    UNCOUNTED   it ended; the end is new to us              ReadExit; the backoff begins
    BACKOFF     it ended; the wait is not over              nothing until the backoff ends
    ENDED       it ended; the wait is over                  EnsureImage, StartContainer
    DONE        it ended, in a pod that is to run once      nothing
    LEFTOVER    it was created and never started            RemoveContainer
"""

from collections.abc import Mapping
from enum import Enum

from agent.runtime.port import ContainerPhase


class Situation(Enum):
    GONE = "gone"
    BLOCKED = "blocked"
    FETCHING = "fetching"
    WAITING = "waiting"
    CREATING = "creating"
    SERVING = "serving"
    FINISHED = "finished"
    REPLACING = "replacing"
    KEPT = "kept"
    RETIRING = "retiring"


NO_POD = frozenset(
    {
        Situation.GONE,
        Situation.BLOCKED,
        Situation.FETCHING,
        Situation.WAITING,
        Situation.CREATING,
    }
)
SERVED = frozenset({Situation.SERVING, Situation.FINISHED, Situation.REPLACING, Situation.KEPT})

# What may follow. Without a pod anything may: the next listing can bring one, and GONE lasts until
# nothing is under way. A served pod may vanish by someone's hand. But a pod that must go never
# comes back to service, whatever the next plan says: half of its containers may have been stopped
# already.
FOLLOWS: Mapping[Situation, frozenset[Situation]] = {
    situation: frozenset(Situation) for situation in NO_POD | SERVED
} | {Situation.RETIRING: NO_POD | {Situation.RETIRING}}


class ContainerSituation(Enum):
    ABSENT = "absent"
    UP = "up"
    UNHEALTHY = "unhealthy"
    UNCOUNTED = "uncounted"
    BACKOFF = "backoff"
    ENDED = "ended"
    DONE = "done"
    LEFTOVER = "leftover"


def classify(
    *,
    doomed: bool,
    has_pod: bool,
    assigned: bool,
    blocked: bool,
    images_missing: bool,
    waits: bool,
    same_template: bool,
    finished: bool = False,
) -> Situation:
    """The row that holds. `blocked`: what is assigned cannot be started. `same_template`: also of
    another one that must not be exchanged. `finished`: it ran once, and how it ended is known."""
    if doomed:
        return Situation.RETIRING
    if not has_pod:
        if not assigned:
            return Situation.GONE
        if blocked:
            return Situation.BLOCKED
        if images_missing:
            return Situation.FETCHING
        return Situation.WAITING if waits else Situation.CREATING
    if not assigned:
        return Situation.KEPT
    if finished:
        return Situation.FINISHED
    if same_template:
        return Situation.SERVING
    return Situation.KEPT if blocked else Situation.REPLACING


def classify_container(
    phase: ContainerPhase | None,
    *,
    unhealthy: bool,
    counted: bool,
    waits: bool,
    once: bool = False,
) -> ContainerSituation:
    """The row of a container's newest run. `phase` None: there is no run."""
    if phase is None:
        return ContainerSituation.ABSENT
    if phase is ContainerPhase.RUNNING:
        return ContainerSituation.UNHEALTHY if unhealthy else ContainerSituation.UP
    if phase is ContainerPhase.EXITED:
        if not counted:
            return ContainerSituation.UNCOUNTED
        if once:
            return ContainerSituation.DONE
        return ContainerSituation.BACKOFF if waits else ContainerSituation.ENDED
    return ContainerSituation.LEFTOVER
