"""What a workload, or the floor of a namespace, demands of the places where it may run.

Decoded from manifests, merged and judged in `polder.sovereignty`, and carried in the signed plan,
by which an agent judges alone. What is not demanded is not checked; a demand is closed on unknowns.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from polder.manifest.facts import ASSURANCES, LAW_TYPE, SealLevels
from polder.manifest.identifiers import area, law
from polder.manifest.schema import Violation, spec

# A demand left empty (`residency:`, from a template without its value) must not mean: anywhere.
_demand = partial(spec, explicit=True)

OWNERSHIPS = ("eu-controlled", "secnumcloud")
"""Weaker first: whatever secnumcloud admits, eu-controlled admits too."""

_CERTIFICATE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}(/[A-Za-z0-9][A-Za-z0-9._-]{0,31})?")
_CERTIFICATE_HELP = "a scheme, with a level if one is needed, such as SecNumCloud or EUCS/high"


def _least(doc: str) -> str:
    value: str = _demand(doc, default="", choices=ASSURANCES)
    return value


@dataclass(frozen=True, slots=True)
class SealMinimum(SealLevels):
    """The least SEAL by objective. What is not named is not asked."""

    overall: int | None = _demand(
        "Of every objective: the framework's overall level is that of the weakest.",
        default=None,
        minimum=0,
        maximum=4,
    )

    def asked(self, objective: int) -> int | None:
        """What is asked of SOV-`objective`, by name or by `overall`."""
        level = self.of(objective)
        if level is None or self.overall is None:
            return self.overall if level is None else level
        return max(level, self.overall)

    def violations(self) -> Iterator[Violation]:
        for objective in range(1, 9):
            level = self.of(objective)
            if level is not None and self.overall is not None and level < self.overall:
                text = f"is {level}; overall asks {self.overall} of every objective"
                yield Violation(f"SOV-{objective}", text)


@dataclass(frozen=True, slots=True)
class EnergyLimits:
    """Limits on the yearly means of a site."""

    pue_max: float | None = _demand(
        "Power usage effectiveness.", default=None, minimum=1, maximum=100
    )
    wue_max: float | None = _demand(
        "Litres of water per kWh.", default=None, minimum=0, maximum=1000
    )
    renewable_share_min: float | None = _demand(
        "Part of the energy that is renewable: 0.8 is 80 percent.",
        default=None,
        minimum=0,
        maximum=1,
    )
    carbon_intensity_g_per_kwh_max: float | None = _demand(
        "Grams of CO2 equivalent per kWh.", default=None, minimum=0, maximum=10_000
    )


@dataclass(frozen=True, slots=True)
class AssuranceMinimum:
    """How well facts must be supported: self, audited or attested."""

    default: str = _least(
        "Of every fact that another demand of this policy rests on; more can be asked below."
    )
    identity: str = _least("Of the provider's seat, head office and governing law.")
    ownership: str = _least("Of the owners.")
    laws: str = _least("Of the laws that the provider is exposed to.")
    subcontractors: str = _least("Of the subcontractors.")
    gaiax: str = _least("Of the Gaia-X label.")
    seal: str = _least("Of the SEAL levels.")
    certifications: str = _least("Of the certifications.")
    location: str = _least("Of the site's country.")
    operations: str = _least("Of who runs, administers and supports the site.")
    energy: str = _least("Of the site's energy.")


@dataclass(frozen=True, slots=True)
class SovereigntySpec:
    """Where it may run. A fact that is not declared fails every demand that needs it."""

    residency: tuple[str, ...] | None = _demand(
        "Countries where it may run. EU and EEA stand for their members.",
        default=None,
        parse=area,
        shown_type="country code, EU or EEA",
        max_items=300,
    )
    forbid_laws: tuple[str, ...] = _demand(
        "Laws that must not reach it: through the provider, whoever controls it, its "
        "subcontractors, or those who run, administer and support the site.",
        default=(),
        parse=law,
        shown_type=LAW_TYPE,
        max_items=100,
    )
    ownership: str = _demand(
        "eu-controlled: majority and control inside the EU. secnumcloud: the caps of SecNumCloud "
        "3.2 section 19.6 on holders outside the EU: 24 percent for one, 39 together.",
        default="",
        choices=OWNERSHIPS,
    )
    gaiax_label: int | None = _demand(
        "The least level of the Gaia-X label.", default=None, minimum=0, maximum=3
    )
    seal: SealMinimum = _demand("The least SEAL by objective.", default=SealMinimum())
    certifications: tuple[str, ...] = _demand(
        "Schemes, each with a valid certificate of the site or its provider.",
        default=(),
        pattern=_CERTIFICATE,
        pattern_help=_CERTIFICATE_HELP,
        max_items=50,
    )
    energy: EnergyLimits = _demand("Limits on what the site uses.", default=EnergyLimits())
    assurance: AssuranceMinimum = _demand(
        "How well the facts must be supported.", default=AssuranceMinimum()
    )

    def violations(self) -> Iterator[Violation]:
        if self.residency == ():
            yield Violation("residency", "allows no country; leave it out to allow every country")
