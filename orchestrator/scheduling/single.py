"""Finds a node for one replica of a workload that has no other: the case that must be fast.

Two levels: vectors over the cells of the table, of which there are a few per site, choose a cell by
the bounds in `staircase.py`; then the nodes of that cell are looked at. A bound can promise a bit
too much: then the next cell is tried, and after a few all that are left are looked at together, so
that a place is found whenever there is one.
"""

import numpy as np

from orchestrator.scheduling import filters
from orchestrator.scheduling.reasons import NO_POLICY, Need
from orchestrator.scheduling.rules import HOST_PATHS, IMAGES
from orchestrator.scheduling.staircase import Staircase
from orchestrator.scheduling.table import CPU, DISK, MEMORY, Floats, Ints, Mask, NodeTable

TRIES = 6
STATIC_BYTES_MAX = 100_000_000


class SingleChooser:
    """One per plan."""

    def __init__(self, table: NodeTable) -> None:
        self._table = table
        self._stairs: Staircase | None = None
        self._static: dict[object, tuple[Mask, Mask | None]] = {}

    def choose(self, need: Need, pack: bool) -> int | None:
        """The row, held: with `pack` the one that it fills best, otherwise the emptiest."""
        if not self._table.size:
            return None
        if self._stairs is None:
            self._stairs = Staircase(self._table)
        stairs = self._stairs
        stairs.catch_up()
        row = self._found(stairs, need, pack)
        if row is not None:
            request = need.template.request
            self._table.hold(row, need.template)
            self._table.touched.clear()
            stairs.took(row, request.cpu_millis, request.memory_bytes)
        return row

    def cells(self, need: Need) -> tuple[Mask, Mask | None]:
        """Cells that pass all rules and conditions, room apart; and rows, where nodes of a cell
        differ. Do not change the answer. What a namespace forbids the caller has seen to."""
        cells, rows = self._static_masks(need)
        if need.policy is not NO_POLICY or need.floor is not NO_POLICY:
            admitted = self._table.policies.admitted(need.policy, need.floor)
            if admitted is not None:
                cells = cells & admitted
        return cells, rows

    # --- parts -----------------------------------------------------------------------------------

    def _found(self, stairs: Staircase, need: Need, pack: bool) -> int | None:
        cells, rows = self.cells(need)
        request = need.template.request
        level = stairs.level(request.cpu_millis)
        if request.memory_bytes or request.cpu_millis:
            cells = cells & (stairs.memory[level] >= request.memory_bytes)
        if request.disk_bytes:
            cells = cells & (stairs.disk >= request.disk_bytes)
        scores = np.where(cells, stairs.left[level] if pack else -stairs.share, np.inf)
        for _ in range(TRIES):
            cell = int(scores.argmin())
            if scores[cell] == np.inf:
                return None
            nodes = slice(stairs.starts[cell], stairs.ends[cell])
            fits = self._fitting(nodes, need, rows)
            lost = stairs.node_left[nodes] if pack else self._taken(stairs, nodes, need)
            lost = np.where(fits, lost, np.inf)
            best = int(lost.argmin())
            if fits[best]:
                return int(nodes.start) + best
            scores[cell] = np.inf
        return self._anywhere(stairs, np.flatnonzero(scores < np.inf), need, rows, pack)

    def _anywhere(
        self, stairs: Staircase, cells: Ints, need: Need, rows: Mask | None, pack: bool
    ) -> int | None:
        """All nodes of the cells at once: exact, and dearer."""
        if not len(cells):
            return None
        wanted = np.zeros(len(stairs.starts), dtype=np.bool_)
        wanted[cells] = True
        among = np.flatnonzero(wanted[self._table.cell_of])
        fits = self._fitting(among, need, rows)
        lost = stairs.node_left[among] if pack else self._taken(stairs, among, need)
        best = int(np.where(fits, lost, np.inf).argmin())
        return int(among[best]) if fits[best] else None

    def _taken(self, stairs: Staircase, nodes: slice | Ints, need: Need) -> Floats:
        """What would not be free any more, as a share of the node; lower is better."""
        ones, request = self._table.share_of_one, need.template.request
        asked = request.cpu_millis * ones[CPU, nodes] + request.memory_bytes * ones[MEMORY, nodes]
        taken: Floats = asked - stairs.node_share[nodes]
        return taken

    def _fitting(self, nodes: slice | Ints, need: Need, rows: Mask | None) -> Mask:
        table, request = self._table, need.template.request
        free = table.free
        fits: Mask = free[CPU, nodes] >= request.cpu_millis
        if not request.cpu_millis:  # asks for nothing: fits even where too much is promised
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
            need.template.host_paths,
            need.template.foreign_nodes,
            need.template.foreign_archs,
        )
        found = self._static.get(key)
        if found is None:
            table = self._table
            plain = filters.passing((*filters.PLAIN_RULES, *filters.CONDITIONS), table, need)
            plain &= ~HOST_PATHS.failing(table, need)
            plain &= ~IMAGES.failing(table, need)
            cells = np.logical_or.reduceat(plain, table.cell_start)
            differ = bool(
                where.node_selector
                or where.match_expressions
                or where.device_expressions
                or need.template.host_paths
                or need.template.foreign_nodes
            )
            found = (cells, plain if differ else None)
            if len(self._static) * table.size > STATIC_BYTES_MAX:
                self._static.clear()
            self._static[key] = found
        return found
