"""Which stored template revisions may go. Called by the leader every few minutes."""

from collections.abc import Collection, Iterable

KEEP_LAST = 10
ORPHAN_AGE_S = 3600.0
"""Revisions without a workload stay so long: one may be about to appear."""


def collectable(
    numbers: Iterable[int], current: int, in_use: Collection[int], keep_last: int = KEEP_LAST
) -> list[int]:
    """Older revisions of one workload that nobody runs; the newest ones stay as its history."""
    ordered = sorted(numbers, reverse=True)
    return sorted(n for n in ordered[keep_last:] if n != current and n not in in_use)
