"""A drill: the members of a region play dead for a while, and the others look how that goes. Pure.

The record under `keys.drill(region)` says that it runs and, after, how it was. Here is what it may
be (`read`, `objection`), and how a member of the region follows it (`follow`): by its own steady
clock, so that it comes back in time whatever happens to the record, the Store or the other members.
`drill_measure.py` is the others' side.

The API writes the record (`orchestrator/api/drilling.py`), the region's members obey it
(`orchestrator/playing_dead.py`), the leader elsewhere ends it and adds the report
(`orchestrator/drill.py`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from orchestrator.records import KeptRecord
from orchestrator.store import keys
from polder.manifest.quantity import format_duration

DURATION_MIN_S = 10.0
DURATION_MAX_S = 3600.0
REASON_MAX = 500
LEAD_IN_S = 1.0
"""From the record to the silence: time for the other members to note how everything is."""
GRACE_S = 30.0
"""So long after its time is over a record that nobody ended bars no other drill any more."""


@dataclass(frozen=True, slots=True)
class Report:
    """Times in seconds since the region fell silent; -1: it did not happen, or nobody saw it."""

    nodes: int = 0
    nodes_back: int = 0
    not_back: tuple[str, ...] = ()
    reconnect_p50_s: float = -1.0
    reconnect_p99_s: float = -1.0
    reconnect_last_s: float = -1.0
    detected_s: float = -1.0
    had_leader: bool = False
    leader: str = ""
    leader_s: float = -1.0
    write_s: float = -1.0
    plan_changes: int = 0
    restarts: int = 0
    measured_by: str = ""
    """Empty: no member saw the whole drill, and the numbers say nothing."""


@dataclass(frozen=True, slots=True)
class Drill:
    """`members` are those present when it began; `by` as in Event.source; times unix ms."""

    region: str
    id: str
    by: str
    reason: str
    started_at_ms: int
    duration_s: float
    members: tuple[str, ...]
    leader: str = ""  # when it began, wherever; empty: none was known
    ended_at_ms: int = 0
    ended_by: str = ""  # empty: its time was over
    report: Report | None = None
    store_revision: int = field(default=0, compare=False)  # not part of the value

    @property
    def runs(self) -> bool:
        return not self.ended_at_ms

    @property
    def over_at(self) -> float:
        """Unix seconds; by the clock of who began it."""
        return self.started_at_ms / 1000 + LEAD_IN_S + self.duration_s

    def ended(self, now: float, by: str = "") -> "Drill":
        """`by` empty: because its time is over."""
        return replace(self, ended_at_ms=int(now * 1000), ended_by=by)

    def record(self) -> KeptRecord:
        """As it stands in the Store."""
        body = asdict(self)
        del body["region"], body["store_revision"]
        return KeptRecord(keys.drill(self.region), body, self.store_revision)

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.by} rehearses the loss of region {self.region}{why}"


def read(record: KeptRecord | None) -> Drill | None:
    """None: there is none, or it is not understood. Then nobody plays dead."""
    if record is None:
        return None
    body: dict[str, Any] = record.body
    try:
        told = body.get("report")
        return Drill(
            region=record.key.removeprefix(keys.DRILLS),
            id=str(body["id"]),
            by=str(body["by"]),
            reason=str(body["reason"]),
            started_at_ms=int(body["started_at_ms"]),
            duration_s=min(max(float(body["duration_s"]), 0.0), DURATION_MAX_S),
            members=tuple(str(name) for name in body["members"]),
            leader=str(body["leader"]),
            ended_at_ms=int(body["ended_at_ms"]),
            ended_by=str(body["ended_by"]),
            report=Report(**{**told, "not_back": tuple(told["not_back"])}) if told else None,
            store_revision=record.store_revision,
        )
    except (KeyError, TypeError, ValueError):
        return None


def drills_in(kept: Iterable[KeptRecord]) -> Mapping[str, Drill]:
    """By region."""
    found = (read(record) for record in kept if record.key.startswith(keys.DRILLS))
    return {drill.region: drill for drill in found if drill is not None}


# --- may it begin? --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Installation:
    """What a beginning is judged by. Regions of the members with a record, and of those present."""

    regions: Mapping[str, str]  # by member
    present: frozenset[str]
    drills: Mapping[str, Drill]
    running: frozenset[str] = frozenset()
    """Ids of drills that this member sees running by its steady clock."""

    def present_in(self, region: str) -> tuple[str, ...]:
        return tuple(sorted(m for m in self.present if self.regions.get(m) == region))

    def present_outside(self, region: str) -> tuple[str, ...]:
        return tuple(sorted(m for m in self.present if self.regions.get(m, region) != region))


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a drill cannot begin. `code` is CamelCase."""

    code: str
    message: str
    hint: str = ""


def objection(
    region: str, duration_s: float, reason: str, world: Installation, now: float
) -> Objection | None:
    """None: it may begin. `now`: unix seconds."""
    if not DURATION_MIN_S <= duration_s <= DURATION_MAX_S:
        least, most = format_duration(DURATION_MIN_S), format_duration(DURATION_MAX_S)
        return Objection("BadDuration", f"a drill lasts {least} to {most}", "--for 2m")
    if len(reason) > REASON_MAX:
        return Objection("BadReason", f"a reason has at most {REASON_MAX} characters")
    known = sorted(set(world.regions.values()))
    if region not in known:
        hint = f"regions with members: {', '.join(known)}" if known else "no member has a record"
        return Objection("UnknownRegion", f"no member is in a region {region!r}", hint)
    for other in world.drills.values():
        if not other.runs or (now >= other.over_at + GRACE_S and other.id not in world.running):
            continue
        end = f"edgectl drill region {other.region} --end"
        return Objection("DrillRuns", f"a drill runs already: {other}", f"wait for it, or {end}")
    if not world.present_in(region):
        return Objection(
            "AlreadyLost", f"region {region} has no present member: there is nothing to rehearse"
        )
    if not world.present_outside(region):
        return Objection(
            "NoOtherRegion",
            f"no other region has a present member: without {region} nobody would serve",
            "edgectl get regions shows who is there",
        )
    return None


# --- a member of the region -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Playing:
    """Of which drill a member knows, and when it plays dead: seconds of its steady clock.

    `fresh`: it has not looked yet. A drill that it finds then began without it.
    """

    drill: str = ""
    since: float = 0.0
    until: float = 0.0
    fresh: bool = True

    def dead(self, steady: float) -> bool:
        return self.since <= steady < self.until

    def next_at(self, steady: float) -> float | None:
        """When `dead` changes by itself; None: it does not."""
        return next((at for at in (self.since, self.until) if at > steady), None)


def follow(state: Playing, drill: Drill | None, now: float, steady: float) -> Playing:
    """The record as it stands at `now` (unix seconds) and `steady`.

    | the record        | of a drill that is | becomes                                          |
    |-------------------|--------------------|--------------------------------------------------|
    | gone, or ended    | any                | not dead, from now on                            |
    | runs              | known              | as it was: its clock is ours                     |
    | runs              | new                | dead after the lead-in, for the whole duration   |
    | runs, first look  | new                | dead at once, for what is left, at most the whole |
    """
    if drill is None or not drill.runs:
        return replace(state, until=min(state.until, steady), fresh=False)
    if drill.id == state.drill:
        return state
    if state.fresh:
        left_s = min(max(drill.over_at - now, 0.0), drill.duration_s)
        return Playing(drill.id, steady, steady + left_s, fresh=False)
    since = steady + LEAD_IN_S
    return Playing(drill.id, since, since + drill.duration_s, fresh=False)
