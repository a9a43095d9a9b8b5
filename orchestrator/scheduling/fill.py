"""Hands out many equal replicas at once: water-filling over domains, tiers and nodes, as arrays.

Called by `placer.py`. A thousand replicas cost about as much as one, and no Python object each.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Slots:
    """What can be had: per candidate row its room, its present count, its site, and its rank.

    `order` is better the lower; `pack` fills one row after the other in that order, otherwise rows
    are kept level. `tiers`: rows of a lower tier first. None: one tier.
    """

    caps: Ints
    counts: Ints
    sites: Ints
    site_counts: Floats
    order: Floats
    pack: bool = False
    tiers: Ints | None = None


@dataclass(frozen=True, slots=True)
class Domains:
    """Of spreading: each row's domain, replicas per domain now, and which domains are compared.

    `elsewhere` is the least count of compared domains that are not among these, None without any.
    """

    codes: Ints
    counts: Ints
    compared: npt.NDArray[np.bool_]
    max_skew: int
    elsewhere: int | None = None


def fill(slots: Slots, number: int, domains: Domains | None) -> Ints:
    """How many of `number` each row takes; fewer in total only if no more can be had."""
    if domains is None:
        codes = np.zeros(len(slots.caps), dtype=np.int64)
        targets = np.array([min(number, int(slots.caps.sum()))], dtype=np.int64)
    else:
        codes = domains.codes
        targets = _domain_targets(slots, number, domains)
    if slots.tiers is not None:
        codes, targets = _by_tier(codes, slots.tiers, slots.caps, targets)
    if slots.pack:
        return _packed(slots, codes, targets)
    return level(slots.caps, slots.counts, codes, targets, _site_order(slots))


def _domain_targets(slots: Slots, number: int, domains: Domains) -> Ints:
    """No domain above the one that is full first by more than the skew."""
    size = len(domains.counts)
    caps = np.bincount(domains.codes, weights=slots.caps, minlength=size).astype(np.int64)
    reachable = (domains.counts + caps)[domains.compared]
    least = [int(reachable.min())] if reachable.size else []
    if domains.elsewhere is not None:
        least.append(domains.elsewhere)
    if least:
        ceiling = min(least) + domains.max_skew
        caps = np.minimum(caps, np.maximum(0, ceiling - domains.counts))
    rows = np.bincount(domains.codes, minlength=size)
    order = np.bincount(domains.codes, weights=slots.order, minlength=size) / np.maximum(rows, 1)
    total = np.array([min(number, int(caps.sum()))], dtype=np.int64)
    return level(caps, domains.counts, np.zeros(size, dtype=np.int64), total, order)


def _by_tier(codes: Ints, tiers: Ints, caps: Ints, targets: Ints) -> tuple[Ints, Ints]:
    """Split each domain's target over its tiers, the first tier first."""
    kinds = int(tiers.max()) + 1 if tiers.size else 1
    split = codes * kinds + tiers
    room = np.bincount(split, weights=caps, minlength=len(targets) * kinds).astype(np.int64)
    room = room.reshape(len(targets), kinds)
    before = np.cumsum(room, axis=1) - room
    return split, np.clip(targets[:, None] - before, 0, room).ravel()


def _packed(slots: Slots, codes: Ints, targets: Ints) -> Ints:
    order = np.lexsort((slots.order, codes))
    caps, groups = slots.caps[order], codes[order]
    cumulated = np.cumsum(caps)
    first = np.searchsorted(groups, np.arange(len(targets)))
    base = np.concatenate(([0], cumulated))[first]
    before = cumulated - caps - base[groups]
    takes = np.empty_like(slots.caps)
    takes[order] = np.clip(targets[groups] - before, 0, caps)
    return takes


def level(caps: Ints, counts: Ints, groups: Ints, targets: Ints, order: Floats) -> Ints:
    """In each group, raise the lowest counts until the group's target is handed out.

    Targets are at most what the group can take. Who gets the last, uneven ones, `order` decides.
    """
    size = len(targets)
    if not len(caps) or not targets.any():
        return np.zeros(len(caps), dtype=np.int64)
    low = np.full(size, int(counts.min()), dtype=np.int64)
    high = np.full(size, int((counts + caps).max()) + 1, dtype=np.int64)
    # From below: levels are low where there are more nodes than replicas, which is the usual case.
    step = 1
    takes = np.zeros(len(caps), dtype=np.int64)
    while (open_ := high - low > 1).any():
        middle = np.where(open_, np.minimum(low + step, (low + high) // 2), low)
        middle = np.where(open_, np.maximum(middle, low + 1), middle)
        trial = np.clip(middle[groups] - counts, 0, caps)
        sums = np.bincount(groups, weights=trial, minlength=size)
        fits = sums <= targets
        low = np.where(open_ & fits, middle, low)
        high = np.where(open_ & ~fits, middle, high)
        step *= 2
    takes = np.clip(low[groups] - counts, 0, caps).astype(np.int64)
    rest = targets - np.bincount(groups, weights=takes, minlength=size).astype(np.int64)
    if not rest.any():
        whole: Ints = takes
        return whole
    open_rows = np.flatnonzero(
        (takes < caps) & (counts + takes == low[groups]) & (rest[groups] > 0)
    )
    if size == 1:
        chosen = open_rows[np.argsort(order[open_rows], kind="stable")[: int(rest[0])]]
    else:
        ranked = open_rows[np.lexsort((order[open_rows], groups[open_rows]))]
        own = groups[ranked]
        place = np.arange(len(own)) - np.searchsorted(own, own)
        chosen = ranked[place < rest[own]]
    takes[chosen] += 1
    given: Ints = takes
    return given


def _site_order(slots: Slots) -> Floats:
    """Rank in the site by size of the site, so that all sites become equally dense."""
    sites = slots.sites
    if not len(sites):
        return slots.order
    ranked = np.lexsort((slots.order, sites))
    own = sites[ranked]
    rank = np.empty(len(sites), dtype=np.float64)
    rank[ranked] = np.arange(len(own)) - np.searchsorted(own, own)
    sizes = np.bincount(sites)
    density: Floats = (slots.site_counts[sites] + rank + 0.5) / sizes[sites]
    # Between equally dense sites, the better node.
    return density + 1e-6 * slots.order


def in_turn(takes: Ints) -> Ints:
    """Indexes of the rows, each as often as it takes, first ones of all rows first.

    The replicas with the highest numbers, which go first when a workload is scaled down, are then
    those that made their nodes and domains fuller than others.
    """
    rows = np.repeat(np.arange(len(takes)), takes)
    if not len(rows) or int(takes.max()) <= 1:
        return rows
    starts = np.cumsum(takes) - takes
    turn = np.arange(len(rows)) - starts[rows]
    return rows[np.argsort(turn, kind="stable")]
