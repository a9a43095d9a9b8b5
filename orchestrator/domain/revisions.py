"""Which stored template revisions may go: the plan in use is never collected, nor the way back.

Called by the leader every few minutes, and by apply for the one that falls out of the history.
"""

from collections.abc import Collection, Iterable

KEEP_LAST = 10
ORPHAN_AGE_S = 3600.0
"""Revisions without a workload stay so long: one may be about to appear."""


def collectable(
    numbers: Iterable[int],
    needed: Collection[int],
    in_use: Collection[int],
    keep_last: int = KEEP_LAST,
) -> list[int]:
    """Older revisions of one workload that nobody runs; the newest ones stay as its history.

    `needed`: the current one, and those that its rollout leads to or may return to.
    """
    ordered = sorted(numbers, reverse=True)
    return sorted(n for n in ordered[keep_last:] if n not in needed and n not in in_use)
