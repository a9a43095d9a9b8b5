"""Which addresses of members a node or an operator is told, from the mirror of the Store.

Asked by the gateway (welcomes, plans), by joins, renewals and join tokens, and by the operator API.
The order is decided in `orchestrator/domain/endpoints.py`. While no member has a record, what this
member was configured with is all that is known.
"""

from collections.abc import Iterator

from orchestrator.cache import Cache
from orchestrator.domain.endpoints import Coordinates, addresses, nearest
from orchestrator.records import MemberRecord
from orchestrator.store import keys
from polder.manifest import InvalidManifest
from polder.manifest.facts import SiteSpec

CONCERNED = (keys.MEMBERS, keys.spec_prefix("Site"))
"""A change below one of these may change a list."""


class Whereabouts:
    """`endpoints` and `join_endpoints` are this member's own, for when there are no records."""

    def __init__(
        self, cache: Cache, endpoints: tuple[str, ...] = (), join_endpoints: tuple[str, ...] = ()
    ) -> None:
        self._cache = cache
        self._endpoints = endpoints
        self._join_endpoints = join_endpoints

    def for_node(self, node: str, site: str) -> tuple[str, ...]:
        """mTLS addresses of all members, nearest first."""
        return addresses(self._from_site(node, site)) or self._endpoints

    def for_joining(self, node: str, site: str) -> tuple[str, ...]:
        """Where a box of that site can join; `node` may be empty."""
        return addresses(self._from_site(node, site), joining=True) or self._join_endpoints

    def for_operator(self, name: str, region: str) -> tuple[str, ...]:
        """mTLS addresses of all members: first those of the region that was asked."""
        members = self._cache.members()
        return addresses(nearest(members, region=region, coordinates=None, salt=name)) or (
            self._endpoints
        )

    def has_others(self, member: str) -> bool:
        """Whether somebody else could serve those whom `member` sends away."""
        return any(self._others(member))

    def has_siblings(self, member: str) -> bool:
        """Whether another process serves an address of `member`, on the same machine."""
        own = {e for m in self._cache.members() if m.name == member for e in m.endpoints}
        return any(own.intersection(other.endpoints) for other in self._others(member))

    def _others(self, member: str) -> Iterator[MemberRecord]:
        for record in self._cache.members():
            if record.name != member and self._cache.present(record.name) is not None:
                yield record

    def _from_site(self, node: str, site: str) -> tuple[MemberRecord, ...]:
        region, coordinates = self._site(site)
        return nearest(
            self._cache.members(), region=region, coordinates=coordinates, salt=node or site
        )

    def _site(self, name: str) -> tuple[str, Coordinates | None]:
        resource = self._cache.resource("Site", "", name)
        try:
            spec = resource.decoded if resource is not None else None
        except InvalidManifest:
            spec = None
        if not isinstance(spec, SiteSpec):
            return "", None
        where = spec.coordinates
        return spec.region, (where.latitude, where.longitude) if where is not None else None
