"""What operators read of a rollout in their workload's events, in words. Called by `rollout.py`."""

from dataclasses import dataclass

from orchestrator.domain.rollout_state import Event, Phase, RolloutState, Wave
from polder.manifest.quantity import format_duration
from polder.manifest.update import Update


@dataclass(frozen=True, slots=True)
class Said:
    """For the workload's events."""

    warning: bool
    reason: str
    message: str


def said(
    before: RolloutState, event: Event, after: RolloutState, update: Update, cause: str
) -> tuple[Said, ...]:
    """What an operator is told of a transition; `cause`: of a failure."""
    return tuple(_said(before, event, after, update, cause))


def _said(
    before: RolloutState, event: Event, after: RolloutState, update: Update, cause: str
) -> list[Said]:
    number, where = after.target, _where(after)
    match event:
        case Event.CHANGED:
            text = f"revision {number} begins ({where})"
            return [Said(False, "RolloutStarted", text)]
        case Event.PAUSED:
            return [Said(False, "RolloutPaused", f"revision {number} waits for an operator")]
        case Event.RESUMED:
            return [Said(False, "RolloutResumed", f"revision {number} goes on ({where})")]
        case Event.WAVE_DONE:
            soak = update.canary.soak if update.canary is not None else 0.0
            text = f"revision {number} is watched for {format_duration(soak)} ({where})"
            return [Said(False, "RolloutSoaking", text)]
        case Event.SITES_GONE:
            text = f"revision {number}: its sites cannot be reached; it goes on ({where})"
            return [Said(True, "RolloutSitesGone", text)]
        case Event.SOAKED:
            return [Said(False, "RolloutWave", f"revision {number} held; next wave ({where})")]
        case Event.EVERYWHERE | Event.RECOVERED:
            if len(after.history) == 1 and event is Event.EVERYWHERE:
                return []  # a new workload that runs is told by its replicas
            left = format_duration(update.proven_after)
            text = f"revision {number} runs on all that can be reached; proven if it holds for"
            return [Said(False, "RolloutProving", f"{text} {left}")]
        case Event.HELD:
            return [Said(False, "RolloutProven", f"revision {number} held and is proven")]
        case Event.ROLL_BACK:
            text = f"revision {before.target} failed: {cause}; back to revision {number}"
            return [Said(True, "RolloutFailed", text)]
        case Event.GIVE_UP:
            return [Said(True, "RolloutFailed", _gave_up(before, after, update))]
        case Event.RETURNED:
            text = f"revision {number} runs everywhere again; revision {after.newest} failed"
            return [Said(True, "RolledBack", text)]


def _gave_up(before: RolloutState, after: RolloutState, update: Update) -> str:
    if before.phase is Phase.ROLLING_BACK:
        return f"{after.message}; what serves is kept"
    why = "there is no proven revision to return to"
    if not update.auto_rollback:
        why = "autoRollback is off"
    return f"revision {after.target} failed: {after.message}; {why}, so what serves is kept"


def _where(state: RolloutState) -> str:
    if state.wave is Wave.CANARY:
        return f"canary: {_some(state.sites)}"
    return f"region: {_some(state.regions)}" if state.wave is Wave.REGION else "everywhere"


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
