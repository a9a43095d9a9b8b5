"""Upgrades of this agent as long as there is nothing to do: costs nothing but a look at the disk.

Implements `agent.session_stream.Upgrades`; `agent/service.py` runs one. What does the work
(`desk.py`) takes 0.2 MB: it is loaded once an orchestrator asks for something, or an order is under
way.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc

from agent import state_form
from agent.upgrade.files import ORDER, OUTCOME, TAKEN, UpgradeFiles
from polder.v1 import agent_pb2

if TYPE_CHECKING:
    from agent.upgrade.desk import Desk

log = logging.getLogger(__name__)


class Upgrades:
    """`make` loads the desk and makes it; `publish` is called when there is something to say."""

    def __init__(self, files: UpgradeFiles, make: "Callable[[], Desk]") -> None:
        self.publish: Callable[[], None] = lambda: None
        self._files = files
        self._make = make
        self._desk: Desk | None = None
        self._last: agent_pb2.UpgradeStatus | None = None
        self._heard: list[tuple[grpc.aio.Channel, agent_pb2.AgentUpgrade]] = []
        self._asked = asyncio.Event()

    def told(self, channel: grpc.aio.Channel, said: agent_pb2.AgentUpgrade) -> None:
        """What comes before the desk is there waits for it, the latest only."""
        if self._desk is not None:
            self._desk.told(channel, said)
        elif said.withdrawn:
            self._heard = []
        else:
            self._heard = [(channel, said)]
            self._asked.set()

    def status(self) -> agent_pb2.UpgradeStatus | None:
        """How far it has come, or what became of the last one; None: there was never any."""
        return self._last if self._desk is None else self._desk.status()

    async def run(self) -> None:
        """Until cancelled."""
        if not self._files.exists(ORDER) and not self._files.exists(TAKEN):
            self._not_on_trial()
            await self._asked.wait()
        desk = self._make()
        desk.publish = self.publish
        await desk.boot()
        self._desk = desk
        for channel, said in self._heard:
            desk.told(channel, said)
        self.publish()
        await desk.run()

    def _not_on_trial(self) -> None:
        """This version stays; and the last outcome is told."""
        try:
            state_form.raise_form(self._files.folder.parent)
        except OSError as error:
            log.warning("the form of the state is not written", extra={"error": str(error)})
        try:
            self._last = agent_pb2.UpgradeStatus(**(self._files.read(OUTCOME) or {}))
        except (TypeError, ValueError):  # another version's, which has more to say
            return
        if not self._last.phase:
            self._last = None
        self.publish()
