"""Keeps the write-ahead log short: copies it into the database and starts it over.

Called by the writer thread after it has reported a commit, so that nobody waits for a checkpoint
but the next group. SQLite starts the log over only at a moment when no reader uses it. Under a
constant stream of reads such a moment never comes by itself, and the log would grow for as long as
the load lasts; so, once it is long, the readers are asked to pause.
"""

import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from orchestrator.store.sqlite_file import BUSY_TIMEOUT_S, PAGE_BYTES
from orchestrator.store.sqlite_group import Change

log = logging.getLogger(__name__)

Quiet = Callable[[float], AbstractContextManager[bool]]
"""Holds new reads back; True if those under way ended within so many seconds."""

_CHECKPOINT_PAGES = 2000
_LONG_PAGES = 8000
_QUIET_S = 0.05


class Checkpointer:
    """Estimates what was written since the last checkpoint; the truth comes with the checkpoint."""

    def __init__(self, quiet: Quiet) -> None:
        self._quiet = quiet
        self._pages = 0
        self._failing = False

    def after_commit(self, db: sqlite3.Connection, changes: Sequence[Change]) -> None:
        """Checkpoint when it is time. A failure only leaves the log longer."""
        size = sum(len(change.value) for change in changes)
        # A key and its value go to two tables and an index; most share their pages with others.
        self._pages += 4 + len(changes) + 2 * size // PAGE_BYTES
        if self._pages < _CHECKPOINT_PAGES:
            return
        self._pages = 0
        try:
            _, length, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if length > _LONG_PAGES:
                self._start_over(db)
        except sqlite3.Error as error:
            if not self._failing:
                log.warning("cannot shorten the store's write-ahead log: %s", error)
            self._failing = True
        else:
            self._failing = False

    def _start_over(self, db: sqlite3.Connection) -> None:
        with self._quiet(_QUIET_S) as quiet:
            if quiet:
                # An operator's sqlite3 shell is not worth waiting for.
                db.execute("PRAGMA busy_timeout = 20")
                try:
                    db.execute("PRAGMA wal_checkpoint(RESTART)")
                finally:
                    db.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
