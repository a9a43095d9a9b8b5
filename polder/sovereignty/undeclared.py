"""The reason for a fact that nobody declared. Called by every rule."""

from polder.sovereignty.profile import SiteFacts
from polder.sovereignty.reason import Reason


def undeclared(predicate: str, fact: str, facts: SiteFacts, item: str = "") -> Reason:
    """`fact` is `provider.` or `site.` and the path of the fact in its spec."""
    owner, _, name = fact.partition(".")
    if owner == "provider" and facts.provider is None:
        who = f"provider {facts.provider_name}" if facts.provider_name else "the provider"
        text = f"{who} of site {facts.site} is not declared"
        return Reason(predicate, "ProviderNotDeclared", "provider", text, item)
    if not facts.country:
        text = f"site {facts.site} is not declared"
        return Reason(predicate, "SiteNotDeclared", "site", text, item)
    who = f"provider {facts.provider_name}" if owner == "provider" else f"site {facts.site}"
    return Reason(predicate, "NotDeclared", fact, f"{who} does not declare {name}", item)
