"""Simulate: what is left when something goes dark at once, and what would run where instead.

The world without what is lost is played to its rest and compared with the one that is. Nothing of
it is committed, and the leader's own caution about many losses at once is not part of it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from orchestrator.api.foresight import Outlook, Stay, outlook
from orchestrator.api.planning import told
from orchestrator.api.thinking import Thinking
from orchestrator.authz import Caller, require
from orchestrator.refusals import invalid
from orchestrator.scheduling.decisions import Explanation
from orchestrator.scheduling.snapshot import Node, Snapshot
from orchestrator.scheduling.what_if import LOSSES, Loss, lost_nodes, without
from polder.manifest.identifiers import law as checked_law
from polder.manifest.policy import SovereigntySpec
from polder.roles import Level, level_in
from polder.sovereignty import Reason, SiteFacts, evaluate
from polder.v1 import operator_pb2

LOSSES_MAX = 50
SITES_MAX = 100
WORKLOADS_MAX = 200
REPLACEMENTS_MAX = 100
TIME_MAX_S = 20.0

SURVIVES = operator_pb2.SURVIVAL_OUTCOME_SURVIVES
DEGRADES = operator_pb2.SURVIVAL_OUTCOME_DEGRADES
DIES = operator_pb2.SURVIVAL_OUTCOME_DIES


@dataclass(slots=True)
class _Count:
    """Of one workload: replicas before and after, and what became of those on lost nodes."""

    before: int = 0
    after: int = 0
    lost: int = 0
    replaced: int = 0

    @property
    def outcome(self) -> "operator_pb2.SurvivalOutcome.ValueType":
        if self.after >= self.before:
            return SURVIVES
        return DEGRADES if self.after else DIES


class Simulating:
    """Serves Simulate. `timer` is a monotonic clock."""

    def __init__(self, thinking: Thinking, timer: Callable[[], float]) -> None:
        self._thinking = thinking
        self._timer = timer

    async def simulate(
        self, caller: Caller, request: operator_pb2.SimulateRequest
    ) -> operator_pb2.SimulateResponse:
        """Raises Refused (InvalidArgument, Forbidden, Busy)."""
        if request.namespace:
            require(caller, Level.VIEWER, request.namespace, "read workloads")
        losses = _checked(request.losses)
        snapshot, now = self._thinking.snapshot(), self._thinking.now()
        for loss in losses:
            _check_known(snapshot, loss, now)

        def reads(namespace: str) -> bool:
            wanted = request.namespace in ("", namespace)
            return wanted and level_in(caller.roles, namespace) >= Level.VIEWER

        def answer() -> operator_pb2.SimulateResponse:
            deadline = self._timer() + TIME_MAX_S
            return simulated(snapshot, losses, now, reads, lambda: self._timer() >= deadline)

        response = await self._thinking.ask(answer)
        response.now_ms = int(now * 1000)
        return response


def _checked(given: Iterable[operator_pb2.SimulatedLoss]) -> list[Loss]:
    losses = [Loss(item.kind, item.name) for item in given]
    if not losses:
        raise invalid("name something to lose, such as provider/x or law/US-CLOUD-ACT")
    if len(losses) > LOSSES_MAX:
        raise invalid(f"more than {LOSSES_MAX} losses at once")
    for loss in losses:
        if loss.kind not in LOSSES or not loss.name:
            raise invalid(f"{loss.kind[:80]!r} cannot be lost", f"known: {', '.join(LOSSES)}")
        if loss.kind == "law":
            try:
                checked_law(loss.name)
            except ValueError as error:
                raise invalid(str(error)) from error
    return losses


def _check_known(snapshot: Snapshot, loss: Loss, now: float) -> None:
    """A mistyped name must not read as: everything survives."""
    if loss.kind == "law" or lost_nodes(snapshot, loss, now):
        return
    facts = [site.facts for site in snapshot.sites.values()]
    declared = {
        "site": set(snapshot.sites),
        "provider": {item.provider_name for item in facts},
        "country": {item.country for item in facts},
    }
    if loss.name not in declared.get(loss.kind, ()):
        hint = "see edgectl get concentration, nodes and sites"
        raise invalid(f"there is no {loss.kind} {loss.name[:80]!r} with a node", hint)


def simulated(
    snapshot: Snapshot,
    losses: Sequence[Loss],
    now: float,
    reads: Callable[[str], bool],
    enough: Callable[[], bool] = lambda: False,
) -> operator_pb2.SimulateResponse:
    """`reads`: whose workloads are told of."""
    dark = frozenset(name for loss in losses for name in lost_nodes(snapshot, loss, now))
    was = outlook(snapshot, now, enough=enough)
    will = outlook(without(snapshot, losses, now), now, enough=enough)
    counts = _counted(was, will, dark, reads)
    response = operator_pb2.SimulateResponse(
        nodes=len(snapshot.nodes),
        nodes_lost=len(dark),
        incomplete=not (was.rests and will.rests),
    )
    _add_sites(response, snapshot, losses, dark, now)
    _add_workloads(response, counts, will.explanations)
    _add_replacements(response, snapshot, was, will, dark, reads)
    return response


def _counted(
    was: Outlook, will: Outlook, dark: frozenset[str], reads: Callable[[str], bool]
) -> dict[tuple[str, str], _Count]:
    found: defaultdict[tuple[str, str], _Count] = defaultdict(_Count)
    for key, stay in was.stays.items():
        if reads(stay.assignment.namespace):
            count = found[_workload(stay)]
            count.before += 1
            if stay.node in dark:
                count.lost += 1
                count.replaced += key in will.stays and will.stays[key].node not in dark
    for stay in will.stays.values():
        if reads(stay.assignment.namespace) and stay.node not in dark:
            found[_workload(stay)].after += 1
    return dict(found)


def _workload(stay: Stay) -> tuple[str, str]:
    return (stay.assignment.namespace, stay.assignment.workload)


def _add_sites(
    response: operator_pb2.SimulateResponse,
    snapshot: Snapshot,
    losses: Sequence[Loss],
    dark: frozenset[str],
    now: float,
) -> None:
    nodes: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    some: dict[str, Node] = {}
    for node in snapshot.nodes:
        whole[node.site] += 1
        if node.name in dark:
            nodes[node.site] += 1
            some[node.site] = node
    laws = tuple(loss.name for loss in losses if loss.kind == "law")
    response.sites_lost = sum(nodes[name] == whole[name] for name in nodes)
    for name, count in sorted(nodes.items(), key=lambda item: (-item[1], item[0]))[:SITES_MAX]:
        site = snapshot.sites.get(name)
        facts = site.facts if site is not None else SiteFacts(name)
        reasons = evaluate(SovereigntySpec(forbid_laws=laws), facts, now) if laws else ()
        reason = _clearest(reasons)
        response.sites.add(
            site=name,
            country=some[name].country,
            provider=some[name].provider,
            nodes=count,
            reason=reason.message if reason is not None else "",
            for_want_of_facts=reason is not None and reason.code != "LawReaches",
        )


def _clearest(reasons: Sequence[Reason]) -> Reason | None:
    """What is known before what is only not known."""
    return min(reasons, key=lambda reason: reason.code != "LawReaches", default=None)


def _add_workloads(
    response: operator_pb2.SimulateResponse,
    counts: dict[tuple[str, str], _Count],
    explanations: Iterable[Explanation],
) -> None:
    why = {(e.namespace, e.workload): told(e) for e in explanations if e.replicas}
    outcomes = Counter(count.outcome for count in counts.values())
    response.workloads_surviving = outcomes[SURVIVES]
    response.workloads_degraded = outcomes[DEGRADES]
    response.workloads_dead = outcomes[DIES]
    response.workloads_interrupted = sum(
        count.outcome == SURVIVES and count.lost > 0 for count in counts.values()
    )
    response.replicas = sum(count.before for count in counts.values())
    response.replicas_lost = sum(count.lost for count in counts.values())
    response.replicas_replaced = sum(count.replaced for count in counts.values())
    response.replicas_unplaced = sum(max(0, c.before - c.after) for c in counts.values())
    hit = [item for item in counts.items() if item[1].lost or item[1].outcome != SURVIVES]
    hit.sort(key=lambda item: (-item[1].outcome, item[1].after - item[1].before, item[0]))
    for (namespace, name), count in hit[:WORKLOADS_MAX]:
        response.workloads.add(
            namespace=namespace,
            name=name,
            outcome=count.outcome,
            replicas=count.before,
            lost=count.lost,
            replaced=count.replaced,
            unplaced=max(0, count.before - count.after),
            message=why.get((namespace, name), "") if count.outcome != SURVIVES else "",
        )
    response.workloads_left_out = max(0, len(hit) - WORKLOADS_MAX)


def _add_replacements(
    response: operator_pb2.SimulateResponse,
    snapshot: Snapshot,
    was: Outlook,
    will: Outlook,
    dark: frozenset[str],
    reads: Callable[[str], bool],
) -> None:
    nodes = {node.name: node for node in snapshot.nodes}
    counts: Counter[str] = Counter()
    some: dict[str, Node] = {}
    for key, stay in was.stays.items():
        now_at = will.stays.get(key)
        if now_at is None or stay.node not in dark or now_at.node in dark:
            continue
        if reads(stay.assignment.namespace):
            node = nodes[now_at.node]
            counts[node.site] += 1
            some[node.site] = node
    for name, count in counts.most_common(REPLACEMENTS_MAX):
        response.replacements.add(
            site=name, country=some[name].country, provider=some[name].provider, replicas=count
        )
    response.replacements_left_out = max(0, len(counts) - REPLACEMENTS_MAX)
