"""Upgrades of the fleet's agents in waves: whom to tell next, and when to stop. Pure (ADR 31).

The record under `keys.upgrade(number)` says what is wanted and how far it has come; one under
`keys.agent_version(node)` that a box was told. The operator API writes the first
(`orchestrator/api/agent_upgrades.py`), the leader goes on with both (`upgrades_step.py`), gateways
pass on what boxes were told (`orchestrator/gateway/upgrades.py`).

    Running -- more failed than may ----------> Paused -- resume: failed ones once more --> Running
    Running -- an operator pauses ------------> Paused
    Running -- the last wave has soaked ------> Done
    Running, Paused -- an operator aborts ----> Aborted

What stands of a box (`standing`) follows each time from what is known of it, so that a new leader,
or the same step done twice, comes to the same:

    Next      may be told when there is room
    UnderWay  was told, and has neither come through nor failed
    Done      runs the version, and if it was told to in this wave, is well
    Failed    its agent says so, or nobody has heard of it since, or it takes too long
    Waiting   cannot be told: not heard, not ready, frozen, no package for it or no way back

Boxes that wait hold nobody up: a wave is over when all that could be told are done or failed, and
have been so for the soak. Who comes back later is told then, since waves are cumulative.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from math import ceil

from orchestrator.domain.upgrade_state import (
    FAILED,
    FAILURES_BY_SHARE,
    FAILURES_LIMIT,
    INSTALLING,
    WHOLE,
    Failure,
    Phase,
    Said,
    Told,
    Upgrade,
)

QUIET_PATIENCES = 3
"""A box that was told and is not heard for so many patiences has failed: it installs, goes back and
has a patience to spare in that time."""
SLOW_S = 4 * 3600.0
"""One that is heard, and has neither come through nor failed after so long, has failed."""
SITE_SHARE = 100
"""Of a site's boxes at once, where the upgrade says nothing."""
NOT_HEARD = "NotHeard"
SITE_FROZEN = "SiteFrozen"


class Standing(StrEnum):
    """Of a box in an upgrade; see the head."""

    NEXT = "Next"
    UNDER_WAY = "UnderWay"
    DONE = "Done"
    FAILED = "Failed"
    WAITING = "Waiting"


@dataclass(frozen=True, slots=True)
class Box:
    """One node as the leader knows it.

    `ready`: it is heard, and could start something. `version` is the last that it reported; empty:
    none. `quiet_s`: for how long it has not been heard; None: it is heard. `doubted`: its silence
    proves nothing. `obstacle`: (reason, message) of why it cannot be told now.
    """

    name: str
    site: str
    version: str = ""
    quiet_s: float | None = None
    ready: bool = True
    doubted: bool = False
    obstacle: tuple[str, str] | None = None
    said: Said | None = None
    told: Told | None = None

    @property
    def is_heard(self) -> bool:
        return self.quiet_s is None


@dataclass(frozen=True, slots=True)
class Judged:
    """A box and what stands of it, with the reason where there is one."""

    box: Box
    standing: Standing
    reason: str = ""
    message: str = ""


def in_order(upgrade: Upgrade, boxes: Iterable[Box]) -> list[Box]:
    """Those that it is for, in an order of its own: each wave is spread over all sites."""
    chosen = [box for box in boxes if upgrade.chooses(box.name, box.site)]
    prefix = upgrade.id.encode() + b"\0"
    return sorted(chosen, key=lambda box: sha256(prefix + box.name.encode()).digest())


def reach(upgrade: Upgrade, count: int, wave: int) -> int:
    """How many of `count` boxes the waves up to this one come to; at least one."""
    if wave < 0:
        return 0
    return min(count, max(1, ceil(count * upgrade.waves[wave] / WHOLE)))


def judge(upgrade: Upgrade, ordered: Sequence[Box], now: float) -> list[Judged]:
    """What stands of each, in their order."""
    soaked = reach(upgrade, len(ordered), upgrade.wave - 1)
    found = [_standing(upgrade, box, rank < soaked, now) for rank, box in enumerate(ordered)]
    dark = {
        judged.box.site: judged.box.name
        for judged in found
        if judged.standing is Standing.FAILED and not judged.box.is_heard
    }
    return [_beside_dark(judged, dark) if dark else judged for judged in found]


def _standing(upgrade: Upgrade, box: Box, soaked: bool, now: float) -> Judged:
    """`soaked`: its wave is over."""
    was_told = box.told is not None and box.told.upgrade == upgrade.id
    if box.version == upgrade.version:
        if soaked or not was_told or (box.is_heard and box.ready):
            return Judged(box, Standing.DONE)
        return _on_the_way(upgrade, box, now, f"runs {upgrade.version}, and is not well")
    if (failure := upgrade.failed.get(box.name)) is not None:
        return Judged(box, Standing.FAILED, failure.reason, failure.message)
    said = box.said if box.said is not None and box.said.is_of(upgrade) else None
    if said is not None and said.phase in FAILED and said.attempt == upgrade.attempt:
        return Judged(box, Standing.FAILED, said.reason or said.phase, said.message)
    if _has_order(upgrade, box) or (said is not None and said.phase == INSTALLING):
        return _on_the_way(upgrade, box, now, said.phase if said is not None else "")
    if not box.is_heard:
        return Judged(box, Standing.WAITING, NOT_HEARD, "no word from its agent")
    if box.obstacle is not None:
        return Judged(box, Standing.WAITING, *box.obstacle)
    return Judged(box, Standing.NEXT)


def _has_order(upgrade: Upgrade, box: Box) -> bool:
    """Whether it may act on one: also on that of an earlier attempt, which a resume found
    standing."""
    if box.told is None or box.told.upgrade != upgrade.id:
        return False
    said = box.said
    if said is None or not said.is_of(upgrade) or said.phase not in FAILED:
        return True
    return said.attempt < box.told.attempt


def _on_the_way(upgrade: Upgrade, box: Box, now: float, phase: str) -> Judged:
    """It was told: and comes through, or has failed without a word."""
    if (failure := upgrade.failed.get(box.name)) is not None:
        return Judged(box, Standing.FAILED, failure.reason, failure.message)
    told_ms = box.told.at_ms if box.told is not None else 0
    since_s = max(0.0, now - max(told_ms, upgrade.started_at_ms) / 1000)
    dark_s = QUIET_PATIENCES * upgrade.patience_s
    if box.quiet_s is not None:
        if not box.doubted and min(box.quiet_s, since_s) > dark_s:
            text = f"was told, and has not been heard for {box.quiet_s:.0f} s"
            return Judged(box, Standing.FAILED, NOT_HEARD, text)
        return Judged(box, Standing.UNDER_WAY, NOT_HEARD, "no word from its agent")
    if box.told is not None and since_s > SLOW_S:
        text = f"was told {since_s / 60:.0f} minutes ago, and does not come through"
        return Judged(box, Standing.FAILED, "TooSlow", text)
    return Judged(box, Standing.UNDER_WAY, phase)


def _beside_dark(judged: Judged, dark: Mapping[str, str]) -> Judged:
    """Where a box went dark by the upgrade no other is risked."""
    failed = dark.get(judged.box.site)
    if failed is None or judged.standing is not Standing.NEXT:
        return judged
    text = f"{failed} of its site has not been heard since it was told"
    return Judged(judged.box, Standing.WAITING, "SiteNotWell", text)


def failures_allowed(upgrade: Upgrade, count: int) -> int:
    """With more failed of `count` boxes it pauses."""
    if upgrade.failures_max != FAILURES_BY_SHARE:
        return upgrade.failures_max
    share = reach(upgrade, count, upgrade.wave) // 100
    return min(share, FAILURES_LIMIT) if count >= 100 else 0


def counts(judged: Iterable[Judged]) -> Counter[Standing]:
    return Counter(item.standing for item in judged)


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of an upgrade now. `tell`: boxes to be told; `withdraw`: those whose order is
    taken back, or not needed any more. `news`: of the upgrade itself; `lost`: boxes that failed."""

    upgrade: Upgrade
    tell: tuple[Box, ...] = ()
    withdraw: tuple[Told, ...] = ()
    news: tuple[str, ...] = ()
    lost: tuple[tuple[str, Failure], ...] = ()


def step(upgrade: Upgrade, boxes: Iterable[Box], now: float, *, frozen: bool = False) -> Decision:
    """What follows from what is known at `now` (unix seconds). `frozen`: an operator's freeze of
    everything stands; nobody is told, who has not begun is called back, and no wave ends."""
    ordered = in_order(upgrade, boxes)
    if not ordered:
        return Decision(upgrade)  # a world without nodes is no reason for anything
    if not upgrade.is_active:
        return Decision(upgrade, withdraw=_told(upgrade, ordered))
    judged = judge(upgrade, ordered, now)
    before = upgrade
    upgrade = _noted(upgrade, judged, now)
    lost = tuple((n, f) for n, f in upgrade.failed.items() if before.failed.get(n) != f)
    allowed = failures_allowed(upgrade, len(ordered))
    idle = _idle(upgrade, judged)
    given_up = _orders(_given_up(upgrade, judged))
    if upgrade.phase is Phase.RUNNING and len(upgrade.failed) > allowed:
        text = f"{len(upgrade.failed)} failed, and {allowed} may: {_named(upgrade)}"
        upgrade = upgrade.paused("TooManyFailed", text)
        return Decision(upgrade, withdraw=(*given_up, *_orders(idle)), news=(text,), lost=lost)
    if frozen or upgrade.phase is Phase.PAUSED:
        return Decision(upgrade, withdraw=(*given_up, *_orders(idle)), lost=lost)
    upgrade, news = _advanced(upgrade, judged, now)
    if not upgrade.is_active:
        return Decision(upgrade, withdraw=_told(upgrade, ordered), news=news, lost=lost)
    left_alone = _orders(box for box in idle if box.obstacle and box.obstacle[0] == SITE_FROZEN)
    return Decision(upgrade, _chosen(upgrade, judged), (*given_up, *left_alone), news, lost)


def _noted(upgrade: Upgrade, judged: Sequence[Judged], now: float) -> Upgrade:
    """With all that failed. Who came through after all, or is no node any more, drops out."""
    failed = {
        item.box.name: upgrade.failed.get(
            item.box.name, Failure(item.reason, item.message, int(now * 1000))
        )
        for item in judged
        if item.standing is Standing.FAILED
    }
    return upgrade if failed == upgrade.failed else replace(upgrade, failed=failed)


def _named(upgrade: Upgrade) -> str:
    shown = [f"{node} ({failure.reason})" for node, failure in sorted(upgrade.failed.items())[:3]]
    more = len(upgrade.failed) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _orders(boxes: Iterable[Box]) -> tuple[Told, ...]:
    return tuple(box.told for box in boxes if box.told is not None)


def _told(upgrade: Upgrade, boxes: Iterable[Box]) -> tuple[Told, ...]:
    return tuple(told for told in _orders(boxes) if told.upgrade == upgrade.id)


def _given_up(upgrade: Upgrade, judged: Iterable[Judged]) -> list[Box]:
    """Those that failed, maybe without a word: when they come back others are in their place. Who
    runs the version, and is not well, keeps its order: by that it is told from one that is."""
    return [
        item.box
        for item in judged
        if item.standing is Standing.FAILED
        and item.box.version != upgrade.version
        and item.box.told is not None
        and item.box.told.upgrade == upgrade.id
    ]


def _idle(upgrade: Upgrade, judged: Iterable[Judged]) -> list[Box]:
    """Those that were told and have not begun to install: they can be called back."""
    return [
        item.box
        for item in judged
        if item.standing is Standing.UNDER_WAY
        and item.box.is_heard
        and item.box.version != upgrade.version
        and not (item.box.said is not None and item.box.said.phase == INSTALLING)
    ]


def _advanced(
    upgrade: Upgrade, judged: Sequence[Judged], now: float
) -> tuple[Upgrade, tuple[str, ...]]:
    """To the next wave, or to its end, when this one has soaked."""
    now_ms, soak_ms = int(now * 1000), upgrade.soak_s * 1000
    members = counts(judged[: reach(upgrade, len(judged), upgrade.wave)])
    late = now_ms - upgrade.wave_began_ms >= soak_ms
    on_the_way = members[Standing.NEXT] + members[Standing.UNDER_WAY]
    if on_the_way or (members[Standing.WAITING] and not late):
        return replace(upgrade, settled_at_ms=0), ()
    if not upgrade.settled_at_ms:
        upgrade = replace(upgrade, settled_at_ms=now_ms)
    if now_ms - upgrade.settled_at_ms < soak_ms:
        return upgrade, ()
    if upgrade.wave + 1 < len(upgrade.waves):
        wave = upgrade.wave + 1
        count = reach(upgrade, len(judged), wave)
        text = f"wave {wave + 1} of {len(upgrade.waves)} begins: {count} of {len(judged)} nodes"
        return replace(upgrade, wave=wave, wave_began_ms=now_ms, settled_at_ms=0), (text,)
    ended = counts(judged)
    upgrade = replace(
        upgrade,
        phase=Phase.DONE,
        ended_at_ms=now_ms,
        ended={str(name): count for name, count in ended.items()},
    )
    text = f"{ended[Standing.DONE]} of {len(judged)} nodes run {upgrade.version}"
    if ended[Standing.FAILED]:
        text += f"; failed: {_named(upgrade)}"
    if ended[Standing.WAITING]:
        text += f"; {ended[Standing.WAITING]} could not be told: upgrade once more when they can"
    return replace(upgrade, message=text), (text,)


# --- who is next ----------------------------------------------------------------------------------


def at_once_limit(upgrade: Upgrade, count: int) -> int:
    """How many of `count` chosen boxes may be under way at the same time."""
    share = reach(upgrade, count, upgrade.wave) - reach(upgrade, count, upgrade.wave - 1)
    if upgrade.at_once:
        share = min(share, count * upgrade.at_once // WHOLE)
    return max(1, share)


def site_limits(upgrade: Upgrade, judged: Iterable[Judged]) -> dict[str, int]:
    """By site: one, or the share of a site with many boxes; and never all that are heard there,
    unless there is but one: somebody must be able to take over."""
    all_there: Counter[str] = Counter()
    heard: Counter[str] = Counter()
    for item in judged:
        all_there[item.box.site] += 1
        heard[item.box.site] += item.box.is_heard
    share = upgrade.at_once or SITE_SHARE
    return {
        site: max(1, min(count * share // WHOLE, heard[site] - 1))
        for site, count in all_there.items()
    }


def _chosen(upgrade: Upgrade, judged: Sequence[Judged]) -> tuple[Box, ...]:
    """Of this wave and those before, as many as there is room for."""
    room = at_once_limit(upgrade, len(judged)) - counts(judged)[Standing.UNDER_WAY]
    if room <= 0:
        return ()
    limits = site_limits(upgrade, judged)
    at_work = Counter(i.box.site for i in judged if i.standing is Standing.UNDER_WAY)
    found: list[Box] = []
    for item in judged[: reach(upgrade, len(judged), upgrade.wave)]:
        site = item.box.site
        if item.standing is Standing.NEXT and at_work[site] < limits[site]:
            found.append(item.box)
            at_work[site] += 1
            if len(found) == room:
                break
    return tuple(found)
