"""Which revision a replica is to have, where it is or where it goes. Used by every `Part`.

Usually there is one revision for all. While a rollout goes on there are two: the target at sites
that are admitted, the stable one elsewhere. A new replica then has to find a node before it is
known which of the two it gets; it looks with the needs of both (BOTH), and where that finds
nothing, with the one that counts there.
"""

from dataclasses import dataclass, replace

import numpy as np

from orchestrator.scheduling.holders import Holder, template_of
from orchestrator.scheduling.reasons import Need, need_of
from orchestrator.scheduling.snapshot import Mode, Resources, Snapshot, Template, Workload
from orchestrator.scheduling.table import Ints, Mask, NodeTable

BOTH = 0


@dataclass(frozen=True, slots=True)
class Lane:
    """`revision`: whose needs; BOTH: those of target and stable. `rows`: where it holds."""

    revision: int
    need: Need
    rows: Mask | None = None


class Lanes:
    """Of one workload in one plan."""

    def __init__(self, snapshot: Snapshot, table: NodeTable, workload: Workload) -> None:
        self._snapshot = snapshot
        self._table = table
        self._workload = workload
        self._needs: dict[int, Need] = {}
        self._admitted: Mask | None = None
        stable = workload.stable or workload.revision
        # What a new replica gets, unless that depends on where it goes.
        self.usual = stable if workload.paused else workload.revision
        self.mixed = (
            stable != workload.revision and workload.admitted is not None and not workload.paused
        )

    @property
    def first(self) -> Lane:
        """What a new replica looks for a node with."""
        key = BOTH if self.mixed else self.usual
        return Lane(key, self.need(key))

    def for_new(self) -> tuple[Lane, ...]:
        """In which needs a new replica may look for a node, one after the other."""
        if not self.mixed:
            return (self.first,)
        stable, target = self._workload.stable, self._workload.revision
        return (
            self.first,
            Lane(stable, self.need(stable), ~self.admitted),
            Lane(target, self.need(target), self.admitted),
        )

    def where(self, revision: int) -> Lane:
        """Where that very revision is wanted, of the two or of the one."""
        if not self.mixed:
            return Lane(revision, self.need(revision))
        admitted = revision == self._workload.revision
        return Lane(revision, self.need(revision), self.admitted if admitted else ~self.admitted)

    def for_move(self, holder: Holder) -> tuple[Lane, ...]:
        """The same for a replica that leaves its node."""
        own = holder.record.revision
        if self._keeps(own):
            return (Lane(own, self.need(own)),)
        return self.for_new()

    def after_move(self, holder: Holder, row: int) -> int:
        """The revision that it has on its new node."""
        own = holder.record.revision
        return own if self._keeps(own) else self.at(row)

    def at(self, row: int) -> int:
        """Of a new replica on the row."""
        if not self.mixed:
            return self.usual
        return self._workload.revision if self.admitted[row] else self._workload.stable

    def at_rows(self, rows: Ints) -> Ints:
        """The same for many."""
        if not self.mixed:
            return np.full(len(rows), self.usual, dtype=np.int64)
        admitted = self.admitted[rows]
        return np.where(admitted, self._workload.revision, self._workload.stable)

    def wanted(self, holder: Holder) -> int:
        """Which revision a replica should have where it is. A job's keeps what it started with."""
        if self._workload.paused or self._workload.once or holder.row is None:
            return holder.record.revision
        if self._workload.held_elsewhere and not self.admitted[holder.row]:
            return holder.record.revision
        return self.at(holder.row)

    def need(self, revision: int) -> Need:
        if revision not in self._needs:
            need = need_of(self._snapshot, self._workload, self._made(revision))
            if revision != self._workload.revision:
                need = replace(need, admitted=None)
            self._needs[revision] = need
        return self._needs[revision]

    def template(self, revision: int) -> Template:
        return template_of(self._snapshot, self._workload.uid, revision)

    @property
    def admitted(self) -> Mask:
        """Rows of sites that the target may go to."""
        if self._admitted is None:
            sites = self._workload.admitted
            names = self._table.site_names
            known = np.array([sites is None or name in sites for name in names], dtype=np.bool_)
            self._admitted = known[self._table.site_codes]
        return self._admitted

    def _keeps(self, revision: int) -> bool:
        """Whether a replica of it would run the same on another node, whatever is wanted there."""
        workload = self._workload
        known = (workload.uid, revision) in self._snapshot.templates
        return known and (workload.paused or workload.once)

    def _made(self, revision: int) -> Template:
        if revision != BOTH:
            return self.template(revision)
        workload = self._workload
        return both(self.template(workload.revision), self.template(workload.stable))


def both(one: Template, other: Template) -> Template:
    """What is enough for either; the first itself when the two ask for the same."""
    if _asks(one) == _asks(other):
        return one
    a, b = one.request, other.request
    devices = sorted({*a.devices, *b.devices})
    request = Resources(
        max(a.cpu_millis, b.cpu_millis),
        max(a.memory_bytes, b.memory_bytes),
        max(a.disk_bytes, b.disk_bytes),
        {name: max(a.devices.get(name, 0), b.devices.get(name, 0)) for name in devices},
    )
    return replace(
        one,
        request=request,
        host_ports=tuple(sorted({*one.host_ports, *other.host_ports})),
        host_paths=tuple(sorted({*one.host_paths, *other.host_paths})),
        local_volumes=tuple(sorted({*one.local_volumes, *other.local_volumes})),
        demands=tuple(sorted({*one.demands, *other.demands})),
        foreign_nodes=tuple(sorted({*one.foreign_nodes, *other.foreign_nodes})),
        foreign_archs=tuple(sorted({*one.foreign_archs, *other.foreign_archs})),
    )


def _asks(template: Template) -> tuple[object, ...]:
    return (
        template.request,
        template.host_ports,
        template.host_paths,
        template.local_volumes,
        template.demands,
        template.foreign_nodes,
        template.foreign_archs,
    )


def place_count(workload: Workload) -> int:
    """How many numbered replicas are wanted."""
    assert workload.mode is Mode.REPLICAS
    return workload.count if workload.indexes is None else len(workload.indexes)
