"""A European fleet to think with, and workloads for it, drawn from a seed.

Used by `bench/schedule.py` and by anyone who wants to try a policy on something of real size.
Cities and coordinates are real (rounded to a tenth of a degree); providers, owners and figures are
made up so that every predicate of sovereignty splits the fleet.
"""

import random
from dataclasses import dataclass

from orchestrator.scheduling.snapshot import (
    Mode,
    Namespace,
    Node,
    Resources,
    Site,
    Snapshot,
    Template,
    Workload,
)
from polder.manifest import Placement, Spread
from polder.manifest.facts import (
    Certification,
    Coordinates,
    Energy,
    Owner,
    ProviderSpec,
    SealLevels,
    SiteSpec,
)
from polder.manifest.policy import EnergyLimits, SealMinimum, SovereigntySpec
from polder.sovereignty import ProviderProfile, analyse_provider, site_facts

GIB = 1 << 30
NODES_PER_SITE = 20

# name, country, latitude, longitude, region of orchestrators
CITIES = (
    ("amsterdam", "NL", 52.4, 4.9, "eu-west"), ("rotterdam", "NL", 51.9, 4.5, "eu-west"),
    ("utrecht", "NL", 52.1, 5.1, "eu-west"), ("eindhoven", "NL", 51.4, 5.5, "eu-west"),
    ("groningen", "NL", 53.2, 6.6, "eu-west"), ("brussels", "BE", 50.8, 4.4, "eu-west"),
    ("antwerp", "BE", 51.2, 4.4, "eu-west"), ("ghent", "BE", 51.1, 3.7, "eu-west"),
    ("luxembourg", "LU", 49.6, 6.1, "eu-west"), ("paris", "FR", 48.9, 2.4, "eu-west"),
    ("lyon", "FR", 45.8, 4.8, "eu-west"), ("marseille", "FR", 43.3, 5.4, "eu-west"),
    ("toulouse", "FR", 43.6, 1.4, "eu-west"), ("lille", "FR", 50.6, 3.1, "eu-west"),
    ("nantes", "FR", 47.2, -1.6, "eu-west"), ("strasbourg", "FR", 48.6, 7.8, "eu-west"),
    ("bordeaux", "FR", 44.8, -0.6, "eu-west"), ("dublin", "IE", 53.3, -6.3, "eu-west"),
    ("cork", "IE", 51.9, -8.5, "eu-west"), ("berlin", "DE", 52.5, 13.4, "eu-central"),
    ("hamburg", "DE", 53.6, 10.0, "eu-central"), ("munich", "DE", 48.1, 11.6, "eu-central"),
    ("cologne", "DE", 50.9, 7.0, "eu-central"), ("frankfurt", "DE", 50.1, 8.7, "eu-central"),
    ("stuttgart", "DE", 48.8, 9.2, "eu-central"), ("dusseldorf", "DE", 51.2, 6.8, "eu-central"),
    ("leipzig", "DE", 51.3, 12.4, "eu-central"), ("hanover", "DE", 52.4, 9.7, "eu-central"),
    ("nuremberg", "DE", 49.5, 11.1, "eu-central"), ("dresden", "DE", 51.1, 13.7, "eu-central"),
    ("vienna", "AT", 48.2, 16.4, "eu-central"), ("graz", "AT", 47.1, 15.4, "eu-central"),
    ("linz", "AT", 48.3, 14.3, "eu-central"), ("zurich", "CH", 47.4, 8.5, "eu-central"),
    ("geneva", "CH", 46.2, 6.1, "eu-central"), ("prague", "CZ", 50.1, 14.4, "eu-central"),
    ("brno", "CZ", 49.2, 16.6, "eu-central"), ("bratislava", "SK", 48.1, 17.1, "eu-central"),
    ("budapest", "HU", 47.5, 19.0, "eu-central"), ("ljubljana", "SI", 46.1, 14.5, "eu-central"),
    ("warsaw", "PL", 52.2, 21.0, "eu-central"), ("krakow", "PL", 50.1, 19.9, "eu-central"),
    ("wroclaw", "PL", 51.1, 17.0, "eu-central"), ("gdansk", "PL", 54.4, 18.6, "eu-central"),
    ("poznan", "PL", 52.4, 16.9, "eu-central"), ("copenhagen", "DK", 55.7, 12.6, "eu-north"),
    ("aarhus", "DK", 56.2, 10.2, "eu-north"), ("stockholm", "SE", 59.3, 18.1, "eu-north"),
    ("gothenburg", "SE", 57.7, 12.0, "eu-north"), ("malmo", "SE", 55.6, 13.0, "eu-north"),
    ("lulea", "SE", 65.6, 22.2, "eu-north"), ("oslo", "NO", 59.9, 10.8, "eu-north"),
    ("bergen", "NO", 60.4, 5.3, "eu-north"), ("helsinki", "FI", 60.2, 24.9, "eu-north"),
    ("tampere", "FI", 61.5, 23.8, "eu-north"), ("tallinn", "EE", 59.4, 24.8, "eu-north"),
    ("riga", "LV", 56.9, 24.1, "eu-north"), ("vilnius", "LT", 54.7, 25.3, "eu-north"),
    ("reykjavik", "IS", 64.1, -21.9, "eu-north"), ("madrid", "ES", 40.4, -3.7, "eu-south"),
    ("barcelona", "ES", 41.4, 2.2, "eu-south"), ("valencia", "ES", 39.5, -0.4, "eu-south"),
    ("seville", "ES", 37.4, -6.0, "eu-south"), ("bilbao", "ES", 43.3, -2.9, "eu-south"),
    ("lisbon", "PT", 38.7, -9.1, "eu-south"), ("porto", "PT", 41.2, -8.6, "eu-south"),
    ("rome", "IT", 41.9, 12.5, "eu-south"), ("milan", "IT", 45.5, 9.2, "eu-south"),
    ("turin", "IT", 45.1, 7.7, "eu-south"), ("naples", "IT", 40.9, 14.3, "eu-south"),
    ("bologna", "IT", 44.5, 11.3, "eu-south"), ("palermo", "IT", 38.1, 13.4, "eu-south"),
    ("athens", "GR", 38.0, 23.7, "eu-south"), ("thessaloniki", "GR", 40.6, 22.9, "eu-south"),
    ("valletta", "MT", 35.9, 14.5, "eu-south"), ("nicosia", "CY", 35.2, 33.4, "eu-south"),
    ("zagreb", "HR", 45.8, 16.0, "eu-south"), ("bucharest", "RO", 44.4, 26.1, "eu-south"),
    ("cluj", "RO", 46.8, 23.6, "eu-south"), ("sofia", "BG", 42.7, 23.3, "eu-south"),
    ("london", "GB", 51.5, -0.1, "eu-west"), ("manchester", "GB", 53.5, -2.2, "eu-west"),
)  # fmt: skip

# arch, cpu millis, memory, disk, weight, devices
CLASSES: tuple[tuple[str, int, int, int, int, dict[str, int]], ...] = (
    ("arm64", 4_000, 8 * GIB, 64 * GIB, 3, {}),
    ("arm64", 8_000, 16 * GIB, 128 * GIB, 4, {}),
    ("arm64", 8_000, 32 * GIB, 256 * GIB, 1, {"polder.eu/gpu": 1}),
    ("amd64", 8_000, 32 * GIB, 256 * GIB, 3, {}),
    ("amd64", 16_000, 64 * GIB, 512 * GIB, 3, {}),
    ("amd64", 32_000, 128 * GIB, 1024 * GIB, 1, {"polder.eu/gpu": 2}),
)
LAWS = ("US-CLOUD-ACT", "US-FISA-702", "CN-NIL", "GB-IPA")


@dataclass(frozen=True, slots=True)
class Fleet:
    """Nodes and sites of one seed."""

    nodes: tuple[Node, ...]
    sites: dict[str, Site]
    providers: dict[str, ProviderProfile]

    def snapshot(
        self,
        work: list[tuple[Workload, Template]],
        namespaces: dict[str, Namespace] | None = None,
    ) -> Snapshot:
        return Snapshot(
            revision=1,
            nodes=self.nodes,
            workloads=tuple(workload for workload, _ in work),
            templates={(w.uid, w.revision): template for w, template in work},
            sites=self.sites,
            namespaces=namespaces or {},
        )


def fleet(nodes: int, seed: int, sites: int = 0) -> Fleet:
    """`sites` 0: one for every NODES_PER_SITE nodes."""
    dice = random.Random(seed)
    count = sites or max(1, round(nodes / NODES_PER_SITE))
    countries = sorted({country for _, country, _, _, _ in CITIES})
    profiles: dict[str, ProviderProfile] = {}
    at: dict[str, list[str]] = {country: [] for country in countries}
    for number in range(max(len(countries), 48)):
        country = countries[number % len(countries)]
        name = f"telco-{country.lower()}-{number // len(countries)}"
        profiles[name] = analyse_provider(name, _provider(name, country, dice))
        at[country].append(name)
    made: dict[str, Site] = {}
    where: list[tuple[str, str]] = []
    for number in range(count):
        city, country, latitude, longitude, region = CITIES[number % len(CITIES)]
        name = f"{country.lower()}-{city}-{number // len(CITIES)}"
        provider = dice.choice(at[country])
        spec = SiteSpec(
            provider=provider,
            country=country,
            region=region,
            coordinates=Coordinates(
                latitude + dice.uniform(-0.2, 0.2), longitude + dice.uniform(-0.2, 0.2)
            ),
            tenure="owned",
            admin_countries=(country,),
            support_countries=(country,) if dice.random() < 0.8 else (country, "IN"),
            energy=Energy(
                pue=round(dice.uniform(1.1, 1.9), 2),
                renewable_share=round(dice.random(), 2),
                carbon_intensity_g_per_kwh=round(dice.uniform(15, 700)),
            ),
        )
        assert spec.coordinates is not None
        facts = site_facts(name, spec, profiles[provider])
        made[name] = Site(name, facts, spec.coordinates.latitude, spec.coordinates.longitude)
        where.append((name, region))
    return Fleet(tuple(_nodes(nodes, where, made, dice)), made, profiles)


def _provider(name: str, country: str, dice: random.Random) -> ProviderSpec:
    """A fifth has an American parent, a fifth a Gulf minority, the rest is European."""
    kind = dice.randrange(5)
    owners: tuple[Owner, ...] = (
        Owner(holder=f"{name} Stichting", country=country, capital_percent=60, votes_percent=60),
    )
    if kind == 0:
        owners = (
            Owner(holder=f"{name} Holding", country="LU", capital_percent=100, votes_percent=100),
            Owner(
                holder="Liberty Peak Inc", of=f"{name} Holding", country="US",
                capital_percent=80, votes_percent=80,
            ),
        )  # fmt: skip
    elif kind == 1:
        owners = (
            *owners,
            Owner(holder="Gulf Fund", country="AE", capital_percent=30, votes_percent=30),
        )
    schemes = (("ISO 27001", ""), ("C5", "type2"), ("SecNumCloud", ""), ("EUCS", "high"))
    held = tuple(
        Certification(scheme=scheme, level=level, issuer="Register", valid_until="2031-12-31")
        for scheme, level in schemes
        if dice.random() < 0.6
    )
    return ProviderSpec(
        legal_name=f"{name} NV",
        seat_country=country,
        head_office=country,
        governing_law=country,
        owners=owners,
        owners_complete=True,
        exposed_to_laws=(),
        subcontractors=(),
        certifications=held,
        gaiax_label=dice.randrange(4),
        seal=SealLevels(**{f"sov_{n}": dice.randint(1, 4) for n in range(1, 9)}),
    )


def _nodes(
    count: int, where: list[tuple[str, str]], sites: dict[str, Site], dice: random.Random
) -> list[Node]:
    weights = [weight for _, _, _, _, weight, _ in CLASSES]
    made = []
    for number in range(count):
        site, region = where[number % len(where)]
        arch, cpu, memory, disk, _, devices = dice.choices(CLASSES, weights)[0]
        facts = sites[site].facts
        made.append(
            Node(
                name=f"{site}-n{number // len(where)}",
                site=site,
                country=facts.country,
                region=region,
                provider=facts.provider_name,
                arch=arch,
                labels={"zone": f"ward-{dice.randrange(4)}"},
                allocatable=Resources(cpu, memory, disk, devices),
            )
        )
    return made


def policy(dice: random.Random) -> SovereigntySpec:
    """One of some hundred thousand policies, of a few dozen different demands; a quarter has none.

    The strictest admit a handful of sites, the mildest all but a few.
    """
    if dice.random() < 0.25:
        return SovereigntySpec()
    areas = dice.choice(
        (("EU",), ("EEA",), None, ("NL", "DE", "BE", "FR"), ("FR", "ES", "IT", "PT", "GR"),
         ("SE", "FI", "DK", "NO", "EE", "LV", "LT"), ("DE", "AT", "CH", "PL", "CZ", "HU"))
    )  # fmt: skip
    laws = tuple(law for law in LAWS if dice.random() < 0.15)
    seal = SealMinimum()
    if dice.random() < 0.25:
        seal = SealMinimum(**{f"sov_{dice.randint(1, 8)}": dice.randint(1, 2)})
    energy = EnergyLimits()
    if dice.random() < 0.2:
        energy = EnergyLimits(pue_max=round(dice.uniform(1.5, 1.9), 3))
    return SovereigntySpec(
        residency=areas,
        forbid_laws=laws,
        ownership=dice.choice(("", "", "", "eu-controlled")),
        gaiax_label=dice.choice((None, None, None, 1)),
        seal=seal,
        certifications=("ISO 27001",) if dice.random() < 0.15 else (),
        energy=energy,
    )


def bulk(replicas: int, seed: int, workloads: int = 1000) -> list[tuple[Workload, Template]]:
    """Workloads of very different size, all spread and under a policy, `replicas` in sum."""
    dice = random.Random(seed ^ 0xB01C)
    shares = [dice.lognormvariate(0, 0.7) for _ in range(min(workloads, replicas))]
    counts = [max(1, int(share * replicas / sum(shares))) for share in shares]
    counts[0] += replicas - sum(counts)
    made = []
    for number, count in enumerate(counts):
        by, skew = dice.choice((("site", 5), ("site", 20), ("node", 2), ("region", 1000)))
        where = Placement(
            arch=dice.choice(((), ("amd64",), ("arm64", "amd64"))), spread=Spread(by, skew)
        )
        request = Resources(dice.randrange(10, 90), dice.randrange(32, 192) << 20, 64 << 20)
        made.append(_workload(number, count, where, policy(dice), request))
    return made


def unique(replicas: int, seed: int) -> list[tuple[Workload, Template]]:
    """Single replicas, each with its own request and policy. About six of them fill a node."""
    dice = random.Random(seed ^ 0x1077)
    made = []
    for number in range(replicas):
        scale = dice.lognormvariate(-0.1, 0.5)
        request = Resources(
            max(10, int(1_700 * scale * dice.uniform(0.6, 1.4))),
            max(16 << 20, int(5.5 * GIB * scale * dice.uniform(0.6, 1.4))),
            dice.randrange(1, 2000) << 20,
        )
        # Most images are built for both; of the others most are for x86.
        arch = dice.choices(((), ("amd64", "arm64"), ("amd64",), ("arm64",)), (6, 2, 3, 1))[0]
        where = Placement(arch=arch)
        made.append(_workload(number, 1, where, policy(dice), request))
    return made


def _workload(
    number: int, count: int, where: Placement, rules: SovereigntySpec, request: Resources
) -> tuple[Workload, Template]:
    workload = Workload(
        uid=f"u{number}",
        namespace=f"tenant-{number % 20}",
        name=f"w{number}",
        count=count,
        mode=Mode.REPLICAS,
        placement=where,
        created_at_ms=number,
        sovereignty=rules,
    )
    return workload, Template(request)


def tenants(*, pack: bool) -> dict[str, Namespace]:
    """Twenty, of which a few have a floor."""
    floor = SovereigntySpec(residency=("EEA", "CH"))
    return {
        f"tenant-{number}": Namespace(
            f"tenant-{number}",
            floor=floor if number % 7 == 0 else SovereigntySpec(),
            pack=pack,
        )
        for number in range(20)
    }
