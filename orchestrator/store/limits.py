"""What every adapter refuses before it does anything: keys, values, transactions over the limits.

Called by each Store adapter at its front door, so that a caller's bug fails in the same way on
SQLite as on etcd, and before other callers' work is touched.
"""

import math
from collections.abc import Sequence

from orchestrator.store.port import (
    MAX_KEY_BYTES,
    MAX_TXN_BYTES,
    MAX_TXN_OPS,
    MAX_VALUE_BYTES,
    Compare,
    CompareTarget,
    LimitExceeded,
    Op,
    Put,
)

LEASE_TTL_S_MAX = 30 * 86_400.0


def encode_key(key: str) -> bytes:
    """The key's UTF-8 bytes. Raises LimitExceeded."""
    if not key:
        raise LimitExceeded("a key must not be empty")
    return _encode(key)


def encode_prefix(prefix: str) -> bytes:
    """As `encode_key`, but empty is allowed: it is the prefix of every key."""
    return _encode(prefix)


def _encode(text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise LimitExceeded(f"key {text!r} has no UTF-8 form") from error
    if len(data) > MAX_KEY_BYTES:
        raise LimitExceeded(f"key of {len(data)} bytes is over {MAX_KEY_BYTES}: {text[:80]!r}...")
    if b"\0" in data:
        raise LimitExceeded(f"key {text!r} contains NUL")
    return data


def prefix_end(prefix: bytes) -> bytes | None:
    """The first byte string greater than all that start with `prefix`; None when there is none.

    Every byte of UTF-8 is below 0xff, so that the last one can always be raised.
    """
    return prefix[:-1] + bytes((prefix[-1] + 1,)) if prefix else None


def encode_txn(
    compares: Sequence[Compare], ops: Sequence[Op]
) -> tuple[list[tuple[bytes, Compare]], list[tuple[bytes, Op]], int]:
    """Compares and ops with their encoded keys, and the size in bytes. Raises LimitExceeded."""
    if len(compares) > MAX_TXN_OPS or len(ops) > MAX_TXN_OPS:
        raise LimitExceeded(
            f"{len(compares)} compares and {len(ops)} ops: at most {MAX_TXN_OPS} of each"
        )
    size = 0
    checked: list[tuple[bytes, Compare]] = []
    for compare in compares:
        key = encode_key(compare.key)
        wanted = bytes if compare.target is CompareTarget.VALUE else int
        if not isinstance(compare.expected, wanted):
            raise LimitExceeded(f"{compare.key}: {compare.target.value} is compared with {wanted}")
        size += len(key) + (len(compare.expected) if isinstance(compare.expected, bytes) else 0)
        checked.append((key, compare))
    encoded: list[tuple[bytes, Op]] = []
    for op in ops:
        key = encode_key(op.key)
        size += len(key) + (_value_size(op) if isinstance(op, Put) else 0)
        encoded.append((key, op))
    if len(encoded) > 1 and len({key for key, _ in encoded}) != len(encoded):
        raise LimitExceeded("two operations on one key in one transaction")
    if size > MAX_TXN_BYTES:
        raise LimitExceeded(f"transaction of {size} bytes is over {MAX_TXN_BYTES}")
    return checked, encoded, size


def _value_size(op: Put) -> int:
    if not isinstance(op.value, bytes):
        raise LimitExceeded(f"{op.key}: a value is bytes, not {type(op.value).__name__}")
    if len(op.value) > MAX_VALUE_BYTES:
        raise LimitExceeded(f"{op.key}: value of {len(op.value)} bytes is over {MAX_VALUE_BYTES}")
    return len(op.value)


def check_ttl(ttl_s: float) -> None:
    """Raises LimitExceeded unless the ttl is a positive time of at most `LEASE_TTL_S_MAX`."""
    if not (math.isfinite(ttl_s) and 0 < ttl_s <= LEASE_TTL_S_MAX):
        raise LimitExceeded(
            f"a lease of {ttl_s} s: it must be over 0 and at most {LEASE_TTL_S_MAX}"
        )
