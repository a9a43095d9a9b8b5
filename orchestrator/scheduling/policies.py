"""Which sites a sovereignty policy admits, as masks that are computed once per single demand.

Policies are many and their demands are few: a policy's mask is the conjunction of the masks of its
demands (for residency: the union over its countries), and only those are judged by
`polder.sovereignty.evaluate`, once per site. Owned by the table of one plan, since `now` counts.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt

from polder.manifest.policy import AssuranceMinimum, EnergyLimits, SealMinimum, SovereigntySpec
from polder.sovereignty import Reason, SiteFacts, evaluate

Mask = npt.NDArray[np.bool_]

NOTHING = SovereigntySpec()
_PLAIN = NOTHING.assurance
_SEALS = tuple(item.name for item in fields(SealMinimum))
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
        self._figures: dict[str, list[float]] = {}

    def admitted(self, policy: SovereigntySpec) -> Mask | None:
        """What it admits, at the finer level. None: everything, for it demands nothing."""
        if policy is NOTHING:
            return None
        found: Mask | None = None
        assurance, named = policy.assurance, policy.certifications
        if assurance == _PLAIN:
            assurance = _PLAIN
        elif named and assurance.certifications:
            assurance = replace(assurance, certifications="")
        demands = self._demands(policy, assurance)
        if named:
            whole = policy.assurance
            demands += [
                self._one(("certifications", name, whole), certifications=(name,), assurance=whole)
                for name in named
            ]
        if not demands and assurance is not _PLAIN:
            demands = [self._one(("assurance", assurance), assurance=assurance)]
        for mask in demands:
            found = mask if found is None else found & mask
        return found

    def reasons(self, policy: SovereigntySpec, site: int) -> tuple[Reason, ...]:
        """Why the policy refuses the site; empty when it does not."""
        return evaluate(policy, self._facts[site], self._now)

    def _demands(self, policy: SovereigntySpec, assurance: AssuranceMinimum) -> list[Mask]:
        found = []
        if policy.residency is not None:
            found.append(self._residency(policy.residency, assurance))
        for law in policy.forbid_laws:
            found.append(
                self._one(("law", law, assurance), forbid_laws=(law,), assurance=assurance)
            )
        if policy.ownership:
            key = ("ownership", policy.ownership, assurance)
            found.append(self._one(key, ownership=policy.ownership, assurance=assurance))
        if policy.gaiax_label is not None:
            key = ("gaiax", str(policy.gaiax_label), assurance)
            found.append(self._one(key, gaiax_label=policy.gaiax_label, assurance=assurance))
        if policy.seal is not NOTHING.seal:
            for name in _SEALS:
                level = getattr(policy.seal, name)
                if level is not None:
                    seal = SealMinimum(**{name: level})
                    found.append(
                        self._one((name, level, assurance), seal=seal, assurance=assurance)
                    )
        if policy.energy is not NOTHING.energy:
            for name in _LIMITS:
                limit = getattr(policy.energy, name)
                if limit is not None:
                    found.append(self._energy(name, limit, assurance))
        return found

    def _residency(self, areas: tuple[str, ...], assurance: AssuranceMinimum) -> Mask:
        key = ("areas", areas, assurance)
        found = self._masks.get(key)
        if found is None:
            found = self._spread(np.zeros(len(self._facts), dtype=np.bool_))
            for area in areas:
                here = ("area", area, assurance)
                found = found | self._one(here, residency=(area,), assurance=assurance)
            self._keep(key, found)
        return found

    def _energy(self, name: str, limit: float, assurance: AssuranceMinimum) -> Mask:
        """Limits between the same two figures of the fleet admit the same sites."""
        figures = self._figures.get(name)
        if figures is None:
            column = (getattr(facts.energy, _LIMITS[name]) for facts in self._facts)
            figures = sorted({figure for figure in column if figure is not None})
            self._figures[name] = figures
        exact = bisect_right(figures, limit)
        at = bool(exact and figures[exact - 1] == limit)
        spec = EnergyLimits(**{name: limit})
        return self._one((name, exact, at, assurance), energy=spec, assurance=assurance)

    def _one(self, key: object, **demand: object) -> Mask:
        found = self._masks.get(key)
        if found is None:
            policy = SovereigntySpec(**demand)  # type: ignore[arg-type]  # fields of it
            verdicts = [not evaluate(policy, facts, self._now) for facts in self._facts]
            found = self._spread(np.array(verdicts, dtype=np.bool_))
            self._keep(key, found)
        return found

    def _keep(self, key: object, mask: Mask) -> None:
        if len(self._masks) >= MASKS_MAX:
            self._masks.clear()
        self._masks[key] = mask


MASKS_MAX = 4096
"""Bounds the memory of one plan; a fleet's policies have a few hundred different demands."""
