"""Delete. What runs gets a tombstone, and the leader takes it away; the rest goes at once.

A Namespace, Provider or Site that something refers to stays. To be sure of that although others
write at the same time, it is first marked as being deleted: what refers to it compares on its
revision when it is created (apply.py, identity/nodes.py), so nothing new appears behind the mark.
"""

from collections.abc import Callable
from dataclasses import replace

from orchestrator.api.index import PlacementIndex
from orchestrator.api.reading import checked_ref, describe_ref, missing
from orchestrator.api.wire import to_wire
from orchestrator.authz import Caller, require_write
from orchestrator.cache import Cache
from orchestrator.catching_up import catch_up
from orchestrator.records import StoredResource
from orchestrator.refusals import Refused, conflict, in_use, invalid
from orchestrator.settling import SettlingStore
from orchestrator.store import keys
from orchestrator.store.port import Compare, CompareTarget, Delete, Op, Put
from polder.manifest import KINDS
from polder.manifest.document import DEFAULT_NAMESPACE
from polder.v1 import common_pb2, operator_pb2

_ATTEMPTS = 16
_BY_LEADER = ("Workload", "Node")
_AT_ONCE = ("Secret", "Config")
"""What nothing refers to by its revision."""
_SHOWN = 5
_MARK, _UNMARK, _REMOVE = "mark", "unmark", "remove"
"""The steps of a deletion, as its marks name them; see `settling`."""


class Deleter:
    """Serves Delete."""

    def __init__(
        self, store: SettlingStore, cache: Cache, index: PlacementIndex, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._cache = cache
        self._index = index
        self._clock = clock

    async def delete(
        self, caller: Caller, request: operator_pb2.DeleteRequest
    ) -> operator_pb2.DeleteResponse:
        """Raises Refused (NotFound, InUse, Conflict, Forbidden, OutcomeUnknown), StoreError."""
        ref = checked_ref(request.ref)
        if not KINDS[ref.kind].editable and ref.kind != "Volume":
            instead = "edgectl revoke" if ref.kind == "Operator" else "delete or scale its Workload"
            raise invalid(f"{KINDS[ref.kind].plural} cannot be deleted", instead)
        require_write(caller, ref.kind, ref.namespace, ref.name)
        if request.dry_run or not self._store.is_repeated:
            return await self._delete(caller, request, ref)
        last = _step(_MARK if ref.kind in _BY_LEADER else _REMOVE, ref)
        told = await self._store.told(last)
        if told is None:
            try:
                return await self._delete(caller, request, ref)
            except Refused:
                # Perhaps only because an earlier try of this request was made.
                told = await self._store.leave_alone(last)
                if told is None:
                    raise
        await catch_up(self._cache, told.mod_revision)
        return self._as_told(ref)

    def _as_told(self, ref: common_pb2.ResourceRef) -> operator_pb2.DeleteResponse:
        """An earlier try of the request was made."""
        record = self._cache.resource(ref.kind, ref.namespace, ref.name)
        by_leader = record is not None and ref.kind in _BY_LEADER
        if record is None or not by_leader:
            record = StoredResource(ref.kind, ref.namespace, ref.name, uid="", spec={})
        return operator_pb2.DeleteResponse(resource=to_wire(record), finished=not by_leader)

    async def _delete(
        self, caller: Caller, request: operator_pb2.DeleteRequest, ref: common_pb2.ResourceRef
    ) -> operator_pb2.DeleteResponse:
        for _ in range(_ATTEMPTS):
            record = self._cache.resource(ref.kind, ref.namespace, ref.name)
            if record is None:
                raise missing(ref)
            if request.expected_revision not in (0, record.store_revision):
                raise conflict(
                    f"{describe_ref(ref)} is at revision {record.store_revision}",
                    "get it again, and retry",
                )
            self._check_unused(record)
            done = await self._remove(record, caller.source, dry_run=request.dry_run)
            if done is not None:
                resource, finished = done
                return operator_pb2.DeleteResponse(resource=to_wire(resource), finished=finished)
        raise conflict(f"{describe_ref(ref)} kept changing", "try again")

    async def _remove(
        self, record: StoredResource, by: str, *, dry_run: bool
    ) -> tuple[StoredResource, bool] | None:
        """The record as it is now, and whether it is gone; None: it changed meanwhile."""
        by_leader = record.kind in _BY_LEADER
        if dry_run:
            return record, not by_leader
        marked: StoredResource | None = record
        if record.kind not in _AT_ONCE and not record.deletion_requested_at_ms:
            now_ms = int(self._clock() * 1000)
            tombstone = replace(
                record, deletion_requested_at_ms=now_ms, changed_by=by, changed_at_ms=now_ms
            )
            marked = await self._put(_MARK, record, tombstone)
        if marked is None or by_leader:
            return (marked, False) if marked is not None else None
        try:
            self._check_unused(marked)
        except Refused:
            await self._put(_UNMARK, marked, replace(record, deletion_requested_at_ms=0))
            raise
        ops: list[Op] = [Delete(keys.spec(*marked.ref))]
        if marked.kind == "Namespace":
            ops.append(Delete(keys.freeze(marked.name)))  # or who has the name next is frozen
        removed = await self._commit(_REMOVE, marked, *ops)
        return (marked, True) if removed else None

    async def _put(
        self, what: str, before: StoredResource, after: StoredResource
    ) -> StoredResource | None:
        revision = await self._commit(what, before, Put(keys.spec(*before.ref), after.to_bytes()))
        return replace(after, store_revision=revision) if revision else None

    async def _commit(self, what: str, before: StoredResource, *ops: Op) -> int:
        """The Store's revision; 0 when the record has changed. The mirror is behind neither."""
        key = keys.spec(*before.ref)
        compare = Compare(key, CompareTarget.MOD_REVISION, before.store_revision)
        result, _ = await self._store.step(_step(what, before), [compare], ops)
        await catch_up(self._cache, result.revision)
        return result.revision if result.committed else 0

    def _check_unused(self, record: StoredResource) -> None:
        """Raises Refused (InUse) with what stands in the way."""
        if record.ref == ("Namespace", "", DEFAULT_NAMESPACE):
            raise in_use("the namespace default is always there")
        users = self._users(record)
        if users:
            more = f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else ""
            raise in_use(
                f"{record.kind} {record.name} is in use by {', '.join(users[:_SHOWN])}{more}",
                "delete those first",
            )

    def _users(self, record: StoredResource) -> list[str]:
        if record.kind == "Namespace":
            return sorted(
                f"{kind.lower()}/{other.name}"
                for kind in ("Workload", "Secret", "Config", "Volume")
                for other in self._cache.resources(kind)
                if other.namespace == record.name
            )
        if record.kind == "Site":
            return sorted(f"node/{node}" for node in self._index.nodes_at(record.name))
        if record.kind == "Volume":
            # Its data would be left on the node, and nobody would know any more.
            replica = self._index.replica(record.namespace, str(record.spec.get("replica", "")))
            return [f"replica/{replica.assignment.replica}"] if replica is not None else []
        if record.kind == "Provider":
            return sorted(
                f"site/{site.name}"
                for site in self._cache.resources("Site")
                if site.spec.get("provider") == record.name
            )
        return []


def _step(what: str, of: StoredResource | common_pb2.ResourceRef) -> str:
    return f"{what}-{of.kind}-{of.namespace}-{of.name}"
