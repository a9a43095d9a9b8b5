"""Moving an installation from one Store to another, such as from SQLite to etcd.

Called by `edge-orchestrator migrate` and by tests, while no orchestrator runs on either Store.
Every key that is not bound to a lease arrives with the same value; both sides are read again and
compared before the target counts as an installation.

What cannot be kept is what a Store makes itself: revisions, versions, leases and the log of
changes. The keys of leases, of which the leader's is one, stay behind; whoever held them asks
again. Epochs of assignments are made of revisions, and must go on growing: the installation's
record says from where on (`epochBase`). An operator's compare-and-set from before the move is
refused as stale, and a watch from before it has to read again.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

from orchestrator.store import keys
from orchestrator.store.port import (
    Compare,
    Delete,
    Entry,
    Op,
    Put,
    Store,
    StoreUnavailable,
    TxnResult,
)

_PAGE = 64
_BATCH_OPS = 100
_BATCH_BYTES = 1_000_000
_TRIES_MAX = 8
_ROUNDS_MAX = 3
_PAUSE_S = 0.25


class CannotMigrate(Exception):
    """Nothing was moved, or not all; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """What was moved. `left_behind`: keys that were bound to a lease."""

    entries: int
    value_bytes: int
    source_revision: int
    target_revision: int
    left_behind: tuple[str, ...]


async def migrate(source: Store, target: Store) -> Migrated:
    """Copy, compare, and only then write the key that makes the target an installation.

    Stopped at any moment it can be started again: a mark in the target tells whose half it holds.
    Raises CannotMigrate, StoreError.
    """
    installation = await source.get(keys.INSTALLATION)
    if installation is None:
        raise CannotMigrate("the source holds no installation: nothing was moved")
    mark = hashlib.sha256(installation.value).hexdigest().encode()
    await _begin(target, mark)
    held = Compare.value(keys.MIGRATION, mark)
    for _ in range(_ROUNDS_MAX):
        before = await source.revision()
        left_behind = await _copy(source, target, held)
        entries, value_bytes = await _compare(source, target)
        if await source.revision() == before:
            break
        # A lease ran out meanwhile, or an orchestrator still writes: another round makes it good.
    else:
        raise CannotMigrate("the source does not stand still: stop its orchestrator, start again")
    value = _carried_on(installation.value, before)
    revision = await _end(target, held, value)
    return Migrated(entries + 1, value_bytes + len(value), before, revision, left_behind)


def epoch_base(installation: bytes) -> int:
    """What the revisions of all former Stores came to, by the installation's record."""
    base = json.loads(installation).get("epochBase", 0)
    return base if isinstance(base, int) else 0


def _carried_on(installation: bytes, revision: int) -> bytes:
    """The record for the next Store, whose predecessor came to `revision`."""
    body = json.loads(installation)
    return json.dumps(
        {**body, "epochBase": epoch_base(installation) + revision}, sort_keys=True
    ).encode()


async def _begin(target: Store, mark: bytes) -> None:
    """Take the empty target, or take up what an earlier try began there."""
    found = await target.get(keys.MIGRATION)
    if found is None:
        if (await target.range("", limit=1)).entries:
            raise CannotMigrate(
                "the target is not empty: nothing was moved. Give another prefix or file, or empty "
                "it first"
            )
        await _write(target, [Compare.absent(keys.MIGRATION)], [Put(keys.MIGRATION, mark)])
        found = await target.get(keys.MIGRATION)
    if found is None or found.value != mark:
        raise CannotMigrate("another installation is being moved to the target: nothing was moved")


async def _copy(source: Store, target: Store, held: Compare) -> tuple[str, ...]:
    """Make the target what the source is. Gives the keys of leases."""
    left_behind: list[str] = []
    wanted: set[str] = set()
    ops: list[Op] = []
    size = 0
    async for entry in _entries(source):
        if entry.lease:
            left_behind.append(entry.key)
            continue
        wanted.add(entry.key)
        if entry.key == keys.INSTALLATION:
            continue
        cost = len(entry.key.encode()) + len(entry.value)
        if ops and (len(ops) >= _BATCH_OPS or size + cost > _BATCH_BYTES):
            await _write_held(target, held, ops)
            ops, size = [], 0
        ops.append(Put(entry.key, entry.value))
        size += cost
    # What an earlier try brought, and the source has forgotten since.
    stale = [e.key async for e in _entries(target) if e.key not in wanted | {keys.MIGRATION}]
    for key in stale:
        if len(ops) >= _BATCH_OPS:
            await _write_held(target, held, ops)
            ops = []
        ops.append(Delete(key))
    if ops:
        await _write_held(target, held, ops)
    return tuple(left_behind)


async def _compare(source: Store, target: Store) -> tuple[int, int]:
    """Count and bytes of what both have. Raises CannotMigrate at the first difference."""
    count = value_bytes = 0
    theirs = _entries(target)
    other = await _next_moved(theirs)
    ours = _entries(source)
    while (entry := await _next_moved(ours)) is not None:
        if other is None or (entry.key, entry.value) != (other.key, other.value):
            raise CannotMigrate(f"{entry.key} did not arrive as it was: start again")
        count += 1
        value_bytes += len(entry.value)
        other = await _next_moved(theirs)
    if other is not None:
        raise CannotMigrate(f"{other.key} is in the target only: start again")
    return count, value_bytes


async def _next_moved(entries: AsyncIterator[Entry]) -> Entry | None:
    async for entry in entries:
        if not entry.lease and entry.key not in (keys.INSTALLATION, keys.MIGRATION):
            return entry
    return None


async def _end(target: Store, held: Compare, installation: bytes) -> int:
    """From here on the target is an installation. Gives its revision."""
    ops: list[Op] = [Put(keys.INSTALLATION, installation), Delete(keys.MIGRATION)]
    result = await _write(target, [held, Compare.absent(keys.INSTALLATION)], ops)
    if not result.committed:
        # Refused, or made by a try whose answer was lost.
        found = await target.get(keys.INSTALLATION)
        made = found is not None and found.value == installation
        if not made or await target.get(keys.MIGRATION) is not None:
            raise CannotMigrate("the target was taken by another orchestrator meanwhile")
    return result.revision


async def _entries(store: Store) -> AsyncIterator[Entry]:
    after, more = "", True
    while more:
        page = await store.range("", after=after, limit=_PAGE)
        for entry in page.entries:
            yield entry
        more = page.more
        after = page.entries[-1].key if page.entries else ""


async def _write_held(target: Store, held: Compare, ops: list[Op]) -> None:
    if not (await _write(target, [held], ops)).committed:
        raise CannotMigrate("the mark of this move is gone from the target: is another one at it?")


async def _write(target: Store, compares: list[Compare], ops: list[Op]) -> TxnResult:
    """Try again while the outcome is unknown: made twice, each of these is as made once."""
    tries = 0
    while True:
        try:
            return await target.txn(compares, ops)
        except StoreUnavailable:
            tries += 1
            if tries >= _TRIES_MAX:
                raise
            await asyncio.sleep(_PAUSE_S * tries)
