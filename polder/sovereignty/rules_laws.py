"""The demand `forbidLaws`: every way by which a law of another country reaches a site.

Called by `evaluate.py`. The ways: the provider's seat, head office or governing law; what it
declares; whoever controls it; its subcontractors; the site's country, the places from where it is
administered and supported, and who runs the building if it is leased.
"""

from collections.abc import Iterator

from polder.sovereignty.laws import reaches
from polder.sovereignty.profile import Owned, ProviderProfile, SiteFacts
from polder.sovereignty.reason import Reason
from polder.sovereignty.undeclared import undeclared


def law_reasons(law: str, facts: SiteFacts) -> Iterator[Reason]:
    """Every way by which the law reaches, and every undeclared fact by which it might."""
    for fact, text in _law_causes(law, facts):
        if text:
            yield Reason("forbidLaws", "LawReaches", fact, f"{law} reaches it: {text}", law, law)
        else:
            yield undeclared("forbidLaws", fact, facts, law)
    owned = facts.provider.owned if facts.provider is not None else None
    if owned is not None:
        for doubt in _doubts(law, owned):
            text = f"it cannot be ruled out that {law} reaches it: {doubt}"
            yield Reason("forbidLaws", "LawMayReach", "provider.owners", text, law, law)


def _law_causes(law: str, facts: SiteFacts) -> Iterator[tuple[str, str]]:
    """Pairs of a fact and how the law reaches through it; an empty text: it is not declared."""
    provider = facts.provider
    if provider is None:
        yield "provider.exposedToLaws", ""
    else:
        yield from _law_through_provider(law, provider)
        if provider.owned is None:
            yield "provider.owners", ""
        else:
            for reach in provider.owned.reaches:
                if reaches(law, reach.country):
                    yield "provider.owners", reach.how
    yield from _law_through_site(law, facts)


def _doubts(law: str, owned: Owned) -> tuple[str, ...]:
    """How owners who are not declared may bring the law."""
    found = tuple(one.how for one in owned.possible_reaches if reaches(law, one.country))
    return found or ((owned.anyone,) if owned.anyone else ())


def _law_through_provider(law: str, provider: ProviderProfile) -> Iterator[tuple[str, str]]:
    name = provider.legal_name
    for field, country, what in (
        ("seatCountry", provider.seat_country, f"{name} has its seat in"),
        ("headOffice", provider.head_office, f"{name} has its head office in"),
        ("governingLaw", provider.governing_law, f"{name} contracts under the law of"),
    ):
        if not country:
            yield f"provider.{field}", ""
        elif reaches(law, country):
            yield f"provider.{field}", f"{what} {country}"
    if provider.exposed_to_laws is None:
        yield "provider.exposedToLaws", ""
    elif law in provider.exposed_to_laws:
        yield "provider.exposedToLaws", f"{name} declares it"
    if provider.subcontractors is None:
        yield "provider.subcontractors", ""
    for index, company in enumerate(provider.subcontractors or ()):
        where = f"provider.subcontractors[{index}]"
        who = f"subcontractor {company.name} ({company.country})"
        yield from _law_through_company(law, where, who, company.country, company.laws)


def _law_through_company(
    law: str, where: str, who: str, country: str, laws: tuple[str, ...] | None
) -> Iterator[tuple[str, str]]:
    if reaches(law, country):
        yield f"{where}.country", f"{who} is under it"
    elif laws is None:
        yield f"{where}.laws", ""
    elif law in laws:
        yield f"{where}.laws", f"{who} is exposed to it"


def _law_through_site(law: str, facts: SiteFacts) -> Iterator[tuple[str, str]]:
    if not facts.country:
        yield "site.country", ""
        return
    if reaches(law, facts.country):
        yield "site.country", f"site {facts.site} is in {facts.country}"
    for field, countries, what in (
        ("adminCountries", facts.admin_countries, "administered"),
        ("supportCountries", facts.support_countries, "supported"),
    ):
        if countries is None:
            yield f"site.{field}", ""
        for country in countries or ():
            if reaches(law, country):
                yield f"site.{field}", f"site {facts.site} is {what} from {country}"
    operator = facts.data_centre_operator
    if operator is not None:
        where, who = "site.dataCentreOperator", f"data-centre operator {operator.name}"
        who = f"{who} ({operator.country})"
        yield from _law_through_company(law, where, who, operator.country, operator.laws)
    elif not facts.tenure:
        yield "site.tenure", ""
    elif facts.tenure == "leased":
        yield "site.dataCentreOperator", ""
