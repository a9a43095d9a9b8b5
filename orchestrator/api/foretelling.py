"""What will happen next to a replica, a workload or a node, and what it waits for. Pure.

The second half of `story.py`. Nothing is guessed: each line is what a record, the leader or an
agent says now. Times are unix milliseconds; 0: not known when.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.freezes import Freeze
from orchestrator.domain.holds import Hold, HoldKind
from orchestrator.domain.rollout_state import Phase, RolloutState, Wave
from polder.manifest.facts import Maintenance
from polder.manifest.quantity import format_duration, format_timestamp
from polder.manifest.update import Update

NEXT_MAX = 20
_SITES_SHOWN = 3
_NEXT_START = re.compile(r"next start in ([0-9.]+) s")

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ahead:
    """`at_ms`: when, if that is known. `warning`: somebody should do something."""

    source: str
    reason: str
    message: str
    at_ms: int = 0
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What bears on the future. Fields that do not apply are left as they are.

    `node` and those after it are of a node, or of the node of a replica. `waits`: (who, reason,
    message) as the leader says; `stops`: (node, cause, message) of stays that must leave.
    """

    now_ms: int = 0
    leader: str = "leader"
    leader_current: bool = True
    deleting: bool = False
    rollout: RolloutState | None = None
    update: Update = Update()
    newest: int = 0  # the revision of its spec; 0: not known
    wanted: int | None = None  # replicas, as its spec says; None: it depends on sites or nodes
    revision: int = 0  # what the replica is to run now
    freeze: Freeze | None = None
    holds: tuple[Hold, ...] = ()
    job: tuple[Ahead, ...] = ()  # of what runs once
    waits: tuple[tuple[str, str, str], ...] = ()
    stops: tuple[tuple[str, str, str], ...] = ()
    replaces_on: str = ""  # the node of the stay that it replaces
    standbys: tuple[str, ...] = ()  # that could take it over now
    unable: tuple[str, ...] = ()  # standbys that could not, as far as is known, and why
    lost_after_s: float = 0.0
    exclusive: bool = False  # it is not replaced for a node that is only silent
    containers: tuple[Status, ...] = ()
    node: str = ""
    node_silent_since_ms: int = 0
    site: str = ""
    cordoned: str = ""
    draining: bool = False
    drain_deadline_s: float | None = None
    replicas_left: int = 0
    windows: tuple[Maintenance, ...] = ()
    node_by: str = "operator"  # who changed its record last
    site_by: str = "operator"

    def next_of_replica(self) -> tuple[Ahead, ...]:
        return _bounded(
            [
                *self._guards(),
                *self._stops(),
                *self._waits(),
                *self.job,
                *self._rollout_of_replica(),
                *self._crash_loops(),
                *self._node_of_replica(),
                *self._windows(),
                *self._takeover(),
            ]
        )

    def next_of_workload(self) -> tuple[Ahead, ...]:
        return _bounded(
            [
                *self._guards(),
                *self._rollout_of_workload(),
                *self.job,
                *self._waits(),
                *self._stops(),
            ]
        )

    def next_of_node(self) -> tuple[Ahead, ...]:
        return _bounded([*self._guards(), *self._drain(), *self._windows(), *self._silence()])

    # --- whoever it is --------------------------------------------------------------------------

    def _guards(self) -> Iterator[Ahead]:
        if not self.leader_current:
            text = "no leader has said anything lately: nothing is placed or moved meanwhile"
            yield Ahead(self.leader, "LeaderSilent", text, warning=True)
        if self.deleting:
            yield Ahead(self.leader, "Deleting", "it goes when nothing of it is left")
        if self.freeze is not None:
            text = f"nothing changes by itself: {self.freeze}; {self.freeze.thaw} ends that"
            yield Ahead(self.freeze.by, "Frozen", text, warning=True)
        for hold in self.holds:
            if hold.approved:
                continue
            reason = "Silence" if hold.kind is HoldKind.SILENCE else "Held"
            text = f"{hold.message}; edgectl approve {hold.id} lets it go on"
            yield Ahead(self.leader, reason, text, hold.until_ms, warning=True)

    def _waits(self) -> Iterator[Ahead]:
        for who, reason, message in self.waits:
            yield Ahead(self.leader, reason, f"{who}: {message}" if who else message)

    def _stops(self) -> Iterator[Ahead]:
        for node, cause, message in self.stops:
            text = f"its stay on node {node} ends ({cause}): {message}"
            yield Ahead(self.leader, "Stopping", text)

    def _windows(self) -> Iterator[Ahead]:
        now_s = self.now_ms / 1000
        for window in sorted(self.windows, key=lambda window: window.start):
            if window.end <= now_s:
                continue
            does = "its replicas move away" if window.drain else "it gets no new replicas"
            if window.start <= now_s:
                text = f"the maintenance of site {self.site} ends at {format_timestamp(window.end)}"
                yield Ahead(self.site_by, "MaintenanceEnds", text, int(window.end * 1000))
            else:
                text = f"maintenance of site {self.site} begins at {format_timestamp(window.start)}"
                yield Ahead(
                    self.site_by, "MaintenanceBegins", f"{text}: {does}", int(window.start * 1000)
                )

    # --- rollouts -------------------------------------------------------------------------------

    def _rollout_of_workload(self) -> Iterator[Ahead]:
        state = self.rollout
        if state is None or self.freeze is not None:
            return  # while it is frozen none of its clocks goes on
        if self.newest and state.newest != self.newest:
            text = f"revision {self.newest} begins as soon as the leader takes it up"
            yield Ahead(self.leader, "RolloutPending", text)
            return
        wave = _where(state)
        match state.phase:
            case Phase.PROGRESSING:
                text = f"revision {state.target} goes on to more replicas ({wave})"
                left_s = self.update.progress_deadline - state.stalled_s
                text += f"; it has failed if nothing becomes available for {_left(left_s)}"
                yield Ahead(self.leader, "RolloutProgressing", text)
            case Phase.SOAKING:
                soak_s = self.update.canary.soak if self.update.canary is not None else 0.0
                text = f"revision {state.target} is watched for another "
                text += f"{_left(soak_s - state.held_s)} ({wave}), then goes on"
                yield Ahead(self.leader, "RolloutSoaking", text)
            case Phase.PROVING if self.wanted == 0:
                text = f"with no replicas asked for, revision {state.target} cannot be proven"
                yield Ahead(self.leader, "RolloutProving", f"{text}; edgectl scale starts some")
            case Phase.PROVING:
                proven_in = _left(self.update.proven_after - state.held_s)
                text = f"revision {state.target} counts as proven in {proven_in}, if nothing fails"
                yield Ahead(self.leader, "RolloutProving", text)
            case Phase.ROLLING_BACK:
                text = f"all replicas return to revision {state.target}: {state.message}"
                yield Ahead(self.leader, "RollingBack", text, warning=True)
            case Phase.PAUSED:
                text = "no further replica changes until edgectl rollout resume"
                yield Ahead(self.leader, "RolloutPaused", text)
            case Phase.FAILED if _may_recover(state):
                text = f"revision {state.newest} failed ({state.message}), and nothing replaces it:"
                text += " its replicas go on trying, and it is watched again when all are ready"
                yield Ahead(self.leader, "Failed", text, warning=True)
            case Phase.FAILED | Phase.ROLLED_BACK:
                text = f"revision {state.newest} is not tried again: {state.message}"
                yield Ahead(self.leader, str(state.phase), text, warning=True)

    def _rollout_of_replica(self) -> Iterator[Ahead]:
        state = self.rollout
        if state is None or not self.revision:
            return
        if self.revision != state.target and state.phase is not Phase.PAUSED:
            text = f"it goes from revision {self.revision} to {state.target} when its turn comes"
            yield Ahead(self.leader, "UpdateAhead", f"{text} ({_where(state)})")
        if self.revision == state.target or state.phase is Phase.PAUSED:
            yield from self._rollout_of_workload()

    # --- a replica ------------------------------------------------------------------------------

    def _crash_loops(self) -> Iterator[Ahead]:
        for container in self.containers:
            if container.get("reason") != "CrashLoop" or container.get("state") == "running":
                continue
            text = f"container {container.get('name')} is started again"
            said = str(container.get("message") or "")
            yield Ahead(
                f"agent/{self.node}",
                "CrashLoop",
                f"{text}: {said}" if said else text,
                _next_start_ms(container, said),
                warning=True,
            )

    def _node_of_replica(self) -> Iterator[Ahead]:
        if self.replaces_on:
            text = f"its stay on node {self.replaces_on} ends when the new one is ready"
            yield Ahead(self.leader, "Replacement", text)
        if self.draining and self.node:
            text = f"it moves away, because node {self.node} is drained"
            if self.drain_deadline_s is not None:
                text += f"; at {format_timestamp(self.drain_deadline_s)} it is stopped all the same"
            yield Ahead(self.node_by, "DrainPending", text, _ms(self.drain_deadline_s))

    def _takeover(self) -> Iterator[Ahead]:
        if not self.node:
            return
        if self.node_silent_since_ms and self.exclusive:
            text = f"node {self.node} is silent and may still run it: nothing replaces it but a "
            text += "takeover within its site"
            yield Ahead(self.leader, "NodeSilent", text, warning=True)
        elif self.node_silent_since_ms:
            lost_ms = self.node_silent_since_ms + int(self.lost_after_s * 1000)
            text = f"node {self.node} is silent; after {format_duration(self.lost_after_s)} without"
            text += " a word it is replaced, unless its node is heard again"
            yield Ahead(self.leader, "NodeSilent", text, lost_ms, warning=True)
        if self.standbys or self.unable:
            by = ", ".join(self.standbys)
            text = f"is taken over by {by}" if by else "cannot be taken over by any other now"
            passed = f"; passed over: {', '.join(self.unable)}" if self.unable else ""
            text = f"if node {self.node} fails, it {text}{passed}"
            yield Ahead("agents", "Standby", text, warning=not by)

    # --- a node ---------------------------------------------------------------------------------

    def _drain(self) -> Iterator[Ahead]:
        if self.cordoned:
            yield Ahead(self.node_by, "Cordoned", f"no new replicas come: {self.cordoned}")
        if not self.draining:
            return
        if not self.replicas_left:
            yield Ahead(self.leader, "Drained", "nothing is left on it")
            return
        text = f"{self.replicas_left} replica(s) have to move away"
        if self.drain_deadline_s is not None:
            text += f"; what is left at {format_timestamp(self.drain_deadline_s)} is stopped"
        yield Ahead(self.leader, "Draining", text, _ms(self.drain_deadline_s))
        yield from self._waits()

    def _silence(self) -> Iterator[Ahead]:
        if self.node_silent_since_ms and self.replicas_left:
            lost_ms = self.node_silent_since_ms + int(self.lost_after_s * 1000)
            text = f"its {self.replicas_left} replica(s) are replaced when it stays silent, each as"
            text += " its failover says"
            yield Ahead(self.leader, "NodeSilent", text, lost_ms, warning=True)


def _next_start_ms(container: Status, said: str) -> int:
    """The agent says how long it waits, from the end of the last run."""
    found = _NEXT_START.search(said)
    ended_ms = int((container.get("lastExit") or {}).get("finishedAt") or 0)
    return ended_ms + int(float(found[1]) * 1000) if found and ended_ms else 0


def _may_recover(state: RolloutState) -> bool:
    """As `orchestrator/domain/rollout.py` has it: it was only late, with nowhere to return to."""
    return state.target == state.newest and not state.late and state.wave is Wave.EVERYWHERE


def _where(state: RolloutState) -> str:
    if state.wave is Wave.EVERYWHERE:
        return "everywhere"
    names = state.sites if state.wave is Wave.CANARY else state.regions
    return f"{state.wave}: {_some(names)}" if names else str(state.wave)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SITES_SHOWN])
    more = len(names) - _SITES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _left(seconds: float) -> str:
    return format_duration(max(0.0, seconds))


def _ms(seconds: float | None) -> int:
    return int(seconds * 1000) if seconds is not None else 0


def _bounded(found: Iterable[Ahead]) -> tuple[Ahead, ...]:
    return tuple(dict.fromkeys(found))[:NEXT_MAX]
