"""The demand `ownership`: what may be held from outside the EU.

Called by `evaluate.py` with what `profile.py` made of the graph. The caps are those of SecNumCloud
3.2 (ANSSI, 8 March 2022), section 19.6: a) seat and head office in the EU; b) of capital and of
votes, directly or indirectly, 24 percent at most for one holder outside the EU and 39 for all of
them together, none of whom may appoint the majority of the governing bodies. Its c) to f), on
subcontractors and conduct, are not about owners: `forbidLaws` and `certifications` ask for those.
`eu-controlled` asks for a), for more than half of both measures held from the EU, and that no party
outside the EU has control. Whatever secnumcloud admits, eu-controlled admits.
"""

from collections.abc import Iterator

from polder.countries import EU
from polder.sovereignty.ownership import percent_text
from polder.sovereignty.profile import Outside, Owned, ProviderProfile, SiteFacts
from polder.sovereignty.reason import Reason
from polder.sovereignty.undeclared import undeclared

ONE_HOLDER_MAX_PERCENT = 24.0
TOGETHER_MAX_PERCENT = 39.0
_SOURCE = "SecNumCloud 3.2 section 19.6"


def ownership_reasons(wanted: str, facts: SiteFacts) -> Iterator[Reason]:
    """`wanted` is secnumcloud or eu-controlled."""
    provider = facts.provider
    if provider is None:
        yield undeclared("ownership", "provider.owners", facts)
        return
    for fact, country in (
        ("seatCountry", provider.seat_country),
        ("headOffice", provider.head_office),
    ):
        if not country:
            yield undeclared("ownership", f"provider.{fact}", facts)
        elif country not in EU:
            what = "seat" if fact == "seatCountry" else "head office"
            text = f"the {what} of {provider.legal_name} is in {country}, outside the EU"
            code = "SeatOutsideEu" if fact == "seatCountry" else "HeadOfficeOutsideEu"
            where = f"provider.{fact}"
            yield Reason("ownership", code, where, text, needed="EU", actual=country)
    if provider.owned is None:
        yield undeclared("ownership", "provider.owners", facts)
        return
    yield from _control(provider.owned)
    for measure, part in (("capital", provider.owned.capital), ("votes", provider.owned.votes)):
        if wanted == "secnumcloud":
            yield from _one_holder(provider, provider.owned, measure, part)
            yield from _together(provider, measure, part)
        else:
            yield from _majority(provider, measure, part)


def _owners_reason(code: str, text: str, needed: float | None, actual: float | None) -> Reason:
    return Reason("ownership", code, "provider.owners", text, needed=needed, actual=actual)


def _control(owned: Owned) -> Iterator[Reason]:
    """Also under secnumcloud: 19.6 b forbids outsiders to appoint the majority of the bodies."""
    if owned.control:
        text = f"it is controlled from outside the EU: {owned.control}"
        yield _owners_reason("ControlOutsideEu", text, None, None)
    elif owned.possible_control:
        text = f"control from outside the EU cannot be ruled out: {owned.possible_control}"
        yield _owners_reason("ControlUnknown", text, None, None)


def _one_holder(
    provider: ProviderProfile, owned: Owned, measure: str, part: Outside
) -> Iterator[Reason]:
    limit, largest = ONE_HOLDER_MAX_PERCENT, 0.0
    for holding in owned.holdings:
        percent = holding.capital_percent if measure == "capital" else holding.votes_percent
        largest = max(largest, percent)
        if percent > limit:
            via = f" through {' and '.join(holding.via)}" if holding.via else ""
            text = (
                f"{holding.holder} ({holding.country}) holds {percent_text(percent)} of the "
                f"{measure} of {provider.legal_name}{via}; {_SOURCE} allows one holder outside the "
                f"EU {percent_text(limit)}"
            )
            yield _owners_reason("HolderOutsideEuOverLimit", text, limit, percent)
    hidden = part.unknown_percent
    if hidden > 0 and largest <= limit < largest + hidden:
        text = (
            f"{percent_text(hidden)} of the {measure} of {provider.legal_name} has no declared "
            f"holder; if it belonged to one outside the EU that would have "
            f"{percent_text(min(100.0, largest + hidden))}; {_SOURCE} allows {percent_text(limit)}"
        )
        yield _owners_reason("HoldersUnknown", text, limit, min(100.0, largest + hidden))


def _together(provider: ProviderProfile, measure: str, part: Outside) -> Iterator[Reason]:
    limit = TOGETHER_MAX_PERCENT
    worst = min(100.0, part.percent + part.unknown_percent + part.dispersed_percent)
    what = f"of the {measure} of {provider.legal_name}; {_SOURCE} allows {percent_text(limit)}"
    if part.percent > limit:
        text = f"holders outside the EU together hold {percent_text(part.percent)} {what}"
        yield _owners_reason("HoldersOutsideEuOverLimit", text, limit, part.percent)
    elif worst > limit:
        text = (
            f"holders outside the EU, undeclared and dispersed holders together may hold "
            f"{percent_text(worst)} {what}"
        )
        yield _owners_reason("HoldersTogetherUnknown", text, limit, worst)


def _majority(provider: ProviderProfile, measure: str, part: Outside) -> Iterator[Reason]:
    worst = min(100.0, part.percent + part.unknown_percent + part.dispersed_percent)
    if worst < 50:
        return
    if part.percent >= 50:
        text = (
            f"holders outside the EU hold {percent_text(part.percent)} of the {measure} of "
            f"{provider.legal_name}"
        )
        yield _owners_reason("NoEuMajority", text, 50.0, 100 - part.percent)
    else:
        text = (
            f"only {percent_text(100 - worst)} of the {measure} of {provider.legal_name} is "
            f"declared to be held from the EU; a majority is needed"
        )
        yield _owners_reason("EuMajorityUnknown", text, 50.0, 100 - worst)
