"""A second, slow and obvious reading of the sovereignty rules, on manifests as people write them.

It shares no code with `polder.sovereignty`: dictionaries in, one bool out. Shares are found by
walking every chain with exact fractions (a chain is cut when less than a billionth is left of it,
and after many steps: what still goes round then is in a circle). Where `control` makes more than
100 percent, bounded sums are repeated until they stand still. Control is found by asking "who would
join?" until nobody does. Properties compare the two.
"""

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

MEMBERS = "AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK"
EU = set(MEMBERS.split())
EEA = EU | {"IS", "LI", "NO"}
LEVELS = ["self", "audited", "attested"]
PROVIDER = "<the provider>"
CUT = Fraction(1, 10**9)

Spec = dict[str, Any]


def allowed(policy: Spec, site: Spec | None, provider: Spec | None, now: float) -> bool:
    site, provider = site or {}, provider or {}
    checks = [
        residency_ok(policy, site),
        ownership_ok(policy, provider),
        all(law_ok(law, site, provider) for law in policy.get("forbidLaws", [])),
        label_ok(policy, provider),
        seal_ok(policy, site, provider),
        all(certified(policy, c, site, provider, now) for c in policy.get("certifications", [])),
        energy_ok(policy, site),
        assurance_ok(policy, site, provider),
    ]
    return all(checks)


def residency_ok(policy: Spec, site: Spec) -> bool:
    if "residency" not in policy:
        return True
    country = site.get("country")
    return any(
        country in EU if area == "EU" else country in EEA if area == "EEA" else country == area
        for area in policy["residency"]
    )


# --- ownership -----------------------------------------------------------------------------------


def rows_of(provider: Spec, entity: str) -> list[Spec]:
    wanted = {PROVIDER: ("", provider["legalName"])}.get(entity, (entity,))
    return [row for row in provider["owners"] if row.get("of", "") in wanted]


def holder_of(provider: Spec, row: Spec) -> str:
    return PROVIDER if row["holder"] == provider["legalName"] else str(row["holder"])


def fraction(row: Spec, measure: str) -> Fraction:
    if row.get("control"):
        return Fraction(1)
    return Fraction(str(row.get(f"{measure}Percent", 0))) / 100


def gap(provider: Spec, entity: str, kind: str, measure: str) -> tuple[Fraction, str]:
    """What is not declared of an entity, and whether that is unknown or dispersed."""
    rows = rows_of(provider, entity)
    complete = provider.get("ownersComplete", False)
    if not rows and entity != PROVIDER and (complete or kind != "company"):
        return Fraction(0), "unknown"
    given = [row.get(f"{measure}Percent") for row in rows]
    rest = 1 - sum(Fraction(str(percent or 0)) for percent in given) / 100
    if rest <= Fraction(1, 1000):
        return Fraction(0), "unknown"
    return rest, "dispersed" if complete and None not in given else "unknown"


def ends(provider: Spec, measure: str, last: str | None = None) -> dict[str, Fraction]:
    """How much of the provider ends where: `holder NAME`, outside, unknown, dispersed, inside.

    With `last`, chains end at that holder and at no other that is outside the EU.
    """
    if any(row.get("control") for row in provider["owners"]):
        return {
            what: Fraction(bounded(provider, measure, last, what))
            for what in ("last", "outside", "unknown", "dispersed", "circle")
        }
    found: dict[str, Fraction] = {}

    def add(where: str, part: Fraction) -> None:
        found[where] = found.get(where, Fraction(0)) + part

    steps = 0
    todo = {(PROVIDER, "company", ""): Fraction(1)}
    while todo:
        key = next(iter(todo))
        entity, kind, country = key
        part = todo.pop(key)
        steps += 1
        if steps > 1500:
            add("unknown", part)
            add("circle", part)
            continue
        rest, of_kind = gap(provider, entity, kind, measure)
        if kind == "dispersed":
            add("inside" if country == "EU" or country in EU else "dispersed", part)
            continue
        add(of_kind, part * rest)
        for row in rows_of(provider, entity):
            holder, share = holder_of(provider, row), part * fraction(row, measure)
            if share < CUT:
                continue
            where = row.get("country", "")
            if holder == last:
                add("last", share)
            elif last is None and holder != PROVIDER and where and where not in EU | {"EU"}:
                add("outside", share)
            else:
                if holder == PROVIDER:
                    key = (PROVIDER, "company", "")
                else:
                    key = (holder, row.get("kind", "company"), where)
                todo[key] = todo.get(key, Fraction(0)) + share
    return found


def bounded(provider: Spec, measure: str, last: str | None, what: str) -> float:
    """The same where control counts as 100: for one kind of end, no part ever above 1."""
    kinds = {holder_of(provider, r): r.get("kind", "company") for r in provider["owners"]}
    kinds[PROVIDER] = "company"

    def value(entity: str, known: dict[str, float], what: str) -> float:
        rest, of_kind = gap(provider, entity, kinds[entity], measure)
        total = float(rest) if what in (of_kind, "anything") else 0.0
        for row in rows_of(provider, entity):
            holder, country = holder_of(provider, row), row.get("country", "")
            if holder == last:
                counts = 1.0 if what == "last" else 0.0
            elif kinds[holder] == "dispersed":
                inside = country in EU | {"EU"}
                kind = "inside" if inside else "outside" if country else "dispersed"
                counts = 1.0 if what in (kind, "anything") else 0.0
            elif holder != PROVIDER and country not in EU and last is None:
                counts = 1.0 if what in ("outside", "anything") else 0.0
            elif what == "anything" and not rows_of(provider, holder):
                counts = 1.0
            else:
                counts = known[holder]
            total += float(fraction(row, measure)) * counts
        return min(1.0, total)

    def settled(what: str) -> float:
        known = dict.fromkeys(kinds, 0.0)
        for _ in range(3000):
            after = {entity: value(entity, known, what) for entity in kinds}
            if after == known:
                break
            known = after
        return known[PROVIDER]

    found = settled(what)
    if what in ("unknown", "circle") and last is None:
        lost = 1 - settled("anything")
        found += lost if lost > 0.01 else 0.0
    return found


def names(provider: Spec) -> dict[str, Spec]:
    return {
        holder_of(provider, row): row
        for row in provider["owners"]
        if holder_of(provider, row) != PROVIDER and row.get("kind") != "dispersed"
    }


def controlled(provider: Spec, party: set[str], unknown_too: bool) -> bool:
    """Whether the party, with whom it controls, controls the provider."""
    kinds = {name: row.get("kind", "company") for name, row in names(provider).items()}
    kinds[PROVIDER] = "company"
    joined = set(party)
    while True:
        for entity, kind in kinds.items():
            if entity in joined:
                continue
            mine = [r for r in rows_of(provider, entity) if holder_of(provider, r) in joined]
            if any(row.get("control") for row in mine):
                break
            if any(sum(fraction(r, m) for r in mine) > Fraction(1, 2) for m in MEASURES):
                break
            gaps = [gap(provider, entity, kind, m) for m in MEASURES]
            if unknown_too and any(rest and what == "unknown" for rest, what in gaps):
                break
        else:
            return PROVIDER in joined
        joined.add(entity)


MEASURES = ("capital", "votes")


def outside_eu(provider: Spec) -> set[str]:
    return {name for name, row in names(provider).items() if row["country"] not in EU}


def ownership_ok(policy: Spec, provider: Spec) -> bool:
    wanted = policy.get("ownership")
    if not wanted:
        return True
    if "owners" not in provider:
        return False
    if provider["seatCountry"] not in EU or provider.get("headOffice") not in EU:
        return False
    if controlled(provider, outside_eu(provider), True):
        return False
    if any(ends(provider, measure).get("circle", 0) > Fraction(1, 100) for measure in MEASURES):
        return False
    for measure in MEASURES:
        found = ends(provider, measure)
        outside, unknown, dispersed = (
            100 * found.get(key, 0) for key in ("outside", "unknown", "dispersed")
        )
        largest = max(
            (100 * ends(provider, measure, name).get("last", 0) for name in outside_eu(provider)),
            default=Fraction(0),
        )
        near = Fraction(1, 10**6)
        if wanted == "secnumcloud":
            if largest + unknown > 24 + near or outside + unknown + dispersed > 39 + near:
                return False
        elif outside + unknown + dispersed >= 50 - near:
            return False
    return True


# --- laws ----------------------------------------------------------------------------------------

US_TERRITORIES = {"AS", "GU", "MP", "PR", "UM", "VI"}


def under(law: str, country: str | None) -> bool:
    state = law[:2]
    if state == "EU":
        return country in EU
    territories = {"US": US_TERRITORIES, "CN": {"HK", "MO"}}.get(state, set())
    return country == state or country in territories


def company_ok(law: str, company: Spec) -> bool:
    return not under(law, company["country"]) and law not in company.get("laws", [law])


def law_ok(law: str, site: Spec, provider: Spec) -> bool:
    countries: list[str | None] = [
        provider.get("seatCountry"),
        provider.get("headOffice"),
        provider.get("governingLaw"),
        site.get("country"),
        *site.get("adminCountries", [None]),
        *site.get("supportCountries", [None]),
    ]
    if any(country is None or under(law, country) for country in countries):
        return False
    if law in provider.get("exposedToLaws", [law]):
        return False
    if "subcontractors" not in provider or "owners" not in provider:
        return False
    companies = list(provider["subcontractors"])
    if site.get("tenure") == "leased":
        companies.append(site.get("dataCentreOperator"))
    elif site.get("tenure") != "owned":
        return False
    if any(company is None or not company_ok(law, company) for company in companies):
        return False
    holders = names(provider)
    if controlled(provider, set(), True):
        return False
    if any(ends(provider, measure).get("circle", 0) > Fraction(1, 100) for measure in MEASURES):
        return False
    for state in {row["country"] for row in holders.values() if under(law, row["country"])}:
        same = {"US": US_TERRITORIES, "CN": {"HK", "MO"}}.get(law[:2], set()) | {law[:2]}
        of_state = same if law[:2] != "EU" else {state}
        party = {name for name, row in holders.items() if row["country"] in of_state}
        if controlled(provider, party, True):
            return False
        for measure in MEASURES:
            ours = party_share(provider, measure, party)
            unknown = ends(provider, measure).get("unknown", Fraction(0))
            if ours + unknown > Fraction(1, 2) + Fraction(1, 10**6):
                return False
    return True


def party_share(provider: Spec, measure: str, party: set[str]) -> Fraction:
    """Of all holders of a party together: rename them to one, and ask for that one."""
    merged = [dict(row) for row in provider["owners"]]
    for row in merged:
        if row["holder"] in party:
            row["holder"] = "<the party>"
    return ends({**provider, "owners": merged}, measure, "<the party>").get("last", Fraction(0))


# --- the rest ------------------------------------------------------------------------------------


def label_ok(policy: Spec, provider: Spec) -> bool:
    if "gaiaxLabel" not in policy:
        return True
    return bool(provider.get("gaiaxLabel", -1) >= policy["gaiaxLabel"])


def seal_ok(policy: Spec, site: Spec, provider: Spec) -> bool:
    wanted = policy.get("seal", {})
    for number in range(1, 9):
        key = f"SOV-{number}"
        least = max(wanted.get(key, -1), wanted.get("overall", -1))
        has = provider.get("seal", {}).get(key, -1)
        has = min(has, site.get("seal", {}).get(key, has))
        if has < least:
            return False
    return True


def certified(policy: Spec, wanted: str, site: Spec, provider: Spec, now: float) -> bool:
    minimum = policy.get("assurance", {})
    named = [minimum.get(key, "self") for key in ("certifications", "default")]
    least = max(named, key=LEVELS.index)
    for source in (provider, site):
        for certificate in source.get("certifications", []):
            last = datetime.fromisoformat(certificate["validUntil"]).replace(tzinfo=UTC)
            over = now >= (last + timedelta(days=1)).timestamp()
            scheme, _, level = wanted.partition("/")
            same = certificate["scheme"] == scheme and level in ("", certificate.get("level"))
            if scheme == "EUCS" and level and "level" in certificate:
                order = ["basic", "substantial", "high"]
                same = certificate["scheme"] == "EUCS" and (
                    order.index(certificate["level"]) >= order.index(level)
                )
            if same and not over and strong(source, "certifications", least):
                return True
    return False


def strong(source: Spec, group: str, least: str) -> bool:
    given = source.get("assurance", {})
    return LEVELS.index(given.get(group, given.get("default", "self"))) >= LEVELS.index(least)


def energy_ok(policy: Spec, site: Spec) -> bool:
    limits, energy = policy.get("energy", {}), site.get("energy", {})
    ok = True
    for limit, fact in (("pueMax", "pue"), ("wueMax", "wue")):
        if limit in limits:
            ok = ok and fact in energy and energy[fact] <= limits[limit]
    if "renewableShareMin" in limits:
        ok = ok and energy.get("renewableShare", -1) >= limits["renewableShareMin"]
    if "carbonIntensityGPerKwhMax" in limits:
        most = limits["carbonIntensityGPerKwhMax"]
        ok = ok and energy.get("carbonIntensityGPerKwh", most + 1) <= most
    return ok


NEEDS = {
    "residency": ["location"],
    "ownership": ["identity", "ownership"],
    "forbidLaws": ["identity", "ownership", "laws", "subcontractors", "location", "operations"],
    "gaiaxLabel": ["gaiax"],
    "seal": ["seal"],
    "energy": ["energy"],
}
FACT = {
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


def assurance_ok(policy: Spec, site: Spec, provider: Spec) -> bool:
    minimum = dict(policy.get("assurance", {}))
    default = minimum.pop("default", None)
    for demand, groups in NEEDS.items():
        if policy.get(demand) not in (None, [], {}) and default is not None:
            for group in groups:
                minimum[group] = max(minimum.get(group, "self"), default, key=LEVELS.index)
    certificates = minimum.pop("certifications", None)
    for group, least in minimum.items():
        source = site if group in ("location", "operations", "energy") else provider
        if source.get(FACT[group]) in (None, {}) or not strong(source, group, least):
            return False
    if certificates is not None and not policy.get("certifications"):
        return any(
            "certifications" in source and strong(source, "certifications", certificates)
            for source in (provider, site)
        )
    return True
