"""Random providers, sites and policies as raw manifests, for the properties of sovereignty."""

from typing import Any

from hypothesis import strategies as st

from polder.manifest import decode
from polder.manifest.facts import ProviderSpec, SiteSpec
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty import SiteFacts, analyse_provider, site_facts

Raw = dict[str, Any]
LEGAL_NAME = "Example Cloud GmbH"
DAY0 = 1_800_000_000.0  # 15 January 2027
DATES = ("2026-12-31", "2027-01-14", "2027-01-15", "2027-06-30", "2028-01-01")
LAWS = ("US-CLOUD-ACT", "CN-NSL", "GB-IPA", "EU-TEST")
ASSURANCE = st.sampled_from(("self", "audited", "attested"))
COUNTRY = st.sampled_from(("DE", "NL", "FR", "DE", "NO", "US", "CN", "PR"))
EU_MOSTLY = st.sampled_from(("DE", "DE", "DE", "NL", "FR", "US"))
OWNERS = ("alpha", "beta", "gamma", "delta", LEGAL_NAME)
HELD = ("", "alpha", "beta", LEGAL_NAME)


@st.composite
def owners(draw: st.DrawFn) -> list[Raw]:
    """Graphs with cross-holdings, parallel chains, control and gaps; no sum is over 100."""
    kinds = {
        "alpha": "company",
        "beta": "company",
        "gamma": draw(st.sampled_from(("company", "person", "state"))),
        "delta": draw(st.sampled_from(("company", "person", "dispersed"))),
        LEGAL_NAME: "company",
    }
    country = {name: draw(EU_MOSTLY) for name in OWNERS}
    if kinds["delta"] == "dispersed":
        country["delta"] = draw(st.sampled_from(("", "EU", "DE", "US")))
    rows: list[Raw] = []
    names_held = set(HELD)
    for held in sorted(names_held - {draw(st.sampled_from(("", LEGAL_NAME)))}):
        left = {"capitalPercent": 100, "votesPercent": 100}
        for holder in draw(st.lists(st.sampled_from(OWNERS), max_size=4)):
            row: Raw = {"holder": holder, "kind": kinds[holder]}
            if country[holder]:
                row["country"] = country[holder]
            if held:
                row["of"] = held
            for key in left:
                # All or at most 90: a circle with a smaller way out than that settles too slowly.
                whole = left[key] == 100 and draw(st.sampled_from((False, False, True)))
                percent = 100 if whole else draw(st.integers(0, min(90, left[key])))
                if draw(st.integers(0, 9)):
                    row[key] = percent
                    left[key] -= percent
            if holder != "beta" and kinds[holder] != "dispersed" and not draw(st.integers(0, 9)):
                row["control"] = True
            if len(row.keys() & {"capitalPercent", "votesPercent", "control"}):
                rows.append(row)
    while True:  # what nobody holds any more cannot be held either
        named = {row["holder"] for row in rows} | {"", LEGAL_NAME}
        kept = [row for row in rows if row.get("of", "") in named]
        if kept == rows:
            return rows
        rows = kept


def mostly(draw: st.DrawFn, raw: Raw, key: str, value: st.SearchStrategy[Any]) -> None:
    if draw(st.integers(0, 9)):
        raw[key] = draw(value)


laws = st.lists(st.sampled_from(LAWS), max_size=1)
certifications = st.lists(
    st.fixed_dictionaries(
        {
            "scheme": st.sampled_from(("SecNumCloud", "EUCS")),
            "issuer": st.just("TUV"),
            "validUntil": st.sampled_from(DATES),
        },
        optional={"level": st.sampled_from(("basic", "high"))},
    ),
    max_size=3,
)
seal = st.dictionaries(
    st.sampled_from(("SOV-1", "SOV-2", "SOV-8")), st.integers(0, 4), min_size=1, max_size=3
)


@st.composite
def company(draw: st.DrawFn) -> Raw:
    raw: Raw = {"name": "Helper AG", "country": draw(EU_MOSTLY)}
    mostly(draw, raw, "laws", laws)
    return raw


@st.composite
def providers(draw: st.DrawFn) -> Raw:
    raw: Raw = {"legalName": LEGAL_NAME, "seatCountry": draw(EU_MOSTLY)}
    raw["ownersComplete"] = draw(st.sampled_from((True, True, False)))
    mostly(draw, raw, "headOffice", EU_MOSTLY)
    mostly(draw, raw, "governingLaw", EU_MOSTLY)
    mostly(draw, raw, "owners", owners())
    mostly(draw, raw, "exposedToLaws", laws)
    mostly(draw, raw, "subcontractors", st.lists(company(), max_size=2))
    mostly(draw, raw, "certifications", certifications)
    mostly(draw, raw, "gaiaxLabel", st.integers(0, 3))
    mostly(draw, raw, "seal", seal)
    groups = ("default", "identity", "ownership", "laws", "seal", "certifications")
    raw["assurance"] = draw(st.dictionaries(st.sampled_from(groups), ASSURANCE, max_size=3))
    return raw


@st.composite
def sites(draw: st.DrawFn) -> Raw:
    raw: Raw = {"provider": "example", "country": draw(EU_MOSTLY)}
    mostly(draw, raw, "tenure", st.sampled_from(("owned", "leased")))
    if raw.get("tenure") == "leased":
        mostly(draw, raw, "dataCentreOperator", company())
    mostly(draw, raw, "adminCountries", st.lists(EU_MOSTLY, max_size=2))
    mostly(draw, raw, "supportCountries", st.lists(EU_MOSTLY, max_size=2))
    mostly(draw, raw, "certifications", certifications)
    numbers = {"pue": st.sampled_from((1.1, 1.5)), "renewableShare": st.sampled_from((0.2, 0.9))}
    mostly(draw, raw, "energy", st.fixed_dictionaries({}, optional=numbers))
    if not draw(st.integers(0, 3)):
        raw["seal"] = draw(seal)
    groups = ("default", "location", "operations", "energy", "certifications")
    raw["assurance"] = draw(st.dictionaries(st.sampled_from(groups), ASSURANCE, max_size=3))
    return raw


POLICY_GROUPS = ("default", "ownership", "laws", "seal", "location", "energy", "certifications")
DEMANDS: dict[str, st.SearchStrategy[Any]] = {
    "residency": st.lists(
        st.sampled_from(("DE", "NL", "US", "EU", "EEA", "CH")), min_size=1, max_size=3, unique=True
    ),
    "forbidLaws": st.lists(st.sampled_from(LAWS), min_size=1, max_size=2, unique=True),
    "ownership": st.sampled_from(("secnumcloud", "eu-controlled")),
    "gaiaxLabel": st.integers(0, 3),
    "seal": st.dictionaries(
        st.sampled_from(("SOV-1", "SOV-2", "overall")), st.integers(0, 4), min_size=1, max_size=2
    ).filter(lambda wanted: min(wanted.values()) == wanted.get("overall", min(wanted.values()))),
    "certifications": st.lists(
        st.sampled_from(("SecNumCloud", "EUCS", "EUCS/basic", "EUCS/high")),
        min_size=1,
        max_size=2,
        unique=True,
    ),
    "energy": st.fixed_dictionaries(
        {},
        optional={
            "pueMax": st.sampled_from((1.2, 2.0)),
            "renewableShareMin": st.sampled_from((0.1, 0.5)),
        },
    ),
    "assurance": st.dictionaries(st.sampled_from(POLICY_GROUPS), ASSURANCE, min_size=1, max_size=2),
}


def policies(max_demands: int = 3) -> st.SearchStrategy[Raw]:
    """A few demands at a time: with all of them every place would be refused."""
    keys = st.lists(st.sampled_from(sorted(DEMANDS)), max_size=max_demands, unique=True)
    return keys.flatmap(lambda chosen: st.fixed_dictionaries({k: DEMANDS[k] for k in chosen}))


def as_policy(raw: Raw) -> SovereigntySpec:
    return decode(SovereigntySpec, raw)


def as_facts(site: Raw | None, provider: Raw | None) -> SiteFacts:
    profile = None
    if provider is not None:
        profile = analyse_provider("example", decode(ProviderSpec, provider))
    return site_facts("site-1", None if site is None else decode(SiteSpec, site), profile)
