"""The demand `certifications`: a certificate of the provider or of the site that is not over.

Called by `evaluate.py`, with the time as an argument.
"""

from collections.abc import Iterator
from functools import lru_cache

from polder.manifest.facts import Certification
from polder.manifest.identifiers import end_of_day
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty.profile import SiteFacts
from polder.sovereignty.reason import Reason
from polder.sovereignty.rules_assurance import assured, rank, stronger, too_weak
from polder.sovereignty.undeclared import undeclared

# Levels of schemes whose order is known. Of any other scheme the level must be the same.
_LEVEL_ORDER = {
    "eucs": ("basic", "substantial", "high"),
    "c5": ("type1", "type2"),
}


@lru_cache(maxsize=4096)
def _folded(text: str) -> str:
    """`ISO 27001`, `ISO-27001` and `iso27001` are one scheme."""
    return "".join(character for character in text.casefold() if character.isalnum())


def _matches(wanted: str, certificate: Certification) -> bool:
    scheme, _, level = wanted.partition("/")
    scheme = _folded(scheme)
    if scheme != _folded(certificate.scheme):
        return False
    level, has = _folded(level), _folded(certificate.level)
    order = _LEVEL_ORDER.get(scheme, ())
    if level in order and has in order:
        return order.index(has) >= order.index(level)
    return not level or level == has


def matching(wanted: str, facts: SiteFacts) -> Iterator[tuple[str, Certification]]:
    """The certificates of provider and site that a demand means, over or not, with whose."""
    for index, found in enumerate((facts.provider and facts.provider.certifications) or ()):
        if _matches(wanted, found):
            yield f"provider.certifications[{index}]", found
    for index, found in enumerate(facts.certifications or ()):
        if _matches(wanted, found):
            yield f"site.certifications[{index}]", found


def certificate_reasons(
    policy: SovereigntySpec, wanted: str, facts: SiteFacts, now: float
) -> Iterator[Reason]:
    found = tuple(matching(wanted, facts))
    valid = [where for where, one in found if now < end_of_day(one.valid_until)]
    least = stronger(policy.assurance.certifications, policy.assurance.default)
    if valid:
        levels = [assured(facts, where.partition(".")[0], "certifications") for where in valid]
        if least and not any(rank(level) >= rank(least) for level in levels):
            best = max(levels, key=rank)
            yield too_weak("certifications", valid[0], least, best)
    elif found:
        where, last = max(found, key=lambda pair: pair[1].valid_until)
        text = f"the certificate of {last.issuer} for {wanted} ended with {last.valid_until}"
        yield Reason(
            "certifications", "CertificateExpired", where, text, wanted, wanted, last.valid_until
        )
    elif facts.certifications is None and (
        facts.provider is None or facts.provider.certifications is None
    ):
        yield undeclared("certifications", "provider.certifications", facts, wanted)
    else:
        text = f"neither site {facts.site} nor provider {facts.provider_name} is certified {wanted}"
        where = "provider.certifications"
        yield Reason("certifications", "NotCertified", where, text, wanted, wanted)
