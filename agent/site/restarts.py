"""Restarts that local operators ask for: each is done once, however often it is sent.

Called by `agent/site/loop.py`. Which ones were done is on the disk before they are, so that one
that is sent again after a restart of the agent is not done again.
"""

from collections.abc import Mapping
from typing import Any

from agent.domain.roster import Key
from agent.domain.site.messages import Refusal
from agent.site.memory import Memory
from agent.supervisor import Supervisor

NAME = "restarts"
KEPT_MAX = 100


class Restarts:
    """`read` once, then `restart`."""

    def __init__(self, memory: Memory, supervisor: Supervisor) -> None:
        self._memory = memory
        self._supervisor = supervisor
        self._done: list[str] = []

    def read(self, body: Mapping[str, Any]) -> None:
        """From what was kept."""
        self._done = [str(id) for id in body.get("ids", ())]

    def check(self, key: Key) -> Refusal | None:
        """Why it could not be restarted; None: it can."""
        if self._supervisor.restartable(key):
            return None
        return Refusal("NotHere", "nothing of it runs on this node")

    async def restart(self, key: Key, id: str, why: str) -> Refusal | None:
        """None once it is on its way: its containers end gracefully, and others are started as soon
        as their images are there."""
        if id in self._done:
            return None
        if (refusal := self.check(key)) is not None:
            return refusal
        self._done = [*self._done, id][-KEPT_MAX:]
        trouble = await self._memory.save(NAME, {"ids": list(self._done)})
        if trouble:
            self._done = [known for known in self._done if known != id]
            return Refusal("NotWritable", f"this node cannot write it down: {trouble}")
        self._supervisor.restart(key, why)
        return None
