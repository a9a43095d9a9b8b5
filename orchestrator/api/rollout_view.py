"""A workload's rollout as operators see it, from its state and its replicas. Pure.

Called by `rollouts.py`, which serves the RPCs, and by the catalog for a workload's status. Times
are unix milliseconds.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.rollout_state import (
    AT_REST,
    Phase,
    RolloutState,
    Standing,
    Wave,
    from_dict,
)
from orchestrator.records import KeptRecord, StoredResource, TemplateRevision
from orchestrator.scheduling.decisions import Explanation
from polder.manifest import InvalidManifest, WorkloadSpec
from polder.manifest.update import Update
from polder.v1 import agent_pb2, operator_pb2

_ORDINARY = ("", "Starting", "Terminating")
"""What every replica says for a moment."""
_TURNS = ("ReplacementWaits", "UpdateWaits")
"""What the leader says of every rollout: that others come first."""


@dataclass(frozen=True, slots=True)
class Stay:
    """A replica on a node: what it is assigned, and what its agent says; `live`: still says."""

    replica: str
    revision: int
    live: bool
    status: agent_pb2.ReplicaStatus | None

    @property
    def is_available(self) -> bool:
        said = self.status
        return self.live and said is not None and said.ready and said.revision == self.revision


def state_of(record: KeptRecord | None) -> RolloutState | None:
    """What a record says; None: there is none, or this version cannot read it."""
    if record is None:
        return None
    try:
        return from_dict(record.body)
    except (ValueError, KeyError, TypeError):
        return None


def seen_state(workload: StoredResource, state: RolloutState | None) -> RolloutState:
    """The state, or what it is until the leader has seen the operator's newest template."""
    newest = workload.template_revision
    if state is not None and state.newest == newest:
        return state
    waiting = "the leader has not begun with it yet"
    if state is None:
        return RolloutState(newest, newest, message=waiting)
    return RolloutState(
        newest,
        state.target,
        base=state.base,
        proven=state.proven,
        message=waiting,
        history=state.history,
    )


def summary(workload: StoredResource, record: KeptRecord | None) -> dict[str, Any]:
    """For a workload's status. Empty for a job, and while nothing is known."""
    spec = _spec(workload)
    found = state_of(record)
    if found is None or spec is None or spec.run == "once":
        return {}
    state = seen_state(workload, found)
    return {
        "phase": state.phase.value,
        "message": state.message,
        "sinceAt": state.since_ms,
        "newestRevision": state.newest,
        "targetRevision": state.target,
        "provenRevision": state.proven,
        "wave": _wave(state),
        "sites": list(state.sites) if _wave(state) == Wave.CANARY.value else [],
    }


def status_of(
    workload: StoredResource, state: RolloutState, stays: Iterable[Stay], wanted: int | None
) -> operator_pb2.RolloutStatus:
    """`wanted`: how many replicas the leader wants; None: it has not said."""
    by_name: dict[str, list[Stay]] = {}
    for stay in stays:
        by_name.setdefault(stay.replica, []).append(stay)
    # A template that the leader has not taken up is not what its replicas are led to.
    counted = state.newest if state.phase is Phase.PROGRESSING else state.target
    target = [[s for s in held if s.revision == counted] for held in by_name.values()]
    spec, update = _spec(workload), _update(workload)
    if spec is not None and spec.per_site is None and spec.per_node is None:
        wanted = 1 if spec.replicas is None else spec.replicas
    updated = sum(bool(mine) for mine in target)
    ready = sum(any(stay.is_available for stay in mine) for mine in target)
    in_waves = _wave(state)
    # With no replicas there is nothing to gate and nothing that will be proven: who follows the
    # rollout would wait until somebody scales it up.
    nothing = wanted == 0 and not by_name and state.phase not in AT_REST
    return operator_pb2.RolloutStatus(
        phase=state.phase.value,
        message=state.message,
        since_ms=state.since_ms,
        newest_revision=state.newest,
        target_revision=state.target,
        proven_revision=state.proven,
        wave=in_waves,
        sites=state.sites if in_waves == Wave.CANARY.value else (),
        replicas_wanted=len(by_name) if wanted is None else wanted,
        replicas_updated=updated,
        replicas_available=sum(any(s.is_available for s in held) for held in by_name.values()),
        replicas_updating=updated - ready,
        seconds_left=_seconds_left(state, update),
        paused=update.paused,
        settled=nothing or state.phase in AT_REST,
        succeeded=nothing or state.phase is Phase.PROVEN,
    )


def gravest(found: Sequence[Explanation]) -> str:
    """Of what the leader says of a workload: what is in the way, before whose turn it is."""
    ahead = [item for item in found if item.code not in _TURNS]
    return (ahead or list(found))[0].message if found else ""


def troubles_of(state: RolloutState, stays: Iterable[Stay]) -> str:
    """Why replicas of the target are not available, as their agents say: `2 ImageRegistry`."""
    mine = (stay for stay in stays if stay.revision == state.target and not stay.is_available)
    said = (stay.status for stay in mine if stay.live and stay.status is not None)
    reasons = Counter(s.reason for s in said if s.reason not in _ORDINARY)
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))


def revisions_of(
    stored: Iterable[TemplateRevision], state: RolloutState, replicas: Mapping[int, int]
) -> list[operator_pb2.RevisionInfo]:
    """Newest first. `replicas`: how many are assigned to each revision."""
    ordered = sorted(stored, key=lambda item: -item.number)
    return [_revision(item, state, replicas.get(item.number, 0)) for item in ordered]


def _revision(
    item: TemplateRevision, state: RolloutState, replicas: int
) -> operator_pb2.RevisionInfo:
    past = state.past(item.number)
    standing = past.standing.value if past is not None else "Unproven"
    if past is None and item.number < state.newest:
        standing = Standing.SUPERSEDED.value
    elif item.number == state.newest and (past is None or past.standing is Standing.CURRENT):
        standing = Standing.CURRENT.value
    return operator_pb2.RevisionInfo(
        number=item.number,
        created_at_ms=item.created_at_ms,
        created_by=item.created_by,
        images=images_of(item),
        state=standing,
        cause=past.cause if past is not None else "",
        decided_at_ms=past.decided_at_ms if past is not None else 0,
        replicas=replicas,
        template_digest=item.digest,
    )


def images_of(item: TemplateRevision) -> list[str]:
    try:
        return [container.image for container in item.decoded.containers]
    except InvalidManifest:
        return []


def _wave(state: RolloutState) -> str:
    going = (Phase.PROGRESSING, Phase.SOAKING, Phase.PAUSED)
    return state.wave.value if state.phase in going else ""


def _seconds_left(state: RolloutState, update: Update) -> float:
    total = 0.0
    if state.phase is Phase.SOAKING and update.canary is not None:
        total = update.canary.soak
    elif state.phase is Phase.PROVING:
        total = update.proven_after
    return max(0.0, total - state.held_s)


def _spec(workload: StoredResource) -> WorkloadSpec | None:
    try:
        found = workload.decoded
    except InvalidManifest:
        return None
    return found if isinstance(found, WorkloadSpec) else None


def _update(workload: StoredResource) -> Update:
    spec = _spec(workload)
    return spec.update if spec is not None else Update()
