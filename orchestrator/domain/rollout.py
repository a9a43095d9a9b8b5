"""The rollout of one workload as a machine: what was seen and `now` in, state and orders out.

Called once per tick of the leader for every workload that is not at rest
(`orchestrator/scheduling/rollouts.py`), and by tests. The table of transitions stands in
`rollout_state.py`; one transition happens per step. Durations are sums of `elapsed_s`, which the
caller takes from a clock that never jumps: the wall clock only dates what is shown.

What fails a revision: that more of its replicas crash, or stop being ready, than a few bad boxes
explain, while those of other revisions do not; or that nothing becomes available for
`progressDeadline`. Nodes that cannot be reached say nothing about a revision.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orchestrator.domain.rollout_state import (
    JUDGED,
    TRANSITIONS,
    Event,
    Past,
    Phase,
    RolloutState,
    Standing,
    Wave,
)
from orchestrator.domain.rollout_words import Said, said
from polder.manifest.quantity import amount_of, format_duration
from polder.manifest.update import Update

BAD_SHARE = 20
"""One in so many replicas may be bad without that being the revision's fault: boxes fail, too."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the operator asks for. `count`: of replicas, sites or nodes. `stored`: the revisions
    whose templates exist. `digest` and `plain`: of the newest one, as in `Past`."""

    newest: int
    digest: str
    plain: str
    stored: frozenset[int]
    update: Update = Update()
    count: int = 1


@dataclass(frozen=True, slots=True)
class Tally:
    """Replicas at one site, by name. `reachable`: its node is heard of and able to run things.

    `updated` of these are assigned to the target, and `available` of those are ready long enough.
    `lost` are on nodes that count as lost, and `away` on others that cannot be reached.
    """

    reachable: int = 0
    updated: int = 0
    available: int = 0
    away: int = 0
    lost: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.reachable + other.reachable,
            self.updated + other.updated,
            self.available + other.available,
            self.away + other.away,
            self.lost + other.lost,
        )

    @property
    def names(self) -> int:
        return self.reachable + self.away + self.lost


@dataclass(frozen=True, slots=True)
class Health:
    """Stays (a replica on a node) of some revisions, on nodes that can be reached.

    `crashing`: in a crash loop, or restarted again and again since they were first seen.
    `unready`: were ready, and have not been for a while. `restarted`: since the last look.
    """

    stays: int = 0
    crashing: int = 0
    unready: int = 0
    restarted: int = 0

    @property
    def bad(self) -> int:
        return self.crashing + self.unready


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is, by site. `regions`: of sites. `reasons`: why replicas of the target are not
    available, the most frequent first."""

    sites: Mapping[str, Tally] = field(default_factory=dict)
    regions: Mapping[str, str] = field(default_factory=dict)
    target: Health = Health()
    others: Health = Health()
    reasons: tuple[tuple[str, int], ...] = ()
    in_use: frozenset[int] = frozenset()  # revisions

    def at(self, sites: frozenset[str] | None) -> Tally:
        """None: everywhere."""
        found = Tally()
        for site, tally in self.sites.items():
            if sites is None or site in sites:
                found += tally
        return found


@dataclass(frozen=True, slots=True)
class Step:
    """`due_s`: when time alone may change something; `event` None: nothing happened."""

    state: RolloutState
    event: Event | None
    said: tuple[Said, ...]
    due_s: float


def begin(wanted: Wanted, progress: Progress, now: float) -> RolloutState:
    """Of a workload without a record: new, or from before records were kept.

    One that already runs another revision, such as one that was changed in a freeze before it had
    a record, is not new: it has its canary.
    """
    others = progress.in_use - {wanted.newest}
    state = RolloutState(
        newest=wanted.newest,
        target=wanted.newest,
        base=max(others, default=0),
        since_ms=_ms(now),
        history=(Past(wanted.newest, wanted.digest, wanted.plain),),
    )
    return _Machine(state, wanted, progress).first_sites(state) if others else state


def admitted(state: RolloutState, regions: Mapping[str, str]) -> frozenset[str] | None:
    """Sites that the target may go to; None: everywhere. `regions`: of sites."""
    if state.phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK) or state.wave is Wave.EVERYWHERE:
        return None
    if state.wave is Wave.CANARY:
        return frozenset(state.sites)
    return frozenset(site for site, region in regions.items() if region in state.regions) | {
        *state.sites
    }


def step(
    state: RolloutState, wanted: Wanted, progress: Progress, elapsed_s: float, now: float
) -> Step:
    """At most one transition. `elapsed_s`: that somebody watched since the last step; `now`: unix
    seconds, only to date things."""
    machine = _Machine(state, wanted, progress)
    if wanted.newest == state.newest:
        machine.watch(elapsed_s)
    event, cause = machine.event()
    if event is None:
        return Step(machine.state, None, (), machine.due_s())
    after = machine.after(event, cause, now)
    return Step(after, event, said(state, event, after, wanted.update, cause), 0.0)


class _Machine:
    """One step. `state` has its clocks moved by `watch`."""

    def __init__(self, state: RolloutState, wanted: Wanted, progress: Progress) -> None:
        self.state = state
        self._wanted = wanted
        self._progress = progress
        self._tally = progress.at(admitted(state, progress.regions))
        self._update = wanted.update

    # --- clocks ----------------------------------------------------------------------------------

    def watch(self, elapsed_s: float) -> None:
        """Let the time count for what is seen."""
        state = self.state
        if state.phase in (Phase.SOAKING, Phase.PROVING):
            self._watch_held(elapsed_s)
        elif state.phase in (Phase.PROGRESSING, Phase.ROLLING_BACK) and not self._update.paused:
            self._watch_stall(elapsed_s, done=self._complete())

    def _watch_held(self, elapsed_s: float) -> None:
        state, target = self.state, self._progress.target
        restarted = state.restarted + target.restarted
        if restarted > _tolerated(target.stays):
            # What crashes now and then has not held, however long that is added up.
            self.state = replace(state, held_s=0.0, restarted=0)
        elif self._holds():
            self.state = replace(state, held_s=state.held_s + elapsed_s, restarted=restarted)
        else:
            self.state = replace(state, restarted=restarted)
        self._watch_stall(elapsed_s, done=self._holds())

    def _watch_stall(self, elapsed_s: float, *, done: bool) -> None:
        state, tally = self.state, self._tally
        if done or tally.available > state.best:
            best = max(state.best, tally.available)
            self.state = replace(state, stalled_s=0.0, best=best)
        elif self._can_progress():
            self.state = replace(state, stalled_s=state.stalled_s + elapsed_s)

    def _can_progress(self) -> bool:
        """Whether it is the revision's doing that nothing becomes available."""
        tally = self._tally
        if not self._wanted.count:
            return False
        if not tally.names:
            return self.state.wave is Wave.EVERYWHERE
        waits_for_nodes = tally.away + tally.lost > 0 and tally.updated == tally.available
        return tally.reachable > 0 and not waits_for_nodes

    # --- judging ---------------------------------------------------------------------------------

    def _complete(self) -> bool:
        """All that can be reached in this wave runs the target and is available."""
        tally = self._tally
        if not self._wanted.count:
            return self.state.wave is Wave.EVERYWHERE or self.state.phase is Phase.ROLLING_BACK
        enough = tally.reachable - _tolerated(tally.reachable)
        return tally.reachable > 0 and tally.available >= enough

    def _holds(self) -> bool:
        """Within the workload's own budget, and not by having nothing that runs."""
        tally = self._tally
        return tally.available >= max(1, tally.reachable - self._budget())

    def _budget(self) -> int:
        return amount_of(self._update.max_unavailable, self._tally.reachable, up=False)

    def _failure(self) -> str:
        """What speaks against the target; empty: nothing."""
        target, others = self._progress.target, self._progress.others
        revision = f"revision {self.state.target}"
        if not _as_bad(others, target):
            if target.crashing > _tolerated(target.stays):
                return f"{target.crashing} of {target.stays} replicas of {revision} crash"
            spare = max(min(self._budget(), target.stays - 1), _tolerated(target.stays))
            if target.unready > max(0, spare):
                return (
                    f"{target.unready} of {target.stays} replicas of {revision} were ready and are "
                    "not any more"
                )
        deadline_s = self._update.progress_deadline
        if self.state.stalled_s < deadline_s:
            return ""
        why = ", ".join(f"{count} {reason}" for reason, count in self._progress.reasons[:3])
        if not self._progress.at(None).names:
            why = "no node takes any (`edgectl why` says for what reasons)"
        text = f"no replica of {revision} became available for {format_duration(deadline_s)}"
        return f"{text}: {why}" if why else text

    def _sites_gone(self) -> bool:
        """Nothing of the wave can be reached, now or soon, and there is something elsewhere."""
        if self.state.wave is Wave.EVERYWHERE or self._tally.reachable or self._tally.away:
            return False
        return self._progress.at(None).reachable > 0

    # --- events ----------------------------------------------------------------------------------

    def event(self) -> tuple[Event | None, str]:
        """What has happened, and the cause of a failure."""
        state, paused = self.state, self._update.paused
        if self._wanted.newest != state.newest:
            return Event.CHANGED, ""
        if paused and state.phase in (Phase.PROGRESSING, Phase.SOAKING):
            return Event.PAUSED, ""
        cause = self._failure() if state.phase in JUDGED else ""
        if cause:
            can = self._update.auto_rollback and state.way_back(self._wanted.stored)
            return (Event.ROLL_BACK if can else Event.GIVE_UP), cause
        match state.phase:
            case Phase.PAUSED:
                return (None if paused else Event.RESUMED), ""
            case Phase.PROGRESSING:
                return self._progressing(), ""
            case Phase.SOAKING:
                return self._soaking(), ""
            case Phase.PROVING:
                held = self._holds() and state.held_s >= self._update.proven_after
                return (Event.HELD if held else None), ""
            case Phase.ROLLING_BACK:
                return self._rolling_back()
            case Phase.FAILED:
                return self._failed()
        return None, ""

    def _progressing(self) -> Event | None:
        if self._sites_gone():
            return Event.SITES_GONE
        if not self._complete():
            return None
        return Event.EVERYWHERE if self.state.wave is Wave.EVERYWHERE else Event.WAVE_DONE

    def _soaking(self) -> Event | None:
        if self._sites_gone():
            return Event.SITES_GONE
        soaked = self._holds() and self.state.held_s >= self._soak_s()
        return Event.SOAKED if soaked else None

    def _soak_s(self) -> float:
        """Who takes the canary away wants no more of it."""
        return self._update.canary.soak if self._update.canary is not None else 0.0

    def _rolling_back(self) -> tuple[Event | None, str]:
        if self._update.paused:
            return None, ""
        if self._complete():
            return Event.RETURNED, ""
        cause = self._failure()
        return (Event.GIVE_UP, cause) if cause else (None, "")

    def _failed(self) -> tuple[Event | None, str]:
        state = self.state
        if state.target != state.newest:
            return None, ""  # the way back failed, too: an operator has to decide
        if self._update.auto_rollback and state.way_back(self._wanted.stored):
            return Event.ROLL_BACK, state.message
        ran = self._wanted.count and self._complete() and not self._progress.target.bad
        recovered = ran and not state.late and state.wave is Wave.EVERYWHERE
        return (Event.RECOVERED if recovered else None), ""

    def due_s(self) -> float:
        """Until one of the clocks may be over, if all goes on as it is. One that is over already,
        and led to nothing, waits for something else than time."""
        state, update = self.state, self._update
        left = [update.progress_deadline - state.stalled_s]
        if state.phase is Phase.SOAKING:
            left.append(self._soak_s() - state.held_s)
        elif state.phase is Phase.PROVING:
            left.append(update.proven_after - state.held_s)
        return min((s for s in left if s > 0), default=math.inf)

    # --- what follows ----------------------------------------------------------------------------

    def after(self, event: Event, cause: str, now: float) -> RolloutState:
        """The state after an event. Raises KeyError for one that the table does not have."""
        state, now_ms = self.state, _ms(now)
        phase = TRANSITIONS[(state.phase, event)]
        if event is Event.CHANGED:
            return self._changed(now_ms)
        moved = replace(state, phase=phase, since_ms=now_ms, message=cause, stalled_s=0.0, best=0)
        match event:
            case Event.PAUSED | Event.RESUMED:
                return replace(moved, best=state.best)
            case Event.SITES_GONE:
                return self.first_sites(_fresh(moved))
            case Event.SOAKED:
                return self._next_wave(_fresh(moved))
            case Event.EVERYWHERE | Event.RECOVERED:
                current = moved.judged(state.target, Standing.CURRENT, "", now_ms)
                return replace(_fresh(current), best=self._tally.available)
            case Event.HELD:
                proven = moved.judged(state.target, Standing.PROVEN, "", now_ms)
                return replace(_fresh(proven), proven=state.target, base=0).remembering()
            case Event.ROLL_BACK | Event.GIVE_UP:
                return self._given_up(moved, event, cause, now_ms)
            case Event.RETURNED:
                return replace(moved, base=0, message=state.message)
        return moved

    def _changed(self, now_ms: int) -> RolloutState:
        """Another template: what ran everywhere is what the others keep until a wave comes."""
        state, wanted = self.state, self._wanted
        before = state.past(state.target)
        if before is not None and before.standing is Standing.CURRENT:
            state = state.judged(state.target, Standing.SUPERSEDED, "", now_ms)
        everywhere = (Phase.PROVING, Phase.PROVEN, Phase.ROLLING_BACK, Phase.ROLLED_BACK)
        base = (state.base if state.phase not in everywhere else 0) or state.target
        begun = replace(
            _fresh(state),
            newest=wanted.newest,
            target=wanted.newest,
            phase=Phase.PROGRESSING,
            base=base,
            stalled_s=0.0,
            best=0,
            late=False,
            message="",
            since_ms=now_ms,
        ).remembering(Past(wanted.newest, wanted.digest, wanted.plain))
        if begun.has_proven(wanted.plain):
            return replace(begun, wave=Wave.EVERYWHERE, sites=(), regions=())
        return self.first_sites(begun)

    def first_sites(self, state: RolloutState) -> RolloutState:
        """The sites that try it first: by name, of those whose replicas can be reached; of all
        while nobody is heard, as after the start of a leader: that is no reason to skip them."""
        canary, sites = self._update.canary, self._progress.sites
        found = sorted(site for site, tally in sites.items() if tally.reachable)
        found = found or sorted(site for site, tally in sites.items() if tally.names)
        if canary is None or not found:
            return replace(state, wave=Wave.EVERYWHERE, sites=(), regions=())
        first = tuple(found[: canary.sites])
        regions = sorted({self._progress.regions.get(site, "") for site in first})
        return replace(state, wave=Wave.CANARY, sites=first, regions=tuple(regions))

    def _next_wave(self, state: RolloutState) -> RolloutState:
        """A wave that would reach nobody new is left out, with its soak."""
        if state.wave is Wave.CANARY and self._update.canary is not None:
            region = replace(state, wave=Wave.REGION)
            now, then = (admitted(s, self._progress.regions) for s in (state, region))
            if self._progress.at(then).names > self._progress.at(now).names:
                return region
        return replace(state, wave=Wave.EVERYWHERE)

    def _given_up(self, moved: RolloutState, event: Event, cause: str, now_ms: int) -> RolloutState:
        state = self.state
        if state.phase is Phase.ROLLING_BACK:
            text = f"the way back to revision {state.target} failed, too: {cause}"
            return replace(moved, message=text)
        if state.phase is not Phase.FAILED:
            moved = moved.judged(state.target, Standing.FAILED, cause, now_ms)
            moved = replace(moved, late=state.phase is Phase.PROVING)
        if event is Event.GIVE_UP:
            return moved
        target = state.way_back(self._wanted.stored)
        return replace(_fresh(moved), target=target, wave=Wave.EVERYWHERE, sites=(), regions=())


def _fresh(state: RolloutState) -> RolloutState:
    """Nothing has held yet."""
    return replace(state, held_s=0.0, restarted=0)


def _tolerated(count: int) -> int:
    return count // BAD_SHARE


def _as_bad(others: Health, target: Health) -> bool:
    """Whether those of other revisions fare no better: then something else is the cause."""
    if not others.bad or not target.stays:
        return False
    return others.bad * target.stays >= target.bad * others.stays


def _ms(now: float) -> int:
    return int(now * 1000)
