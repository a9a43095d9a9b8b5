"""Tells operators what the leader did and what it could not do, as events. Called by the leader.

Few replicas are told one by one; a large change is told once per workload, so that placing a
million replicas is not a million events. So it is with nodes: a region that is lost is not two
events for each of its thousands.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from orchestrator.events import Recorder
from orchestrator.leader_commit import Committed
from orchestrator.records import AssignmentRecord
from orchestrator.scheduling.decisions import Cause, Explanation, Orphan, Plan
from orchestrator.scheduling.steer import Tell
from polder.v1 import common_pb2

ONE_BY_ONE_MAX = 10
_NORMAL = common_pb2.EVENT_TYPE_NORMAL
_WARNING = common_pb2.EVENT_TYPE_WARNING
_ALARMING = {
    Cause.NODE_LOST,
    Cause.UNSATISFIABLE,
    Cause.IMAGE_PLATFORM,
    Cause.UNTOLERATED,
    Cause.NON_COMPLIANT,
    Cause.PREEMPTED,
    Cause.REPLACEMENT_FAILED,
}
# A normal part of every update, move and drain.
_QUIET = {"UpdateWaits", "DrainBlocked", "ReplacementWaits", "NodeDaemon"}
# Told as what operators did, from the journals of their nodes.
_QUIET |= {"StoppedLocally", "SiteFrozen"}


NODES_ONE_BY_ONE_MAX = 20
NODES_WITHIN_S = 10.0
_OF_MANY = {"NodeSilent": "NodesSilent", "NodeLost": "NodesLost", "NodeReady": "NodesReady"}


@dataclass(slots=True)
class _Crowd:
    """Nodes of which one and the same is told, from `since` on (steady seconds)."""

    since: float
    last: Tell
    count: int = 0
    names: list[str] = field(default_factory=list)  # of those that were not told by name

    def summary(self) -> Tell:
        shown = ", ".join(self.names[:3])
        many = f"{len(self.names)} more nodes within {NODES_WITHIN_S:g} s, such as {shown}"
        return replace(
            self.last,
            kind="Installation",
            name="everything",
            reason=_OF_MANY[self.last.reason],
            message=f"{many}: {self.last.message}",
        )


class Crowds:
    """The first nodes of many are told one by one, the others together. `take` in every tick."""

    def __init__(self, steady: Callable[[], float]) -> None:
        self._steady = steady
        self._crowds: dict[str, _Crowd] = {}

    def take(self, tells: Iterable[Tell]) -> Iterator[Tell]:
        """What is to be told now."""
        now = self._steady()
        for reason, crowd in list(self._crowds.items()):
            if now - crowd.since >= NODES_WITHIN_S:
                del self._crowds[reason]
                if crowd.names:
                    yield crowd.summary()
        for tell in tells:
            if tell.kind != "Node" or tell.reason not in _OF_MANY:
                yield tell
                continue
            crowd = self._crowds.setdefault(tell.reason, _Crowd(now, tell))
            crowd.count += 1
            if crowd.count <= NODES_ONE_BY_ONE_MAX:
                yield tell
            else:
                crowd.last = tell
                crowd.names.append(tell.name)


class Reporter:
    """Remembers what it said, so that a standing problem is one event and not one per plan."""

    def __init__(
        self, recorder: Recorder, member: str, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._recorder = recorder
        self._source = f"leader/{member}"
        self._explained: dict[tuple[str, str], frozenset[tuple[str, ...]]] = {}
        self._orphans: set[tuple[str, str]] = set()
        self._crowds = Crowds(steady)

    def committed(self, done: Committed) -> None:
        """What was written."""
        self._told(
            ((p.assignment, "Placed", f"placed on node {p.node}", _NORMAL) for p in done.place),
            "placed {count} replicas",
        )
        self._told(
            (
                (
                    s.assignment,
                    s.cause.value,
                    f"stops on node {s.node}: {s.message}"
                    + (f"; moves to node {s.moved_to}" if s.moved_to not in ("", s.node) else ""),
                    _WARNING if s.cause in _ALARMING else _NORMAL,
                )
                for s in done.stop
            ),
            "{count} replicas stop: {message}",
        )
        self._told(
            (
                (r.assignment, "Updating", f"updates to revision {r.revision}", _NORMAL)
                for r in done.revise
            ),
            "{count} replicas update: {message}",
        )
        for resource in done.finished:
            self._recorder.record(
                *resource.ref, _NORMAL, "Deleted", "nothing of it is left", self._source
            )
        for volume in done.released:
            node = volume.spec.get("node", "")
            text = f"node {node} was deleted, and its data with it; the replica is free to go"
            self._recorder.record(*volume.ref, _WARNING, "VolumeReleased", text, self._source)
        for node in done.too_large:
            message = "its plan does not fit into the store; it keeps the last one"
            self._recorder.record("Node", "", node, _WARNING, "PlanTooLarge", message, self._source)

    def told(self, tells: Iterable[Tell]) -> None:
        """What the machines behind the plan have to say of what they decided."""
        for tell in self._crowds.take(tells):
            severity = _WARNING if tell.warning else _NORMAL
            self._say(tell.kind, tell.namespace, tell.name, severity, tell.reason, tell.message)

    def begin(self, told: Iterable[Explanation]) -> None:
        """A new term. `told`: what the leader before said last, and told as events."""
        self._explained = {}
        for explanation in told:
            key = (explanation.namespace, explanation.workload)
            self._explained[key] = self._explained.get(key, frozenset()) | {_kind(explanation)}

    def explained(self, plan: Plan) -> None:
        """What could not be done, once per workload and kind of reason."""
        now: dict[tuple[str, str], frozenset[tuple[str, ...]]] = {}
        for explanation in plan.explanations:
            key = (explanation.namespace, explanation.workload)
            kind = _kind(explanation)
            now[key] = now.get(key, frozenset()) | {kind}
            if explanation.code not in _QUIET and kind not in self._explained.get(key, ()):
                self._explain(explanation)
        self._explained = now
        for orphan in plan.orphans:
            self._orphan(orphan)
        self._orphans &= {(o.node, o.assignment.replica_uid) for o in plan.orphans}

    def _explain(self, explanation: Explanation) -> None:
        shown = ", ".join(explanation.replicas[:3])
        more = len(explanation.replicas) - 3
        if more > 0:
            shown += f" and {more} more"
        details = "; ".join(reason.example for reason in explanation.reasons[:3])
        message = explanation.message
        if shown:
            message = f"{shown}: {message}"
        if details:
            message = f"{message} ({details})"
        self._recorder.record(
            "Workload",
            explanation.namespace,
            explanation.workload,
            _WARNING,
            explanation.code,
            message,
            self._source,
        )

    def _orphan(self, orphan: Orphan) -> None:
        key = (orphan.node, orphan.assignment.replica_uid)
        if key in self._orphans:
            return
        self._orphans.add(key)
        item = orphan.assignment
        message = (
            f"{item.namespace}/{item.replica} stays, although the record of its {orphan.missing} "
            "is missing and nobody deleted it"
        )
        self._recorder.record(
            "Node", "", orphan.node, _WARNING, "OrphanedAssignment", message, self._source
        )

    def _told(self, facts: Iterable[tuple[AssignmentRecord, str, str, int]], summary: str) -> None:
        groups: dict[tuple[str, str, str], list[tuple[AssignmentRecord, str, int]]]
        groups = defaultdict(list)
        for item, reason, message, severity in facts:
            groups[(item.namespace, item.workload, reason)].append((item, message, severity))
        for (namespace, workload, reason), group in groups.items():
            if len(group) > ONE_BY_ONE_MAX:
                _, message, severity = group[0]
                text = summary.format(count=len(group), message=message)
                self._say("Workload", namespace, workload, severity, reason, text)
                continue
            for item, message, severity in group:
                self._say("Replica", namespace, item.replica, severity, reason, message)

    def _say(
        self, kind: str, namespace: str, name: str, severity: int, reason: str, message: str
    ) -> None:
        self._recorder.record(kind, namespace, name, severity, reason, message, self._source)


def _kind(explanation: Explanation) -> tuple[str, ...]:
    return (explanation.code, *sorted(reason.code for reason in explanation.reasons))
