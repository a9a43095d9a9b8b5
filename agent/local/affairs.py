"""What a session carries for local operators: what they did goes up, the directory comes down.

`agent/session_stream.py` asks `changes()` when there is something to say, and hands in what the
orchestrator said. `agent/service.py` connects the two.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from agent.local.directory import Directory
from agent.local.journal import Journal
from polder.overrides import Override, to_message
from polder.v1 import agent_pb2


class Affairs:
    """Implements `agent.session_stream.Affairs`."""

    def __init__(self, journal: Journal, directory: Directory) -> None:
        self._journal = journal
        self._directory = directory
        self._overrides: tuple[Override, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()

    def decided(self, overrides: tuple[Override, ...]) -> None:
        """All that are known here, whichever node they were made at."""
        self._overrides = overrides

    def changes(self) -> agent_pb2.LocalChanges | None:
        """Overrides whole; of the journal what was not taken yet. None: nothing was ever done."""
        overrides = [to_message(override) for override in self._overrides]
        entries, dropped = self._journal.waiting()
        if not overrides and not entries and not dropped:
            return None
        return agent_pb2.LocalChanges(overrides=overrides, entries=entries, dropped=dropped)

    def taken(self, said: agent_pb2.LocalChangesTaken) -> None:
        self._spawn(self._journal.taken(said.journal_sequence))

    def directory(self, said: agent_pb2.SiteDirectory) -> None:
        self._spawn(self._directory.use(said))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """The disk is waited for elsewhere than in the session."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
