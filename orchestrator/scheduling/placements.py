"""Placements and names of a plan as arrays, which look like sequences of values to their readers.

`plan()` may place a million replicas; their names, uids and records are made only when asked for.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import numpy.typing as npt

from orchestrator.records import AssignmentRecord, GroupRecord
from orchestrator.scheduling.desired import replica_uid
from orchestrator.scheduling.snapshot import Node, Workload

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Place:
    """A replica gets a node. `moved_from`: the node that it leaves, with the Stop of this plan or,
    if the assignment says that it replaces a stay there, with one of a later plan."""

    node: str
    assignment: AssignmentRecord
    moved_from: str = ""


Heirs = tuple[tuple[str, ...], GroupRecord | None]
"""Of one replica: its standbys, and who may hold it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Numbered replicas of one workload: `indexes[i]` on row `rows[i]`, with `revisions[i]` of its
    template, or `revision` for all (0: the workload's), and `heirs[i]`."""

    workload: Workload
    indexes: Sequence[int] | Ints
    rows: Sequence[int] | Ints
    heirs: Sequence[Heirs] = ()
    revision: int = 0
    revisions: Ints | None = None


class Places(Sequence[Place]):
    """What a plan places, in order of decision. Equal to another of the same places."""

    def __init__(self, nodes: Sequence[Node] = (), epoch: int = 0, now_ms: int = 0) -> None:
        self._nodes = nodes
        self._epoch = epoch
        self._now_ms = now_ms
        self._parts: list[Place | Batch] = []
        self._ends: list[int] = []
        self._total = 0

    def append(self, place: Place) -> None:
        """One that is made already."""
        self._parts.append(place)
        self._total += 1
        self._ends.append(self._total)

    def add(self, batch: Batch) -> None:
        """Many of one workload."""
        self._parts.append(batch)
        self._total += len(batch.rows)
        self._ends.append(self._total)

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[Place]:
        for part in self._parts:
            if isinstance(part, Place):
                yield part
            else:
                for offset in range(len(part.rows)):
                    yield self._made(part, offset)

    @overload
    def __getitem__(self, key: int) -> Place: ...
    @overload
    def __getitem__(self, key: slice) -> list[Place]: ...
    def __getitem__(self, key: int | slice) -> Place | list[Place]:
        if isinstance(key, slice):
            return [self[i] for i in range(*key.indices(self._total))]
        position = key + self._total if key < 0 else key
        if not 0 <= position < self._total:
            raise IndexError(key)
        number = bisect_right(self._ends, position)
        part = self._parts[number]
        if isinstance(part, Place):
            return part
        return self._made(part, position - (self._ends[number] - len(part.rows)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash((self._epoch, self._total))

    def __repr__(self) -> str:
        shown = ", ".join(repr(place) for place in self[:3])
        return f"Places({self._total}: {shown}{', ...' if self._total > 3 else ''})"

    def per_workload(self) -> Iterator[tuple[str, Sequence[int] | Ints]]:
        """(workload uid, rows) part by part, without making a value per replica."""
        for part in self._parts:
            if isinstance(part, Batch):
                yield part.workload.uid, part.rows

    def _made(self, batch: Batch, offset: int) -> Place:
        workload, epoch = batch.workload, self._epoch
        name = f"{workload.name}-{batch.indexes[offset]}"
        revision = batch.revision or workload.revision
        if batch.revisions is not None:
            revision = int(batch.revisions[offset])
        standbys, group = batch.heirs[offset] if batch.heirs else ((), None)
        record = AssignmentRecord(
            namespace=workload.namespace,
            workload=workload.name,
            workload_uid=workload.uid,
            replica=name,
            replica_uid=replica_uid(workload.uid, name, epoch),
            epoch=epoch,
            revision=revision,
            standbys=standbys,
            group=group,
            placed_at_ms=self._now_ms,
            once=workload.once,
        )
        return Place(self._nodes[batch.rows[offset]].name, record)


@dataclass(frozen=True, slots=True, eq=True)
class Names(Sequence[str]):
    """`<workload>-<index>` for many indexes, in bounded memory. Equal when told the same way."""

    workload: str
    indexes: range | tuple[int, ...] | bytes = field(default=range(0))
    """As bytes: 64-bit integers in native order."""

    @staticmethod
    def of(workload: str, indexes: Sequence[int] | Ints) -> "Names":
        if isinstance(indexes, range):
            return Names(workload, indexes)
        return Names(workload, np.asarray(indexes, dtype=np.int64).tobytes())

    def _values(self) -> "range | tuple[int, ...] | Ints":
        if isinstance(self.indexes, bytes):
            return np.frombuffer(self.indexes, dtype=np.int64)
        return self.indexes

    def __len__(self) -> int:
        return len(self._values())

    def __iter__(self) -> Iterator[str]:
        return (f"{self.workload}-{index}" for index in self._values())

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: int | slice) -> str | list[str]:
        values = self._values()
        if isinstance(key, slice):
            return [f"{self.workload}-{index}" for index in values[key]]
        return f"{self.workload}-{values[key]}"


FEW = 100


def names_of(workload: str, indexes: Sequence[int] | Ints) -> Sequence[str]:
    """A plain tuple for few, Names for many."""
    if len(indexes) <= FEW:
        return tuple(f"{workload}-{index}" for index in indexes)
    return Names.of(workload, indexes)
