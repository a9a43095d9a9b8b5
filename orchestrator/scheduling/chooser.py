"""Chooses nodes for the replicas of one workload, one after the other, and keeps count.

Made when a replica moves, when one replica decides where the next may go, and to explain. Masks and
scores are computed once and then only corrected where a choice changed them.
"""

from collections.abc import Iterable

import numpy as np

from orchestrator.scheduling import filters, scores
from orchestrator.scheduling.affinity import NeighbourRule
from orchestrator.scheduling.filters import Filter, Need, ReasonCount
from orchestrator.scheduling.reasons import Reason
from orchestrator.scheduling.snapshot import Template, Workload
from orchestrator.scheduling.table import Ints, Mask, NodeTable

Rules = tuple[list[NeighbourRule], list[NeighbourRule]]
PREFERENCE_WEIGHT = 100.0
GREEN_WEIGHT = 10.0


class SpreadLimit:
    """`spread.maxSkew` as a filter. Only domains that could take a replica are compared."""

    code = "SpreadExceeded"

    def __init__(self, table: NodeTable, need: Need, usable: Mask, rows: Iterable[int]) -> None:
        assert need.placement.spread is not None
        self._spread = need.placement.spread
        self._codes = table.topology(self._spread.by)
        domains = len(self._codes.values)
        codes = self._codes.codes
        self.counts = _counted(codes, rows, domains)
        self._compared = np.zeros(domains, dtype=np.bool_)
        self._compared[codes[usable & (codes >= 0)]] = True

    def failing(self, table: NodeTable, need: Need) -> Mask:
        codes = self._codes.codes
        if not self._compared.any():
            return codes < 0
        full: Mask = self.counts + 1 - self._least() > self._spread.max_skew
        # A node whose site does not say cannot be compared: closed on unknowns.
        failing: Mask = np.where(codes >= 0, full[codes], True)
        return failing

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        code = int(self._codes.codes[row])
        by = self._spread.by
        if code < 0:
            text = f"its {by} is not known, and the workload spreads by it"
            return (Reason(self.code, text, "placement.spread"),)
        text = (
            f"{by} {self._codes.values[code]} has {int(self.counts[code])} replicas, the emptiest "
            f"has {self._least()}; maxSkew is {self._spread.max_skew}"
        )
        skew = int(self.counts[code]) + 1 - self._least()
        return (Reason(self.code, text, "placement.spread.maxSkew", skew),)

    def count_by_row(self) -> Ints:
        """Replicas in each node's domain; 0 where it is not known."""
        codes = self._codes.codes
        return np.where(codes >= 0, self.counts[codes], 0) if len(self.counts) else 0 * codes

    def change(self, row: int, by: int) -> Mask:
        """Count a replica in or out; the rows whose domain that was."""
        code = self._codes.codes[row]
        if code >= 0:
            self.counts[code] += by
        same: Mask = self._codes.codes == code
        return same

    def _least(self) -> int:
        return int(self.counts[self._compared].min())


class Chooser:
    """`rows` are the nodes that hold the workload's replicas now."""

    def __init__(
        self,
        table: NodeTable,
        workload: Workload,
        need: Need,
        rows: Iterable[int],
        rules: Rules,
        pack: bool = False,
    ) -> None:
        held = list(rows)
        self._table = table
        self._need = need
        self._required, self._preferred = rules
        self._pack = pack
        self.rules = filters.passing(filters.RULES, table, self._need)
        self.usable = self.rules & filters.passing(filters.CONDITIONS, table, self._need)
        self._room = filters.passing(filters.ROOM, table, self._need)
        self._ties = table.ties(workload.uid)
        self._nodes = _counted(np.arange(table.size), held, table.size)
        self._site_codes = table.topology("site").codes
        self._sites = _counted(self._site_codes, held, len(table.topology("site").values))
        self._spread = (
            SpreadLimit(table, self._need, self.usable, held) if workload.placement.spread else None
        )
        self._scores = self._balance() - self._nodes
        self._scores -= scores.density(self._site_codes, self._sites)
        if workload.placement.prefer_green:
            green = table.greenness()[table.site_codes]
            self._scores -= GREEN_WEIGHT * green / max(1, int(green.max(initial=0)))
        if self._spread is not None:
            self._scores -= scores.SPREAD_WEIGHT * self._spread.count_by_row()

    def choose(self, among: Mask | None = None, leaving: int | None = None) -> int | None:
        """The best row, not yet taken. `leaving` is a row that a replica is about to leave."""
        if leaving is not None:
            self._count(leaving, -1)
        allowed = self.allowed()
        if among is not None:
            allowed &= among
        if leaving is not None:
            allowed[leaving] = False
        values = self._scores
        for rule in self._preferred:
            values = values + PREFERENCE_WEIGHT * rule.good()
        row = scores.best(values, allowed, self._ties)
        if row is None and leaving is not None:
            self._count(leaving, +1)
        return row

    def take(self, row: int, template: Template | None = None) -> None:
        """A replica goes to `row`: what it needs, or this template, is held there from now on."""
        before = float(self._balance(row))
        self._table.hold(row, template or self._need.template)
        self._room[row] = self._table.has_room(row, self._need.template)
        self._scores[row] += float(self._balance(row)) - before
        self._count(row, +1)

    def look_again(self, row: int) -> None:
        """Something else was held or released on the row."""
        self._room[row] = self._table.has_room(row, self._need.template)

    def fits(self, row: int) -> bool:
        """Whether this very row could take one more."""
        return bool(self.allowed()[row])

    def allowed(self) -> Mask:
        """Rows that could take one more now."""
        return self.allowed_with_room(self._room)

    def allowed_with_room(self, room: Mask) -> Mask:
        """The same, if `room` said where there is room."""
        allowed = self.usable & room
        if self._spread is not None:
            allowed &= ~self._spread.failing(self._table, self._need)
        for rule in self._required:
            allowed &= ~rule.failing(self._table, self._need)
        return allowed

    @property
    def every_filter(self) -> tuple[Filter, ...]:
        """All that a row has to pass, those included that depend on where the others are."""
        spread = () if self._spread is None else (self._spread,)
        return (*filters.EVERY, *spread, *self._required)

    def why_not(self, among: Mask) -> list[ReasonCount]:
        """Every reason why none of these rows can take one, counted."""
        return filters.count(self.every_filter, self._table, self._need, among)

    def _balance(self, rows: slice | int = slice(None)) -> scores.Scores:
        free = scores.balance(self._table, self._need.template, rows)
        return -free if self._pack else free

    def _count(self, row: int, by: int) -> None:
        self._nodes[row] += by
        self._scores[row] -= by
        code = self._site_codes[row]
        if code >= 0:
            same_site = self._site_codes == code
            self._sites[code] += by
            self._scores[same_site] -= by / int(same_site.sum())
        if self._spread is not None:
            self._scores[self._spread.change(row, by)] -= by * scores.SPREAD_WEIGHT
        for rule in (*self._required, *self._preferred):
            rule.change(row, by)


def _counted(codes: Ints, rows: Iterable[int], length: int) -> Ints:
    picked = codes[np.fromiter(rows, dtype=np.int64)]
    return np.bincount(picked[picked >= 0], minlength=length).astype(np.int64)
