"""Whether a policy admits a site, and every reason why not.

Called at apply (could any site do?), for every site and policy of a snapshot before planning, and
by the agent against the facts in its signed plan. Pure and small: the agent imports it.

| demand | facts it needs: one that is not declared fails it |
|---|---|
| residency | site country |
| ownership | provider seatCountry, headOffice, owners |
| forbidLaws | provider seatCountry, headOffice, governingLaw, owners, exposedToLaws, subcontractors and their laws; site country, tenure, dataCentreOperator and its laws if leased, adminCountries, supportCountries |
| gaiaxLabel | provider gaiaxLabel |
| seal | provider seal of that objective; site seal lowers it |
| certifications | certifications of provider or site, not over at `now` |
| energy | site energy, the figure asked |
| assurance | of the groups that the other demands rest on, or that are named |

No fact that could refuse a site is optional: otherwise silence would be the way in. (A site's
`seal` is no fact of its own: it records where the site falls short of its provider.)

SEAL follows the implementation guidance of the Cloud Sovereignty Framework: the level of an
objective is the lowest among what contributes to it, here provider and site; the overall level is
the lowest of the eight objectives. A level is never derived from other facts.
"""  # noqa: E501  # a table's row is one line

from collections.abc import Iterator
from functools import lru_cache

from polder.manifest.identifiers import area_text, countries_in, end_of_day
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty.profile import SiteFacts
from polder.sovereignty.reason import Reason
from polder.sovereignty.rules_assurance import assurance_reasons
from polder.sovereignty.rules_certifications import certificate_reasons, matching
from polder.sovereignty.rules_laws import law_reasons
from polder.sovereignty.rules_ownership import ownership_reasons
from polder.sovereignty.undeclared import undeclared

_NO_POLICY = SovereigntySpec()
_ENERGY = (  # key and field of the limit, key and field of the fact, name for people
    ("pueMax", "pue_max", "pue", "pue", "PUE"),
    ("wueMax", "wue_max", "wue", "wue", "WUE"),
    (
        "renewableShareMin",
        "renewable_share_min",
        "renewableShare",
        "renewable_share",
        "a renewable share of",
    ),
    (
        "carbonIntensityGPerKwhMax",
        "carbon_intensity_g_per_kwh_max",
        "carbonIntensityGPerKwh",
        "carbon_intensity_g_per_kwh",
        "a carbon intensity (g/kWh) of",
    ),
)


def evaluate(policy: SovereigntySpec, facts: SiteFacts, now: float) -> tuple[Reason, ...]:
    """Every reason against running there at `now` (unix seconds). Empty: it is allowed.

    `policy` is the effective one: a workload's, tightened by its namespace's floor.
    """
    found: list[Reason] = []
    if policy.residency is not None:
        found.extend(_residency(policy.residency, facts))
    if policy.ownership:
        found.extend(ownership_reasons(policy.ownership, facts))
    for law in policy.forbid_laws:
        found.extend(law_reasons(law, facts))
    if policy.gaiax_label is not None:
        found.extend(_label(policy.gaiax_label, facts))
    found.extend(_seal(policy, facts))
    for wanted in policy.certifications:
        found.extend(certificate_reasons(policy, wanted, facts, now))
    found.extend(_energy(policy, facts))
    found.extend(assurance_reasons(policy, facts))
    return tuple(found)


def _residency(allowed: tuple[str, ...], facts: SiteFacts) -> Iterator[Reason]:
    if not facts.country:
        yield undeclared("residency", "site.country", facts)
    elif facts.country not in _countries(allowed):
        area = area_text(_countries(allowed))
        yield Reason(
            "residency",
            "OutsideResidency",
            "site.country",
            f"site {facts.site} is in {facts.country}; allowed is {area}",
            needed=area,
            actual=facts.country,
        )


_countries = lru_cache(maxsize=1024)(countries_in)


def _label(wanted: int, facts: SiteFacts) -> Iterator[Reason]:
    provider = facts.provider
    if provider is None or provider.gaiax_label is None:
        yield undeclared("gaiaxLabel", "provider.gaiaxLabel", facts)
    elif provider.gaiax_label < wanted:
        has = provider.gaiax_label
        text = f"the Gaia-X label of {provider.legal_name} has level {has}; {wanted} is needed"
        where = "provider.gaiaxLabel"
        yield Reason("gaiaxLabel", "LabelTooLow", where, text, needed=wanted, actual=has)


def _seal(policy: SovereigntySpec, facts: SiteFacts) -> Iterator[Reason]:
    if policy.seal == _NO_POLICY.seal:
        return
    for objective in range(1, 9):
        wanted = policy.seal.asked(objective)
        if wanted is None:
            continue
        name = f"SOV-{objective}"
        item = "overall" if policy.seal.overall == wanted else name
        level = None if facts.provider is None else facts.provider.seal.of(objective)
        here = facts.seal.of(objective)
        if level is None:
            yield undeclared("seal", f"provider.seal.{name}", facts, item)
            continue
        fact, who = f"provider.seal.{name}", f"provider {facts.provider_name}"
        if here is not None and here < level:
            level, fact, who = here, f"site.seal.{name}", f"site {facts.site}"
        if level < wanted:
            text = f"{who} has SEAL-{level} for {name}; SEAL-{wanted} is needed"
            yield Reason("seal", "SealTooLow", fact, text, item, wanted, level)


def _energy(policy: SovereigntySpec, facts: SiteFacts) -> Iterator[Reason]:
    if policy.energy == _NO_POLICY.energy:
        return
    for item, limit_field, key, field, what in _ENERGY:
        limit: float | None = getattr(policy.energy, limit_field)
        actual: float | None = getattr(facts.energy, field)
        if limit is None:
            continue
        if actual is None:
            yield undeclared("energy", f"site.energy.{key}", facts, item)
        elif actual < limit if item.endswith("Min") else actual > limit:
            bound = "at least" if item.endswith("Min") else "at most"
            text = f"site {facts.site} has {what} {actual:g}; {bound} {limit:g} is needed"
            where = f"site.energy.{key}"
            yield Reason("energy", "EnergyLimitMissed", where, text, item, limit, actual)


def next_change(policy: SovereigntySpec, facts: SiteFacts, now: float) -> float | None:
    """When, after `now`, a fact that the policy rests on expires (unix seconds), or None.

    Until then `evaluate` gives the same answer, to the word: the leader plans again at that time.
    """
    ends = (
        end_of_day(found.valid_until)
        for wanted in policy.certifications
        for _, found in matching(wanted, facts)
    )
    return min((end for end in ends if end > now), default=None)
