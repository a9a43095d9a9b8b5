"""Keeps admin.yaml good for more than one member. Run by `server.py` where members share a Store.

The first member writes the file when nobody else is there yet. Operators who use it, or a copy made
later, must get through when just that member is lost: so the others' addresses are added to it as
they come. What stands in it is neither removed nor reordered: somebody may have edited it.
"""

import asyncio
import json
import logging
from pathlib import Path

from orchestrator.cache import Cache, Change
from orchestrator.domain.endpoints import addresses, nearest
from orchestrator.identity.pem import write_file
from orchestrator.installation import ADMIN, CLUSTER
from orchestrator.store import keys

log = logging.getLogger(__name__)

_PAUSE_S = 1.0


class AdminContext:
    """`run` until cancelled. `region`: whose members stand first among those that are added."""

    def __init__(self, path: Path, cache: Cache, region: str) -> None:
        self._path = path
        self._cache = cache
        self._region = region
        self._changed = asyncio.Event()
        self._changed.set()

    async def run(self) -> None:
        leave = self._cache.subscribe(self._note)
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                self._refresh()
                await asyncio.sleep(_PAUSE_S)
        finally:
            leave()

    def _note(self, changes: list[Change]) -> None:
        if any(change.key.startswith(keys.MEMBERS) for change in changes):
            self._changed.set()

    def _refresh(self) -> None:
        members = self._cache.members()
        near = nearest(members, region=self._region, coordinates=None, salt=ADMIN)
        try:
            text = with_endpoints(self._path.read_text(), addresses(near))
            if text:
                write_file(self._path, text.encode())
                log.info("other members' addresses are in it now", extra={"file": str(self._path)})
        except FileNotFoundError:
            return  # another member made the first admin, or somebody took the file away
        except OSError as error:
            log.warning("%s keeps the addresses that it has: %s", self._path, error.strerror)


def with_endpoints(context: str, endpoints: tuple[str, ...]) -> str:
    """The context file with these endpoints, too. Empty: nothing is to be changed, or the text is
    not as `installation.context_file` writes it."""
    try:
        body = json.loads(context)
        given = next(one["cluster"]["endpoints"] for one in body["clusters"] if _is_ours(one))
        missing = [endpoint for endpoint in endpoints if endpoint not in given]
        given.extend(missing)
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return ""
    return json.dumps(body, indent=2) + "\n" if missing else ""


def _is_ours(cluster: dict[str, object]) -> bool:
    return cluster["name"] == CLUSTER
