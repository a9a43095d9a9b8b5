"""Which sites a sovereignty policy admits, as masks that are computed once per single demand.

Policies are many and their demands are few: a policy's mask is the conjunction of the masks of its
demands (for residency: the union over its countries), and only those are judged by
`polder.sovereignty.evaluate`, once per site. Owned by the table of one plan, since `now` counts.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from polder.manifest.policy import AssuranceMinimum, EnergyLimits, SealMinimum, SovereigntySpec
from polder.sovereignty import Reason, SiteFacts, evaluate, tighten

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

NOTHING = SovereigntySpec()
_PLAIN = NOTHING.assurance
_SEALS = tuple(item.name for item in fields(SealMinimum))
_levels = attrgetter(*_SEALS)
_LIMITS = {
    "pue_max": "pue",
    "wue_max": "wue",
    "renewable_share_min": "renewable_share",
    "carbon_intensity_g_per_kwh_max": "carbon_intensity_g_per_kwh",
}


class Policies:
    """Over `facts`, one per site. Masks that it gives out belong to it: do not change them.

    `spread` turns a mask over sites into one over something finer, whose masks are then kept too.
    """

    def __init__(
        self, facts: Sequence[SiteFacts], now: float, spread: Callable[[Mask], Mask]
    ) -> None:
        self._facts = facts
        self._now = now
        self._spread = spread
        self._masks: dict[object, Mask] = {}
        self._groups: Ints | None = None
        self._figure_groups: dict[str, Ints] = {}
        self._floors: dict[int, tuple[SovereigntySpec, list[Mask] | None]] = {}
        self._figures: dict[str, list[float]] = {}

    def admitted(self, policy: SovereigntySpec, floor: SovereigntySpec = NOTHING) -> Mask | None:
        """What both admit, at the finer level. None: everything, for they demand nothing."""
        if policy is NOTHING:
            policy, floor = floor, NOTHING
        if policy is NOTHING:
            return None
        found = self._demands(policy)
        if floor is not NOTHING:
            own = self._of_floor(floor)
            if own is None or found is None:
                # An assurance is about the demands of both.
                found = self._assured(tighten(floor, policy))
            elif own:
                found = found + own
        elif found is None:
            found = self._assured(policy)
        if not found:
            return None
        mask = found[0]
        for other in found[1:]:
            mask = mask & other
        return mask

    def reasons(self, policy: SovereigntySpec, site: int) -> tuple[Reason, ...]:
        """Why the policy refuses the site; empty when it does not."""
        return evaluate(policy, self._facts[site], self._now)

    def _of_floor(self, floor: SovereigntySpec) -> list[Mask] | None:
        """As `_demands`, kept: namespaces are few, and each has one floor for many workloads."""
        found = self._floors.get(id(floor))
        if found is None:
            found = self._floors[id(floor)] = (floor, self._demands(floor))
        return found[1]

    def _demands(self, policy: SovereigntySpec) -> list[Mask] | None:
        """A mask per demand; None for policies that ask for assurance."""
        if policy.assurance is not _PLAIN and policy.assurance != _PLAIN:
            return None
        return self._parts(policy, None) + [
            self._one(("certifications", name), certifications=(name,))
            for name in policy.certifications
        ]

    def _assured(self, policy: SovereigntySpec) -> list[Mask]:
        """A mask per demand of a policy that asks how well its facts are supported."""
        assurance, named = policy.assurance, policy.certifications
        if assurance == _PLAIN:
            return self._demands(policy) or []
        # The certifications that are named are judged below, and their group by nothing else.
        others = replace(assurance, certifications="") if named else assurance
        found = self._parts(policy, others)
        for name in named:
            key = ("certifications", name, assurance)
            found.append(self._one(key, assurance, certifications=(name,)))
        if not found:
            found.append(self._one(("assurance", assurance), assurance))
        return found

    def _parts(self, policy: SovereigntySpec, assurance: AssuranceMinimum | None) -> list[Mask]:
        found = []
        masks = self._masks
        if policy.residency is not None:
            found.append(self._residency(policy.residency, assurance))
        for law in policy.forbid_laws:
            mask = masks.get(("law", law, assurance))
            if mask is None:
                mask = self._one(("law", law, assurance), assurance, forbid_laws=(law,))
            found.append(mask)
        if policy.ownership:
            key: object = ("ownership", policy.ownership, assurance)
            mask = masks.get(key)
            if mask is None:
                mask = self._one(key, assurance, ownership=policy.ownership)
            found.append(mask)
        if policy.gaiax_label is not None:
            key = ("gaiax", policy.gaiax_label, assurance)
            found.append(self._one(key, assurance, gaiax_label=policy.gaiax_label))
        if policy.seal is not NOTHING.seal:
            for name, level in zip(_SEALS, _levels(policy.seal), strict=True):
                if level is not None:
                    key = (name, level, assurance)
                    found.append(self._one(key, assurance, seal=SealMinimum(**{name: level})))
        if policy.energy is not NOTHING.energy:
            for name in _LIMITS:
                limit = getattr(policy.energy, name)
                if limit is not None:
                    found.append(self._energy(name, limit, assurance))
        return found

    def _residency(self, areas: tuple[str, ...], assurance: AssuranceMinimum | None) -> Mask:
        key = ("areas", areas, assurance)
        found = self._masks.get(key)
        if found is None:
            found = self._spread(np.zeros(len(self._facts), dtype=np.bool_))
            for area in areas:
                here = ("area", area, assurance)
                found = found | self._one(here, assurance, residency=(area,))
            self._keep(key, found)
        return found

    def _energy(self, name: str, limit: float, assurance: AssuranceMinimum | None) -> Mask:
        """Limits between the same two figures of the fleet admit the same sites."""
        figures = self._figures.get(name)
        if figures is None:
            column = (getattr(facts.energy, _LIMITS[name]) for facts in self._facts)
            figures = sorted({figure for figure in column if figure is not None})
            self._figures[name] = figures
        exact = bisect_right(figures, limit)
        at = bool(exact and figures[exact - 1] == limit)
        key = (name, exact, at, assurance)
        found = self._masks.get(key)
        if found is None:
            policy = SovereigntySpec(energy=EnergyLimits(**{name: limit}))
            if assurance is not None:
                policy = replace(policy, assurance=assurance)
            alike = self._same_figure(name) if assurance is None else None
            found = self._spread(self._judge(policy, alike))
            self._keep(key, found)
        return found

    def _same_figure(self, name: str) -> Ints:
        """Sites with one number have the same figure, or lack it: all that its limit looks at."""
        if name not in self._figure_groups:
            number: dict[float | None, int] = {}
            column = (getattr(facts.energy, _LIMITS[name]) for facts in self._facts)
            codes = [number.setdefault(figure, len(number)) for figure in column]
            self._figure_groups[name] = np.array(codes, dtype=np.int64)
        return self._figure_groups[name]

    def _one(
        self, key: object, assurance: AssuranceMinimum | None = None, **demand: object
    ) -> Mask:
        """Of one demand that is not about energy."""
        found = self._masks.get(key)
        if found is None:
            if assurance is not None:
                demand["assurance"] = assurance
            policy = SovereigntySpec(**demand)  # type: ignore[arg-type]  # fields of it
            alike = self._alike if assurance is None else None
            found = self._spread(self._judge(policy, alike))
            self._keep(key, found)
        return found

    def _judge(self, policy: SovereigntySpec, alike: Ints | None) -> Mask:
        """The verdict on each site; with `alike`, one for all sites of a number in it."""
        if alike is None:
            verdicts = [not evaluate(policy, facts, self._now) for facts in self._facts]
            return np.array(verdicts, dtype=np.bool_)
        first = np.unique(alike, return_index=True)[1]
        verdicts = [not evaluate(policy, self._facts[i], self._now) for i in first.tolist()]
        judged: Mask = np.array(verdicts, dtype=np.bool_)[alike]
        return judged

    @property
    def _alike(self) -> Ints:
        """Sites with one number have the same facts but for their name and their energy, which no
        demand but those of energy and assurance looks at. A provider's sites are mostly alike."""
        if self._groups is None:
            number: dict[object, int] = {}
            codes = [number.setdefault(_legal(facts), len(number)) for facts in self._facts]
            self._groups = np.array(codes, dtype=np.int64)
        return self._groups

    def _keep(self, key: object, mask: Mask) -> None:
        if len(self._masks) >= MASKS_MAX:
            self._masks.clear()
        self._masks[key] = mask


def _legal(facts: SiteFacts) -> object:
    return (
        id(facts.provider),
        facts.provider_name,
        facts.country,
        facts.tenure,
        facts.data_centre_operator,
        facts.admin_countries,
        facts.support_countries,
        facts.certifications,
        facts.seal,
        facts.assurance,
    )


MASKS_MAX = 4096
"""Bounds the memory of one plan; a fleet's policies have a few hundred different demands."""
