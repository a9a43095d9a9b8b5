"""What the running agent leaves for `edge-agent status` and for the installer of upgrades.

One small file, rewritten on change. It is not synced: after a power cut the previous one, or none,
is good enough.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.session_stream import ConnectionState
from polder import __version__

NAME = "status.json"
# While all is well the file still says now and then that it is: few writes spare the flash.
REFRESH_S = 300.0


class StatusFile:
    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / NAME
        self._written: dict[str, Any] = {}
        self._written_at = 0.0

    def write(
        self, connection: ConnectionState, generation: int, running: int, site: Mapping[str, Any]
    ) -> None:
        """Write what changed since the last call. A disk that refuses is not worth a word here.

        `site`: peers and standbys, see `agent/site/loop.py`.
        """
        facts = {**asdict(connection), "plan_generation": generation, "replicas_running": running}
        facts |= {**site, "pid": os.getpid(), "version": __version__}
        stable = {k: v for k, v in facts.items() if k not in ("last_contact", "clock_skew_s")}
        now = time.monotonic()
        if stable == self._written and now - self._written_at < REFRESH_S:
            return
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps({**facts, "written_at": time.time()}))
            fresh.replace(self._path)
        except OSError:
            return
        self._written, self._written_at = stable, now


def read(state_dir: Path) -> dict[str, Any]:
    """What was written last; empty if nothing readable."""
    try:
        facts = json.loads((state_dir / NAME).read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
