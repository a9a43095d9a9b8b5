"""A region's CA that is rotated is taken up without a restart. Run by server.py.

`edge-orchestrator ca rotate` or `ca import` replaces the files. From then on this member issues
with the new intermediate, and gives itself a new certificate, which the listeners show at the next
handshake. Nothing is taken back: connections stay, and what the former intermediate issued is
valid until it ends, because the root that everybody pins is the same.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from orchestrator.identity.authority import Authority, load_authority, region_home
from orchestrator.identity.member import MemberIdentity
from orchestrator.identity.pem import UnusableFile

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0

_Look = tuple[tuple[int, int, int], ...]


class Rotation:
    """Looks at the region's files. `taken` is called after a rotation, for metrics and the like."""

    def __init__(
        self,
        directory: Path,
        region: str,
        authority: Authority,
        member: MemberIdentity,
        taken: Callable[[], object] = lambda: None,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._directory = directory
        self._region = region
        self._authority = authority
        self._member = member
        self._taken = taken
        self._look_every_s = look_every_s
        self._seen: _Look = ()
        self._complaint = ""
        self._owed = False  # a certificate of this member's from the new intermediate

    async def run(self) -> None:
        """Until cancelled. The first look reads too: the files may have changed since the start."""
        while True:
            self.look()
            await asyncio.sleep(self._look_every_s)

    def look(self) -> bool:
        """Whether another intermediate was taken up. Files that do not fit together, as in the
        middle of a copy, are looked at again, and complained of once."""
        now = self._stat()
        if now == self._seen:
            return False
        try:
            newer = load_authority(self._directory, self._region)
            self._owed = self._authority.take(newer) or self._owed
            if self._owed:
                self._member.renew()
        except UnusableFile as error:
            if str(error) != self._complaint:
                log.warning("the region's CA on disk cannot be used; keeping ours: %s", error)
            self._complaint = str(error)
            return False
        self._seen, self._complaint = now, ""
        changed, self._owed = self._owed, False
        if changed:
            log.info("took up a new CA of the region", extra={"region": self._region})
            self._taken()
        return changed

    def _stat(self) -> _Look:
        """Inodes, times and sizes: a secret that is mounted changes by a link to another folder."""
        home = region_home(self._directory, self._region)
        found = []
        for path in (self._directory / "root.crt", home / "ca.crt", home / "ca.key"):
            try:
                about = path.stat()
                found.append((about.st_ino, about.st_mtime_ns, about.st_size))
            except OSError:
                found.append((0, 0, 0))
        return tuple(found)
