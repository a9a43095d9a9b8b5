"""Takes over what operators did at sites: overrides into the Store, journals into the events.

A session hands over what its agent says and goes on reading; `run` writes in the background and
tells the agent what stands, so that it may forget it. Nothing is acknowledged before the Store has
it, and what comes twice is written once. Overrides are merged by `domain/overrides.py`; what
follows from them is the leader's (`domain/overrides_step.py`).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TypeVar

from orchestrator.cache import Cache
from orchestrator.catching_up import catch_up
from orchestrator.domain.overrides import (
    ORCHESTRATOR,
    LocalOverride,
    merged,
    overrides_in,
    read,
    said,
)
from orchestrator.domain.reports import NAME_MAX, event_object
from orchestrator.event_records import EventRecord
from orchestrator.events import Recorder
from orchestrator.gateway.decision_proofs import DecisionProofs
from orchestrator.gateway.sessions import LiveSession, Sessions
from orchestrator.records import AssignmentRecord
from orchestrator.store import keys
from orchestrator.store.port import Compare, CompareTarget, Op, Put, Store, StoreError
from polder.journal import words
from polder.overrides import (
    OVERRIDES_MAX,
    REASON_MAX,
    SHARE_MAX,
    STAMP_MAX,
    BadOverride,
    Override,
)
from polder.v1 import agent_pb2, common_pb2, plan_pb2

log = logging.getLogger(__name__)

ENTRIES_MAX = 2_000
"""Of one node that wait to be written; later ones come again, since they are not acknowledged."""
_IN_TRANSACTION = 50
_ATTEMPTS = 5
DISTRUSTED_S = 10.0
"""For so long nothing more is heard of the decisions that a node brings, after some were forged."""
T = TypeVar("T")
_WARNING, _NORMAL = common_pb2.EVENT_TYPE_WARNING, common_pb2.EVENT_TYPE_NORMAL

Shares = Callable[[], Iterable[AssignmentRecord]]
"""Replicas of others in which the node has a role."""


@dataclass(slots=True)
class _Waiting:
    """What one node said and the Store does not have yet."""

    session: LiveSession
    shares: Shares
    overrides: list[plan_pb2.Override] = field(default_factory=list)
    entries: dict[int, agent_pb2.JournalEntry] = field(default_factory=dict)


class _Again(Exception):
    """Somebody else wrote the same records; it is looked at anew."""


class LocalChanges:
    """One per member."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        events: Recorder,
        sessions: Sessions,
        clock: Callable[[], float],
        member: str,
        retry_s: float,
        proofs: DecisionProofs,
    ) -> None:
        self._store = store
        self._cache = cache
        self._events = events
        self._sessions = sessions
        self._clock = clock
        self._source = f"gateway/{member}"
        self._retry_s = retry_s
        self._proofs = proofs
        self._distrusted: dict[str, float] = {}  # by node, until when
        self._due: dict[str, _Waiting] = {}
        self._wake = asyncio.Event()

    def report(self, session: LiveSession, changes: agent_pb2.LocalChanges, shares: Shares) -> None:
        """Returns at once. Overrides come whole, or none when there is only more of the journal."""
        waiting = self._due.get(session.node)
        if waiting is None or waiting.session is not session:
            waiting = self._due[session.node] = _Waiting(session, shares)
        if self._distrusted.get(session.node, 0.0) <= self._clock():
            waiting.overrides = list(changes.overrides[:OVERRIDES_MAX]) or waiting.overrides
        for entry in changes.entries:
            if len(waiting.entries) >= ENTRIES_MAX:
                break
            waiting.entries.setdefault(entry.sequence, entry)
        if changes.dropped > 0:
            text = f"{changes.dropped} entries of its journal of local operators were lost: full"
            self._tell(session.node, "LocalJournalFull", text)
        self._wake.set()

    async def run(self) -> None:
        """A failing Store is tried again, as long as the session lasts."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            again: list[_Waiting] = []
            while self._due:
                _, waiting = self._due.popitem()
                if self._sessions.get(waiting.session.node) is not waiting.session:
                    continue  # it says all of it again in its next one
                try:
                    await self._write(waiting)
                except (StoreError, _Again) as error:
                    facts = {"node": waiting.session.node}
                    log.warning("local changes are not written yet: %s", error, extra=facts)
                    again.append(waiting)
                except Exception:  # one node's words must not end the taking of all
                    facts = {"node": waiting.session.node}
                    log.exception("local changes cannot be taken", extra=facts)
            if again:
                await asyncio.sleep(self._retry_s)
                for waiting in again:
                    self._return(waiting)

    def _return(self, waiting: _Waiting) -> None:
        """Behind what the same session said meanwhile."""
        newer = self._due.setdefault(waiting.session.node, waiting)
        if newer is not waiting and newer.session is waiting.session:
            newer.entries = {**waiting.entries, **newer.entries}
            newer.overrides = newer.overrides or waiting.overrides
        self._wake.set()

    async def _write(self, waiting: _Waiting) -> None:
        """Raises StoreError and _Again."""
        await self._drop_unproven(waiting)
        await self._write_overrides(waiting)
        for batch in _batches(sorted(waiting.entries)):
            await self._write_entries(waiting, [waiting.entries[number] for number in batch])
            for number in batch:
                del waiting.entries[number]
            taken = agent_pb2.LocalChangesTaken(journal_sequence=batch[-1])
            waiting.session.send(agent_pb2.SessionResponse(local_changes_taken=taken))

    # --- overrides -------------------------------------------------------------------------------

    async def _drop_unproven(self, waiting: _Waiting) -> None:
        """And what is known. A node brings what others decided, too, but decides in its own name
        only."""
        session, now = waiting.session, self._clock()
        fresh: list[Override] = []
        messages: list[plan_pb2.Override] = []
        unread: list[plan_pb2.Override] = []
        for message in waiting.overrides:
            try:
                heard = said(message, session.identity.site, int(now * 1000))
            except BadOverride:
                unread.append(message)  # told when the others are written
                continue
            if merged(self._known(heard.key), heard) is not None:
                fresh.append(heard.decision)
                messages.append(message)
        unproven = await self._proofs.unproven(fresh, session.identity.site)
        proven = (one for place, one in enumerate(messages) if place not in unproven)
        waiting.overrides = [*unread, *proven]
        if not unproven:
            return
        at, why = next(iter(unproven.items()))
        name = fresh[at].node or "the orchestrator"
        text = f"{len(unproven)} decisions are not signed by whom they name, {name}: {why}"
        self._tell(session.node, "LocalOverrideUnproven", text)
        log.warning("decisions are not proven: %s", why, extra={"node": session.node})
        self._distrusted = {one: end for one, end in self._distrusted.items() if end > now}
        self._distrusted[session.node] = now + DISTRUSTED_S

    async def _write_overrides(self, waiting: _Waiting) -> None:
        for _ in range(_ATTEMPTS):
            due = self._to_write(waiting)
            if not due or await self._put_all(waiting.session, due):
                return
        raise _Again("the overrides of its site kept changing")

    def _to_write(self, waiting: _Waiting) -> list[LocalOverride]:
        """What is newer than what the mirror has. The site is that of the certificate."""
        session, now_ms = waiting.session, int(self._clock() * 1000)
        site = session.identity.site
        spaces: dict[str, str] = {}
        if waiting.overrides:
            spaces = {w.uid: w.namespace for w in self._cache.resources("Workload")}
        newest: dict[str, LocalOverride] = {}
        for message in waiting.overrides:
            try:
                heard = said(message, site, now_ms)
            except BadOverride as error:
                self._tell(session.node, "LocalOverrideRefused", f"an override: {error}")
                continue
            known = self._known(heard.key)
            decision = heard.decision
            if decision.stamp > STAMP_MAX:  # only what was taken back here stands there
                if merged(known, heard) is not None:
                    text = f"stamp {decision.stamp} is no site's to write: {_named(heard)}"
                    self._tell(session.node, "LocalOverrideRefused", text)
                continue
            space = known.decision.namespace if known else spaces.get(decision.workload_uid)
            if decision.replica and space != decision.namespace:
                self._tell_unknown(session.node, heard)
                if decision.stands and self._was_deleted(decision.workload_uid):
                    gone = heard.taken_back(ORCHESTRATOR, "its workload was deleted", now_ms)
                    newest[gone.key] = gone
                continue
            found = merged(newest.get(heard.key) or known, heard)
            if found is not None:
                newest[found.key] = found
        return self._fitting(session, list(newest.values()))

    def _fitting(self, session: LiveSession, found: list[LocalOverride]) -> list[LocalOverride]:
        """Those for which there is room. What is known already always is."""
        kept = self._kept(session.identity.site) if found else []
        room, shares = OVERRIDES_MAX - len(kept), Counter(one.decision.node for one in kept)
        due = []
        for item in found:
            node = item.decision.node
            if not item.store_revision:
                if room <= 0 or (node and shares[node] >= SHARE_MAX):
                    limit = SHARE_MAX if room > 0 else OVERRIDES_MAX
                    text = f"more than {limit} overrides; not taken: {_named(item)}"
                    self._tell(session.node, "LocalOverrideRefused", text)
                    continue
                room -= 1
                shares[node] += 1
            due.append(item)
        return due

    def _was_deleted(self, workload_uid: str) -> bool:
        """A workload that is only not there may be back with the Store's backup: then what its site
        decided must still hold."""
        return self._cache.kept_at(keys.deleted(workload_uid)) is not None

    async def _put_all(self, session: LiveSession, due: Sequence[LocalOverride]) -> bool:
        """Whether all records were as the mirror showed them. Compared on the Node's record: what
        a deleted one says is nobody's word."""
        node = self._cache.resource("Node", "", session.node)
        if node is None:
            return self._sessions.get(session.node) is None
        unchanged = Compare(
            keys.spec("Node", "", node.name), CompareTarget.MOD_REVISION, node.store_revision
        )
        for some in _batches(due):
            compares = [
                Compare(item.key, CompareTarget.MOD_REVISION, item.store_revision) for item in some
            ]
            ops: list[Op] = [Put(item.key, item.record().to_bytes()) for item in some]
            result = await self._store.txn([unchanged, *compares], ops)
            await catch_up(self._cache, result.revision)
            if not result.committed:
                return False
        return True

    def _known(self, key: str) -> LocalOverride | None:
        record = self._cache.kept_at(key)
        return read(record) if record is not None else None

    def _kept(self, site: str) -> list[LocalOverride]:
        prefix = keys.overrides_of(site)
        kept = self._cache.kept(keys.OVERRIDES)
        return overrides_in(record for record in kept if record.key.startswith(prefix))

    # --- the journal -----------------------------------------------------------------------------

    async def _write_entries(
        self, waiting: _Waiting, entries: Sequence[agent_pb2.JournalEntry]
    ) -> None:
        """As events. One that is there already came from an earlier try."""
        due = {event.key: event for event in (self._event(waiting, entry) for entry in entries)}
        for _ in range(_ATTEMPTS):
            if not due:
                return
            compares = [Compare.absent(key) for key in due]
            ops: list[Op] = [Put(key, event.to_bytes()) for key, event in due.items()]
            result = await self._store.txn(compares, ops)
            if result.committed:
                return
            for compare in result.failed:
                due.pop(compare.key, None)
        raise _Again("its journal kept changing")

    def _event(self, waiting: _Waiting, entry: agent_pb2.JournalEntry) -> EventRecord:
        """Seen now, whenever it was: events are kept by when they became known. Node, number and
        the node's time tell it from others of the same words."""
        node, site = waiting.session.node, waiting.session.identity.site
        told = words(_bounded(entry))
        kind, namespace, name, prefix = "Node", "", node, ""
        if entry.replica:
            ref = common_pb2.ResourceRef(
                kind="Replica", namespace=entry.namespace, name=entry.replica
            )
            about = event_object(
                common_pb2.Event(object=ref), self._cache.placement(node), waiting.shares
            )
            kind, namespace, name, prefix = about or ("Node", "", node, "")
        elif entry.verb in ("freeze", "unfreeze"):
            kind, name = "Site", site
        now_ms = int(self._clock() * 1000)
        at_ms = min(max(0, entry.at_ms), now_ms)
        return EventRecord(
            kind,
            namespace,
            name,
            _WARNING if told.warning else _NORMAL,
            told.reason[:64],
            f"{prefix}{told.message} [{_when(at_ms)} at {node}, entry {entry.sequence}]",
            f"{entry.by} at {node}"[:NAME_MAX],
            at_ms,
            now_ms,
            uid=self._cache.uid_of(kind, namespace, name),
        )

    # --- telling ---------------------------------------------------------------------------------

    def _tell_unknown(self, node: str, item: LocalOverride) -> None:
        """A workload that was deleted, or a Store that was restored: nobody drops it silently."""
        if item.decision.stands:
            text = f"no workload here has it: {_named(item)}"
            self._tell(node, "LocalOverrideUnknown", text)

    def _tell(self, node: str, reason: str, message: str) -> None:
        self._events.record("Node", "", node, _WARNING, reason, message, self._source)


def _named(item: LocalOverride) -> str:
    decision = item.decision
    what = f"{decision.namespace}/{decision.replica}" if decision.replica else f"site {item.site}"
    return f"{what} {item}"


def _when(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _bounded(entry: agent_pb2.JournalEntry) -> agent_pb2.JournalEntry:
    """With long texts cut. Changes and returns its argument."""
    for name in ("by", "purpose", "verb", "detail", "reason", "refused"):
        text = getattr(entry, name)
        if len(text) > REASON_MAX:
            setattr(entry, name, text[:REASON_MAX])
    return entry


def _batches(items: Sequence[T]) -> Iterable[Sequence[T]]:
    """In parts that one transaction holds."""
    left = iter(items)
    while some := list(islice(left, _IN_TRANSACTION)):
        yield some
