"""Changes of identity records, with compare-and-set. Used by operators.py and by Revoke."""

from collections.abc import Callable
from dataclasses import replace

from orchestrator.records import IdentityRecord
from orchestrator.refusals import not_found, unavailable
from orchestrator.store import keys
from orchestrator.store.port import Compare, Put, Store

_ATTEMPTS = 16
BREAK_GLASS = "break-glass"
"""The kind under which a token is recorded that was revoked: others the orchestrator does not
know, since they are issued offline. Its name is its serial."""
REFUSED_FOR_S = 90 * 86_400.0
"""A token lives for a day; a box with a wrong clock may take it for valid longer."""


async def change_identity(
    store: Store,
    kind: str,
    name: str,
    change: Callable[[IdentityRecord | None], IdentityRecord],
) -> int:
    """Apply `change` to the record as it stands; returns the Store's revision of the result.

    `change` gets None when there is no record. Raises what `change` raises, Refused (Contention)
    and StoreError.
    """
    key = keys.identity(kind, name)
    for _ in range(_ATTEMPTS):
        entry = await store.get(key)
        record = IdentityRecord.from_bytes(entry.value, entry.mod_revision) if entry else None
        changed = change(record)
        if changed == record and entry is not None:
            return entry.mod_revision
        compare = Compare.unchanged(entry) if entry else Compare.absent(key)
        result = await store.txn([compare], [Put(key, changed.to_bytes())])
        if result.committed:
            return result.revision
    raise unavailable("Contention", f"the identity of {kind} {name} kept changing", "try again")


async def revoke_identity(store: Store, kind: str, name: str, reason: str, now: float) -> int:
    """Nothing that was issued to it counts any more. Again changes nothing.

    Returns the Store's revision. Raises Refused (NotFound) and StoreError.
    """

    def revoke(record: IdentityRecord | None) -> IdentityRecord:
        if record is None and kind == BREAK_GLASS:
            record = IdentityRecord(kind, name, serials={name: int((now + REFUSED_FOR_S) * 1000)})
        if record is None:
            raise not_found(f"there is no {kind} {name} with an identity")
        if record.revoked_at_ms:
            return record
        return replace(record, revoked_at_ms=int(now * 1000), revoked_reason=reason[:512])

    return await change_identity(store, kind, name, revoke)
