"""Identifiers and dates in the facts of providers and sites, each with its own check.

Used by `facts.py` and `policy.py`. Every function takes a raw value and raises ValueError with
a sentence for the operator.
"""

import re
from datetime import date

from polder.countries import COUNTRIES, EEA, EU, GROUPS, country_code
from polder.manifest.text import describe, shown

_LEI = re.compile(r"[A-Z0-9]{18}[0-9]{2}")
_EUID = re.compile(r"([A-Z]{2})[A-Za-z0-9_-]{1,20}\.[A-Za-z0-9][A-Za-z0-9 ./_-]{0,60}")
_LAW = re.compile(r"([A-Z]{2})(-[A-Z0-9]{1,20}){1,6}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_UNIX_EPOCH_DAY = date(1970, 1, 1).toordinal()
DAY_S = 86_400


def lei(raw: object) -> str:
    """A Legal Entity Identifier of ISO 17442, with the check digits of ISO 7064 MOD 97-10."""
    if not isinstance(raw, str) or _LEI.fullmatch(raw) is None:
        raise ValueError(f"{shown(raw)} is not an LEI: 18 capital letters or digits, then 2 digits")
    if int("".join(str(int(character, 36)) for character in raw)) % 97 != 1:
        raise ValueError(
            f"{shown(raw)} is not an LEI: its check digits do not match; a typing error?"
        )
    return raw


def euid(raw: object) -> str:
    """A European Unique Identifier (Implementing Regulation (EU) 2021/1042, annex, point 8).

    Country, register and number: DEK1101R.HRB116737. Only its shape can be checked: the rest is
    each register's own. Greece is EL in it, as registers write it.
    """
    match = _EUID.fullmatch(raw) if isinstance(raw, str) else None
    if match is None:
        raise ValueError(f"{shown(raw)} is not an EUID such as DEK1101R.HRB116737")
    if match[1] != "EL" and (match[1] not in EEA or match[1] == "GR"):
        raise ValueError(f"{shown(raw)} is not an EUID: {match[1]} is no country that issues them")
    return match[0]


def law(raw: object) -> str:
    """A law as COUNTRY-NAME, such as US-CLOUD-ACT: the country says who falls under it."""
    match = _LAW.fullmatch(raw) if isinstance(raw, str) else None
    if match is None or (match[1] not in COUNTRIES and match[1] not in GROUPS):
        text = "a law is written as its country's code and a name in capitals, such as US-CLOUD-ACT"
        raise ValueError(f"{shown(raw)} is no law; {text}")
    return match[0]


def area(raw: object) -> str:
    """A country's code, or a group of countries: EU or EEA."""
    if isinstance(raw, str) and raw in GROUPS:
        return raw
    return country_code(raw)


def iso_date(raw: object) -> str:
    """A calendar date such as 2027-03-31."""
    if not isinstance(raw, str) or _DATE.fullmatch(raw) is None:
        found = shown(raw) if isinstance(raw, str) else describe(raw)
        raise ValueError(f"expected a date such as 2027-03-31, found {found}")
    try:
        date.fromisoformat(raw)
    except ValueError:
        raise ValueError(f"{shown(raw)} is not a day of the calendar") from None
    return raw


def end_of_day(day: str) -> float:
    """When a date that `iso_date` took is over, in unix seconds: the next midnight in UTC."""
    return float((date.fromisoformat(day).toordinal() + 1 - _UNIX_EPOCH_DAY) * DAY_S)


def countries_in(areas: tuple[str, ...]) -> frozenset[str]:
    """Every country that a list of countries and groups admits."""
    return frozenset().union(*(GROUPS.get(item, frozenset({item})) for item in areas))


def area_text(countries: frozenset[str]) -> str:
    """A set of countries for people: `EEA`, `EU, CH`."""
    for name, group in (("EEA", EEA), ("EU", EU)):
        if group <= countries:
            return ", ".join([name, *sorted(countries - group)])
    return ", ".join(sorted(countries)) or "no country"
