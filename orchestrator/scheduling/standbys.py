"""Which nodes may take a replica over: chosen with it, by the same rules, apart from it.

A standby passes every rule and has room at the moment of the choice; its room is not reserved,
since one box's worth of spare room usually covers many replicas. In wider scopes than the site,
standbys come from other sites than the replica and each other first. What was chosen stays as long
as it would do, so that a re-plan names no others without cause: of an exclusive replica also what
is silent for a while, since a group that changes has to be sealed. Nobody takes over what has data
of its own on its node. Who votes with them is in `groups.py`.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from orchestrator.domain.liveness import Liveness
from orchestrator.scheduling import filters
from orchestrator.scheduling.filters import Need
from orchestrator.scheduling.snapshot import Node
from orchestrator.scheduling.table import Ints, Mask, NodeTable
from polder.manifest.placement import Failover

PATIENCE_S = 300.0
"""A voter that is lost for less is waited for: it may only be starting again."""


class StandbyChooser:
    """Of one workload. Masks are of the time when it was made, `now` in unix seconds."""

    def __init__(self, table: NodeTable, need: Need, failover: Failover, now: float = 0.0) -> None:
        self._table = table
        self._need = need
        self._now = now
        self._number = 0 if need.template.local_volumes else failover.standbys
        self._scope = failover.scope
        self._exclusive = failover.exclusive
        rules = filters.passing(filters.RULES, table, need)
        self._may_stay: Mask = rules & ~table.flags("deleting") & ~table.flags("draining")
        if self._exclusive:
            rules = rules & table.flags("reachable")
            self._may_return = self._may_stay & rules
            self._may_stay = self._may_return & ~self._given_up()
        else:
            self._may_stay &= ~table.equal("liveness", Liveness.LOST)
        usable = rules & filters.passing((*filters.CONDITIONS, *filters.ROOM), table, need)
        self._areas: defaultdict[int, list[int]] = defaultdict(list)  # sites with a fit node
        self._at: defaultdict[int, list[int]] = defaultdict(list)  # fit rows of a site
        for row in np.flatnonzero(usable).tolist():
            site = int(table.site_codes[row])
            if site not in self._at:
                self._areas[self._area(row)].append(site)
            self._at[site].append(row)
        self._turn = 0

    def choose(self, rows: Sequence[int] | Ints) -> list[tuple[str, ...]]:
        """Names of standbys for replicas on these rows, as many as there are up to the number."""
        return [self._for_row(int(row), ()) for row in rows]

    def renew(self, row: int, now: tuple[str, ...]) -> tuple[str, ...]:
        """What a replica's standbys should be: those that still do, and others for the rest."""
        if not self._number:
            return ()
        kept = tuple(name for name in now if self._still_does(row, name))[: self._number]
        found = kept if len(kept) == self._number else self._for_row(row, kept)
        if len(found) < self._number and self._exclusive:
            lost = [name for name in now if name not in found and self._is_only_lost(row, name)]
            found = (*found, *lost)[: self._number]
        return found

    def _is_only_lost(self, row: int, name: str) -> bool:
        """Whether it would do if it came back: better than nobody in its place."""
        other = self._table.index.get(name)
        if other is None or other == row or not self._may_return[other]:
            return False
        return bool(self._table.site_codes[other] == self._table.site_codes[row])

    def relieve(self, row: int, now: tuple[str, ...]) -> tuple[str, ...]:
        """The same for a replica whose node is lost: those that have room come first, and there is
        one at least if any node would do."""
        if self._need.template.local_volumes:
            return ()
        number = max(1, self._number)
        fit = tuple(n for n in now if self._still_does(row, n) and self._has_room(n))[:number]
        if not fit:
            fit = self._for_row(row, (), number)
        rest = [n for n in now if n not in fit and self._still_does(row, n)]
        return (*fit, *rest)[:number]

    def _given_up(self) -> Mask:
        """Lost for so long that they need not be waited for."""
        given_up = [is_given_up(node, self._now) for node in self._table.nodes]
        return np.array(given_up, dtype=np.bool_)

    def _has_room(self, name: str) -> bool:
        row = self._table.index[name]
        live = self._table.nodes[row].liveness is Liveness.LIVE
        return live and self._table.has_room(row, self._need.template)

    def _still_does(self, row: int, name: str) -> bool:
        other = self._table.index.get(name)
        if other is None or other == row or not self._may_stay[other]:
            return False
        if self._scope == "site":
            return bool(self._table.site_codes[other] == self._table.site_codes[row])
        return self._area(other) == self._area(row)

    def _for_row(
        self, row: int, kept: tuple[str, ...], number: int | None = None
    ) -> tuple[str, ...]:
        """Sites in turn, so that a workload's standbys spread; then more of the same sites."""
        number = self._number if number is None else number
        self._turn += 1
        home = int(self._table.site_codes[row])
        nodes = self._table.nodes
        chosen = list(kept)
        taken = {row, *(self._table.index[name] for name in kept)}
        used = {int(self._table.site_codes[other]) for other in taken}
        if self._scope != "site":
            for site in _rotated(self._areas[self._area(row)], self._turn):
                if len(chosen) >= number:
                    return tuple(chosen)
                if site not in used:
                    other = self._at[site][self._turn % len(self._at[site])]
                    used.add(site)
                    taken.add(other)
                    chosen.append(nodes[other].name)
        for other in _rotated(self._at.get(home, []), self._turn):
            if len(chosen) >= number:
                break
            if other not in taken:
                taken.add(other)
                chosen.append(nodes[other].name)
        return tuple(chosen)

    def _area(self, row: int) -> int:
        """What the scope keeps together: a number for the region, or 0 for everywhere."""
        return int(self._table.topology("region").codes[row]) if self._scope == "region" else 0


def is_given_up(node: Node, now: float) -> bool:
    """Whether a voter on it is replaced by another; `now` in unix seconds."""
    return node.liveness is Liveness.LOST and now - node.since >= PATIENCE_S


def _rotated(items: list[int], by: int) -> list[int]:
    if not items:
        return items
    start = by % len(items)
    return items[start:] + items[:start]
