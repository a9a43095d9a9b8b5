"""In which order a node or an operator tries the members of all regions. Pure.

Asked by `orchestrator/whereabouts.py`: welcomes, plans, join answers, renewals, join tokens and
operators' contexts all carry the list. Plans are composed on any member and must come out the same
byte for byte, so the order depends on who asks and on the members' records, and on nothing else: in
particular not on who is present, which would also change every list whenever a member restarts.

    the region that the site names  >  the others by distance  >  those whose place is unknown

Within a region, and between regions when nothing is known of where the node is, each node has an
order of its own: the highest random weight goes first (Thaler and Ravishankar, "Using Name-Based
Mappings to Increase Hit Rates", IEEE/ACM Transactions on Networking 6(1), 1998). So the nodes of a
member that is lost spread over all the others, and one that is added takes its share from each.
"""

import hashlib
import math
from collections.abc import Iterable

from orchestrator.records import MemberRecord

EARTH_RADIUS_KM = 6371.0088
ADDRESSES_MAX = 64
"""As many as an agent keeps."""

Coordinates = tuple[float, float]
"""Latitude and longitude in degrees."""


def nearest(
    members: Iterable[MemberRecord], *, region: str, coordinates: Coordinates | None, salt: str
) -> tuple[MemberRecord, ...]:
    """All members, nearest first, for who is at `coordinates` and belongs to `region`.

    Either may be unknown (None, empty); a region without coordinates of its own is as far as its
    members say. `salt` is the name of who asks.
    """
    found = sorted(members, key=lambda member: member.name)
    places = _places(found)
    origin = coordinates or places.get(region)

    def order(member: MemberRecord) -> tuple[bool, float, str, str, int, str]:
        place = places.get(member.region)
        if origin is None:
            km, among = 0.0, _weight(salt, member.region)
        else:
            # Rounded, so that the last bit of a processor's arithmetic decides nothing.
            km, among = round(distance_km(origin, place), 1) if place else math.inf, 0
        own = member.region == region
        return (
            not own,
            km,
            f"{among:020d}",
            member.region,
            _weight(salt, member.name),
            member.name,
        )

    return tuple(sorted(found, key=order))


def addresses(members: Iterable[MemberRecord], *, joining: bool = False) -> tuple[str, ...]:
    """What to dial, in the members' order; processes that share a port are one address.

    Every member's first address comes before anybody's second when not all fit.
    """
    lists = [m.join_endpoints if joining else m.endpoints for m in members]
    whole = tuple(dict.fromkeys(address for one in lists for address in one))
    if len(whole) <= ADDRESSES_MAX:
        return whole
    firsts = dict.fromkeys(address for one in lists for address in one[:1])
    return tuple(dict.fromkeys((*firsts, *whole)))[:ADDRESSES_MAX]


def distance_km(a: Coordinates, b: Coordinates) -> float:
    """Along the great circle, by the haversine formula."""
    (lat_a, lon_a), (lat_b, lon_b) = ((math.radians(x), math.radians(y)) for x, y in (a, b))
    chord = (
        math.sin((lat_b - lat_a) / 2) ** 2
        + math.cos(lat_a) * math.cos(lat_b) * math.sin((lon_b - lon_a) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, chord)))


def _places(members: list[MemberRecord]) -> dict[str, Coordinates]:
    """Where regions are; of members that disagree the first by name is believed."""
    places: dict[str, Coordinates] = {}
    for member in members:
        if member.coordinates is not None:
            places.setdefault(member.region, member.coordinates)
    return places


def _weight(salt: str, name: str) -> int:
    text = f"{salt}\0{name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
