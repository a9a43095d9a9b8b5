"""Tells agents what operators need of their site when nobody else can be asked: a SiteDirectory.

Where the nodes of the site answer operators (from inventories), and whose certificates and
break-glass tokens were revoked. The service asks for it after each Welcome and runs it beside the
plans; what changes is told to those whom it concerns. Agents keep it on their disk.
"""

import asyncio
from collections import defaultdict
from weakref import WeakKeyDictionary

from orchestrator.cache import Cache, Change
from orchestrator.gateway.sessions import LiveSession, Sessions
from orchestrator.identity.allowlist import BREAK_GLASS
from orchestrator.records import IdentityRecord, NodeStatusRecord, StoredResource
from orchestrator.store import keys
from polder.v1 import agent_pb2

NODES_MAX = 64
"""Of one site, by name: each of them knows some others."""
REVOKED_MAX = 1_000
"""Those that expire last."""
_COALESCE_S = 0.5
_BATCH = 50
_PAUSE_S = 0.1
_NODES = keys.spec_prefix("Node")
_KINDS = ("operator", BREAK_GLASS)
_REVOCABLE = tuple(keys.identity(kind, "") for kind in _KINDS)


class Directories:
    """Remembers what each session was told; those of one site share it."""

    def __init__(self, cache: Cache, sessions: Sessions) -> None:
        self._cache = cache
        self._sessions = sessions
        self._told: WeakKeyDictionary[LiveSession, agent_pb2.SiteDirectory] = WeakKeyDictionary()
        self._made: dict[str, agent_pb2.SiteDirectory] = {}  # by site
        self._endpoints: dict[str, tuple[NodeStatusRecord, tuple[str, ...]]] = {}
        self._at: defaultdict[str, set[str]] = defaultdict(set)  # site: its nodes
        for node in cache.resources("Node"):
            self._at[_site(node)].add(node.name)
        self._revoked: tuple[str, ...] | None = None
        self._wake = asyncio.Event()
        cache.subscribe(self._on_changes)

    def welcome(self, session: LiveSession) -> None:
        """A new session. Where no node answers operators there is nothing to tell."""
        found = self._of(session.identity.site)
        if found.nodes:
            self._send(session, found)

    async def run(self) -> None:
        """Tells of changes until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(_COALESCE_S)
            self._wake.clear()
            await self._tell_all()

    async def _tell_all(self) -> None:
        told = 0
        for count, session in enumerate(self._sessions):
            if count % _BATCH == 0:
                await asyncio.sleep(0)
            if session.is_closed():
                continue
            found = self._of(session.identity.site)
            before = self._told.get(session)
            if found is before or found == before or (before is None and not found.nodes):
                continue
            self._send(session, found)
            told += 1
            if told % _BATCH == 0:
                await asyncio.sleep(_PAUSE_S)

    def _send(self, session: LiveSession, found: agent_pb2.SiteDirectory) -> None:
        self._told[session] = found
        session.send(agent_pb2.SessionResponse(site_directory=found))

    # --- what it says ----------------------------------------------------------------------------

    def _of(self, site: str) -> agent_pb2.SiteDirectory:
        found = self._made.get(site)
        if found is None:
            found = agent_pb2.SiteDirectory(revoked_serials=self._all_revoked())
            for name in sorted(self._at.get(site, ())):
                if (endpoints := self._of_node(name)) and len(found.nodes) < NODES_MAX:
                    found.nodes.add(node=name, local_endpoints=endpoints)
            self._made[site] = found
        return found

    def _of_node(self, node: str) -> tuple[str, ...]:
        """Of one that was revoked: nothing. It is not to be entered."""
        status, identity = self._cache.node_status(node), self._cache.identity("node", node)
        if status is None or (identity is not None and identity.revoked_at_ms):
            self._endpoints.pop(node, None)
            return ()
        known = self._endpoints.get(node)
        if known is None or known[0] is not status:
            known = self._endpoints[node] = (status, _endpoints(status))
        return known[1]

    def _all_revoked(self) -> tuple[str, ...]:
        """Whether one has expired meanwhile the agent sees by itself."""
        if self._revoked is None:
            expiry: dict[str, int] = {}
            for kind in _KINDS:
                for record in self._cache.identities(kind):
                    expiry |= record.refused_serials
            last = sorted(expiry, key=lambda serial: (-expiry[serial], serial))[:REVOKED_MAX]
            self._revoked = tuple(sorted(last))
        return self._revoked

    # --- following -------------------------------------------------------------------------------

    def _on_changes(self, changes: list[Change]) -> None:
        for change in changes:
            if change.key.startswith(keys.NODE_STATUS):
                if _endpoints(change.previous) != _endpoints(change.value):
                    self._changed_at(change.key.removeprefix(keys.NODE_STATUS))
            elif change.key.startswith(_NODES):
                self._node(change)
            elif change.key.startswith(_REVOCABLE):
                if _refused(change.previous) != _refused(change.value):
                    self._revoked = None
                    self._made.clear()
                    self._wake.set()
            elif isinstance(change.value, IdentityRecord) and change.value.revoked_at_ms:
                self._changed_at(change.value.name)

    def _node(self, change: Change) -> None:
        """Which site it belongs to; most changes of it are of something else."""
        before, after = (
            _site(record) if isinstance(record, StoredResource) else None
            for record in (change.previous, change.value)
        )
        if before == after:
            return
        name = change.key.rpartition("/")[2]
        if before is not None:
            self._at[before].discard(name)
            self._forget(before)
        if after is not None:
            self._at[after].add(name)
            self._forget(after)

    def _changed_at(self, node: str) -> None:
        record = self._cache.resource("Node", "", node)
        if record is not None:
            self._forget(_site(record))

    def _forget(self, site: str) -> None:
        if self._made.pop(site, None) is not None:
            self._wake.set()


def _site(node: StoredResource) -> str:
    return str(node.spec.get("site", ""))


def _endpoints(status: object | None) -> tuple[str, ...]:
    if not isinstance(status, NodeStatusRecord) or "localEndpoints" not in status.inventory_text:
        return ()
    return tuple(status.inventory.get("localEndpoints", ()))


def _refused(record: object | None) -> dict[str, int]:
    return record.refused_serials if isinstance(record, IdentityRecord) else {}
