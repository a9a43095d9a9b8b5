"""Hears when a container's first process ends, from the kernel: listing may then be rarer.

`observe.py` tells it what runs. containerd 1.6 has no events of containers; later ones send them,
and this costs nothing while nothing happens (pidfd_open(2)).
"""

import asyncio
import os
from collections.abc import Callable, Collection
from pathlib import Path

PROC = Path("/proc")
NOTICE_S = 0.1
"""The runtime hears of an exit when we do, and needs a moment until its lists say so."""


class EndWatch:
    """`ended` is called when any of them ended, or may have. Belongs to one event loop."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended
        self._descriptors: dict[str, int] = {}

    def begin(self, container_id: str, pid: int) -> None:
        """Watch it, if that is its process: not where pids are another namespace's, nor one that
        has got the pid of a container that is gone."""
        if pid <= 0 or container_id in self._descriptors:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return
        try:
            is_its_own = container_id in (PROC / str(pid) / "cgroup").read_text()
        except OSError:
            is_its_own = False
        if not is_its_own:
            os.close(descriptor)
            return
        self._descriptors[container_id] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._end, container_id)

    def keep(self, running: Collection[str]) -> bool:
        """Forget all others. Whether every one of these is watched."""
        for container_id in self._descriptors.keys() - set(running):
            self._forget(container_id)
        return len(self._descriptors) == len(running)

    def close(self) -> None:
        self.keep(())

    def _end(self, container_id: str) -> None:
        self._forget(container_id)
        asyncio.get_running_loop().call_later(NOTICE_S, self._ended)

    def _forget(self, container_id: str) -> None:
        descriptor = self._descriptors.pop(container_id)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
