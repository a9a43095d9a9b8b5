"""Places the missing numbered replicas of a workload, in the cheapest way that is right.

`WorkloadPlan` calls it. Three ways, by what is asked: a first and only replica (`single.py`); any
number that do not look at each other beyond spreading (`fill.py`); and one after the other with a
`Chooser`, for rules by which one replica decides where the next may go.
"""

from collections.abc import Sequence

import numpy as np

from orchestrator.scheduling import filters, scores
from orchestrator.scheduling.affinity import NeighbourRule, Neighbours, rules_of
from orchestrator.scheduling.chooser import Chooser
from orchestrator.scheduling.fill import Domains, Slots, fill, in_turn
from orchestrator.scheduling.filters import Need
from orchestrator.scheduling.single import SingleChooser
from orchestrator.scheduling.snapshot import Template, Workload
from orchestrator.scheduling.table import AMOUNTS, CPU, MEMORY, Codes, Floats, Ints, Mask, NodeTable

CHOICE = 3
"""So many nodes per replica are looked at, where a fleet has more."""
Rows = Sequence[int] | Ints
SEQUENCE_MAX = 256
"""Above so many, a preference among a workload's own replicas gives way to speed."""


class Placer:
    """One per plan, shared by all workloads."""

    def __init__(self, table: NodeTable, neighbours: Neighbours) -> None:
        self._table = table
        self._neighbours = neighbours
        self.single = SingleChooser(table)
        self._shares: Floats | None = None
        # The workload whose first replica was just looked for in vain, so as not to look twice.
        self.nowhere_for = ""

    def rows_for(
        self, workload: Workload, need: Need, number: int, held: Sequence[int], pack: bool
    ) -> Rows:
        """Rows for up to `number` replicas, in order, with their room held. `held`: rows of those
        that the workload has already; a row per replica."""
        if workload.uid == self.nowhere_for or need.forbidden:
            return ()
        required, preferred = rules_of(self._table, self._neighbours, need, workload.uid)
        where = need.placement
        in_sequence = any(rule.own and not _is_one_per_node(rule) for rule in required)
        if in_sequence or (number <= SEQUENCE_MAX and any(rule.own for rule in preferred)):
            rows: Rows = self._in_sequence(workload, need, number, held, pack)
        elif number == 1 and not (
            held or where.spread or required or preferred or where.prefer_green
        ):
            row = self.single.choose(need, pack)
            if row is None:
                return ()
            rows = (row,)
        else:
            alone = not (held or required or preferred or where.prefer_green)
            found = self._among_some(need, number, pack) if alone else None
            if found is None:
                found = self._at_once(need, number, held, pack, required, preferred)
            rows = found
        self._neighbours.add(workload.uid, (int(row) for row in rows))
        return rows

    def chooser(self, workload: Workload, need: Need, held: Sequence[int], pack: bool) -> Chooser:
        """For replicas that move, and to explain."""
        rules = rules_of(self._table, self._neighbours, need, workload.uid)
        return Chooser(self._table, workload, need, held, rules, pack)

    def _in_sequence(
        self, workload: Workload, need: Need, number: int, held: Sequence[int], pack: bool
    ) -> list[int]:
        chooser = self.chooser(workload, need, held, pack)
        rows = []
        for _ in range(number):
            row = chooser.choose()
            if row is None:
                break
            chooser.take(row)
            rows.append(row)
        return rows

    def _among_some(self, need: Need, number: int, pack: bool) -> Ints | None:
        """First replicas on part of a large fleet: the emptiest cells, a few times what is needed.

        None when that leaves some without a node: then all are asked.
        """
        table = self._table
        cells, elsewhere, every = self._some_cells(need, number, pack)
        usable = _ranges(table.cell_start[cells], table.cell_end[cells])
        _, differing = self.single.cells(need)
        if differing is not None:
            usable = usable[differing[usable]]
        caps = _caps(table, need.template, usable, number)
        rows, caps = usable[caps > 0], caps[caps > 0]
        zeros = np.zeros(len(rows), dtype=np.int64)
        order = -scores.balance(table, need.template, rows)
        slots = Slots(
            caps=caps,
            counts=zeros,
            sites=table.site_codes[rows],
            site_counts=np.zeros(len(table.site_names)),
            order=-order if pack else order,
            pack=pack,
        )
        domains = None
        spread = need.placement.spread
        if spread is not None:
            column = table.topology(spread.by).codes
            present = np.unique(column[usable])
            of_rows = np.searchsorted(present, column[rows])
            if len(present) and present[0] < 0:
                return None  # a domain that is not known: the other way leaves it out
            counts = np.zeros(len(present), dtype=np.int64)
            compared = np.ones(len(present), dtype=np.bool_)
            domains = Domains(of_rows, counts, compared, spread.max_skew, 0 if elsewhere else None)
        takes = fill(slots, number, domains)
        if int(takes.sum()) < number and not every:
            return None
        return self._take(need, rows, takes)

    def _some_cells(self, need: Need, number: int, pack: bool) -> tuple[Ints, bool, bool]:
        """(cells, whether domains of the spread are left out, whether these are all that can do)"""
        table = self._table
        candidates = np.flatnonzero(self.single.cells(need)[0])
        sizes = (table.cell_end - table.cell_start)[candidates]
        if int(sizes.sum()) <= CHOICE * number:
            return candidates, False, True
        share = self._cell_shares()[candidates]
        order = np.argsort(share if pack else -share, kind="stable")
        spread = need.placement.spread
        domains = None
        if spread is not None and spread.by != "node":
            codes = table.topology(spread.by).codes[table.cell_start]
            domains = codes[candidates[order]]
            # In turn: the best cell of every domain, then the second best of every domain.
            grouped = np.argsort(domains, kind="stable")
            own = domains[grouped]
            rank = np.empty(len(own), dtype=np.int64)
            rank[grouped] = np.arange(len(own)) - np.searchsorted(own, own)
            turn = np.argsort(rank, kind="stable")
            order, domains = order[turn], domains[turn]
        enough = int(np.searchsorted(np.cumsum(sizes[order]), CHOICE * number)) + 1
        if spread is not None:
            enough = max(enough, CHOICE * number // spread.max_skew)
        if enough >= len(order):
            return candidates, False, True
        elsewhere = spread is not None
        if domains is not None:
            present = np.zeros(len(table.topology(spread.by).values) + 1 if spread else 0, bool)
            present[domains] = True
            present[domains[:enough]] = False
            elsewhere = bool(present.any())
        return candidates[order[:enough]], elsewhere, False

    def _cell_shares(self) -> Floats:
        """About how much of each cell is free; kept up by what this object places."""
        table = self._table
        if self._shares is None:
            free = table.free[:2] * table.share_of_one
            sums = np.add.reduceat(free.sum(axis=0), table.cell_start)
            self._shares = sums / (table.cell_end - table.cell_start)
        return self._shares

    def _take(self, need: Need, rows: Ints, takes: Ints) -> Ints:
        table, request = self._table, need.template.request
        taken = np.flatnonzero(takes)
        rows, takes = rows[taken], takes[taken]
        table.hold_many(rows, takes, need.template)
        if self._shares is not None:
            ones, cells = table.share_of_one, table.cell_of[rows]
            asked = request.cpu_millis * ones[CPU, rows] + request.memory_bytes * ones[MEMORY, rows]
            sizes = (table.cell_end - table.cell_start)[cells]
            np.subtract.at(self._shares, cells, takes * asked / sizes)
        ordered: Ints = rows[in_turn(takes)]
        return ordered

    def _at_once(
        self,
        need: Need,
        number: int,
        held: Sequence[int],
        pack: bool,
        required: list[NeighbourRule],
        preferred: list[NeighbourRule],
    ) -> Ints:
        table = self._table
        usable = filters.passing((*filters.RULES, *filters.CONDITIONS), table, need)
        allowed = usable.copy()
        for rule in required:
            allowed &= ~rule.failing(table, need)
        codes = None
        if need.placement.spread is not None:
            codes = table.topology(need.placement.spread.by)
            allowed &= codes.codes >= 0
        rows = np.flatnonzero(allowed)
        counts = _per_row(held, table.size)
        caps = _caps(table, need.template, rows, number)
        if any(rule.own for rule in required):
            caps = np.minimum(caps, np.maximum(0, 1 - counts[rows]))
        rows, caps = rows[caps > 0], caps[caps > 0]
        if not len(rows):
            return np.zeros(0, dtype=np.int64)
        slots = self._slots(need, rows, caps, counts, pack, preferred)
        domains = None
        if codes is not None:
            assert need.placement.spread is not None
            skew = need.placement.spread.max_skew
            domains = _domains(codes, rows, counts, usable, skew)
        return self._take(need, rows, fill(slots, number, domains))

    def _slots(
        self,
        need: Need,
        rows: Ints,
        caps: Ints,
        counts: Ints,
        pack: bool,
        preferred: list[NeighbourRule],
    ) -> Slots:
        table = self._table
        sites = table.site_codes
        order = -scores.balance(table, need.template, rows)
        return Slots(
            caps=caps,
            counts=counts[rows],
            sites=sites[rows],
            site_counts=np.bincount(sites, weights=counts, minlength=len(table.site_names)).astype(
                np.float64
            ),
            order=-order if pack else order,
            pack=pack,
            tiers=_tiers(table, need, rows, preferred),
        )


def _is_one_per_node(rule: NeighbourRule) -> bool:
    """Apart from its own kind on the same node: the same as room for one."""
    return rule.apart and rule.by == "node"


def _ranges(starts: Ints, ends: Ints) -> Ints:
    """All rows of these slices, one after the other."""
    sizes = ends - starts
    before = np.cumsum(sizes) - sizes
    rows: Ints = np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))
    return rows


def _per_row(held: Sequence[int], size: int) -> Ints:
    return np.bincount(np.fromiter(held, dtype=np.int64), minlength=size).astype(np.int64)


def _caps(table: NodeTable, template: Template, rows: Ints, most: int) -> Ints:
    """How many replicas each row has room for, at most `most`."""
    caps = np.full(len(rows), most, dtype=np.int64)
    for column, amount in enumerate(AMOUNTS):
        asked = getattr(template.request, amount)
        if asked:
            caps = np.minimum(caps, table.free[column][rows] // asked)
    for name, count in template.request.devices.items():
        caps = np.minimum(caps, table.device(name)[rows] // count)
    for port in template.host_ports:
        caps = np.minimum(caps, np.where(table.taken(port)[rows] > 0, 0, 1))
    return np.maximum(caps, 0)


def _domains(codes: Codes, rows: Ints, counts: Ints, usable: Mask, max_skew: int) -> Domains:
    known, size = codes.codes >= 0, len(codes.values)
    present = np.bincount(codes.codes[known], weights=counts[known], minlength=size)
    compared = np.zeros(size, dtype=np.bool_)
    compared[codes.codes[usable & known]] = True
    return Domains(codes.codes[rows], present.astype(np.int64), compared, max_skew)


def _tiers(table: NodeTable, need: Need, rows: Ints, preferred: list[NeighbourRule]) -> Ints | None:
    """Lower first: by the number of preferences that are not met, then the greener site."""
    if not preferred and not need.placement.prefer_green:
        return None
    missed = np.zeros(len(rows), dtype=np.int64)
    for rule in preferred:
        missed += ~rule.good()[rows]
    if need.placement.prefer_green:
        green = table.greenness()[table.site_codes[rows]]
        missed = missed * (int(green.max(initial=0)) + 1) + green
    return np.unique(missed, return_inverse=True)[1].astype(np.int64)
