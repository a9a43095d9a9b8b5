"""`explain(snapshot, workload, now)`: for every node every reason against one more replica there.

Called for `edgectl why`. It asks the same filters as `plan()`, on the same table, so the two never
disagree: a node fits here exactly if the next plan could put a replica there.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from orchestrator.scheduling import filters
from orchestrator.scheduling.holders import find_holders, template_of
from orchestrator.scheduling.part import Planning
from orchestrator.scheduling.reasons import Reason, Value, forbidden_reason, need_of
from orchestrator.scheduling.snapshot import Snapshot, Workload
from orchestrator.scheduling.table import NodeTable
from orchestrator.scheduling.tied import tied

DETAILS_MAX = 200
SUGGESTIONS_MAX = 8


@dataclass(frozen=True, slots=True)
class NodeVerdict:
    """One node with every reason against it; none: it fits."""

    node: str
    site: str
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class ReasonGroup:
    """How many nodes and sites fail for one reason. A node counts in each of its reasons."""

    code: str
    knob: str
    nodes: int
    sites: int
    example: str


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A single change of the manifest, and how many more nodes and sites it would admit.

    `value` None: the demand would have to be dropped.
    """

    knob: str
    value: Value
    nodes: int
    sites: int

    @property
    def text(self) -> str:
        """`12 more sites if sovereignty.seal.SOV-2 were 2`."""
        many = "site" if self.sites == 1 else "sites"
        if self.value is None:
            return f"{self.sites} more {many} without {self.knob}"
        verb = "allowed" if isinstance(self.value, str) else "were"
        return f"{self.sites} more {many} if {self.knob} {verb} {_plain(self.value)}"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `explain` found. `nodes` were looked at, `fitting` of them would do.

    `blockers` are reasons that no node could heal, such as a quota: with one, nothing is placed.
    `groups` are by number of nodes; `suggestions` smallest change first; `verdicts` of at most
    DETAILS_MAX nodes, in order of name.
    """

    namespace: str
    workload: str
    nodes: int
    fitting: int
    blockers: tuple[Reason, ...] = ()
    groups: tuple[ReasonGroup, ...] = ()
    suggestions: tuple[Suggestion, ...] = ()
    verdicts: tuple[NodeVerdict, ...] = ()


def explain(
    snapshot: Snapshot,
    workload: Workload,
    now: float,
    *,
    nodes: Collection[str] | None = None,
    sites: Collection[str] | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Why, and why not, one more replica of the workload could run on these nodes right now.

    `workload` need not be in the snapshot, but the template of its revision has to be. `nodes` and
    `sites` narrow the question; what may move or is preempted to make room does not count.
    """
    found = _Findings(snapshot, workload, now, seed)
    rows = [
        row
        for row, node in enumerate(found.table.nodes)
        if (nodes is None or node.name in nodes) and (sites is None or node.site in sites)
    ]
    verdicts = sorted(found.verdicts(rows), key=lambda verdict: verdict.node)
    return Diagnosis(
        namespace=workload.namespace,
        workload=workload.name,
        nodes=len(rows),
        fitting=sum(not verdict.reasons for verdict in verdicts),
        blockers=found.blockers(),
        groups=_groups(verdicts),
        suggestions=_suggestions(verdicts)[:SUGGESTIONS_MAX],
        verdicts=tuple(verdicts[:DETAILS_MAX]),
    )


class _Findings:
    def __init__(self, snapshot: Snapshot, workload: Workload, now: float, seed: int) -> None:
        self._snapshot = snapshot
        self._workload = workload
        self.table = NodeTable(snapshot.nodes, snapshot.sites, now, seed)
        holders = find_holders(snapshot, self.table)
        self._planning = Planning(snapshot, self.table, holders)
        held = holders.by_workload.get(workload.uid, {})
        now_held = {**held, **holders.incoming.get(workload.uid, {})}
        template = template_of(snapshot, workload.uid, workload.revision)
        self._need = need_of(snapshot, workload, template)
        rows = [holder.row for holder in now_held.values() if holder.row is not None]
        chooser = self._planning.placer.chooser(workload, self._need, rows, False)
        volumes = tied(snapshot, workload, template, held, self.table)
        every = (*chooser.every_filter, *([] if volumes is None else [volumes]))
        self._filters = [(item, item.failing(self.table, self._need)) for item in every]

    def verdicts(self, rows: Iterable[int]) -> Iterable[NodeVerdict]:
        for row in rows:
            node = self.table.nodes[row]
            reasons = tuple(
                reason
                for item, failing in self._filters
                if failing[row]
                for reason in item.why(self.table, self._need, row)
            )
            yield NodeVerdict(node.name, node.site, reasons)

    def blockers(self) -> tuple[Reason, ...]:
        over = self._planning.quotas.over(self._workload.namespace, self._need.template)
        namespace = self._workload.namespace
        missing = tuple(forbidden_reason(namespace, name) for name in self._need.forbidden)
        return filters.blockers(self._snapshot, self._workload) + missing + over


def _groups(verdicts: list[NodeVerdict]) -> tuple[ReasonGroup, ...]:
    nodes: defaultdict[tuple[str, str], int] = defaultdict(int)
    sites: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    examples: dict[tuple[str, str], str] = {}
    for verdict in verdicts:
        for key, text in {(r.code, r.knob): r.text for r in verdict.reasons}.items():
            nodes[key] += 1
            sites[key].add(verdict.site)
            examples.setdefault(key, f"{verdict.node}: {text}")
    groups = [
        ReasonGroup(*key, nodes=nodes[key], sites=len(sites[key]), example=examples[key])
        for key in nodes
    ]
    return tuple(sorted(groups, key=lambda group: (-group.nodes, group.code, group.knob)))


def _suggestions(verdicts: list[NodeVerdict]) -> tuple[Suggestion, ...]:
    """Changes of one knob, each with the nodes that fail by that knob alone.

    A number that is weakened to some value also admits whoever is content with a stricter one.
    """
    by_knob: defaultdict[str, list[tuple[Value, NodeVerdict]]] = defaultdict(list)
    for verdict in verdicts:
        knobs = {reason.knob for reason in verdict.reasons}
        if len(knobs) == 1 and (knob := knobs.pop()):
            by_knob[knob].append((_weakest(knob, verdict.reasons), verdict))
    found = []
    for knob, admitted in by_knob.items():
        numbers = sorted(
            {value for value, _ in admitted if isinstance(value, int | float)},
            reverse=not _grows(knob),
        )
        for value in numbers[:3]:
            found.append(
                _suggestion(knob, value, [v for w, v in admitted if _covers(knob, value, w)])
            )
        for text in sorted({value for value, _ in admitted if isinstance(value, str)}):
            found.append(_suggestion(knob, text, [v for w, v in admitted if w == text]))
        if any(value is None for value, _ in admitted):
            found.append(_suggestion(knob, None, [v for _, v in admitted]))
    return tuple(sorted(found, key=lambda s: (s.value is None, -s.sites, -s.nodes, s.knob)))


def _suggestion(knob: str, value: Value, verdicts: list[NodeVerdict]) -> Suggestion:
    return Suggestion(knob, value, len(verdicts), len({verdict.site for verdict in verdicts}))


def _grows(knob: str) -> bool:
    """Whether a larger number is the weaker demand."""
    return knob.endswith(("Max", "maxSkew", "Skew"))


def _covers(knob: str, value: float, other: Value) -> bool:
    if not isinstance(other, int | float):
        return False
    return other <= value if _grows(knob) else other >= value


def _weakest(knob: str, reasons: tuple[Reason, ...]) -> Value:
    """What one knob has to say to satisfy all of these at once."""
    values = [reason.value for reason in reasons]
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) == len(values):
        return max(numbers) if _grows(knob) else min(numbers)
    return values[0] if len(set(values)) == 1 else None


def _plain(value: Value) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)
