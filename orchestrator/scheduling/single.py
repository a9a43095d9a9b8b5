"""Finds a node for one replica of a workload that has no other: the case that must be fast.

Two levels: vectors over the cells of the table, of which there are a few per site, choose a cell by
upper bounds of what is free in it; then the nodes of that cell are looked at. A bound can promise
too much (the cpu of one node, the memory of another): then the next cell is tried, and after a few
all that are left are looked at together, so that a place is found whenever there is one.
"""

import numpy as np

from orchestrator.scheduling import filters
from orchestrator.scheduling.reasons import NO_POLICY, Need
from orchestrator.scheduling.scores import LOAD_WEIGHT
from orchestrator.scheduling.table import CPU, DISK, MEMORY, Floats, Ints, Mask, NodeTable

TRIES = 6
STATIC_MAX = 2000
_UNIFORM = (*filters.CONDITIONS,)


class SingleChooser:
    """One per plan. It keeps its own sums, which `hold` corrects and others' holds make old."""

    def __init__(self, table: NodeTable) -> None:
        self._table = table
        self._starts = table.cell_start.tolist()
        self._ends = table.cell_end.tolist()
        self._static: dict[object, tuple[Mask, Mask | None]] = {}
        largest = np.maximum(table.allocatable.max(axis=1, initial=1), 1)
        # One unit for all nodes: what is left is compared across nodes of different size.
        self._unit = (0.5 / float(largest[CPU]), 0.5 / float(largest[MEMORY]))
        self._left: Floats = np.zeros(table.size)
        self._share: Floats = np.zeros(table.size)
        self._cell_left: Floats = np.zeros(len(self._starts))
        self._cell_share: Floats = np.zeros(len(self._starts))

    def choose(self, need: Need, pack: bool) -> int | None:
        """The row: with `pack` the one that it fills best, otherwise the emptiest."""
        table = self._table
        if not self._starts:
            return None
        if table.bounds_are_old:
            self._refresh()
        cells, rows = self._static_masks(need)
        request, bounds = need.template.request, table.bounds
        if need.policy is not NO_POLICY:
            admitted = table.policies.admitted(need.policy)
            if admitted is not None:
                cells = cells & admitted
        if request.cpu_millis:
            cells = cells & (bounds[CPU] >= request.cpu_millis)
        if request.memory_bytes:
            cells = cells & (bounds[MEMORY] >= request.memory_bytes)
        if request.disk_bytes:
            cells = cells & (bounds[DISK] >= request.disk_bytes)
        scores = np.where(cells, self._cell_left if pack else -self._cell_share, np.inf)
        for _ in range(TRIES):
            cell = int(scores.argmin())
            if not cells[cell] or scores[cell] == np.inf:
                return None
            row = self._in(slice(self._starts[cell], self._ends[cell]), need, rows, pack)
            if row is not None:
                return row
            scores[cell] = np.inf
        return self._anywhere(np.flatnonzero(scores < np.inf), need, rows, pack)

    def hold(self, row: int, need: Need) -> None:
        """Take the room on the row, and correct the bounds of its cell."""
        table, request = self._table, need.template.request
        if table.bounds_are_old:
            self._refresh()
        table.hold(row, need.template)
        table.bounds_are_old = False
        cpu, memory = request.cpu_millis, request.memory_bytes
        self._left[row] -= cpu * self._unit[0] + memory * self._unit[1]
        self._share[row] -= (
            cpu * table.share_of_one[CPU, row]
            + memory * table.share_of_one[MEMORY, row]
            + LOAD_WEIGHT
        )
        cell = int(table.cell_of[row])
        nodes = slice(self._starts[cell], self._ends[cell])
        highest = table.free[:, nodes].max(axis=1)
        table.bounds[:, cell] = highest
        self._cell_left[cell] = highest[CPU] * self._unit[0] + highest[MEMORY] * self._unit[1]
        self._cell_share[cell] = self._share[nodes].max()

    # --- parts -----------------------------------------------------------------------------------

    def _in(self, nodes: slice, need: Need, rows: Mask | None, pack: bool) -> int | None:
        fits = self._fitting(nodes, need, rows)
        if pack:
            scores = np.where(fits, self._left[nodes], np.inf)
        else:
            scores = np.where(fits, self._taken(nodes, need), np.inf)
        best = int(scores.argmin())
        return nodes.start + best if fits[best] else None

    def _anywhere(self, cells: Ints, need: Need, rows: Mask | None, pack: bool) -> int | None:
        """All nodes of the cells at once: exact, and dearer."""
        if not len(cells):
            return None
        table = self._table
        wanted = np.zeros(len(self._starts), dtype=np.bool_)
        wanted[cells] = True
        among = np.flatnonzero(wanted[table.cell_of])
        fits = self._fitting(among, need, rows)
        scores = np.where(fits, self._left[among] if pack else self._taken(among, need), np.inf)
        best = int(scores.argmin())
        return int(among[best]) if fits[best] else None

    def _taken(self, nodes: slice | Ints, need: Need) -> Floats:
        """What would not be free any more, as a share of the node; lower is better."""
        ones, request = self._table.share_of_one, need.template.request
        asked = request.cpu_millis * ones[CPU, nodes] + request.memory_bytes * ones[MEMORY, nodes]
        taken: Floats = asked - self._share[nodes]
        return taken

    def _fitting(self, nodes: slice | Ints, need: Need, rows: Mask | None) -> Mask:
        table, request = self._table, need.template.request
        free = table.free
        fits: Mask = free[CPU, nodes] >= request.cpu_millis
        if not request.cpu_millis:
            fits = np.ones(len(fits), dtype=np.bool_)
        if request.memory_bytes:
            fits &= free[MEMORY, nodes] >= request.memory_bytes
        if request.disk_bytes:
            fits &= free[DISK, nodes] >= request.disk_bytes
        if rows is not None:
            fits &= rows[nodes]
        for name, count in request.devices.items():
            fits &= table.device(name)[nodes] >= count
        for port in need.template.host_ports:
            fits &= table.taken(port)[nodes] == 0
        return fits

    def _static_masks(self, need: Need) -> tuple[Mask, Mask | None]:
        """Cells that can do by rules and conditions; and rows, where nodes of a cell differ."""
        where = need.placement
        key = (
            where.arch,
            where.tolerations,
            where.near,
            tuple(where.node_selector.items()) if where.node_selector else None,
            where.match_expressions,
            where.device_expressions,
        )
        found = self._static.get(key)
        if found is None:
            table = self._table
            plain = filters.passing((*filters.PLAIN_RULES, *filters.CONDITIONS), table, need)
            cells = np.logical_or.reduceat(plain, table.cell_start)
            differ = where.node_selector or where.match_expressions or where.device_expressions
            found = (cells, plain if differ else None)
            if len(self._static) >= STATIC_MAX:
                self._static.clear()
            self._static[key] = found
        return found

    def _refresh(self) -> None:
        table = self._table
        table.refresh_bounds()
        cpu, memory = table.free[CPU], table.free[MEMORY]
        self._left = cpu * self._unit[0] + memory * self._unit[1]
        ones = table.share_of_one
        self._share = cpu * ones[CPU] + memory * ones[MEMORY] - LOAD_WEIGHT * table.load
        self._cell_left = table.bounds[CPU] * self._unit[0] + table.bounds[MEMORY] * self._unit[1]
        self._cell_share = np.maximum.reduceat(self._share, table.cell_start)
