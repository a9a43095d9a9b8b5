"""Writes what nodes say of themselves to the Store, when it changed and in the background.

A session never waits for it: an agent that reconnects with the same inventory costs no write.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from orchestrator.cache import Cache
from orchestrator.domain.inventory import stored_form
from orchestrator.fleet import Fleet
from orchestrator.gateway.sessions import Sessions
from orchestrator.records import NodeStatusRecord
from orchestrator.store import keys
from orchestrator.store.port import Compare, CompareTarget, Put, Store, StoreError
from polder.v1 import agent_pb2

log = logging.getLogger(__name__)

_Said = tuple[str, str, dict[str, Any]]  # agent version, boot id, inventory


def said_last(cache: Cache, node: str) -> NodeStatusRecord | None:
    """What the Store has of it, unless it joined anew since: that may have been another box."""
    found, identity = cache.node_status(node), cache.identity("node", node)
    if found is not None and identity is not None and found.reported_at_ms < identity.joined_at_ms:
        return None
    return found


class NodeStatusWriter:
    """The newest report per node waits; `run` writes until cancelled."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        fleet: Fleet,
        sessions: Sessions,
        clock: Callable[[], float],
        retry_s: float,
    ) -> None:
        self._store = store
        self._cache = cache
        self._fleet = fleet
        self._sessions = sessions
        self._clock = clock
        self._retry_s = retry_s
        self._due: dict[str, _Said] = {}
        self._wake = asyncio.Event()

    def report(
        self, node: str, agent_version: str, boot_id: str, reported: agent_pb2.NodeInventory
    ) -> None:
        """Returns at once."""
        said = (agent_version, boot_id, stored_form(reported))
        if said != self._stored(node) or node in self._due:
            self._due[node] = said
            self._wake.set()

    async def run(self) -> None:
        """A failing store is tried again; the newest word counts."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            again = []
            while self._due:
                node, said = self._due.popitem()
                try:
                    written = await self._write(node, said)
                except StoreError as error:
                    log.warning("node status not written: %s", error, extra={"node": node})
                    written = False
                if not written:
                    again.append((node, said))
            if again:
                await asyncio.sleep(self._retry_s)
                for node, said in again:
                    self._due.setdefault(node, said)
                self._wake.set()

    async def _write(self, node: str, said: _Said) -> bool:
        """Whether nothing is left to do. Compared on the Node's record: a deleted one stays so."""
        resource = self._cache.resource("Node", "", node)
        if said == self._stored(node) or self._is_elsewhere(node):
            return True
        if resource is None:  # deleted; or it joined so lately that the mirror is behind
            return self._sessions.get(node) is None
        version, boot_id, form = said
        record = NodeStatusRecord(node, version, boot_id, form, int(self._clock() * 1000))
        result = await self._store.txn(
            [
                Compare(
                    keys.spec("Node", "", node),
                    CompareTarget.MOD_REVISION,
                    resource.store_revision,
                )
            ],
            [Put(keys.node_status(node), record.to_bytes())],
        )
        return result.committed

    def _is_elsewhere(self, node: str) -> bool:
        """What it told this member is older than what it tells the one that it is connected to."""
        seen = self._fleet.get(node)
        return seen is not None and seen.connected and seen.peer is not None

    def _stored(self, node: str) -> _Said | None:
        found = said_last(self._cache, node)
        return (found.agent_version, found.boot_id, found.inventory) if found is not None else None
