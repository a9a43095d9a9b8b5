"""Why a node is not for a replica: what every filter is, and how filters are asked together.

The mask that places and the words that explain come from one rule, so that the two never disagree.
Three groups, by how long the reason lasts: RULES until somebody changes the manifest or the node;
CONDITIONS until the node's state changes; ROOM until something else goes. The rules themselves are
in `rules.py`, the other two here.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from orchestrator.domain.liveness import Liveness
from orchestrator.scheduling.reasons import Need, Reason, ReasonCount
from orchestrator.scheduling.rules import PLAIN_RULES, RULES, STAYING_RULES, TEMPLATE_RULES
from orchestrator.scheduling.snapshot import Snapshot, Workload
from orchestrator.scheduling.table import AMOUNTS, Mask, NodeTable

__all__ = [
    "CONDITIONS",
    "EVERY",
    "PLAIN_RULES",
    "ROOM",
    "RULES",
    "STAYING_RULES",
    "TEMPLATE_RULES",
    "Filter",
    "Need",
    "Reason",
    "ReasonCount",
    "blockers",
    "count",
    "passing",
    "reasons",
]


class Filter(Protocol):
    """`failing` is a mask over the table's rows; `why` is asked only for a row that fails."""

    @property
    def code(self) -> str: ...

    def failing(self, table: NodeTable, need: Need) -> Mask: ...

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]: ...


# --- conditions -------------------------------------------------------------------------------


class Alive:
    """One liveness that is not good enough for a new replica."""

    _TEXTS: Mapping[Liveness, str] = {
        Liveness.SILENT: "nothing is heard of the node",
        Liveness.LOST: "nothing has been heard of the node for long",
        Liveness.NEVER_SEEN: "the node joined, but its agent never connected",
    }

    def __init__(self, state: Liveness) -> None:
        self._state = state
        self.code = f"Node{state.value}"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        return table.equal("liveness", self._state)

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        suspect = table.nodes[row].suspect
        text = self._TEXTS[self._state]
        return (Reason(self.code, f"{text}; {suspect}" if suspect else text),)


class Flag:
    """A switch on the node that an operator set, or a fault of its numbers."""

    def __init__(self, code: str, attribute: str, text: str) -> None:
        self.code = code
        self._attribute = attribute
        self._text = text

    def failing(self, table: NodeTable, need: Need) -> Mask:
        return table.flags(self._attribute)

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        return (Reason(self.code, self._text),)


class Cordon:
    """What keeps new replicas away from all of a site or provider."""

    code = "SiteUnschedulable"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        return table.flags("cordoned")

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        node = table.nodes[row]
        knob = f"site/{node.site}.unschedulable"
        if node.cordoned.startswith("provider "):
            knob = f"provider/{node.provider}.unschedulable"
        elif node.cordoned.startswith("maintenance "):
            knob = f"site/{node.site}.maintenance"
        elif node.cordoned.startswith("freeze "):
            knob = f"the freeze of site/{node.site}"
        return (Reason(self.code, node.cordoned, knob),)


# --- room -------------------------------------------------------------------------------------


class Amount:
    """One of cpu, memory and disk. Who asks for nothing fits even where too much is promised."""

    def __init__(self, code: str, amount: str, unit: str) -> None:
        self.code = code
        self._amount = amount
        self._column = AMOUNTS.index(amount)
        self._unit = unit

    def failing(self, table: NodeTable, need: Need) -> Mask:
        asked: int = getattr(need.template.request, self._amount)
        if not asked:
            return np.zeros(table.size, dtype=np.bool_)
        failing: Mask = table.free[self._column] < asked
        return failing

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        asked = getattr(need.template.request, self._amount)
        free = max(0, int(table.free[self._column, row]))
        text = f"asks for {_amount(asked, self._unit)}, {_amount(free, self._unit)} is free"
        return (Reason(self.code, text, f"resources.{self._unit}", free),)


class Devices:
    code = "InsufficientDevices"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        failing = np.zeros(table.size, dtype=np.bool_)
        for name, count in need.template.request.devices.items():
            failing |= table.device(name) < count
        return failing

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        found = []
        for name, count in sorted(need.template.request.devices.items()):
            free = max(0, int(table.device(name)[row]))
            if free < count:
                text = f"asks for {count} {name}, {free} free"
                found.append(Reason(self.code, text, f"resources.devices.{name}", free or None))
        return tuple(found)


class HostPorts:
    code = "HostPortTaken"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        failing = np.zeros(table.size, dtype=np.bool_)
        for port in need.template.host_ports:
            failing |= table.taken(port) > 0
        return failing

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        taken = [p for p in need.template.host_ports if table.taken(p)[row] > 0]
        return tuple(
            Reason(
                self.code,
                f"the host port {number}/{protocol} belongs to another replica",
                f"hostPort.{number}/{protocol}",
            )
            for number, protocol in taken
        )


CONDITIONS: tuple[Filter, ...] = (
    Alive(Liveness.LOST),
    Alive(Liveness.SILENT),
    Alive(Liveness.NEVER_SEEN),
    Flag("NodeDeleting", "deleting", "the node is being deleted"),
    Flag("NodeDraining", "draining", "the node is being drained"),
    Flag("NodeUnschedulable", "unschedulable", "the node is cordoned"),
    Cordon(),
    Flag("NodeNotReady", "not_ready", "the node says that its container runtime is down"),
    Flag("CapacityInvalid", "invalid", "the node tells of capacity that cannot be true"),
)
ROOM: tuple[Filter, ...] = (
    Amount("InsufficientCpu", "cpu_millis", "cpu"),
    Amount("InsufficientMemory", "memory_bytes", "memory"),
    Amount("InsufficientDisk", "disk_bytes", "disk"),
    Devices(),
    HostPorts(),
)
EVERY: tuple[Filter, ...] = (*RULES, *CONDITIONS, *ROOM)


def passing(filters: tuple[Filter, ...], table: NodeTable, need: Need) -> Mask:
    """The rows that no filter fails."""
    failing = np.zeros(table.size, dtype=np.bool_)
    for item in filters:
        failing |= item.failing(table, need)
    return ~failing


def reasons(filters: tuple[Filter, ...], table: NodeTable, need: Need, row: int) -> list[Reason]:
    """Every reason for which a row fails, in order."""
    return [
        reason
        for item in filters
        if item.failing(table, need)[row]
        for reason in item.why(table, need, row)
    ]


def count(
    filters: tuple[Filter, ...], table: NodeTable, need: Need, among: Mask
) -> list[ReasonCount]:
    """Every failing filter with the number of nodes, most frequent first. A node counts in each."""
    found = []
    for item in filters:
        rows = np.flatnonzero(item.failing(table, need) & among)
        if rows.size:
            row = int(rows[0])
            text = f"{table.nodes[row].name}: {item.why(table, need, row)[0].text}"
            found.append(ReasonCount(item.code, int(rows.size), text))
    return sorted(found, key=lambda reason: (-reason.nodes, reason.code, reason.example))


def blockers(snapshot: Snapshot, workload: Workload) -> tuple[Reason, ...]:
    """What keeps every new replica away, whatever the node."""
    found = []
    namespace = snapshot.namespaces.get(workload.namespace)
    if namespace is not None and not namespace.readable:
        text = f"the record of namespace {workload.namespace} cannot be read, nor can its floor"
        found.append(Reason("NamespaceUnreadable", text))
    for revision in dict.fromkeys((workload.revision, workload.stable)):
        if revision and (workload.uid, revision) not in snapshot.templates:
            text = f"revision {revision} of its template is not in the store"
            found.append(Reason("MissingRevision", text))
    return tuple(found)


def _amount(value: int, unit: str) -> str:
    if unit == "cpu":
        return f"{value}m cpu"
    return f"{value / (1 << 20):.0f}Mi of {unit}"
