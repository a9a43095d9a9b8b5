"""What can be said of a provider and of a site once their facts are worked through.

`analyse_provider` costs milliseconds for a large graph of owners and is called once per version of
a Provider, by the scheduler's cache and the operator API. Its result is all that `evaluate` needs,
and is small enough to be signed into a node's plan: the agent never sees the graph.
"""

from dataclasses import dataclass, field, replace

from polder.manifest.decode import canonical, decode
from polder.manifest.facts import (
    Certification,
    DataCentreOperator,
    Energy,
    ProviderAssurance,
    ProviderSpec,
    SealLevels,
    SiteAssurance,
    SiteSpec,
    Subcontractor,
)
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty import ownership as graphs

MAX_HOLDINGS = 8


@dataclass(frozen=True, slots=True)
class Holding:
    """One holder outside the EU: its share through all chains, and the chain that carries most."""

    holder: str
    country: str
    capital_percent: float
    votes_percent: float
    via: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outside:
    """Of one measure: what is outside the EU, may be anyone's, or is spread over anyone."""

    percent: float
    unknown_percent: float
    dispersed_percent: float


@dataclass(frozen=True, slots=True)
class Reach:
    """A country that controls the provider through its owners, and how."""

    country: str
    how: str


@dataclass(frozen=True, slots=True)
class Owned:
    """What the graph of owners comes to.

    `holdings`: the largest outside the EU, at most MAX_HOLDINGS. `control`: how parties outside the
    EU control the provider; `possible_control`: how they might, given what is not declared.
    `possible_reaches` are countries whose control cannot be ruled out, `anyone` says: no country's.
    """

    capital: Outside
    votes: Outside
    holdings: tuple[Holding, ...] = ()
    control: str = ""
    possible_control: str = ""
    reaches: tuple[Reach, ...] = ()
    possible_reaches: tuple[Reach, ...] = ()
    anyone: str = ""


@dataclass(frozen=True, slots=True)
class ProviderProfile:
    """A provider as `evaluate` reads it. None and empty texts are unknown, as in ProviderSpec."""

    name: str
    legal_name: str
    seat_country: str
    head_office: str = ""
    governing_law: str = ""
    owned: Owned | None = None
    exposed_to_laws: tuple[str, ...] | None = None
    subcontractors: tuple[Subcontractor, ...] | None = None
    certifications: tuple[Certification, ...] | None = None
    gaiax_label: int | None = None
    seal: SealLevels = field(default_factory=SealLevels)
    assurance: ProviderAssurance = field(default_factory=ProviderAssurance)


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """A site with its provider as `evaluate` reads them. None and empty texts are unknown."""

    site: str
    country: str = ""
    provider_name: str = ""
    provider: ProviderProfile | None = None
    tenure: str = ""
    data_centre_operator: DataCentreOperator | None = None
    admin_countries: tuple[str, ...] | None = None
    support_countries: tuple[str, ...] | None = None
    energy: Energy = field(default_factory=Energy)
    certifications: tuple[Certification, ...] | None = None
    seal: SealLevels = field(default_factory=SealLevels)
    assurance: SiteAssurance = field(default_factory=SiteAssurance)


def analyse_provider(name: str, provider: ProviderSpec) -> ProviderProfile:
    """`name` is the Provider's `metadata.name`. The spec has passed `violations()`."""
    return ProviderProfile(
        name=name,
        legal_name=provider.legal_name,
        seat_country=provider.seat_country,
        head_office=provider.head_office,
        governing_law=provider.governing_law,
        owned=None if provider.owners is None else analyse_owners(provider),
        exposed_to_laws=provider.exposed_to_laws,
        subcontractors=provider.subcontractors,
        certifications=provider.certifications,
        gaiax_label=provider.gaiax_label,
        seal=provider.seal,
        assurance=provider.assurance,
    )


def site_facts(name: str, site: SiteSpec | None, provider: ProviderProfile | None) -> SiteFacts:
    """The facts of a site. A site or provider that is not declared has none."""
    if site is None:
        return SiteFacts(name)
    return SiteFacts(
        site=name,
        country=site.country,
        provider_name=site.provider,
        provider=provider,
        tenure=site.tenure,
        data_centre_operator=site.data_centre_operator,
        admin_countries=site.admin_countries,
        support_countries=site.support_countries,
        energy=site.energy,
        certifications=site.certifications,
        seal=site.seal,
        assurance=site.assurance,
    )


def analyse_owners(provider: ProviderSpec) -> Owned:
    """What the graph of owners comes to."""
    graph = graphs.graph_of(provider)
    states = sorted(
        {graphs.state_of(c) for e, c in graph.country.items() if e and c not in ("", "EU")}
    )
    reaches, possible = [], []
    for state in states:
        how = _control_from(graph, state)
        if how is not None:
            reaches.append(Reach(state, how))
        elif maybe := _control_from(graph, state, with_unknown=True):
            possible.append(Reach(state, maybe))
    capital, votes = (_outside(graph, measure) for measure in graphs.MEASURES)
    circle = _circle(graph)
    return Owned(
        capital=capital,
        votes=votes,
        holdings=_holdings(graph),
        control=graphs.control_by(graph, graph.outside) or "",
        possible_control=graphs.control_by(graph, graph.outside, with_unknown=True) or circle,
        reaches=tuple(reaches),
        possible_reaches=tuple(possible),
        anyone=graphs.control_by(graph, lambda _: False, with_unknown=True) or circle,
    )


def _control_from(graph: graphs.Graph, state: str, *, with_unknown: bool = False) -> str | None:
    """How parties of one state control the provider: along a chain, or by their whole share."""

    def counts(entity: str) -> bool:
        return graphs.state_of(graph.country[entity]) == state

    found = graphs.control_by(graph, counts, with_unknown=with_unknown)
    if found is not None:
        return found
    for measure in graphs.MEASURES:
        total = graphs.share_where(graph, measure, lambda e: counts(e) and e not in graph.dispersed)
        if with_unknown:
            total += graphs.unknown_share(graph, measure)
        if total > graphs.MAJORITY + 1e-9:
            unsure = " with what is undeclared" if with_unknown else ""
            amount = graphs.percent_text(100 * min(1.0, total))
            return f"holders in {state} hold{unsure} {amount} of the {measure} of {graph.name}"
    return None


def _circle(graph: graphs.Graph) -> str:
    for measure in graphs.MEASURES:
        if lost := graphs.circular_share(graph, measure):
            amount = graphs.percent_text(100 * lost)
            return f"{amount} of the {measure} of {graph.name} is held in a circle"
    return ""


def _outside(graph: graphs.Graph, measure: str) -> Outside:
    return Outside(
        percent=_percent(graphs.share_where(graph, measure, graph.outside)),
        unknown_percent=_percent(graphs.unknown_share(graph, measure)),
        dispersed_percent=_percent(graphs.dispersed_share(graph, measure)),
    )


def _holdings(graph: graphs.Graph) -> tuple[Holding, ...]:
    found = []
    for holder in graph.order:
        if graph.outside(holder) and holder not in graph.dispersed:
            capital, votes = (graphs.share_of(graph, m, holder) for m in graphs.MEASURES)
            via = graphs.path_of(graph, "votes" if votes > capital else "capital", holder)
            country = graph.country[holder]
            found.append(Holding(holder, country, _percent(capital), _percent(votes), via))
    found.sort(key=lambda h: (-max(h.capital_percent, h.votes_percent), h.holder))
    return tuple(found[:MAX_HOLDINGS])


def _percent(part: float) -> float:
    """Rounded, so that products of decimal percentages meet the limits that they equal."""
    return round(100 * part, 9)


def facts_json(policy: SovereigntySpec, facts: SiteFacts) -> dict[str, object]:
    """The facts that the policy needs, as JSON for a signed plan.

    The rest is left out, and so unknown: judged by any other policy, they fail it.
    """
    laws, owned = bool(policy.forbid_laws), bool(policy.forbid_laws or policy.ownership)
    asked = policy.assurance
    wants_certificates = bool(policy.certifications or asked.certifications)
    site = replace(
        facts,
        tenure=facts.tenure if laws or asked.operations else "",
        data_centre_operator=facts.data_centre_operator if laws or asked.operations else None,
        admin_countries=facts.admin_countries if laws or asked.operations else None,
        support_countries=facts.support_countries if laws or asked.operations else None,
        certifications=facts.certifications if wants_certificates else None,
    )
    found = facts.provider
    if found is not None:
        identity = owned or bool(asked.identity)
        found = replace(
            found,
            head_office=found.head_office if identity else "",
            governing_law=found.governing_law if identity else "",
            owned=found.owned if owned or asked.ownership else None,
            exposed_to_laws=found.exposed_to_laws if laws or asked.laws else None,
            subcontractors=found.subcontractors if laws or asked.subcontractors else None,
            certifications=found.certifications if wants_certificates else None,
        )
    result = canonical(replace(site, provider=found))
    assert isinstance(result, dict)
    return result


def facts_from_json(raw: object) -> SiteFacts:
    """The inverse. Raises InvalidManifest."""
    return decode(SiteFacts, raw)


def policy_json(policy: SovereigntySpec) -> dict[str, object]:
    """A policy for a signed plan; `{}` when it demands nothing."""
    result = canonical(policy)
    assert isinstance(result, dict)
    return result


def policy_from_json(raw: object) -> SovereigntySpec:
    """The inverse. Raises InvalidManifest, also for a policy that no place can meet."""
    return decode(SovereigntySpec, raw)
