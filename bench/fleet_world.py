"""What `bench fleet` applies: a provider, sites near each region, workloads; and names of nodes.

Pure data. A site lies within some kilometres of its region, so that it is plain which is nearest.
"""

from collections.abc import Sequence
from typing import Any

from bench.fleet_members import Place

AGENTS_PER_SITE = 50
IMAGE = "registry.example/fleet/app@sha256:" + "5e" * 32
"""Nothing pulls it: the runtime is simulated."""

_API = "polder.eu/v1"
_PROVIDER: dict[str, Any] = {
    "apiVersion": _API,
    "kind": "Provider",
    "metadata": {"name": "fleet-telco"},
    "spec": {"legalName": "Fleet Telco N.V.", "seatCountry": "NL"},
}
_COUNTRIES = {"eu-central": "DE", "eu-west": "FR", "eu-north": "SE", "eu-south": "IT"}


def sites(places: Sequence[Place], agents: int) -> list[tuple[str, Place]]:
    """(name, region) of each, the regions in turn."""
    count = max(len(places), agents // AGENTS_PER_SITE)
    return [(f"site-{n:04d}", places[n % len(places)]) for n in range(count)]


def manifests(where: Sequence[tuple[str, Place]]) -> list[dict[str, Any]]:
    """The provider and the sites."""
    return [_PROVIDER, *(_site(name, place, n) for n, (name, place) in enumerate(where))]


def _site(name: str, place: Place, number: int) -> dict[str, Any]:
    coordinates = {
        "latitude": round(place.latitude + number % 10 / 100, 4),
        "longitude": round(place.longitude + number // 10 % 10 / 100, 4),
    }
    return {
        "apiVersion": _API,
        "kind": "Site",
        "metadata": {"name": name},
        "spec": {
            "provider": "fleet-telco",
            "country": _COUNTRIES.get(place.name, "PL"),
            "region": place.name,
            "coordinates": coordinates,
        },
    }


def nodes(agents: int) -> list[str]:
    return [f"node-{n:05d}" for n in range(agents)]


def workloads(replicas: int, each: int = 1000) -> list[dict[str, Any]]:
    """Of `each` replicas, the last of what is left; no probes, since nothing answers."""
    sizes = [each] * (replicas // each) + ([replicas % each] if replicas % each else [])
    return [_workload(f"fleet-{n:03d}", size) for n, size in enumerate(sizes)]


def _workload(name: str, replicas: int) -> dict[str, Any]:
    container = {
        "name": "app",
        "image": IMAGE,
        "resources": {"cpu": "100m", "memory": "64Mi"},
    }
    return {
        "apiVersion": _API,
        "kind": "Workload",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "template": {"containers": [container]},
            "placement": {"spread": {"by": "node", "maxSkew": 1}},
        },
    }
