"""The demand `assurance`: how well the facts must be supported that other demands rest on.

Called by `evaluate.py`. `default` asks it of the facts that some other demand of the policy rests
on; a group that is named must be declared and supported, whatever else is asked.
"""

from collections.abc import Iterator

from polder.manifest.facts import ASSURANCES
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty.profile import SiteFacts
from polder.sovereignty.reason import Reason
from polder.sovereignty.undeclared import undeclared

_NO_POLICY = SovereigntySpec()
_NO_FACTS = SiteFacts("")
_PROVIDER_GROUPS = ("identity", "ownership", "laws", "subcontractors", "gaiax", "seal")
_SITE_GROUPS = ("location", "operations", "energy")


def assurance_reasons(policy: SovereigntySpec, facts: SiteFacts) -> Iterator[Reason]:
    if policy.assurance == _NO_POLICY.assurance:
        return
    used = _groups_used(policy)
    for group in (*_PROVIDER_GROUPS, *_SITE_GROUPS):
        least: str = getattr(policy.assurance, group)
        if group in used:
            least = stronger(least, policy.assurance.default)
        if not least:
            continue
        owner = "provider" if group in _PROVIDER_GROUPS else "site"
        if not _declared(facts, group):
            yield undeclared("assurance", f"{owner}.{_FACT_OF[group]}", facts, group)
        elif rank(level := assured(facts, owner, group)) < rank(least):
            yield too_weak(group, f"{owner}.assurance.{group}", least, level)
    if policy.assurance.certifications and not policy.certifications:
        yield from _named_certifications(policy.assurance.certifications, facts)


def _named_certifications(least: str, facts: SiteFacts) -> Iterator[Reason]:
    """The group is named, no scheme is: what is declared must be supported."""
    group = "certifications"
    owners = [
        owner
        for owner, given in (
            ("provider", facts.provider.certifications if facts.provider else None),
            ("site", facts.certifications),
        )
        if given is not None
    ]
    if not owners:
        yield undeclared("assurance", "provider.certifications", facts, group)
        return
    level, owner = max((rank(assured(facts, owner, group)), owner) for owner in owners)
    if level < rank(least):
        yield too_weak(group, f"{owner}.assurance.{group}", least, ASSURANCES[level])


_FACT_OF = {
    "identity": "headOffice",
    "ownership": "owners",
    "laws": "exposedToLaws",
    "subcontractors": "subcontractors",
    "gaiax": "gaiaxLabel",
    "seal": "seal",
    "location": "country",
    "operations": "adminCountries",
    "energy": "energy",
}


def stronger(one: str, other: str) -> str:
    """Of two minimums, of which either may be empty. A named group never lowers the default."""
    return max(one, other, key=lambda level: rank(level) if level else -1)


def too_weak(group: str, where: str, least: str, level: str) -> Reason:
    """The reason for facts that are declared, at `where`, with less than the least assurance."""
    owner = where.partition(".")[0]
    text = f"the assurance of the {owner}'s {group} is {level}; {least} is needed"
    return Reason("assurance", "AssuranceTooLow", where, text, group, least, level)


def _groups_used(policy: SovereigntySpec) -> frozenset[str]:
    used: set[str] = set()
    if policy.residency is not None:
        used.add("location")
    if policy.ownership:
        used |= {"identity", "ownership"}
    if policy.forbid_laws:
        used |= {"identity", "ownership", "laws", "subcontractors", "location", "operations"}
    if policy.gaiax_label is not None:
        used.add("gaiax")
    if policy.seal != _NO_POLICY.seal:
        used.add("seal")
    if policy.energy != _NO_POLICY.energy:
        used.add("energy")
    return frozenset(used)


def _declared(facts: SiteFacts, group: str) -> bool:
    provider = facts.provider
    if group in _PROVIDER_GROUPS and provider is None:
        return False
    if group == "location":
        return bool(facts.country)
    if group == "operations":
        return facts.admin_countries is not None
    if group == "energy":
        return facts.energy != _NO_FACTS.energy
    assert provider is not None
    if group == "identity":
        return bool(provider.head_office)
    if group == "seal":
        return provider.seal != _NO_FACTS.seal
    fields = {"ownership": "owned", "laws": "exposed_to_laws", "gaiax": "gaiax_label"}
    return getattr(provider, fields.get(group, group)) is not None


def assured(facts: SiteFacts, owner: str, group: str) -> str:
    """The assurance of a declared group of facts. `owner` is provider or site."""
    if owner == "site":
        return str(getattr(facts.assurance, group) or facts.assurance.default)
    assert facts.provider is not None, "no provider, no declared group"
    assurance = facts.provider.assurance
    return str(getattr(assurance, group) or assurance.default)


def rank(level: str) -> int:
    """Higher is better supported."""
    return ASSURANCES.index(level)
