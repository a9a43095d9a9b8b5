"""For each cell, what its nodes have free together: an upper bound that one comparison answers.

Bounds of cpu and of memory apart promise too much when one node has the cpu and another the memory.
Here cpu is cut into levels, each about a seventh above the one before; for each level and cell
stand the most memory that any node with at least that cpu has, and the least that such a node has
left in all. A request is looked up at the level below its cpu: what does not meet it there, fits
nowhere in the cell, and what does, nearly always fits.

`catch_up` corrects what others took from the table; only their cells are looked at again.
"""

import numpy as np

from orchestrator.scheduling.scores import LOAD_WEIGHT
from orchestrator.scheduling.table import CPU, DISK, MEMORY, Floats, Ints, NodeTable

STEP = 1.15
DIRTY_MAX = 64
"""Above so many cells at once, all are looked at: vectors over the fleet are cheaper then."""


class Staircase:
    """`memory` and `left` by level and cell, `share` and `disk` by cell alone."""

    def __init__(self, table: NodeTable) -> None:
        self._table = table
        self.starts = table.cell_start.tolist()
        self.ends = table.cell_end.tolist()
        self._cell_of = table.cell_of
        largest = np.maximum(table.allocatable.max(axis=1, initial=1), 1)
        self.unit = (0.5 / float(largest[CPU]), 0.5 / float(largest[MEMORY]))
        levels = [0]
        while levels[-1] < largest[CPU]:
            levels.append(max(levels[-1] + 1, int(levels[-1] * STEP)))
        # Small levels, one apart, say little: start where a step is at least ten.
        self._levels: Ints = np.array([0, *(v for v in levels if v >= 100)], dtype=np.int64)
        self._column = self._levels[:, None]
        shape = (len(self._levels), len(self.starts))
        self.memory: Ints = np.zeros(shape, dtype=np.int64)
        self.left: Floats = np.zeros(shape)
        self.share: Floats = np.zeros(len(self.starts))
        self.disk: Ints = np.zeros(len(self.starts), dtype=np.int64)
        self.node_left: Floats = np.zeros(table.size)
        self.node_share: Floats = np.zeros(table.size)
        self._fresh = False

    def level(self, cpu_millis: int) -> int:
        """The highest level that is no more than the request."""
        return int(self._levels.searchsorted(cpu_millis, side="right")) - 1

    def catch_up(self) -> None:
        """Take in what the table's other users held and released."""
        touched = self._table.touched
        if self._fresh and not touched:
            return
        if not self._fresh:
            self._measure_all()
        else:
            rows = np.unique(np.concatenate(touched))
            self._measure(rows)
            cells = np.unique(self._cell_of[rows])
            if len(cells) <= DIRTY_MAX:
                for cell in cells.tolist():
                    self._climb(cell)
            else:
                self._climb_all()
        touched.clear()

    def took(self, row: int, cpu_millis: int, memory_bytes: int) -> None:
        """A replica went to the row: the caller holds it in the table by itself."""
        ones = self._table.share_of_one
        self.node_left[row] -= cpu_millis * self.unit[0] + memory_bytes * self.unit[1]
        self.node_share[row] -= (
            cpu_millis * ones[CPU, row] + memory_bytes * ones[MEMORY, row] + LOAD_WEIGHT
        )
        self._climb(int(self._cell_of[row]))

    # --- parts -----------------------------------------------------------------------------------

    def _climb(self, cell: int) -> None:
        nodes = slice(self.starts[cell], self.ends[cell])
        free = self._table.free
        enough = free[CPU, nodes] >= self._column
        memory = np.where(enough, free[MEMORY, nodes], -1)
        np.maximum.reduce(memory, axis=1, out=self.memory[:, cell])
        left = np.where(enough, self.node_left[nodes], np.inf)
        np.minimum.reduce(left, axis=1, out=self.left[:, cell])
        self.share[cell] = np.maximum.reduce(self.node_share[nodes])
        self.disk[cell] = np.maximum.reduce(free[DISK, nodes])

    def _measure(self, rows: Ints) -> None:
        table = self._table
        cpu, memory = table.free[CPU, rows], table.free[MEMORY, rows]
        self.node_left[rows] = cpu * self.unit[0] + memory * self.unit[1]
        ones = table.share_of_one
        self.node_share[rows] = cpu * ones[CPU, rows] + memory * ones[MEMORY, rows]
        self.node_share[rows] -= LOAD_WEIGHT * table.load[rows]

    def _measure_all(self) -> None:
        self._measure(np.arange(self._table.size))
        self._climb_all()
        self._fresh = True

    def _climb_all(self) -> None:
        table, starts = self._table, self._table.cell_start
        if not len(starts):
            return
        for number, least in enumerate(self._levels.tolist()):
            enough = table.free[CPU] >= least
            memory = np.where(enough, table.free[MEMORY], -1)
            self.memory[number] = np.maximum.reduceat(memory, starts)
            left = np.where(enough, self.node_left, np.inf)
            self.left[number] = np.minimum.reduceat(left, starts)
        self.share = np.maximum.reduceat(self.node_share, starts)
        self.disk = np.maximum.reduceat(table.free[DISK], starts)
