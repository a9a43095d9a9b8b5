"""Writes what the leader decided to the Store, fenced by the leader's term.

One transaction per node, compared on the placement that the plan was made from: a stale one refuses
alone, and the next plan sees what changed. A replica that moves is first written to its new node,
under a new uid, and only then stopped on the old one; a crash between the two leaves two holders,
of which the next plan keeps the one with the higher epoch. One that is replaced start first has two
holders on purpose: the newer says which stay it replaces, and a later plan stops that.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.cache import Cache
from orchestrator.domain.deleted import forgettable, tombstone
from orchestrator.domain.revisions import ORPHAN_AGE_S, collectable
from orchestrator.domain.rollout_state import needed_revisions
from orchestrator.domain.volumes import released, volume_records
from orchestrator.election import Deposed, Term
from orchestrator.fleet import Fleet
from orchestrator.gateway.roles import RoleBook
from orchestrator.records import NodePlacement, StoredResource
from orchestrator.scheduling.apply import NodeChange, applied, by_node
from orchestrator.scheduling.decisions import Place, Plan, Revise, Stop
from orchestrator.scheduling.demands import Demands
from orchestrator.scheduling.secrets import Carried
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.scheduling.tick import Batch, Tell
from orchestrator.store import keys
from orchestrator.store.port import (
    MAX_TXN_OPS,
    Compare,
    CompareTarget,
    Delete,
    LimitExceeded,
    Op,
    Put,
    Store,
    TxnResult,
)

log = logging.getLogger(__name__)

_CONCURRENT = 64
_CHUNK = MAX_TXN_OPS // 2


@dataclass(slots=True)
class Committed:
    """What of a plan stands. `revision` is the Store's after the last write; 0: nothing written."""

    revision: int = 0
    place: list[Place] = field(default_factory=list)
    stop: list[Stop] = field(default_factory=list)
    revise: list[Revise] = field(default_factory=list)
    pruned: int = 0
    refused: list[str] = field(default_factory=list)  # nodes, or keys, whose part was stale
    too_large: list[str] = field(default_factory=list)  # nodes whose record does not fit the Store
    finished: list[StoredResource] = field(default_factory=list)
    released: list[StoredResource] = field(default_factory=list)  # volumes whose node is gone


class Committer:
    """Stateless but for its collaborators; one per leader."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        fleet: Fleet,
        clock: Callable[[], float],
        roles: RoleBook | None = None,
    ) -> None:
        self._store = store
        self._cache = cache
        self._fleet = fleet
        self._clock = clock
        self._roles = roles
        self._gate = asyncio.Semaphore(_CONCURRENT)
        # Of the plan that is being committed.
        self._demands = Demands(Snapshot(0))
        self._carried = Carried(Snapshot(0))

    async def write(
        self, batches: Sequence[Batch], term: Term, tell: Callable[[Sequence[Tell]], None]
    ) -> Committed:
        """Records of rollouts, jobs and guards. `refused` are keys of batches that were stale.

        Each stands or falls alone, and is told once it stands: they are of different records, and
        are on their way together. Raises Deposed and StoreError.
        """
        done = Committed()
        sent = [self._write_batch(batch, term) for batch in batches]
        results = await asyncio.gather(*sent, return_exceptions=True)
        errors: list[BaseException] = []
        for batch, result in zip(batches, results, strict=True):
            if isinstance(result, LimitExceeded):
                # One record that outgrew the Store must not stop everything else.
                said = {"keys": [write.key for write in batch.writes][:10]}
                log.error("records cannot be written: %s", result, extra=said)
            elif isinstance(result, BaseException):
                errors.append(result)
            elif result.committed:
                done.revision = max(done.revision, result.revision)
                tell(batch.tells)
            else:
                done.refused += [compare.key for compare in result.failed]
        _raise_worst(errors)
        return done

    async def _write_batch(self, batch: Batch, term: Term) -> TxnResult:
        compares = [Compare(w.key, CompareTarget.MOD_REVISION, w.expected) for w in batch.writes]
        ops: list[Op] = [
            Delete(w.key) if w.value is None else Put(w.key, w.value) for w in batch.writes
        ]
        async with self._gate:
            return await self._txn(term, compares, ops)

    async def commit(self, plan: Plan, snapshot: Snapshot, term: Term) -> Committed:
        """Raises Deposed and StoreError; what was written until then stands."""
        done = Committed()
        self._demands = Demands(snapshot)
        self._carried = Carried(snapshot)
        changes = by_node(plan)
        records = dict(snapshot.placements)
        first = {node: change.without_moves_away() for node, change in changes.items()}
        await self._write_all(first, records, term, done)

        def may_leave(stop: Stop) -> bool:
            """Whether its new holder stands in the Store, from this plan or an earlier one."""
            item = stop.assignment
            return bool(stop.moved_to) and any(
                other.replica == item.replica
                and other.workload_uid == item.workload_uid
                and other.epoch > item.epoch
                for other in records.get(stop.moved_to, NodePlacement("")).assignments
            )

        second = {
            node: NodeChange([], left, [], set())
            for node, change in changes.items()
            if (left := [stop for stop in change.stop if may_leave(stop)])
        }
        await self._write_all(second, records, term, done)
        for uid in plan.finished_workloads:
            await self._finish_workload(uid, snapshot, term, done)
        for unbind in plan.unbind:
            for volume in released(unbind, list(self._cache.resources("Volume"))):
                await self._release(volume, term, done)
        for name in plan.finished_nodes:
            await self._finish_node(name, records, term, done)
        return done

    # --- placements ------------------------------------------------------------------------------

    async def _write_all(
        self,
        changes: dict[str, NodeChange],
        records: dict[str, NodePlacement],
        term: Term,
        done: Committed,
    ) -> None:
        work = [
            self._write(node, change, records, term, done)
            for node, change in changes.items()
            if not change.is_empty
        ]
        # All are waited for: none may still be writing when the caller goes on.
        results = await asyncio.gather(*work, return_exceptions=True)
        _raise_worst([result for result in results if isinstance(result, BaseException)])

    async def _write(
        self,
        node: str,
        change: NodeChange,
        records: dict[str, NodePlacement],
        term: Term,
        done: Committed,
    ) -> None:
        before = records.get(node, NodePlacement(node))
        seen = self._fleet.get(node)
        acked = seen.acked_generation if seen is not None else 0
        change = change.with_volumes_up_to(MAX_TXN_OPS - 1)  # one is the placement
        if change.is_empty:  # one replica alone has more
            done.too_large.append(node)
            return
        after = applied(before, change, self._now_ms(), acked)
        after = replace(
            after,
            secrets_digest=self._carried.digest(node, after.assignments),
            demands_digest=self._demands.digest(node, after.assignments),
            roles_digest=self._roles.digest(node) if self._roles else before.roles_digest,
        )
        key = keys.placement(node)
        compare = Compare(key, CompareTarget.MOD_REVISION, before.store_revision)
        ops: list[Op] = [Put(key, after.to_bytes())]
        for bind in change.bind:
            for volume in volume_records(bind, self._cache.epoch, self._now_ms()):
                ops.append(Put(keys.spec(*volume.ref), volume.to_bytes()))
        async with self._gate:
            try:
                result = await self._txn(term, [compare], ops)
            except LimitExceeded:
                done.too_large.append(node)
                return
        if not result.committed:
            done.refused.append(node)
            return
        records[node] = replace(after, store_revision=result.revision)
        done.revision = max(done.revision, result.revision)
        done.place += change.place
        done.stop += change.stop
        done.revise += change.revise
        done.pruned += len(change.prune)
        if seen is not None:
            seen.gone -= change.prune

    # --- deletions -------------------------------------------------------------------------------

    async def _finish_workload(
        self, uid: str, snapshot: Snapshot, term: Term, done: Committed
    ) -> None:
        found = [r for r in self._cache.resources("Workload") if r.uid == uid]
        if not found or not found[0].deletion_requested_at_ms:
            return
        resource = found[0]
        await self._delete_revisions(
            uid, [number for owner, number in snapshot.templates if owner == uid], term
        )
        stays = tombstone(resource, self._now_ms())
        kept = [Put(stays.key, stays.to_bytes())] if stays is not None else []
        await self._finish(resource, [keys.rollout(uid), keys.job(uid)], term, done, kept=kept)

    async def _finish_node(
        self, name: str, records: dict[str, NodePlacement], term: Term, done: Committed
    ) -> None:
        resource = self._cache.resource("Node", "", name)
        if resource is None or not resource.deletion_requested_at_ms:
            return
        # Before the name is free: who joins by it next is another node, without that data.
        for volume in list(self._cache.resources("Volume")):
            if volume.spec.get("node") == name and not await self._release(volume, term, done):
                return
        extra = [
            keys.identity("node", name),
            keys.node_status(name),
            keys.placement(name),
            keys.agent_version(name),
        ]
        placement = records.get(name, NodePlacement(name))
        compare = Compare(extra[2], CompareTarget.MOD_REVISION, placement.store_revision)
        if await self._finish(resource, extra, term, done, compare):
            self._fleet.forget(name)

    async def _finish(
        self,
        resource: StoredResource,
        extra: Iterable[str],
        term: Term,
        done: Committed,
        *compares: Compare,
        kept: Iterable[Put] = (),
    ) -> bool:
        key = keys.spec(*resource.ref)
        unchanged = Compare(key, CompareTarget.MOD_REVISION, resource.store_revision)
        ops: list[Op] = [Delete(key), *(Delete(other) for other in extra), *kept]
        result = await self._txn(term, [unchanged, *compares], ops)
        if result.committed:
            done.revision = max(done.revision, result.revision)
            done.finished.append(resource)
        return result.committed

    async def _release(self, volume: StoredResource, term: Term, done: Committed) -> bool:
        """The record of data that went with its node. False: it changed meanwhile."""
        key = keys.spec(*volume.ref)
        unchanged = Compare(key, CompareTarget.MOD_REVISION, volume.store_revision)
        result = await self._txn(term, [unchanged], [Delete(key)])
        if result.committed:
            done.revision = max(done.revision, result.revision)
            done.released.append(volume)
        return result.committed

    async def forget_deleted(self, now: float, term: Term) -> None:
        """Of workloads that went so long ago that no site can still run them."""
        for record in forgettable(self._cache.kept(keys.DELETED), now)[:_CHUNK]:
            compare = Compare(record.key, CompareTarget.MOD_REVISION, record.store_revision)
            await self._txn(term, [compare], [Delete(record.key)])

    async def collect_revisions(self, now: float, term: Term) -> int:
        """Deletes template revisions that nobody needs; returns how many. See domain/revisions."""
        in_use: dict[str, set[int]] = {}
        for placement in self._cache.placements():
            for assignment in placement.assignments:
                in_use.setdefault(assignment.workload_uid, set()).add(assignment.revision)
            for stop in placement.stops:
                in_use.setdefault(stop.workload_uid, set()).add(stop.revision)
        owners = {r.uid: r for r in self._cache.resources("Workload")}
        stored: dict[str, list[int]] = {}
        for revision in self._cache.revisions():
            uid = revision.workload_uid
            age_s = now - revision.created_at_ms / 1000
            if uid in owners or age_s > ORPHAN_AGE_S:
                stored.setdefault(uid, []).append(revision.number)
        collected = 0
        for uid, numbers in stored.items():
            used = in_use.get(uid, set())
            owner = owners.get(uid)
            keep = {"keep_last": 0} if owner is None else {}
            needed = needed_revisions(self._cache.kept_at(keys.rollout(uid)))
            if needed is None:
                continue  # what may be returned to is not known
            current = owner.template_revision if owner is not None else 0
            useless = collectable(numbers, needed | {current}, used, **keep)
            collected += await self._delete_revisions(uid, useless, term, owner)
        return collected

    async def _delete_revisions(
        self, uid: str, numbers: list[int], term: Term, owner: StoredResource | None = None
    ) -> int:
        """How many are gone. Compared on `owner`: an undo may want one of them by now."""
        compares = []
        if owner is not None:
            key = keys.spec(*owner.ref)
            compares.append(Compare(key, CompareTarget.MOD_REVISION, owner.store_revision))
        gone = 0
        for start in range(0, len(numbers), _CHUNK):
            chunk = numbers[start : start + _CHUNK]
            ops: list[Op] = [Delete(keys.revision(uid, n)) for n in chunk]
            result = await self._txn(term, compares, ops)
            gone += len(chunk) if result.committed else 0
        return gone

    async def _txn(self, term: Term, compares: list[Compare], ops: list[Op]) -> TxnResult:
        """Every write of the leader goes through here."""
        result = await self._store.txn([term.fence, *compares], ops)
        if term.fence in result.failed:
            raise Deposed(f"another member leads since term {term.number}")
        return result

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _raise_worst(errors: Sequence[BaseException]) -> None:
    for error in sorted(errors, key=lambda e: not isinstance(e, Deposed)):
        raise error
