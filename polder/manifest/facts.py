"""The kinds Provider and Site: facts that sovereignty rules are judged by.

Read by `polder.sovereignty`, by the scheduler (where a site is) and by edgectl (`explain`). A fact
that is left out is *unknown* and fails every rule that needs it; `[]` says "declared: none". What
each rule needs is the table in `polder/sovereignty/evaluate.py`.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from polder.countries import country_code
from polder.manifest.identifiers import area, euid, iso_date, law, lei
from polder.manifest.names import LABEL, LABEL_HELP
from polder.manifest.quantity import timestamp_s
from polder.manifest.schema import Violation, spec

COUNTRY_TYPE = "country code such as NL"
LAW_TYPE = "law such as US-CLOUD-ACT"
ASSURANCES = ("self", "audited", "attested")
"""Weakest first: the declarer's word; an auditor's; an accredited body's, with evidence."""

MAX_OWNERS = 100
OWN_NAME = ""  # of the provider itself in its graph of owners
_SUM_TOLERANCE = 0.1  # percent: registers round each holding
_SCHEME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}")
_SCHEME_HELP = "a scheme's name of letters, digits, spaces, '.', '_' and '-', 63 characters at most"
_LEVEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_LEVEL_HELP = "a level's name such as high, of letters, digits, '.', '_' and '-'"
_EVIDENCE = re.compile(r"sha256:[0-9a-f]{64}")
_EVIDENCE_HELP = "a digest: sha256: and 64 hexadecimal digits in lower case"


def _country(doc: str) -> str:
    """An optional country: empty is unknown."""
    value: str = spec(doc, default="", parse=country_code, shown_type=COUNTRY_TYPE)
    return value


def _countries(doc: str) -> tuple[str, ...] | None:
    value: tuple[str, ...] | None = spec(
        doc, default=None, parse=country_code, shown_type=COUNTRY_TYPE, max_items=250
    )
    return value


def _laws(doc: str) -> tuple[str, ...] | None:
    value: tuple[str, ...] | None = spec(
        doc, default=None, parse=law, shown_type=LAW_TYPE, max_items=100
    )
    return value


def _assurance(doc: str) -> str:
    value: str = spec(f"{doc} Empty: as default says.", default="", choices=ASSURANCES)
    return value


def _sov(number: int, doc: str) -> int | None:
    value: int | None = spec(
        f"{doc} sovereignty.",
        key=f"SOV-{number}",
        default=None,
        minimum=0,
        maximum=4,
        explicit=True,
    )
    return value


@dataclass(frozen=True, slots=True)
class Owner:
    """One holding: who holds how much of what. A holder can appear more than once."""

    holder: str = spec("Its name. The same name is the same holder.", max_length=256)
    of: str = spec(
        "What is held: another holder's name. Empty: this provider.", default="", max_length=256
    )
    country: str = spec(
        "Of the holder's seat, or a person's residence. EU: only of dispersed holders.",
        default="",
        parse=area,
        shown_type=COUNTRY_TYPE,
    )
    capital_percent: float | None = spec(
        "Share of the capital. Left out: unknown.", default=None, minimum=0, maximum=100, unit="%"
    )
    votes_percent: float | None = spec(
        "Share of the votes. Left out: unknown.", default=None, minimum=0, maximum=100, unit="%"
    )
    control: bool = spec(
        "Decides, by contract, veto or appointment. Counts as 100 percent.", default=False
    )
    kind: str = spec(
        "dispersed is a free float: many holders, none of whom has 5 percent.",
        default="company",
        choices=("company", "person", "state", "dispersed"),
    )

    def violations(self) -> Iterator[Violation]:
        if not self.holder.strip():
            yield Violation("holder", "is empty")
        if self.capital_percent is None and self.votes_percent is None and not self.control:
            yield Violation("", "needs capitalPercent, votesPercent or control")
        if self.kind == "dispersed":
            if self.control:
                yield Violation("control", "dispersed holders control nothing")
            if self.country == "EEA":
                yield Violation("country", "must be a country or EU, which ownership is judged by")
        elif not self.country:
            yield Violation("country", "is required, unless the holders are dispersed")
        elif self.country in ("EU", "EEA"):
            text = "is a group of countries: only dispersed holders can have it"
            yield Violation("country", text)


@dataclass(frozen=True, slots=True)
class Subcontractor:
    """A company that the provider's service depends on."""

    name: str = spec("As registered.", max_length=256)
    country: str = spec("Of its seat.", parse=country_code, shown_type=COUNTRY_TYPE)
    role: str = spec("What it does.", default="", max_length=256)
    laws: tuple[str, ...] | None = _laws("Foreign laws that it is exposed to. [] says: none.")


@dataclass(frozen=True, slots=True)
class Certification:
    """A certificate of a provider or a site. It counts until the end of its last day, in UTC."""

    scheme: str = spec("Such as SecNumCloud or EUCS.", pattern=_SCHEME, pattern_help=_SCHEME_HELP)
    issuer: str = spec("Who certified.", max_length=256)
    valid_until: str = spec("Its last day.", parse=iso_date, shown_type="date such as 2027-03-31")
    level: str = spec("Such as high.", default="", pattern=_LEVEL, pattern_help=_LEVEL_HELP)
    scope: str = spec("What it covers, for people.", default="", max_length=1024)
    evidence: str = spec(
        "Digest of the certificate's file.",
        default="",
        pattern=_EVIDENCE,
        pattern_help=_EVIDENCE_HELP,
    )


@dataclass(frozen=True, slots=True)
class SealLevels:
    """SEAL by objective of the EU Cloud Sovereignty Framework 1.2.1: 0 (none) to 4 (full)."""

    sov_1: int | None = _sov(1, "Strategic")
    sov_2: int | None = _sov(2, "Legal and jurisdictional")
    sov_3: int | None = _sov(3, "Data and AI")
    sov_4: int | None = _sov(4, "Operational")
    sov_5: int | None = _sov(5, "Supply chain")
    sov_6: int | None = _sov(6, "Technology")
    sov_7: int | None = _sov(7, "Security and compliance")
    sov_8: int | None = _sov(8, "Environmental")

    def of(self, objective: int) -> int | None:
        """The level of SOV-`objective` (1 to 8)."""
        level: int | None = getattr(self, _SOV_FIELDS[objective - 1])
        return level


_SOV_FIELDS = tuple(f"sov_{number}" for number in range(1, 9))


@dataclass(frozen=True, slots=True)
class ProviderAssurance:
    """How well each group of facts is supported."""

    default: str = spec("Of what is not named here.", default="self", choices=ASSURANCES)
    identity: str = _assurance("Seat, head office, governing law.")
    ownership: str = _assurance("Owners.")
    laws: str = _assurance("Laws it is exposed to.")
    subcontractors: str = _assurance("Subcontractors and their laws.")
    certifications: str = _assurance("Certifications.")
    gaiax: str = _assurance("Gaia-X label.")
    seal: str = _assurance("SEAL levels.")


@dataclass(frozen=True, slots=True)
class SiteAssurance:
    """How well each group of facts is supported."""

    default: str = spec("Of what is not named here.", default="self", choices=ASSURANCES)
    location: str = _assurance("Country and coordinates.")
    operations: str = _assurance("Tenure, data-centre operator, admin and support countries.")
    certifications: str = _assurance("Certifications.")
    energy: str = _assurance("Energy.")
    seal: str = _assurance("SEAL levels.")


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """The legal entity that runs sites. A fact that is left out is unknown, and never assumed."""

    legal_name: str = spec("As registered.", max_length=256)
    seat_country: str = spec(
        "Where it has its registered seat.", parse=country_code, shown_type=COUNTRY_TYPE
    )
    lei: str = spec("Legal Entity Identifier (ISO 17442).", default="", parse=lei)
    euid: str = spec("European Unique Identifier of its register entry.", default="", parse=euid)
    head_office: str = _country("Where it is run from: central administration.")
    governing_law: str = _country("Whose law governs its contracts.")
    owners: tuple[Owner, ...] | None = spec(
        "Who holds it, and who holds the holders.", default=None, max_items=MAX_OWNERS
    )
    owners_complete: bool = spec(
        "All direct and indirect holders of 5 percent or more, or with control, are listed; the "
        "rest is dispersed. False: the rest may be one holder outside the EU.",
        default=False,
    )
    exposed_to_laws: tuple[str, ...] | None = _laws(
        "Foreign laws that reach it. [] says: none but those that follow from the other facts."
    )
    subcontractors: tuple[Subcontractor, ...] | None = spec(
        "Whom its service depends on. [] says: nobody.", default=None, max_items=100
    )
    certifications: tuple[Certification, ...] | None = spec(
        "Valid for all its sites.", default=None, max_items=50
    )
    gaiax_label: int | None = spec(
        "Level of its Gaia-X label. 0: none.", default=None, minimum=0, maximum=3
    )
    seal: SealLevels = spec("SEAL by objective.", default=SealLevels())
    assurance: ProviderAssurance = spec("Who vouches for the facts.", default=ProviderAssurance())
    unschedulable: bool = spec(
        "No new replicas at any of its sites (`edgectl cordon provider/NAME`).", default=False
    )

    def violations(self) -> Iterator[Violation]:
        owners = self.owners or ()
        yield from _contradictions(owners)
        kinds = {owner.holder: owner.kind for owner in owners}
        for index, owner in enumerate(owners):
            held = self.entity(owner.of)
            path = f"owners[{index}].of"
            if held != OWN_NAME and held not in kinds:
                yield Violation(path, f"{owner.of!r} is neither a holder in this list nor empty")
            elif kinds.get(held, "company") != "company":
                yield Violation(path, f"{owner.of!r} is a {kinds[held]}: nobody holds it")
        for measure in ("capital", "votes"):
            yield from self._over_100(owners, measure)

    def entity(self, name: str) -> str:
        """A node of the graph of owners: the provider is OWN_NAME, also by its legal name."""
        return OWN_NAME if name == self.legal_name else name

    def _over_100(self, owners: tuple[Owner, ...], measure: str) -> Iterator[Violation]:
        parts: dict[str, list[float]] = {}
        for owner in owners:
            percent = getattr(owner, f"{measure}_percent")
            if percent is not None:
                parts.setdefault(self.entity(owner.of), []).append(percent)
        for held, percents in sorted(parts.items()):
            total = math.fsum(percents)
            if total > 100 + _SUM_TOLERANCE:
                name = held or self.legal_name
                text = f"the {measure} of {name!r} adds up to {total:.15g} percent"
                yield Violation("owners", text)


def _contradictions(owners: tuple[Owner, ...]) -> Iterator[Violation]:
    first: dict[str, Owner] = {}
    for index, owner in enumerate(owners):
        before = first.setdefault(owner.holder, owner)
        for field in ("country", "kind"):
            there, here = getattr(before, field), getattr(owner, field)
            if here != there:
                text = f"{owner.holder!r} has {here or 'none'} here and {there or 'none'} before"
                yield Violation(f"owners[{index}].{field}", text)


@dataclass(frozen=True, slots=True)
class Coordinates:
    """WGS 84, in degrees."""

    latitude: float = spec("North is positive.", minimum=-90, maximum=90)
    longitude: float = spec("East is positive.", minimum=-180, maximum=180)


@dataclass(frozen=True, slots=True)
class DataCentreOperator:
    """Who runs the building of a leased site."""

    name: str = spec("As registered.", max_length=256)
    country: str = spec("Of its seat.", parse=country_code, shown_type=COUNTRY_TYPE)
    laws: tuple[str, ...] | None = _laws("Foreign laws that it is exposed to. [] says: none.")


@dataclass(frozen=True, slots=True)
class Energy:
    """Yearly means of a site."""

    pue: float | None = spec("Power usage effectiveness.", default=None, minimum=1, maximum=100)
    wue: float | None = spec(
        "Water usage effectiveness, litres per kWh.", default=None, minimum=0, maximum=1000
    )
    renewable_share: float | None = spec(
        "Part of the energy that is renewable: 0.8 is 80 percent.",
        default=None,
        minimum=0,
        maximum=1,
    )
    carbon_intensity_g_per_kwh: float | None = spec(
        "Grams of CO2 equivalent per kWh.", default=None, minimum=0, maximum=10_000
    )


@dataclass(frozen=True, slots=True)
class Maintenance:
    """A time in which a site gets no new replicas. It ends by itself."""

    start: float = spec(
        "When it begins.", parse=timestamp_s, shown_type="time such as 2026-11-22T03:00:00Z"
    )
    end: float = spec(
        "When it is over.", parse=timestamp_s, shown_type="time such as 2026-11-22T05:00:00Z"
    )
    drain: bool = spec("Whether its replicas move away meanwhile.", default=False)

    def violations(self) -> Iterator[Violation]:
        if self.end <= self.start:
            yield Violation("end", "is not after start")


@dataclass(frozen=True, slots=True)
class SiteSpec:
    """One edge location of one provider. A fact that is left out is unknown."""

    provider: str = spec("The Provider's name.", pattern=LABEL, pattern_help=LABEL_HELP)
    country: str = spec("Where it stands.", parse=country_code, shown_type=COUNTRY_TYPE)
    region: str = spec(
        "The nearest region of orchestrators.", default="", pattern=LABEL, pattern_help=LABEL_HELP
    )
    coordinates: Coordinates | None = spec("Where exactly.", default=None)
    tenure: str = spec(
        "Whether the provider owns the place.", default="", choices=("owned", "leased")
    )
    data_centre_operator: DataCentreOperator | None = spec(
        "Who runs the building, where it is leased.", default=None
    )
    admin_countries: tuple[str, ...] | None = _countries(
        "Where those are who administer it. [] says: nobody does."
    )
    support_countries: tuple[str, ...] | None = _countries(
        "Where those are who give support and can reach it. [] says: nobody does."
    )
    energy: Energy = spec("What it uses.", default=Energy())
    certifications: tuple[Certification, ...] | None = spec(
        "Valid for this site, beside those of its provider.", default=None, max_items=50
    )
    seal: SealLevels = spec(
        "Where this site falls short of its provider: the lower level counts.",
        default=SealLevels(),
    )
    assurance: SiteAssurance = spec("Who vouches for the facts.", default=SiteAssurance())
    unschedulable: bool = spec("No new replicas (`edgectl cordon site/NAME`).", default=False)
    maintenance: tuple[Maintenance, ...] = spec(
        "Windows in which it is left alone.", default=(), max_items=20
    )

    def violations(self) -> Iterator[Violation]:
        if self.data_centre_operator is not None and self.tenure != "leased":
            yield Violation("dataCentreOperator", "is for a site with tenure: leased")
