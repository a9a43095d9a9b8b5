"""The nodes as columns: one numpy array per fact, one row per node, in order of name.

`plan()` builds one per plan, keeps its free capacity true while it decides, and throws it away.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from orchestrator.scheduling.snapshot import HostPort, Node, Resources, Template
from polder.manifest import Taint

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

AMOUNTS = ("cpu_millis", "memory_bytes", "disk_bytes")
TOPOLOGIES = ("node", "site", "region", "provider", "country")
UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Codes:
    """A column of text as small integers: `values[codes[i]]`; UNKNOWN where it is empty."""

    values: tuple[str, ...]
    codes: Ints

    @staticmethod
    def of(column: Sequence[str]) -> "Codes":
        values = sorted({text for text in column if text})
        number = {text: code for code, text in enumerate(values)}
        codes = [number.get(text, UNKNOWN) for text in column]
        return Codes(tuple(values), np.array(codes, dtype=np.int64))


class NodeTable:
    """Facts never change; `hold` and `release` change what is free."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = sorted(nodes, key=lambda node: node.name)
        self.index = {node.name: i for i, node in enumerate(self.nodes)}
        self.size = len(self.nodes)
        given = [node.allocatable or Resources() for node in self.nodes]
        self.allocatable = _columns(given)
        self.free = self.allocatable.copy()
        self.devices: dict[str, Ints] = {}
        for i, resources in enumerate(given):
            for name, count in resources.devices.items():
                self._device(name)[i] += count
        # How many hold the port. More than one only when the records themselves conflict.
        self.ports: dict[HostPort, Ints] = {}
        self._topologies: dict[str, Codes] = {}
        self._labels: dict[str, npt.NDArray[np.object_]] = {}
        self._facts: dict[str, npt.NDArray[np.object_]] = {}
        self._flags: dict[str, Mask] = {}
        self._taint_sets: tuple[list[tuple[Taint, ...]], Ints] | None = None

    def flags(self, attribute: str) -> Mask:
        """A yes-or-no fact of the nodes. Do not change the answer."""
        if attribute not in self._flags:
            self._flags[attribute] = self.fact(attribute).astype(np.bool_)
        return self._flags[attribute]

    def fact(self, attribute: str) -> npt.NDArray[np.object_]:
        """Any attribute of the nodes as a column. Do not change the answer."""
        if attribute not in self._facts:
            column = np.empty(self.size, dtype=np.object_)
            column[:] = [getattr(node, attribute) for node in self.nodes]
            self._facts[attribute] = column
        return self._facts[attribute]

    def taint_sets(self) -> tuple[list[tuple[Taint, ...]], Ints]:
        """The different sets of taints, and which of them each node has. Fleets have few."""
        if self._taint_sets is None:
            number: dict[tuple[Taint, ...], int] = {}
            codes = [number.setdefault(node.taints, len(number)) for node in self.nodes]
            self._taint_sets = (list(number), np.array(codes, dtype=np.int64))
        return self._taint_sets

    def topology(self, by: str) -> Codes:
        """`by` is one of TOPOLOGIES."""
        if by not in self._topologies:
            attribute = "name" if by == "node" else by
            column = [getattr(node, attribute) for node in self.nodes]
            self._topologies[by] = Codes.of(column)
        return self._topologies[by]

    def label(self, key: str) -> npt.NDArray[np.object_]:
        """The label's values; None where a node lacks it."""
        if key not in self._labels:
            column = np.empty(self.size, dtype=np.object_)
            column[:] = [node.labels.get(key) for node in self.nodes]
            self._labels[key] = column
        return self._labels[key]

    def device(self, name: str) -> Ints:
        """Free devices of one resource name."""
        found = self.devices.get(name)
        return found if found is not None else np.zeros(self.size, dtype=np.int64)

    def taken(self, port: HostPort) -> Ints:
        found = self.ports.get(port)
        return found if found is not None else np.zeros(self.size, dtype=np.int64)

    def hold(self, row: int, template: Template, times: int = 1) -> None:
        """Take the template's resources and ports; `times` -1 gives them back."""
        request = template.request
        for column, amount in enumerate(AMOUNTS):
            self.free[row, column] -= times * getattr(request, amount)
        for name, count in request.devices.items():
            self._device(name)[row] -= times * count
        for port in template.host_ports:
            if port not in self.ports:
                self.ports[port] = np.zeros(self.size, dtype=np.int64)
            self.ports[port][row] += times

    def release(self, row: int, template: Template) -> None:
        self.hold(row, template, times=-1)

    def has_room(self, row: int, template: Template) -> bool:
        request = template.request
        return (
            all(
                getattr(request, amount) == 0 or self.free[row, column] >= getattr(request, amount)
                for column, amount in enumerate(AMOUNTS)
            )
            and all(self.device(name)[row] >= count for name, count in request.devices.items())
            and not any(self.taken(port)[row] for port in template.host_ports)
        )

    def ties(self, seed: int, salt: str) -> npt.NDArray[np.uint64]:
        """A number per node that orders equals; it depends on names, never on their order."""
        digest = blake2b(f"{seed}/{salt}".encode(), digest_size=8).digest()
        mixed = self._name_hashes ^ np.uint64(int.from_bytes(digest, "big"))
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing; wraps by intent
        return mixed ^ (mixed >> np.uint64(29))

    @property
    def _name_hashes(self) -> npt.NDArray[np.uint64]:
        if not hasattr(self, "_hashes"):
            self._hashes = np.array(
                [
                    int.from_bytes(blake2b(node.name.encode(), digest_size=8).digest(), "big")
                    for node in self.nodes
                ],
                dtype=np.uint64,
            )
        return self._hashes

    def _device(self, name: str) -> Ints:
        if name not in self.devices:
            self.devices[name] = np.zeros(self.size, dtype=np.int64)
        return self.devices[name]


def _columns(given: Sequence[Resources]) -> Ints:
    rows = [[getattr(item, amount) for amount in AMOUNTS] for item in given]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(AMOUNTS))


def asks_no_more(new: Template, old: Template) -> bool:
    """A template that asks for no more fits where the old one is, even on a node that shrank."""
    a, b = new.request, old.request
    return (
        a.cpu_millis <= b.cpu_millis
        and a.memory_bytes <= b.memory_bytes
        and a.disk_bytes <= b.disk_bytes
        and all(count <= b.devices.get(name, 0) for name, count in a.devices.items())
        and set(new.host_ports) <= set(old.host_ports)
    )
