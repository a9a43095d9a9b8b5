"""What the leader says of workloads and nodes, as values and as they go over the wire. Pure.

`speaking.py` tells it on the member that leads, `voice.py` keeps it on the others. Everything that
is told has a bound: of an explanation the first thousand replicas are named, as many as the
operator API ever looks at, and numbered ones are named by runs of numbers.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from types import MappingProxyType
from typing import Any

from orchestrator.domain.rollout_state import RolloutState, from_dict
from orchestrator.scheduling.decisions import Explanation
from orchestrator.scheduling.reasons import ReasonCount
from polder.v1 import agent_pb2, member_pb2

EXPLANATIONS_MAX = 20
"""Of one workload."""
NAMED_MAX = 1_000
REASONS_MAX = 50
TEXT_MAX = 1_024
_RUNS_FROM = 4
"""Fewer replicas are named one by one."""

Key = tuple[str, str]
Remarks = Sequence[tuple[str, str]]
"""(condition, message) of what the leader adds about a node."""
_NOTHING: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Clocks:
    """Of a rollout under way: what its record says late. `whole`: all of a state that has no record
    yet; else the clocks count only for the phase that they are of."""

    newest: int
    phase: str
    since_ms: int
    held_s: float
    stalled_s: float
    best: int
    restarted: int
    whole: RolloutState | None = None

    @staticmethod
    def of(state: RolloutState, *, recorded: bool) -> "Clocks":
        return Clocks(
            state.newest,
            state.phase.value,
            state.since_ms,
            round(state.held_s, 3),
            round(state.stalled_s, 3),
            state.best,
            state.restarted,
            None if recorded else state,
        )

    def set(self, recorded: RolloutState | None) -> RolloutState | None:
        """The recorded state as it is now; as it was recorded when that is of another phase."""
        if recorded is None:
            return self.whole
        mine = (self.newest, self.phase, self.since_ms)
        if mine != (recorded.newest, recorded.phase.value, recorded.since_ms):
            return recorded
        return replace(
            recorded,
            held_s=self.held_s,
            stalled_s=self.stalled_s,
            best=self.best,
            restarted=self.restarted,
        )


@dataclass(frozen=True, slots=True)
class Words:
    """All that a leader says after one of its ticks.

    `desired` and `explanations` by (namespace, workload), `remarks` by node, `clocks` by the uid of
    the workload; `told_at` is in unix seconds by the clock of who says it.
    """

    term: int
    told_at: float
    desired: Mapping[Key, int] = field(default_factory=lambda: _NOTHING)
    explanations: Mapping[Key, tuple[Explanation, ...]] = field(default_factory=lambda: _NOTHING)
    remarks: Mapping[str, Remarks] = field(default_factory=lambda: _NOTHING)
    clocks: Mapping[str, Clocks] = field(default_factory=lambda: _NOTHING)

    def workload(self, key: Key) -> member_pb2.WorkloadSaid:
        wanted = self.desired.get(key)
        return member_pb2.WorkloadSaid(
            namespace=key[0],
            name=key[1],
            desired=-1 if wanted is None else wanted,
            explanations=[
                _explanation(item) for item in self.explanations.get(key, ())[:EXPLANATIONS_MAX]
            ],
        )

    def node(self, name: str) -> member_pb2.NodeRemarked:
        return member_pb2.NodeRemarked(
            node=name,
            conditions=[
                agent_pb2.NodeCondition(type=kind, status=True, message=text[:TEXT_MAX])
                for kind, text in sorted(self.remarks.get(name, ()))
            ],
        )

    def rollout(self, uid: str) -> member_pb2.RolloutClocks:
        clocks = self.clocks.get(uid)
        if clocks is None:
            return member_pb2.RolloutClocks(workload_uid=uid)
        whole = clocks.whole
        return member_pb2.RolloutClocks(
            workload_uid=uid,
            newest=clocks.newest,
            phase=clocks.phase,
            since_ms=clocks.since_ms,
            held_s=clocks.held_s,
            stalled_s=clocks.stalled_s,
            best=clocks.best,
            restarted=clocks.restarted,
            state_json=b"" if whole is None else _dump(whole.to_dict()),
        )


# --- reading --------------------------------------------------------------------------------------


def workload_of(
    said: member_pb2.WorkloadSaid,
) -> tuple[Key, int | None, tuple[Explanation, ...]]:
    """(workload, how many it shall be, explanations); None and none: nothing is said of it."""
    key = (said.namespace, said.name)
    items = said.explanations[:EXPLANATIONS_MAX]
    wanted = None if said.desired < 0 else said.desired
    return key, wanted, tuple(_read(key, item) for item in items)


def remarks_of(said: member_pb2.NodeRemarked) -> Remarks:
    return tuple((item.type, item.message) for item in said.conditions)


def clocks_of(said: member_pb2.RolloutClocks) -> Clocks | None:
    """None: nothing is said of it."""
    if not said.phase:
        return None
    return Clocks(
        said.newest,
        said.phase,
        said.since_ms,
        said.held_s,
        said.stalled_s,
        said.best,
        said.restarted,
        _state(said.state_json),
    )


def differing(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> list[Any]:
    """What one has and the other has not, or has another value of."""
    if before == after:
        return []
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def _state(raw: bytes) -> RolloutState | None:
    """None also for what a member of another version says and this one cannot read."""
    try:
        return from_dict(json.loads(raw)) if raw else None
    except (ValueError, KeyError, TypeError):
        return None


# --- explanations ---------------------------------------------------------------------------------


def _explanation(item: Explanation) -> member_pb2.ExplanationSaid:
    names = list(islice(item.replicas, NAMED_MAX))
    detail: dict[str, Any] = {}
    indexes = _indexes(item.workload, names) if len(names) >= _RUNS_FROM else None
    if indexes is not None:
        detail["indexes"] = ",".join(_runs(indexes))
        names = []
    if item.reasons:
        detail["reasons"] = [
            [reason.code, reason.nodes, reason.example[:TEXT_MAX]]
            for reason in item.reasons[:REASONS_MAX]
        ]
    return member_pb2.ExplanationSaid(
        replicas=names,
        replica_count=item.replica_count,
        code=item.code,
        message=item.message[:TEXT_MAX],
        detail_json=_dump(detail) if detail else b"",
    )


def _read(key: Key, said: member_pb2.ExplanationSaid) -> Explanation:
    try:
        detail = json.loads(said.detail_json) if said.detail_json else {}
        names = tuple(islice(said.replicas, NAMED_MAX))
        if "indexes" in detail:
            found = islice(_expanded(str(detail["indexes"])), NAMED_MAX)
            names = tuple(f"{key[1]}-{index}" for index in found)
        reasons = tuple(
            ReasonCount(str(code), int(nodes), str(example))
            for code, nodes, example in detail.get("reasons", ())
        )
    except (ValueError, TypeError, AttributeError):  # of another version: the message still counts
        names, reasons = (), ()
    unnamed = max(0, said.replica_count - len(names))
    return Explanation(*key, said.code, said.message, names, reasons, unnamed)


def _indexes(workload: str, names: Iterable[str]) -> list[int] | None:
    """None: some are not called by the workload and a number alone."""
    found, prefix = [], f"{workload}-"
    for name in names:
        index = name[len(prefix) :]
        if not name.startswith(prefix) or not index.isdecimal() or str(int(index)) != index:
            return None
        found.append(int(index))
    return found


def _runs(indexes: Sequence[int]) -> Iterator[str]:
    """In their order: 4, 5, 6, 2 are `4-6` and `2`."""
    first = last = indexes[0]
    for index in indexes[1:]:
        if index != last + 1:
            yield f"{first}-{last}" if first != last else str(first)
            first = index
        last = index
    yield f"{first}-{last}" if first != last else str(first)


def _expanded(runs: str) -> Iterator[int]:
    """Raises ValueError."""
    for run in runs.split(","):
        first, _, last = run.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _dump(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
