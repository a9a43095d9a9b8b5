"""Plan: what an apply would place, move, stop, update and preempt, without doing it.

Two worlds are played to their rest, the one that is and the one with the documents applied, and
compared: so what is under way already is nobody's change.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from orchestrator.api.apply import Applier, results_of
from orchestrator.api.foresight import Outlook, outlook
from orchestrator.api.thinking import Thinking
from orchestrator.authz import Caller
from orchestrator.domain.guard import GuardSettings, hold_back
from orchestrator.scheduling.decisions import Cause, Explanation
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.snapshot import Snapshot
from polder.roles import Level, level_in
from polder.v1 import operator_pb2

TOTALS_MAX = 500
CHANGES_MAX = 500
CHANGES_OF_ONE_MAX = 20  # of each workload and action
UNPLACED_MAX = 100
TIME_MAX_S = 20.0

PLACE = operator_pb2.CHANGE_ACTION_PLACE
MOVE = operator_pb2.CHANGE_ACTION_MOVE
STOP = operator_pb2.CHANGE_ACTION_STOP
UPDATE = operator_pb2.CHANGE_ACTION_UPDATE
PREEMPT = operator_pb2.CHANGE_ACTION_PREEMPT

Group: TypeAlias = "tuple[str, str, operator_pb2.ChangeAction.ValueType]"
"""Namespace, workload and action."""


@dataclass(frozen=True, slots=True)
class ReplicaChange:
    """One replica that an apply concerns. `node`: afterwards; of a stop, before."""

    action: "operator_pb2.ChangeAction.ValueType"
    namespace: str
    workload: str
    replica: str
    node: str
    from_node: str = ""
    cause: str = ""

    @property
    def group(self) -> Group:
        return (self.namespace, self.workload, self.action)


class Planning:
    """Serves Plan. `timer` is a monotonic clock."""

    def __init__(self, thinking: Thinking, applier: Applier, timer: Callable[[], float]) -> None:
        self._thinking = thinking
        self._applier = applier
        self._timer = timer

    async def plan(
        self, caller: Caller, request: operator_pb2.PlanRequest
    ) -> operator_pb2.PlanResponse:
        """Raises Refused as Apply does, and Busy."""
        decided = await self._applier.decide(caller, request.documents)
        steps = decided.steps
        before = self._thinking.snapshot()
        after = self._thinking.snapshot(
            [step.record for step in steps],
            [step.revision for step in steps if step.revision is not None],
        )
        now = self._thinking.now()

        def reads(namespace: str) -> bool:
            return level_in(caller.roles, namespace) >= Level.VIEWER

        def answer() -> operator_pb2.PlanResponse:
            deadline = self._timer() + TIME_MAX_S

            def enough() -> bool:
                return self._timer() >= deadline

            response = compared(before, after, now, reads, enough)
            response.results.extend(results_of(caller, steps, decided.warnings))
            warn_of_holds(response.results, after, now, self._thinking.guards)
            return response

        response = await self._thinking.ask(answer)
        response.now_ms = int(now * 1000)
        return response


def warn_of_holds(
    results: Sequence[operator_pb2.ApplyResult], after: Snapshot, now: float, guards: GuardSettings
) -> None:
    """Adds to the documents behind a change what of it would wait for an approval."""
    held = hold_back(plan(after, now), after, {}, {}, now, guards)
    for hold in held.begun:
        text = f"{hold.message}: they would run on until `edgectl approve`"
        about = [r for r in results if _name(r) in hold.workloads] or results[:1]
        for result in about:
            result.warnings.append(text)


def _name(result: operator_pb2.ApplyResult) -> str:
    metadata = result.resource.metadata
    return f"{metadata.namespace}/{metadata.name}" if result.resource.kind == "Workload" else ""


def compared(
    before: Snapshot,
    after: Snapshot,
    now: float,
    reads: Callable[[str], bool],
    enough: Callable[[], bool] = lambda: False,
) -> operator_pb2.PlanResponse:
    """`reads`: whether the caller may read a namespace; of others it learns only how many."""
    was, will = outlook(before, now, enough=enough), outlook(after, now, enough=enough)
    found = changes(was, will, _revised(before, after))
    shown = [change for change in found if reads(change.namespace)]
    totals = Counter(change.group for change in shown)
    examples = _examples(shown)
    unplaced = [
        item
        for item in newly_unplaced(was.explanations, will.explanations)
        if reads(item.namespace)
    ]
    return operator_pb2.PlanResponse(
        totals=[
            operator_pb2.ChangeCount(
                namespace=namespace, workload=workload, action=action, replicas=count
            )
            for (namespace, workload, action), count in totals.most_common(TOTALS_MAX)
        ],
        totals_left_out=max(0, len(totals) - TOTALS_MAX),
        changes=[_wire(change) for change in examples],
        changes_left_out=len(shown) - len(examples),
        changes_hidden=len(found) - len(shown),
        unplaced=unplaced[:UNPLACED_MAX],
        unplaced_left_out=max(0, len(unplaced) - UNPLACED_MAX),
        incomplete=not (was.rests and will.rests),
    )


def changes(was: Outlook, will: Outlook, revised: frozenset[str]) -> list[ReplicaChange]:
    """Every replica of which the two outlooks say something else, in order of workload and name.

    `revised`: uids of workloads whose template changes.
    """
    found = []
    for key in was.stays.keys() | will.stays.keys():
        old, new = was.stays.get(key), will.stays.get(key)
        cause = will.causes.get(key)
        told = cause.value if cause is not None else ""
        some = new or old
        assert some is not None
        about = (some.assignment.namespace, some.assignment.workload, some.assignment.replica)
        if old is None and new is not None:
            found.append(ReplicaChange(PLACE, *about, new.node))
        elif new is None and old is not None:
            action = PREEMPT if cause is Cause.PREEMPTED else STOP
            found.append(ReplicaChange(action, *about, old.node, cause=told))
        elif old is not None and new is not None and old.node != new.node:
            found.append(ReplicaChange(MOVE, *about, new.node, old.node, told))
        elif new is not None and key[0] in revised:
            found.append(ReplicaChange(UPDATE, *about, new.node))
    return sorted(found, key=lambda c: (*c.group, len(c.replica), c.replica))


def newly_unplaced(
    was: Iterable[Explanation], will: Iterable[Explanation]
) -> list[operator_pb2.UnplacedReplicas]:
    """What does not fit in the second world, unless as much of it does not in the first."""
    known = {(item.namespace, item.workload): len(item.replicas) for item in _lacking(was)}
    return [
        operator_pb2.UnplacedReplicas(
            namespace=item.namespace,
            workload=item.workload,
            replicas=len(item.replicas),
            message=told(item),
        )
        for item in _lacking(will)
        if known.get((item.namespace, item.workload)) != len(item.replicas)
    ]


def told(item: Explanation) -> str:
    """An explanation with its most frequent reasons."""
    reasons = sorted(item.reasons, key=lambda reason: -reason.nodes)[:3]
    details = "; ".join(f"{reason.nodes} x {reason.example}" for reason in reasons)
    return f"{item.message} ({details})" if details else item.message


# They have a node, or soon will.
_PLACED = (
    "UpdateWaits",
    "DrainBlocked",
    "ReplacementWaits",
    "Preempting",
    "NodeDaemon",
    "FlapDamped",
    "Frozen",
)


def _lacking(explanations: Iterable[Explanation]) -> list[Explanation]:
    return [item for item in explanations if item.replicas and item.code not in _PLACED]


def _revised(before: Snapshot, after: Snapshot) -> frozenset[str]:
    """What a job runs stays as it is: only later replicas have the new template."""
    numbers = {item.uid: item.revision for item in before.workloads if not item.once}
    return frozenset(
        item.uid for item in after.workloads if numbers.get(item.uid, 0) not in (0, item.revision)
    )


def _examples(found: Sequence[ReplicaChange]) -> list[ReplicaChange]:
    taken: Counter[Group] = Counter()
    examples: list[ReplicaChange] = []
    for change in found:
        taken[change.group] += 1
        if taken[change.group] <= CHANGES_OF_ONE_MAX and len(examples) < CHANGES_MAX:
            examples.append(change)
    return examples


def _wire(change: ReplicaChange) -> operator_pb2.ReplicaChange:
    return operator_pb2.ReplicaChange(
        action=change.action,
        namespace=change.namespace,
        workload=change.workload,
        replica=change.replica,
        node=change.node,
        from_node=change.from_node,
        cause=change.cause,
    )
