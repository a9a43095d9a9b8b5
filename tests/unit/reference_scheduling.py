"""The rules of placement once more: slow, obvious, one node at a time, none of the engine's code.

`test_scheduling_properties.py` holds what `plan()` places against it. It reads the snapshot and the
assignments that a plan leads to, and knows nothing of tables, masks or filters.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.domain.liveness import Liveness
from orchestrator.records import AssignmentRecord
from orchestrator.scheduling.decisions import Plan
from orchestrator.scheduling.snapshot import Node, Resources, Snapshot, Template, Workload
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty import SiteFacts, evaluate, tighten

NOTHING = Template()


@dataclass(frozen=True)
class Stay:
    """A replica on a node, after the plan."""

    node: str
    record: AssignmentRecord
    is_new: bool


def stays_after(before: Snapshot, decided: Plan) -> list[Stay]:
    stopped = {(stop.node, stop.assignment.replica_uid) for stop in decided.stop}
    revised = {r.assignment.replica_uid: r.revision for r in decided.revise}
    found = []
    for node, placement in before.placements.items():
        for record in placement.assignments:
            if (node, record.replica_uid) not in stopped:
                number = revised.get(record.replica_uid, record.revision)
                found.append(Stay(node, _with_revision(record, number), False))
    return found + [Stay(place.node, place.assignment, True) for place in decided.place]


def _with_revision(record: AssignmentRecord, revision: int) -> AssignmentRecord:
    fields = {name: getattr(record, name) for name in AssignmentRecord.__slots__}
    return AssignmentRecord(**{**fields, "revision": revision})


def faults(before: Snapshot, decided: Plan, now: float) -> Iterator[str]:
    """Everything that the plan does and must not."""
    nodes = {node.name: node for node in before.nodes}
    workloads = {workload.uid: workload for workload in before.workloads}
    stays = stays_after(before, decided)
    for stay in stays:
        if stay.is_new:
            workload = workloads[stay.record.workload_uid]
            for fault in refusals(before, workload, nodes[stay.node], now):
                yield f"{stay.record.replica} on {stay.node}: {fault}"
            home = before.volumes.get((stay.record.namespace, stay.record.replica), stay.node)
            tied = _template(before, stay.record).local_volumes and home in nodes
            if tied and home != stay.node and not nodes[home].deleting:
                yield f"{stay.record.replica} is on {stay.node}, and its data on {home}"
            preempted = [
                Stay(stop.node, stop.assignment, False)
                for stop in decided.stop
                if stop.cause.value == "Preempted"
            ]
            yield from _neighbour_faults(stay, stays, preempted, workloads, nodes)
    yield from _capacity_faults(before, decided, stays, nodes)
    yield from _spread_faults(before, stays, workloads, nodes, now)
    yield from _quota_faults(before, stays)


def refusals(before: Snapshot, workload: Workload, node: Node, now: float) -> Iterator[str]:
    """Why a node is not for the workload, capacity and neighbours aside."""
    where = workload.placement
    if node.liveness is not Liveness.LIVE or node.draining or node.deleting or node.unschedulable:
        yield "its state"
    if node.not_ready:
        yield "its runtime"
    if node.cordoned:
        yield "its site or provider"
    template = before.templates.get((workload.uid, workload.revision), NOTHING)
    for path in template.host_paths:
        if not any(path == one or path.startswith(one + "/") for one in node.host_paths):
            yield f"the path {path}"
    space = before.namespaces.get(workload.namespace)
    if set(template.demands) - (space.allow if space is not None else set()):
        yield "what its namespace allows"
    if node.allocatable is not None and not believable(node.allocatable):
        yield "its numbers"
    if where.arch and node.arch not in where.arch:
        yield "arch"
    for key, value in where.node_selector.items():
        if node.labels.get(key) != value:
            yield f"label {key}"
    for item in where.match_expressions:
        if not compares(item.operator, item.values, node.labels.get(item.key)):
            yield f"expression {item.key}"
    for taint in node.taints:
        if not any(
            t.key in ("", taint.key)
            and t.effect in ("", taint.effect)
            and (t.value is None or t.value == taint.value)
            for t in where.tolerations
        ):
            yield f"taint {taint.key}"
    if where.near is not None and not is_near(before, node.site, where.near):
        yield "near"
    site = before.sites.get(node.site)
    facts = site.facts if site is not None else SiteFacts(node.site)
    for reason in evaluate(policy_of(before, workload), facts, now):
        yield f"sovereignty {reason.knob}"


def policy_of(before: Snapshot, workload: Workload) -> SovereigntySpec:
    namespace = before.namespaces.get(workload.namespace)
    floor = namespace.floor if namespace is not None else SovereigntySpec()
    return tighten(floor, workload.sovereignty)


def believable(given: Resources) -> bool:
    amounts = (given.cpu_millis, given.memory_bytes, given.disk_bytes, *given.devices.values())
    return all(isinstance(x, int) and not isinstance(x, bool) and x >= 0 for x in amounts)


def compares(operator: str, values: tuple[str, ...], found: str | None) -> bool:
    if operator in ("In", "NotIn"):
        return (found in values) == (operator == "In")
    if operator in ("Exists", "DoesNotExist"):
        return (found is not None) == (operator == "Exists")
    try:
        number = int(found or "")
    except ValueError:
        return False
    return number > int(values[0]) if operator == "Gt" else number < int(values[0])


def is_near(before: Snapshot, site: str, near: object) -> bool:
    target, limit = near.site, near.rtt_ms_max  # type: ignore[attr-defined]
    if site == target:  # a site is near to itself, wherever it is
        return bool(limit >= 0.5)
    here, there = before.sites.get(site), before.sites.get(target)
    if here is None or there is None:
        return False
    if None in (here.latitude, here.longitude, there.latitude, there.longitude):
        return False
    a, b = math.radians(here.latitude), math.radians(there.latitude)  # type: ignore[arg-type]
    d = math.radians(here.longitude - there.longitude)  # type: ignore[operator]
    cosine = math.sin(a) * math.sin(b) + math.cos(a) * math.cos(b) * math.cos(d)
    kilometres = 6371.0088 * math.acos(max(-1.0, min(1.0, cosine)))
    return bool(2 * (kilometres * 1.5 / 200) + 1.0 <= limit + 1e-6)


def _place_of(node: Node, by: str) -> str:
    return str(getattr(node, "name" if by == "node" else by))


def _neighbour_faults(
    stay: Stay,
    stays: list[Stay],
    preempted: list[Stay],
    workloads: dict[str, Workload],
    nodes: dict[str, Node],
) -> Iterator[str]:
    me, here = workloads[stay.record.workload_uid], nodes[stay.node]
    others = [
        (workloads[o.record.workload_uid], nodes[o.node], o)
        for o in stays
        if o is not stay and o.record.workload_uid in workloads and o.node in nodes
        and o.record.replica_uid != stay.record.replaces
    ]  # fmt: skip
    others = [o for o in others if o[0].namespace == me.namespace]
    for rule in me.placement.anti_affinity:
        place = _place_of(here, rule.by)
        for workload, node, other in others:
            if (
                rule.required
                and _means(rule.workloads, workload)
                and place == _place_of(node, rule.by)
            ):
                yield f"{stay.record.replica} is beside {other.record.replica}"
    for workload, node, other in others:
        for rule in workload.placement.anti_affinity:
            same = _place_of(here, rule.by) == _place_of(node, rule.by)
            if rule.required and _means(rule.workloads, me) and same and workload.uid != me.uid:
                yield f"{other.record.replica} keeps {stay.record.replica} away"
    for rule in me.placement.affinity:
        if not rule.required:
            continue
        # Judged when it was placed: who came later in the plan does not count, and who had to go
        # later does.
        earlier = stays[: stays.index(stay)]
        meant = [
            node
            for workload, node, other in others
            if _means(rule.workloads, workload) and other in earlier
        ]
        meant += [
            nodes[gone.node]
            for gone in preempted
            if gone.record.namespace == me.namespace
            and _means(rule.workloads, workloads[gone.record.workload_uid])
        ]
        place = _place_of(here, rule.by)
        first = not meant and _means(rule.workloads, me)
        if not first and place not in {_place_of(node, rule.by) for node in meant}:
            yield f"{stay.record.replica} is not beside {rule.workloads}"


def _means(asked: dict[str, str], workload: Workload) -> bool:
    return all(workload.labels.get(key) == value for key, value in asked.items())


def _capacity_faults(
    before: Snapshot, decided: Plan, stays: list[Stay], nodes: dict[str, Node]
) -> Iterator[str]:
    """On nodes that got something new. Whoever asks for nothing of a kind may come all the same."""
    for name in {place.node for place in decided.place}:
        mine = [s for s in stays if s.node == name]
        held = [_template(before, s.record) for s in mine]
        placement = before.placements.get(name)
        for stop in placement.stops if placement else ():
            if (name, stop.replica_uid) not in before.gone:
                held.append(before.templates.get((stop.workload_uid, stop.revision), NOTHING))
        held += [_template(before, s.assignment) for s in decided.stop if s.node == name]
        new = [_template(before, s.record) for s in mine if s.is_new]
        given = nodes[name].allocatable or Resources()
        for amount in ("cpu_millis", "memory_bytes", "disk_bytes"):
            total = sum(getattr(t.request, amount) for t in held)
            if any(getattr(t.request, amount) for t in new) and total > getattr(given, amount):
                yield f"{name} promises {total} of {amount}"
        for device in {d for t in new for d in t.request.devices}:
            total = sum(t.request.devices.get(device, 0) for t in held)
            if total > given.devices.get(device, 0):
                yield f"{name} promises {total} {device}"
        ports = Counter(port for t in held for port in t.host_ports)
        if any(ports[port] > 1 for t in new for port in t.host_ports):
            yield f"{name} promises a port twice"


def _template(before: Snapshot, record: AssignmentRecord) -> Template:
    return before.templates.get((record.workload_uid, record.revision), NOTHING)


def _spread_faults(
    before: Snapshot,
    stays: list[Stay],
    workloads: dict[str, Workload],
    nodes: dict[str, Node],
    now: float,
) -> Iterator[str]:
    """A domain that got a replica is not above the emptiest usable one by more than the skew."""
    for uid, workload in workloads.items():
        spread = workload.placement.spread
        mine = [s for s in stays if s.record.workload_uid == uid and s.node in nodes]
        replaced = {s.record.replaces for s in mine}
        mine = [s for s in mine if s.record.replica_uid not in replaced]
        fresh = {_place_of(nodes[s.node], spread.by) for s in mine if s.is_new} if spread else set()
        if spread is None or not fresh:
            continue
        counts = Counter(_place_of(nodes[s.node], spread.by) for s in mine)
        usable = {
            _place_of(node, spread.by)
            for node in nodes.values()
            if not list(refusals(before, workload, node, now))
        } - {""}
        least = min((counts[domain] for domain in usable), default=0)
        for domain in fresh:
            if counts[domain] - least > spread.max_skew:
                yield f"{workload.name}: {domain} has {counts[domain]}, another {least}"


def _quota_faults(before: Snapshot, stays: list[Stay]) -> Iterator[str]:
    for name, namespace in before.namespaces.items():
        quota = namespace.quota
        if quota is None or not any(s.is_new and s.record.namespace == name for s in stays):
            continue
        unique = {
            (s.record.workload_uid, s.record.replica): s
            for s in stays
            if s.record.namespace == name
        }
        if quota.replicas is not None and len(unique) > quota.replicas:
            yield f"namespace {name} has {len(unique)} replicas"
        for amount in ("cpu_millis", "memory_bytes", "disk_bytes"):
            limit = getattr(quota, amount)
            new = [
                s
                for s in unique.values()
                if s.is_new and getattr(_template(before, s.record).request, amount)
            ]
            total = sum(
                getattr(_template(before, s.record).request, amount) for s in unique.values()
            )
            if limit is not None and new and total > limit:
                yield f"namespace {name} uses {total} of {amount}"
