"""The facts by which a site meets a policy, in words: the other half of `evaluate`.

Called by Why, for replicas that have a place. What a site does not meet is not told here.
"""

from collections.abc import Iterator

from polder.manifest.identifiers import end_of_day
from polder.manifest.policy import AssuranceMinimum, EnergyLimits, SovereigntySpec
from polder.manifest.schema import fields_of
from polder.sovereignty import ProviderProfile, SiteFacts, evaluate
from polder.sovereignty.ownership import percent_text
from polder.sovereignty.rules_certifications import matching


def demands_met(policy: SovereigntySpec, facts: SiteFacts, now: float) -> list[str]:
    """One sentence for each demand that is met: `seal.SOV-2: SEAL-3, at least 2 is asked`."""
    failing = {reason.knob for reason in evaluate(policy, facts, now)}
    return [f"{knob}: {text}" for knob, text in _told(policy, facts, now) if knob not in failing]


def _told(policy: SovereigntySpec, facts: SiteFacts, now: float) -> Iterator[tuple[str, str]]:
    provider = facts.provider
    if policy.residency is not None:
        yield "residency", f"site {facts.site} is in {facts.country}"
    if policy.ownership and provider is not None:
        yield "ownership", f"{policy.ownership}; {_outside(provider)}"
    for law in policy.forbid_laws:
        yield (
            f"forbidLaws.{law}",
            f"nothing declared of {facts.provider_name} or the site brings it",
        )
    if policy.gaiax_label is not None and provider is not None:
        yield "gaiaxLabel", f"level {provider.gaiax_label}, at least {policy.gaiax_label} is asked"
    yield from _seal(policy, facts)
    for wanted in policy.certifications:
        for where, found in matching(wanted, facts):
            if now < end_of_day(found.valid_until):
                whose = where.partition(".")[0]
                text = f"of the {whose}, by {found.issuer}, until {found.valid_until}"
                yield f"certifications.{wanted}", text
                break
    for info in fields_of(EnergyLimits):
        limit = getattr(policy.energy, info.name)
        if limit is not None:
            bound = "at least" if info.key.endswith("Min") else "at most"
            fact = info.name.rsplit("_", 1)[0]
            has = getattr(facts.energy, fact)
            yield f"energy.{info.key}", f"{has:g}, {bound} {limit:g} is asked" if has else ""
    for info in fields_of(AssuranceMinimum):
        if asked := getattr(policy.assurance, info.name):
            yield f"assurance.{info.key}", f"at least {asked}"


def _outside(provider: ProviderProfile) -> str:
    owned = provider.owned
    if owned is None:
        return ""
    capital, votes = percent_text(owned.capital.percent), percent_text(owned.votes.percent)
    return f"outside the EU are {capital} of the capital of {provider.legal_name}, {votes} of votes"


def _seal(policy: SovereigntySpec, facts: SiteFacts) -> Iterator[tuple[str, str]]:
    for objective in range(1, 9):
        asked = policy.seal.asked(objective)
        if asked is None or facts.provider is None:
            continue
        levels = (facts.provider.seal.of(objective), facts.seal.of(objective))
        level = min((one for one in levels if one is not None), default=None)
        yield f"seal.SOV-{objective}", f"SEAL-{level}, at least {asked} is asked"
