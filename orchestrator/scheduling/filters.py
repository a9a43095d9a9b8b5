"""Why a node is not for a replica. Each filter says which rows fail, and for one row, in words.

The mask that places and the words that explain come from one rule, so that the two never disagree.
Three groups, by how long the reason lasts: RULES until somebody changes the manifest or the node;
CONDITIONS until the node's state changes; ROOM until something else goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from orchestrator.domain.liveness import Liveness
from orchestrator.scheduling.snapshot import Template
from orchestrator.scheduling.table import AMOUNTS, Mask, NodeTable
from polder.manifest import Placement, Taint, Toleration


@dataclass(frozen=True, slots=True)
class Reason:
    """`code` is CamelCase and counted; `text` is for people."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """How many nodes fail for a reason, and the text of one of them."""

    code: str
    nodes: int
    example: str


@dataclass(frozen=True, slots=True)
class Need:
    """What a replica asks: where it may run, and what it takes."""

    placement: Placement
    template: Template


class Filter(Protocol):
    """`failing` is a mask over the table's rows; `text` is asked only for a row that fails."""

    @property
    def code(self) -> str: ...

    def failing(self, table: NodeTable, need: Need) -> Mask: ...

    def text(self, table: NodeTable, need: Need, row: int) -> str: ...


# --- rules ------------------------------------------------------------------------------------


class Architecture:
    code = "WrongArchitecture"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        wanted = need.placement.arch
        if not wanted:
            return np.zeros(table.size, dtype=np.bool_)
        passing = np.zeros(table.size, dtype=np.bool_)
        for arch in wanted:
            passing |= table.fact("arch") == arch
        return ~passing

    def text(self, table: NodeTable, need: Need, row: int) -> str:
        found = table.nodes[row].arch or "unknown"
        return f"the node is {found}; the workload runs on {' or '.join(need.placement.arch)}"


class Selector:
    code = "SelectorMismatch"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        failing = np.zeros(table.size, dtype=np.bool_)
        for key, value in need.placement.node_selector.items():
            failing |= table.label(key) != value
        return failing

    def text(self, table: NodeTable, need: Need, row: int) -> str:
        labels = table.nodes[row].labels
        for key, value in sorted(need.placement.node_selector.items()):
            if labels.get(key) != value:
                found = f"is {labels[key]}" if key in labels else "is missing"
                return f"the label {key} {found}; the workload asks for {value}"
        raise AssertionError("asked for the reason of a row that passes")


class Taints:
    """`effects`: which of them count. For replicas that are there already only NoExecute does."""

    code = "Untolerated"

    def __init__(self, *effects: str) -> None:
        self._effects = effects

    def failing(self, table: NodeTable, need: Need) -> Mask:
        sets, codes = table.taint_sets()
        verdicts = [self._untolerated(taints, need) is not None for taints in sets]
        failing: Mask = np.array(verdicts, dtype=np.bool_)[codes]
        return failing

    def text(self, table: NodeTable, need: Need, row: int) -> str:
        taint = self._untolerated(table.nodes[row].taints, need)
        assert taint is not None
        value = f"={taint.value}" if taint.value else ""
        return f"the taint {taint.key}{value}:{taint.effect} is not tolerated"

    def _untolerated(self, taints: tuple[Taint, ...], need: Need) -> Taint | None:
        for taint in taints:
            if taint.effect in self._effects and not any(
                tolerates(toleration, taint) for toleration in need.placement.tolerations
            ):
                return taint
        return None


def tolerates(toleration: Toleration, taint: Taint) -> bool:
    """An empty key matches every taint, an empty effect every effect, no value every value."""
    return (
        toleration.key in ("", taint.key)
        and toleration.effect in ("", taint.effect)
        and toleration.value in (None, taint.value)
    )


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
        failing: Mask = table.fact("liveness") == self._state
        return failing

    def text(self, table: NodeTable, need: Need, row: int) -> str:
        return self._TEXTS[self._state]


class Flag:
    """A switch on the node that an operator set."""

    def __init__(self, code: str, attribute: str, text: str) -> None:
        self.code = code
        self._attribute = attribute
        self._text = text

    def failing(self, table: NodeTable, need: Need) -> Mask:
        return table.flags(self._attribute)

    def text(self, table: NodeTable, need: Need, row: int) -> str:
        return self._text


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
        return table.free[:, self._column] < asked

    def text(self, table: NodeTable, need: Need, row: int) -> str:
        asked = getattr(need.template.request, self._amount)
        free = max(0, int(table.free[row, self._column]))
        return f"asks for {_amount(asked, self._unit)}, {_amount(free, self._unit)} is free"


class Devices:
    code = "InsufficientDevices"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        failing = np.zeros(table.size, dtype=np.bool_)
        for name, count in need.template.request.devices.items():
            failing |= table.device(name) < count
        return failing

    def text(self, table: NodeTable, need: Need, row: int) -> str:
        for name, count in sorted(need.template.request.devices.items()):
            free = max(0, int(table.device(name)[row]))
            if free < count:
                return f"asks for {count} {name}, {free} free"
        raise AssertionError("asked for the reason of a row that passes")


class HostPorts:
    code = "HostPortTaken"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        failing = np.zeros(table.size, dtype=np.bool_)
        for port in need.template.host_ports:
            failing |= table.taken(port) > 0
        return failing

    def text(self, table: NodeTable, need: Need, row: int) -> str:
        taken = [p for p in need.template.host_ports if table.taken(p)[row] > 0]
        ports = ", ".join(f"{number}/{protocol}" for number, protocol in taken)
        return f"the host port {ports} belongs to another replica"


RULES: tuple[Filter, ...] = (Architecture(), Selector(), Taints("NoSchedule", "NoExecute"))
STAYING_RULES: tuple[Filter, ...] = (Architecture(), Selector(), Taints("NoExecute"))
"""What moves a replica that is there already."""

CONDITIONS: tuple[Filter, ...] = (
    Alive(Liveness.LOST),
    Alive(Liveness.SILENT),
    Alive(Liveness.NEVER_SEEN),
    Flag("NodeDeleting", "deleting", "the node is being deleted"),
    Flag("NodeDraining", "draining", "the node is being drained"),
    Flag("NodeUnschedulable", "unschedulable", "the node is cordoned"),
)
ROOM: tuple[Filter, ...] = (
    Amount("InsufficientCpu", "cpu_millis", "cpu"),
    Amount("InsufficientMemory", "memory_bytes", "memory"),
    Amount("InsufficientDisk", "disk_bytes", "disk"),
    Devices(),
    HostPorts(),
)


def passing(filters: tuple[Filter, ...], table: NodeTable, need: Need) -> Mask:
    """The rows that no filter fails."""
    failing = np.zeros(table.size, dtype=np.bool_)
    for item in filters:
        failing |= item.failing(table, need)
    return ~failing


def reasons(filters: tuple[Filter, ...], table: NodeTable, need: Need, row: int) -> list[Reason]:
    """Every reason for which a row fails, in order."""
    return [
        Reason(item.code, item.text(table, need, row))
        for item in filters
        if item.failing(table, need)[row]
    ]


def count(
    filters: tuple[Filter, ...], table: NodeTable, need: Need, among: Mask
) -> list[ReasonCount]:
    """Every failing reason with the number of nodes, most frequent first. A node counts in each."""
    found = []
    for item in filters:
        rows = np.flatnonzero(item.failing(table, need) & among)
        if rows.size:
            text = f"{table.nodes[rows[0]].name}: {item.text(table, need, int(rows[0]))}"
            found.append(ReasonCount(item.code, int(rows.size), text))
    return sorted(found, key=lambda reason: (-reason.nodes, reason.code))


def _amount(value: int, unit: str) -> str:
    if unit == "cpu":
        return f"{value}m cpu"
    return f"{value / (1 << 20):.0f}Mi of {unit}"
