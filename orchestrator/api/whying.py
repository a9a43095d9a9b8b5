"""Why: every reason for every node, why placed replicas may be there, and what would help.

The reasons are the scheduler's own (`orchestrator/scheduling/explain.py`). A manifest that is not
applied yet is explained in the world as it would be with all of its file applied.
"""

from collections.abc import Collection, Mapping, Sequence

from orchestrator.api.apply import Applier
from orchestrator.api.catalog import Catalog
from orchestrator.api.demands_met import demands_met
from orchestrator.api.explaining import Explains
from orchestrator.api.foresight import Stay
from orchestrator.api.reading import checked_ref, describe_ref, missing
from orchestrator.api.standbys import VOTES, standbys_of
from orchestrator.api.thinking import Thinking
from orchestrator.authz import Caller, may_read
from orchestrator.domain.liveness import Liveness
from orchestrator.refusals import forbidden, invalid
from orchestrator.scheduling.decisions import Explanation
from orchestrator.scheduling.explain import Diagnosis, Suggestion, explain
from orchestrator.scheduling.reasons import NO_POLICY, Reason, effective_policy
from orchestrator.scheduling.snapshot import Mode, Node, Snapshot, Workload
from polder.sovereignty import SiteFacts
from polder.v1 import operator_pb2

WORKLOADS_MAX = 20
VERDICTS_MAX = 200
VERDICTS_OF_SEVERAL_MAX = 20  # of each workload, when a file has more than one
PLACED_MAX = 50
WAITING_MAX = 20
NARROW_MAX = 1_000

Key = tuple[str, str]


class Whying:
    """Serves Why."""

    def __init__(
        self, thinking: Thinking, applier: Applier, leader: Explains, catalog: Catalog
    ) -> None:
        self._catalog = catalog
        self._thinking = thinking
        self._applier = applier
        self._leader = leader

    async def why(
        self, caller: Caller, request: operator_pb2.WhyRequest
    ) -> operator_pb2.WhyResponse:
        """Raises Refused (NotFound, Forbidden, InvalidManifest, Busy)."""
        if max(len(request.nodes), len(request.sites)) > NARROW_MAX:
            raise invalid(f"more than {NARROW_MAX} nodes or sites to look at")
        warnings: Mapping[Key, Sequence[str]] = {}
        if request.documents:
            snapshot, keys, warnings = await self._unwritten(caller, request)
        else:
            snapshot, keys = self._existing(caller, request)
        _check_names(snapshot, request)
        said = {key: self._leader.explanations.get(key, ()) for key in keys}
        now = self._thinking.now()

        def answer() -> list[operator_pb2.WorkloadDiagnosis]:
            return [
                _diagnosed(snapshot, key, request, now, said[key], len(keys) > 1) for key in keys
            ]

        found = await self._thinking.ask(answer)
        for item in found:
            item.warnings.extend(warnings.get((item.namespace, item.name), ()))
            for placed in item.placed:
                self._add_standbys(item.namespace, placed)
        return operator_pb2.WhyResponse(workloads=found, now_ms=int(now * 1000))

    def _add_standbys(self, namespace: str, answer: operator_pb2.PlacedReplica) -> None:
        """By what is heard now: it is in no snapshot."""
        placed = self._catalog.index.replica(namespace, answer.replica)
        if placed is None or placed.node != answer.node:
            return
        for found in standbys_of(placed, self._catalog.view):
            answer.standbys.add(
                node=found["node"],
                witness=found["state"] == VOTES,
                state=found["state"],
                reason=found["reason"],
                message=found["message"],
            )
        if placed.assignment.took_over:
            answer.took_over_from = placed.assignment.took_over
            answer.took_over_at_ms = placed.assignment.placed_at_ms

    def _existing(
        self, caller: Caller, request: operator_pb2.WhyRequest
    ) -> tuple[Snapshot, list[Key]]:
        ref = checked_ref(request.ref)
        if ref.kind != "Workload":
            raise invalid(f"why is asked of a workload, not of a {ref.kind}")
        if not may_read(caller, ref.kind, ref.namespace, ref.name):
            raise forbidden(f"{caller} may not read {describe_ref(ref)}")
        snapshot = self._thinking.snapshot()
        if _workload(snapshot, (ref.namespace, ref.name)) is None:
            raise missing(ref)
        return snapshot, [(ref.namespace, ref.name)]

    async def _unwritten(
        self, caller: Caller, request: operator_pb2.WhyRequest
    ) -> tuple[Snapshot, list[Key], Mapping[Key, Sequence[str]]]:
        decided = await self._applier.decide(caller, request.documents, strict=False)
        steps = [step for step in decided.steps if step.record.kind == "Workload"]
        if not steps:
            raise invalid("there is no Workload in what was given: nothing to explain")
        if len(steps) > WORKLOADS_MAX:
            raise invalid(
                f"{len(steps)} workloads are given; at most {WORKLOADS_MAX} are explained at once"
            )
        snapshot = self._thinking.snapshot(
            [step.record for step in decided.steps],
            [step.revision for step in decided.steps if step.revision is not None],
        )
        keys = [(step.record.namespace, step.record.name) for step in steps]
        warnings = {
            key: decided.warnings.get(step.wanted.number, ())
            for key, step in zip(keys, steps, strict=True)
        }
        return snapshot, keys, warnings


def facts_met(snapshot: Snapshot, key: Key, node: str, now: float) -> tuple[str, ...]:
    """The facts by which a workload (namespace, name) may be on a node; empty without a policy."""
    workload = _workload(snapshot, key)
    found = next((item for item in snapshot.nodes if item.name == node), None)
    site = snapshot.sites.get(found.site) if found is not None else None
    if workload is None or site is None or site.facts is None:
        return ()
    policy = effective_policy(snapshot, workload)
    return () if policy == NO_POLICY else tuple(demands_met(policy, site.facts, now))


def _check_names(snapshot: Snapshot, request: operator_pb2.WhyRequest) -> None:
    """A name that is mistyped must not read as: no reasons."""
    nodes = {node.name for node in snapshot.nodes}
    sites = set(snapshot.sites) | {node.site for node in snapshot.nodes}
    for what, asked, known in (("node", request.nodes, nodes), ("site", request.sites, sites)):
        for name in asked:
            if name not in known:
                raise invalid(f"there is no {what} {name[:80]!r}", f"see edgectl get {what}s")


def _workload(snapshot: Snapshot, key: Key) -> Workload | None:
    for item in snapshot.workloads:
        if (item.namespace, item.name) == key:
            return item
    return None


def _diagnosed(
    snapshot: Snapshot,
    key: Key,
    request: operator_pb2.WhyRequest,
    now: float,
    said: Sequence[Explanation],
    several: bool,
) -> operator_pb2.WorkloadDiagnosis:
    workload = _workload(snapshot, key)
    assert workload is not None
    nodes: Collection[str] | None = frozenset(request.nodes) or None
    sites: Collection[str] | None = frozenset(request.sites) or None
    found = explain(snapshot, workload, now, nodes=nodes, sites=sites)
    stays = _stays(snapshot, workload)
    limit = VERDICTS_OF_SEVERAL_MAX if several else VERDICTS_MAX
    answer = operator_pb2.WorkloadDiagnosis(
        namespace=workload.namespace,
        name=workload.name,
        replicas_wanted=_wanted(snapshot, workload),
        replicas_placed=len(stays),
        nodes=found.nodes,
        nodes_fitting=found.fitting,
        blockers=[reason_to_wire(reason) for reason in found.blockers],
        groups=[
            operator_pb2.ReasonGroup(
                code=group.code,
                knob=group.knob,
                nodes=group.nodes,
                sites=group.sites,
                example=group.example,
            )
            for group in found.groups
        ],
        suggestions=[_suggestion(item) for item in found.suggestions],
        verdicts=[
            operator_pb2.NodeVerdict(
                node=verdict.node,
                site=verdict.site,
                reasons=[reason_to_wire(reason) for reason in verdict.reasons],
            )
            for verdict in found.verdicts[:limit]
        ],
        verdicts_left_out=max(0, found.nodes - min(limit, len(found.verdicts))),
        waiting=[
            operator_pb2.WaitingReplicas(
                code=item.code, message=item.message, replicas=item.replica_count
            )
            for item in said[:WAITING_MAX]
        ],
    )
    _add_placed(answer, snapshot, workload, stays, request, now, found)
    return answer


def _stays(snapshot: Snapshot, workload: Workload) -> list[Stay]:
    return sorted(
        (
            Stay(name, item)
            for name, placement in snapshot.placements.items()
            for item in placement.assignments
            if item.workload_uid == workload.uid
        ),
        key=lambda stay: (len(stay.assignment.replica), stay.assignment.replica),
    )


def _add_placed(
    answer: operator_pb2.WorkloadDiagnosis,
    snapshot: Snapshot,
    workload: Workload,
    stays: Sequence[Stay],
    request: operator_pb2.WhyRequest,
    now: float,
    found: Diagnosis,
) -> None:
    nodes = {node.name: node for node in snapshot.nodes}
    policy = effective_policy(snapshot, workload)
    shown = [stay for stay in stays if _is_asked_for(nodes.get(stay.node), request)][:PLACED_MAX]
    if shown and found.nodes > len(found.verdicts):
        found = explain(snapshot, workload, now, nodes={stay.node for stay in shown})
    verdicts = {verdict.node: verdict.reasons for verdict in found.verdicts}
    for stay in shown:
        node = nodes.get(stay.node)
        site = snapshot.sites.get(node.site) if node is not None else None
        facts = site.facts if site is not None else SiteFacts(node.site if node else "")
        answer.placed.add(
            replica=stay.assignment.replica,
            node=stay.node,
            site=facts.site,
            country=facts.country,
            provider=facts.provider_name,
            because=[] if policy == NO_POLICY else demands_met(policy, facts, now),
            against=[
                reason_to_wire(reason)
                for reason in verdicts.get(stay.node, ())
                if not _is_about_room(reason)
            ],
        )
    answer.placed_left_out = len(stays) - len(shown)


def _is_asked_for(node: Node | None, request: operator_pb2.WhyRequest) -> bool:
    """A node without a record is in no narrower question."""
    if node is None:
        return not (request.nodes or request.sites)
    return (not request.nodes or node.name in request.nodes) and (
        not request.sites or node.site in request.sites
    )


_ROOM = ("Insufficient", "HostPort", "Spread", "Affinity", "AntiAffinity")


def _is_about_room(reason: Reason) -> bool:
    """What a replica holds itself, and where its siblings are, is no reason against it."""
    return reason.code.startswith(_ROOM)


def _wanted(snapshot: Snapshot, workload: Workload) -> int:
    """An estimate for `perNode` and `perSite`: every node, or site, that lives."""
    if workload.mode is Mode.REPLICAS:
        return workload.count
    live = [node for node in snapshot.nodes if node.liveness is Liveness.LIVE]
    if workload.mode is Mode.PER_NODE:
        return workload.count * len(live)
    return workload.count * len({node.site for node in live})


def reason_to_wire(reason: Reason) -> operator_pb2.PlacementReason:
    return operator_pb2.PlacementReason(code=reason.code, message=reason.text, knob=reason.knob)


def _suggestion(item: Suggestion) -> operator_pb2.Suggestion:
    value = item.value
    shown = "" if value is None else f"{value:.15g}" if isinstance(value, float) else str(value)
    return operator_pb2.Suggestion(
        knob=item.knob, value=shown, nodes=item.nodes, sites=item.sites, text=item.text
    )
