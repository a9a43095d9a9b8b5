"""The Store and its mirror in a simulation of rollouts: a dict with revisions and compares.

Used by `rollouts_world.py`. The mirror is the real `Cache`; it is told of every transaction as its
watch would tell it, and at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.cache import Cache, Change, _decode
from orchestrator.records import StoredResource, TemplateRevision
from orchestrator.store import keys
from orchestrator.store.port import Compare, CompareTarget, Delete, Entry, Op, Put, TxnResult
from polder.manifest import KINDS, decode, digest

Judge = Callable[[Sequence[Op]], bool]


class FakeStore:
    """What the committer needs of a Store. `refuse` tells which transactions are to fail."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.revision_now = 1
        self.on_change: Callable[[list[Entry], list[str]], None] = lambda _puts, _deletes: None
        self.refuse: Judge = lambda _ops: False

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        return self.transact(compares, ops)

    def transact(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        failed = tuple(compare for compare in compares if not self._holds(compare))
        if not failed and self.refuse(ops):
            failed = tuple(compares[-1:])
        if failed:
            return TxnResult(False, self.revision_now, failed)
        puts, deletes = [], []
        if any(isinstance(op, Put) or op.key in self.entries for op in ops):
            self.revision_now += 1
        for op in ops:
            match op:
                case Put(key, value):
                    before = self.entries.get(key)
                    made = before.create_revision if before else self.revision_now
                    version = before.version + 1 if before else 1
                    entry = Entry(key, value, made, self.revision_now, version)
                    self.entries[key] = entry
                    puts.append(entry)
                case Delete(key):
                    if self.entries.pop(key, None) is not None:
                        deletes.append(key)
        self.on_change(puts, deletes)
        return TxnResult(True, self.revision_now)

    def _holds(self, compare: Compare) -> bool:
        entry = self.entries.get(compare.key)
        match compare.target:
            case CompareTarget.MOD_REVISION:
                return (entry.mod_revision if entry else 0) == compare.expected
            case CompareTarget.VERSION:
                return (entry.version if entry else 0) == compare.expected
            case CompareTarget.VALUE:
                return entry is not None and entry.value == compare.expected


class Mirror(Cache):
    """The real mirror, told directly."""

    def __init__(self, store: FakeStore, clock: Callable[[], float]) -> None:
        super().__init__(store, clock)  # type: ignore[arg-type]
        self.healthy = True
        self._fake = store
        store.on_change = self._on_change

    def _on_change(self, puts: list[Entry], deletes: list[str]) -> None:
        changes = [
            Change(e.key, e.mod_revision, _decode(e.key, e), self._values.get(e.key))
            for e in puts
            if e.key != keys.LEADER
        ]
        changes += [
            Change(key, self._fake.revision_now, None, self._values[key])
            for key in deletes
            if key in self._values
        ]
        self._apply(changes, self._fake.revision_now)


class Operator:
    """Writes specs as the operator API does: a changed template is a new, immutable revision."""

    def __init__(self, store: FakeStore, mirror: Mirror, wall: Callable[[], float]) -> None:
        self._store, self._mirror, self._wall = store, mirror, wall
        self._made = 0

    def apply(self, kind: str, namespace: str, name: str, spec: dict[str, Any]) -> StoredResource:
        """Create or change; the spec is checked by the real decoder."""
        decoded = decode(KINDS[kind].spec_class, spec, "spec")
        now_ms = int(self._wall() * 1000)
        record = self._mirror.resource(kind, namespace, name)
        if record is None:
            self._made += 1
            uid = f"u{self._made:04d}-{name}"
            record = StoredResource(kind, namespace, name, uid, spec, created_at_ms=now_ms)
            record = replace(record, changed_by="operator/sim", changed_at_ms=now_ms)
        elif record.spec == spec:
            return record
        else:
            generation = record.generation + 1
            record = replace(
                record,
                spec=spec,
                generation=generation,
                changed_by="operator/sim",
                changed_at_ms=now_ms,
            )
        ops: list[Op] = []
        if kind == "Workload":
            fingerprint = digest(decoded.template)
            current = self._mirror.revision_of(record.uid, record.template_revision)
            if current is None or current.digest != fingerprint:
                number = record.template_revision + 1
                record = replace(record, template_revision=number)
                made = TemplateRevision(
                    record.uid, number, spec["template"], fingerprint, now_ms, "operator/sim"
                )
                ops.append(Put(keys.revision(record.uid, number), made.to_bytes()))
        ops.append(Put(keys.spec(kind, namespace, name), record.to_bytes()))
        assert self._store.transact([], ops).committed
        found = self._mirror.resource(kind, namespace, name)
        assert found is not None
        return found

    def change(self, kind: str, namespace: str, name: str, **fields: Any) -> None:
        """Set some fields of a spec; None removes one."""
        record = self._mirror.resource(kind, namespace, name)
        if record is None:
            return
        spec = {k: v for k, v in {**record.spec, **fields}.items() if v is not None}
        self.apply(kind, namespace, name, spec)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """A tombstone, as the operator API leaves it."""
        record = self._mirror.resource(kind, namespace, name)
        if record is not None and not record.deletion_requested_at_ms:
            marked = replace(record, deletion_requested_at_ms=int(self._wall() * 1000))
            self._store.transact([], [Put(keys.spec(kind, namespace, name), marked.to_bytes())])
