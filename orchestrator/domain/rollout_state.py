"""What is known of one workload's rollout, and how it may change: values, phases, the table.

The machine is `rollout.py`. The leader keeps a state per workload in the Store (`keys.rollout`);
the operator API reads it to answer `edgectl rollout`.

    phase        event        next phase    when
    (any)        Changed      Progressing   the operator's newest template is another one
    Progressing  Paused       Paused        update.paused
    Soaking      Paused       Paused
    Paused       Resumed      Progressing
    Progressing  WaveDone     Soaking       all that can be reached in the wave runs it and is ready
    Progressing  SitesGone    Progressing   the canary's sites have nothing left: others take over
    Soaking      SitesGone    Progressing
    Soaking      Soaked       Progressing   it held for canary.soak: the next wave
    Progressing  Everywhere   Proving       the last wave is done
    Proving      Held         Proven        it held for provenAfter
    Progressing  RollBack     RollingBack   it failed, and there is a proven revision to return to
    Soaking      RollBack     RollingBack
    Proving      RollBack     RollingBack
    Progressing  GiveUp       Failed        it failed, and there is none, or autoRollback is off
    Soaking      GiveUp       Failed
    Proving      GiveUp       Failed
    RollingBack  Returned     RolledBack    everything runs the proven revision again
    RollingBack  GiveUp       Failed        the proven revision fails, too: what serves is kept
    Failed       RollBack     RollingBack   autoRollback was turned on
    Failed       Recovered    Proving       it had only been late, and now runs everywhere
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from orchestrator.records import KeptRecord

HISTORY_MAX = 10
"""So many revisions are remembered, and those that are in use or proven."""
_TEXT_MAX = 512


class Phase(StrEnum):
    """CamelCase, as operators see it."""

    PROGRESSING = "Progressing"
    SOAKING = "Soaking"
    PAUSED = "Paused"
    PROVING = "Proving"
    PROVEN = "Proven"
    ROLLING_BACK = "RollingBack"
    ROLLED_BACK = "RolledBack"
    FAILED = "Failed"


class Event(StrEnum):
    CHANGED = "Changed"
    PAUSED = "Paused"
    RESUMED = "Resumed"
    WAVE_DONE = "WaveDone"
    SITES_GONE = "SitesGone"
    SOAKED = "Soaked"
    EVERYWHERE = "Everywhere"
    HELD = "Held"
    ROLL_BACK = "RollBack"
    GIVE_UP = "GiveUp"
    RETURNED = "Returned"
    RECOVERED = "Recovered"


class Wave(StrEnum):
    CANARY = "canary"
    REGION = "region"
    EVERYWHERE = "everywhere"


class Standing(StrEnum):
    """What is known of one revision."""

    CURRENT = "Current"
    PROVEN = "Proven"
    FAILED = "Failed"
    SUPERSEDED = "Superseded"


TRANSITIONS: Mapping[tuple[Phase, Event], Phase] = MappingProxyType(
    {
        **{(phase, Event.CHANGED): Phase.PROGRESSING for phase in Phase},
        (Phase.PROGRESSING, Event.PAUSED): Phase.PAUSED,
        (Phase.SOAKING, Event.PAUSED): Phase.PAUSED,
        (Phase.PAUSED, Event.RESUMED): Phase.PROGRESSING,
        (Phase.PROGRESSING, Event.WAVE_DONE): Phase.SOAKING,
        (Phase.PROGRESSING, Event.SITES_GONE): Phase.PROGRESSING,
        (Phase.SOAKING, Event.SITES_GONE): Phase.PROGRESSING,
        (Phase.SOAKING, Event.SOAKED): Phase.PROGRESSING,
        (Phase.PROGRESSING, Event.EVERYWHERE): Phase.PROVING,
        (Phase.PROVING, Event.HELD): Phase.PROVEN,
        (Phase.PROGRESSING, Event.ROLL_BACK): Phase.ROLLING_BACK,
        (Phase.SOAKING, Event.ROLL_BACK): Phase.ROLLING_BACK,
        (Phase.PROVING, Event.ROLL_BACK): Phase.ROLLING_BACK,
        (Phase.PROGRESSING, Event.GIVE_UP): Phase.FAILED,
        (Phase.SOAKING, Event.GIVE_UP): Phase.FAILED,
        (Phase.PROVING, Event.GIVE_UP): Phase.FAILED,
        (Phase.ROLLING_BACK, Event.RETURNED): Phase.ROLLED_BACK,
        (Phase.ROLLING_BACK, Event.GIVE_UP): Phase.FAILED,
        (Phase.FAILED, Event.ROLL_BACK): Phase.ROLLING_BACK,
        (Phase.FAILED, Event.RECOVERED): Phase.PROVING,
    }
)

JUDGED = frozenset({Phase.PROGRESSING, Phase.SOAKING, Phase.PROVING})
"""In these the newest revision can fail."""
SETTLED = frozenset({Phase.PROVEN, Phase.ROLLED_BACK})
"""Nothing is watched any more until the operator changes something."""
AT_REST = SETTLED | {Phase.FAILED, Phase.PAUSED}
"""Nothing more happens by itself."""


@dataclass(frozen=True, slots=True)
class Past:
    """One revision. `digest`: of its template; `plain`: of the same without `restartedAt`.

    `decided_at_ms`: unix ms, of `standing`. `cause`: why it failed, or what it waited for.
    """

    number: int
    digest: str
    plain: str
    standing: Standing = Standing.CURRENT
    cause: str = ""
    decided_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class RolloutState:
    """`newest`: the operator's revision; `target`: what all are led to; `base`: what the rest has
    until a wave reaches it (0: what it has); `proven`: the last that held (0: none).

    `held_s`: of the soak or the proof; `stalled_s`: since something last became available. Both
    only count while somebody watched. `best`: the most that were available in this wave.
    `restarted`: replicas that restarted since `held_s` began. `late`: it failed when it ran
    everywhere already. `message`: why it is as it is. `since_ms`: unix ms, of the phase.
    """

    newest: int
    target: int
    phase: Phase = Phase.PROGRESSING
    base: int = 0
    proven: int = 0
    wave: Wave = Wave.EVERYWHERE
    sites: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    held_s: float = 0.0
    stalled_s: float = 0.0
    best: int = 0
    restarted: int = 0
    late: bool = False
    message: str = ""
    since_ms: int = 0
    history: tuple[Past, ...] = ()  # by number

    def past(self, number: int) -> Past | None:
        return next((past for past in self.history if past.number == number), None)

    def judged(self, number: int, standing: Standing, cause: str, now_ms: int) -> "RolloutState":
        """The same with another standing of one revision."""
        return replace(
            self,
            history=tuple(
                replace(past, standing=standing, cause=cause[:_TEXT_MAX], decided_at_ms=now_ms)
                if past.number == number
                else past
                for past in self.history
            ),
        )

    def way_back(self, stored: frozenset[int]) -> int:
        """The revision to return to when the target fails; 0: there is none.

        The last proven one, or else the newest proven one, whose template is another.
        """
        failing = self.past(self.target)
        fit = [
            past.number
            for past in self.history
            if past.standing is Standing.PROVEN
            and past.number != self.target
            and past.number in stored
            and (failing is None or past.digest != failing.digest)
        ]
        return self.proven if self.proven in fit else max(fit, default=0)

    def has_proven(self, plain: str) -> bool:
        """Whether a revision with this template, but for restarts, was proven."""
        return any(p.standing is Standing.PROVEN and p.plain == plain for p in self.history)

    @property
    def needed(self) -> frozenset[int]:
        """Revisions that must stay stored, whoever runs them."""
        return frozenset({self.newest, self.target, self.base, self.proven}) - {0}

    @property
    def clocks(self) -> dict[str, float]:
        """What changes all the time, and is therefore written now and then only."""
        return {
            "held_s": round(self.held_s, 3),
            "stalled_s": round(self.stalled_s, 3),
            "best": self.best,
            "restarted": self.restarted,
        }

    def remembering(self, *extra: Past) -> "RolloutState":
        """With these revisions too, in order, and without those that are too old to matter."""
        known = {past.number: past for past in (*self.history, *extra)}
        ordered = [known[number] for number in sorted(known)]
        return replace(
            self,
            history=tuple(
                past
                for index, past in enumerate(ordered)
                if index >= len(ordered) - HISTORY_MAX or past.number in self.needed
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """For `KeptRecord.body`."""
        body = {item.name: getattr(self, item.name) for item in fields(self)}
        body["phase"], body["wave"] = self.phase.value, self.wave.value
        body["sites"], body["regions"] = list(self.sites), list(self.regions)
        body.update(self.clocks)
        body["history"] = [
            {
                **{f.name: getattr(past, f.name) for f in fields(past)},
                "standing": str(past.standing),
            }
            for past in self.history
        ]
        return body


def needed_revisions(record: KeptRecord | None) -> frozenset[int] | None:
    """Revisions that a rollout leads to or may return to; None: its record cannot be read."""
    if record is None:
        return frozenset()
    try:
        state = from_dict(record.body)
    except (ValueError, KeyError, TypeError):
        return None
    # Any that was proven may be what `way_back` chooses next.
    return state.needed | {p.number for p in state.history if p.standing is Standing.PROVEN}


def from_dict(body: Mapping[str, Any]) -> RolloutState:
    """Fields that this version does not know are left out. Raises ValueError, KeyError, TypeError
    when the rest cannot be read."""
    names = {item.name for item in fields(RolloutState)}
    known = {name: value for name, value in body.items() if name in names}
    known["phase"] = Phase(known.get("phase", Phase.PROGRESSING))
    known["wave"] = Wave(known.get("wave", Wave.EVERYWHERE))
    for name in ("sites", "regions"):
        known[name] = tuple(str(item) for item in known.get(name, ()))
    past_names = {item.name for item in fields(Past)}
    history = []
    for item in known.get("history", ()):
        kept = {name: value for name, value in item.items() if name in past_names}
        kept["standing"] = Standing(kept.get("standing", Standing.CURRENT))
        history.append(Past(**kept))
    known["history"] = tuple(history)
    return RolloutState(**known)
