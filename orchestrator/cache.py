"""A mirror of the Store in memory, kept by one watch. Everything that only reads, reads here.

The operator API answers from it, the leader takes its snapshot from it, the gateway composes plans
from it. Writers compare on `store_revision` of what they read here, so a stale mirror costs a retry
and never a lost update. When the Store is away the mirror stays, and `age` says how old it is.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from orchestrator.cancellation import is_cancelled
from orchestrator.records import (
    IdentityRecord,
    KeptRecord,
    MemberRecord,
    NodePlacement,
    NodeStatusRecord,
    PresenceRecord,
    StoredResource,
    TemplateRevision,
)
from orchestrator.store import keys
from orchestrator.store.port import (
    Compacted,
    Entry,
    EventType,
    Store,
    StoreError,
    WatchBatch,
)

log = logging.getLogger(__name__)

MIRRORED = (
    keys.SPECS,
    keys.REVISIONS,
    keys.PLACEMENTS,
    keys.IDENTITIES,
    keys.NODE_STATUS,
    *keys.KEPT,
    keys.MEMBERS,
    keys.PRESENT,
)
_RETRY_S = 0.5
_UNREADABLE_RETRY_S = 5.0
_PAGE = 1000
_EXPECTED_MAX = 4096
_FORGOTTEN_MAX = 100
"""A read that misses more than so many records, and more than half of all, is not believed."""


class Implausible(StoreError):
    """The Store answered, and it cannot be true. The mirror stays as it was."""


@dataclass(frozen=True, slots=True)
class Change:
    """`key` changed at `revision`; `value` is the record, None when deleted."""

    key: str
    revision: int
    value: object | None
    previous: object | None


Listener = Callable[[list[Change]], None]


class Cache:
    """Start with `start()`, which returns when the first read is complete; end with `stop()`."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._values: dict[str, object] = {}
        self._resources: dict[str, dict[str, StoredResource]] = defaultdict(dict)
        self._identities: dict[str, dict[str, IdentityRecord]] = defaultdict(dict)
        self._revisions: dict[str, TemplateRevision] = {}
        self._placements: dict[str, NodePlacement] = {}
        self._kept: dict[str, dict[str, KeptRecord]] = {prefix: {} for prefix in keys.KEPT}
        self._members: set[str] = set()  # keys
        self._listeners: list[Listener] = []
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._expected: dict[str, tuple[bytes, StoredResource | TemplateRevision]] = {}
        self._task: asyncio.Task[None] | None = None
        self.revision = 0
        self.epoch_base = 0
        self.placed_epoch = 0
        self.synced_at = 0.0
        self.healthy = False
        self.doubt = ""  # why the last read was not believed

    async def start(self) -> None:
        """Raises StoreError when the first read fails."""
        await self._load()
        self._task = asyncio.create_task(self._follow(), name="cache")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for _, waiter in self._waiters:
            waiter.cancel()

    @property
    def epoch(self) -> int:
        """A number that only grows, also over a move to another Store, which counts its revisions
        anew: `epoch_base` is what those of all former Stores came to. After a restore from a backup
        the leader raises that (`domain/restored.py`); `placed_epoch` is the highest number that any
        placement was seen to hold."""
        return self.epoch_base + self.revision

    # --- reading ---------------------------------------------------------------------------

    def resource(self, kind: str, namespace: str, name: str) -> StoredResource | None:
        return self._resources[kind].get(keys.spec(kind, namespace, name))

    def uid_of(self, kind: str, namespace: str, name: str) -> str:
        """Empty when there is no such resource, or its kind has no records of its own."""
        found = self.resource(kind, namespace, name)
        return found.uid if found is not None else ""

    def resources(self, kind: str) -> Iterable[StoredResource]:
        return self._resources[kind].values()

    def revision_of(self, workload_uid: str, number: int) -> TemplateRevision | None:
        found = self._values.get(keys.revision(workload_uid, number))
        return found if isinstance(found, TemplateRevision) else None

    def revisions(self) -> Iterable[TemplateRevision]:
        """Every stored template of every workload."""
        return self._revisions.values()

    def placement(self, node: str) -> NodePlacement:
        """An absent placement is generation 0 with nothing in it."""
        found = self._values.get(keys.placement(node))
        return found if isinstance(found, NodePlacement) else NodePlacement(node)

    def placements(self) -> list[NodePlacement]:
        return list(self._placements.values())

    def identity(self, kind: str, name: str) -> IdentityRecord | None:
        found = self._values.get(keys.identity(kind, name))
        return found if isinstance(found, IdentityRecord) else None

    def identities(self, kind: str) -> list[IdentityRecord]:
        return list(self._identities[kind].values())

    def kept(self, prefix: str) -> list[KeptRecord]:
        """All of one of `keys.KEPT`."""
        return list(self._kept[prefix].values())

    def kept_at(self, key: str) -> KeptRecord | None:
        found = self._values.get(key)
        return found if isinstance(found, KeptRecord) else None

    def members(self) -> list[MemberRecord]:
        """All that ever started and were not forgotten, by name."""
        found = [self._values[key] for key in sorted(self._members)]
        return [record for record in found if isinstance(record, MemberRecord)]

    def present(self, member: str) -> PresenceRecord | None:
        """None: its lease ran out, or it ended."""
        found = self._values.get(keys.present(member))
        return found if isinstance(found, PresenceRecord) else None

    def node_status(self, node: str) -> NodeStatusRecord | None:
        found = self._values.get(keys.node_status(node))
        return found if isinstance(found, NodeStatusRecord) else None

    # --- following -------------------------------------------------------------------------

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """The listener gets each batch of changes, in order, after the mirror holds them."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def wait_for(self, revision: int) -> None:
        """Until the mirror is at `revision` or later: lets a writer read its own write."""
        if self.revision >= revision:
            return
        waiter = asyncio.get_running_loop().create_future()
        item = (revision, waiter)
        self._waiters.append(item)
        try:
            await waiter
        except asyncio.CancelledError:
            if item in self._waiters:
                self._waiters.remove(item)
            raise

    def expect(self, key: str, raw: bytes, value: StoredResource | TemplateRevision) -> None:
        """A writer of this process says what `raw` means, so that the mirror need not parse it.

        Only a hint: what arrives with other bytes is parsed as ever.
        """
        if len(self._expected) >= _EXPECTED_MAX:
            self._expected.clear()  # their writes failed, or the watch is far behind
        self._expected[key] = (raw, value)

    def _decoded(self, entry: Entry) -> object:
        raw, value = self._expected.pop(entry.key, (b"", None))
        if value is None or raw != entry.value:
            return _decode(entry.key, entry)
        if isinstance(value, StoredResource):
            return value.known(value.decoded, entry.mod_revision)
        return value

    def age_s(self) -> float:
        """Seconds since the mirror was last known to be current; 0 while the watch is live."""
        return 0.0 if self.healthy else max(0.0, self._clock() - self.synced_at)

    async def _load(self) -> None:
        """Read everything. Values that vanished while the watch was away become deletions."""
        revision = await self._store.revision()
        fresh: dict[str, Entry] = {}
        for prefix in MIRRORED:
            after, more = "", True
            while more:
                page = await self._store.range(prefix, after=after, limit=_PAGE)
                fresh.update((entry.key, entry) for entry in page.entries)
                more = page.more
                after = page.entries[-1].key if page.entries else ""
        gone = [key for key in self._values if key not in fresh]
        self._check(len(gone), revision)
        changes = [Change(key, revision, None, self._values[key]) for key in gone]
        changes += [
            Change(key, entry.mod_revision, _decode(key, entry), self._values.get(key))
            for key, entry in fresh.items()
            if entry.mod_revision > self.revision or key not in self._values
        ]
        self._apply(changes, revision)
        self.healthy = True

    def _check(self, gone: int, revision: int) -> None:
        """An empty read is not "everything was deleted". Raises Implausible."""
        known = len(self._values)
        self.doubt = ""
        if revision < self.revision:
            self.doubt = f"the store went back from revision {self.revision} to {revision}"
        elif gone > max(_FORGOTTEN_MAX, known / 2):
            self.doubt = f"{gone} of {known} records are not in the store any more"
        if self.doubt:
            raise Implausible(f"{self.doubt}; if that is true, restart this orchestrator")

    async def _follow(self) -> None:
        while True:
            try:
                watch = self._store.watch("/", from_revision=self.revision + 1)
                async for batch in watch:
                    self.healthy = True
                    self._apply(self._changes(batch), batch.revision)
            except Compacted:
                log.warning("the watch fell behind a compaction; reading everything again")
                await self._reload()
            except StoreError as error:
                level = logging.WARNING if self.healthy else logging.DEBUG  # told once
                self.healthy = False
                log.log(level, "the store's watch broke; trying again: %s", error)
                await asyncio.sleep(_RETRY_S)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                self.healthy = False
                log.warning("the store's watch was cancelled by its connection; trying again")
                await asyncio.sleep(_RETRY_S)
            except Exception as error:
                await self._wait_unreadable(error)
                await self._reload()

    def _changes(self, batch: WatchBatch) -> list[Change]:
        """A batch may be of many revisions: what was before a change may be of the same batch."""
        changes: list[Change] = []
        newest: dict[str, object] = {}
        for event in batch.events:
            entry = event.entry
            if not entry.key.startswith(MIRRORED):
                continue
            value = self._decoded(entry) if event.type is EventType.PUT else None
            previous = newest.get(entry.key) if entry.key in newest else self._values.get(entry.key)
            newest[entry.key] = value
            changes.append(Change(entry.key, entry.mod_revision, value, previous))
        return changes

    async def _reload(self) -> None:
        while True:
            try:
                return await self._load()
            except StoreError as error:
                self.healthy = False
                log.warning("the store cannot be read; keeping what is known: %s", error)
                await asyncio.sleep(_RETRY_S)
            except Exception as error:
                await self._wait_unreadable(error)

    async def _wait_unreadable(self, error: Exception) -> None:
        """A record that cannot be read is not skipped: what is known stays, and grows old in plain
        sight, until the record has been mended."""
        self.healthy = False
        log.error("a record cannot be read; the mirror stays as it is until it can: %r", error)
        await asyncio.sleep(_UNREADABLE_RETRY_S)

    def _apply(self, changes: list[Change], revision: int) -> None:
        for change in changes:
            if change.value is None:
                self._values.pop(change.key, None)
                self._members.discard(change.key)
            else:
                self._values[change.key] = change.value
            if isinstance(change.value, MemberRecord):
                self._members.add(change.key)
            if isinstance(change.value, StoredResource):
                self._resources[change.value.kind][change.key] = change.value
            elif isinstance(change.previous, StoredResource):
                self._resources[change.previous.kind].pop(change.key, None)
            elif isinstance(change.value, IdentityRecord):
                self._identities[change.value.kind][change.key] = change.value
            elif isinstance(change.previous, IdentityRecord):
                self._identities[change.previous.kind].pop(change.key, None)
            elif isinstance(change.value, TemplateRevision):
                self._revisions[change.key] = change.value
            elif isinstance(change.value, NodePlacement):
                self._placements[change.key] = change.value
                self.placed_epoch = max(self.placed_epoch, change.value.highest_epoch)
            elif isinstance(change.value, KeptRecord):
                self._kept[_kept_prefix(change.key)][change.key] = change.value
            elif isinstance(change.previous, KeptRecord):
                self._kept[_kept_prefix(change.key)].pop(change.key, None)
            else:
                self._revisions.pop(change.key, None)
                self._placements.pop(change.key, None)
        self.revision = max(self.revision, revision)
        self.synced_at = self._clock()
        if changes:
            for listener in list(self._listeners):
                listener(changes)
        ready = [waiter for wanted, waiter in self._waiters if wanted <= self.revision]
        self._waiters = [item for item in self._waiters if item[0] > self.revision]
        for waiter in ready:
            if not waiter.done():
                waiter.set_result(None)


def _kept_prefix(key: str) -> str:
    return next(prefix for prefix in keys.KEPT if key.startswith(prefix))


def _decode(key: str, entry: Entry) -> object:
    """The record behind a key. A value that cannot be read stops the mirror, and is not skipped."""
    if key.startswith(keys.SPECS):
        return StoredResource.from_bytes(entry.value, entry.mod_revision)
    if key.startswith(keys.REVISIONS):
        return TemplateRevision.from_bytes(entry.value)
    if key.startswith(keys.PLACEMENTS):
        return NodePlacement.from_bytes(entry.value, entry.mod_revision)
    if key.startswith(keys.IDENTITIES):
        return IdentityRecord.from_bytes(entry.value, entry.mod_revision)
    if key.startswith(keys.KEPT):
        return KeptRecord.from_bytes(key, entry.value, entry.mod_revision)
    if key.startswith(keys.MEMBERS):
        return MemberRecord.from_bytes(entry.value)
    if key.startswith(keys.PRESENT):
        return PresenceRecord.from_bytes(entry.value)
    return NodeStatusRecord.from_bytes(entry.value)
