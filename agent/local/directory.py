"""Whom operators find at the site, and whom not to let in, as the orchestrator said last.

On the disk, since it is for when nobody can be asked. `affairs.py` takes it in from the session.
Nothing rests on it alone: nodes prove who they are, and a serial can only shut somebody out.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from agent.site.memory import Memory
from polder.v1 import agent_pb2

NODES_MAX = 1_000
ENDPOINTS_MAX = 16
REVOKED_MAX = 4_096
_NAME = "directory"


class Directory:
    """`bodies`: what the memory held at the start."""

    def __init__(self, memory: Memory, bodies: Mapping[str, Any]) -> None:
        self._memory = memory
        self._news = asyncio.Event()
        self.nodes: Mapping[str, tuple[str, ...]] = {}
        self._revoked: dict[str, None] = {}
        try:
            body = bodies.get(_NAME, {})
            self.nodes = {str(name): tuple(told) for name, told in body.get("nodes", {}).items()}
            self._revoked = {str(serial): None for serial in body.get("revoked", ())}
        except (AttributeError, TypeError):
            pass  # of another version: the next one comes with the next session

    def revoked(self, serial: str) -> bool:
        return plain(serial) in self._revoked

    async def news(self) -> None:
        """Until the orchestrator says anything else."""
        await self._news.wait()

    async def use(self, said: agent_pb2.SiteDirectory) -> None:
        """At once, and then on the disk; if that refuses, until the agent ends.

        A serial that was revoked stays so, though it is not named any more: nobody can tell a list
        that grew short from one that was cut.
        """
        nodes = {node.node: tuple(node.local_endpoints[:ENDPOINTS_MAX]) for node in said.nodes}
        named = dict.fromkeys(plain(serial) for serial in said.revoked_serials)
        revoked = dict(list((named | self._revoked).items())[:REVOKED_MAX])
        nodes = dict(list(nodes.items())[:NODES_MAX])
        if (nodes, list(revoked)) == (self.nodes, list(self._revoked)):
            return
        self.nodes, self._revoked = nodes, revoked
        self._news.set()
        self._news = asyncio.Event()
        body = {"nodes": {name: list(told) for name, told in nodes.items()}}
        await self._memory.save(_NAME, {**body, "revoked": list(revoked)})


def plain(serial: str) -> str:
    """One way to write a serial number."""
    return serial.lower().lstrip("0")
