"""Regions and members as rows, documents and lines. Pure; called by `edgectl.verbs.regions`.

What nobody knows now is `<unknown>`; what was heard once stands with its age in HEARD.
"""

from collections.abc import Iterable
from typing import Any

from edgectl.text import NONE, age, moment
from polder.manifest.quantity import format_duration
from polder.v1 import operator_pb2

UNKNOWN = "<unknown>"
REGION_HEADERS = ("NAME", "STATE", "MEMBERS", "LEADER", "SESSIONS", "STORE", "LAG", "HEARD")
REGION_WIDE = ("COORDINATES",)
MEMBER_HEADERS = (
    "NAME", "REGION", "VERSION", "LEADER", "SESSIONS", "LINK", "LAG", "SKEW", "HEARD", "AGE",
)  # fmt: skip
MEMBER_WIDE = ("REVISIONS BEHIND", "ENDPOINTS", "MESSAGE")
STORE_HEADERS = ("ETCD", "VERSION", "LEADER", "REVISION", "LOG LAG", "SIZE", "STATE")

Answer = operator_pb2.RegionsResponse
Region = operator_pb2.RegionInfo
Member = operator_pb2.MemberInfo
_SKEW_SHOWN_MS = 1000


def region_row(region: Region, answer: Answer, *, wide: bool) -> tuple[object, ...]:
    present = [member for member in region.members if member.present]
    row = (
        region.name,
        state(region, answer.now_ms),
        f"{len(present)}/{len(region.members)}",
        _leader_in(region, answer),
        _sessions(present),
        _store(present, answer),
        _worst_lag(present),
        _oldest(present, answer.now_ms),
    )
    where = NONE
    if region.latitude or region.longitude:
        where = f"{region.latitude:g},{region.longitude:g}"
    return (*row, where) if wide else row


def member_row(member: Member, answer: Answer, *, wide: bool) -> tuple[object, ...]:
    now_ms = answer.now_ms
    row = (
        member.name,
        member.region,
        member.version or UNKNOWN,
        UNKNOWN if answer.store_error else ("yes" if member.leader else "-"),
        UNKNOWN if member.sessions < 0 else member.sessions,
        _link(member, answer),
        _milliseconds(member.lag_ms),
        _skew(member, answer),
        _heard(member, now_ms),
        age(member.started_at_ms, now_ms) if member.present else NONE,
    )
    behind = UNKNOWN if member.lag_revisions < 0 else member.lag_revisions
    wider = (behind, ",".join(member.endpoints) or NONE, member.message or NONE)
    return (*row, *wider) if wide else row


def store_row(one: operator_pb2.StoreMemberInfo) -> tuple[object, ...]:
    if one.error:
        return (one.endpoint, *[UNKNOWN] * 5, f"does not answer: {_brief(one.error)}")
    return (
        one.endpoint,
        one.version,
        "yes" if one.leader else "-",
        one.revision,
        one.lag_entries,
        f"{one.db_bytes / (1 << 20):.1f}Mi",
        ", ".join(one.alarms) or "ok",
    )


def warnings(answer: Answer) -> list[str]:
    """What an operator should know beside the table."""
    found = [f"the store: {answer.store_error}; who leads is not known"] * bool(answer.store_error)
    for one in answer.store:
        if one.error:
            found.append(f"etcd {one.endpoint} does not answer: {_brief(one.error)}")
        elif one.alarms:
            found.append(f"etcd {one.endpoint}: {', '.join(one.alarms)}")
    for region in answer.regions:
        if region.drill_until_ms <= answer.now_ms:
            wrong = [m for m in region.members if m.present and m.message]
            found += [f"member {m.name}: {m.message}" for m in wrong]
    known = any(member.leader for region in answer.regions for member in region.members)
    if not answer.store_error and not known:
        found.append(
            f"the leader {answer.leader} has no record" if answer.leader else "nobody leads"
        )
    return found


def state(region: Region, now_ms: int) -> str:
    """`Drill (65s left)`, `Lost`, `Degraded` or `Ready`."""
    if region.drill_until_ms > now_ms:
        return f"Drill ({format_duration((region.drill_until_ms - now_ms) / 1000)} left)"
    present = [member for member in region.members if member.present]
    if not present:
        return "Lost"
    whole = len(present) == len(region.members)
    return "Ready" if whole and not any(m.message for m in present) else "Degraded"


def region_view(region: Region) -> dict[str, Any]:
    """For -o json and yaml. What is not known is left out."""
    view: dict[str, Any] = {
        "name": region.name,
        "members": [member_view(m) for m in region.members],
    }
    if region.drill_until_ms:
        view["drillUntilAt"] = region.drill_until_ms
    if region.latitude or region.longitude:
        view["coordinates"] = {"latitude": region.latitude, "longitude": region.longitude}
    return view


def member_view(member: Member) -> dict[str, Any]:
    view: dict[str, Any] = {
        "name": member.name,
        "region": member.region,
        "version": member.version,
        "present": member.present,
        "reachable": member.reachable,
        "endpoints": list(member.endpoints),
    }
    known: tuple[tuple[str, Any, bool], ...] = (
        ("leader", member.leader, member.leader),
        ("message", member.message, bool(member.message)),
        ("sessions", member.sessions, member.sessions >= 0),
        ("lagRevisions", member.lag_revisions, member.lag_revisions >= 0),
        ("lagMs", member.lag_ms, member.lag_ms >= 0),
        ("storeHealthy", member.store_healthy, member.lag_ms >= 0),
        ("startedAt", member.started_at_ms, bool(member.started_at_ms)),
        ("heardAt", member.heard_at_ms, bool(member.heard_at_ms)),
        ("clockSkewMs", member.clock_skew_ms, bool(member.heard_at_ms)),
    )
    return {**view, **{name: value for name, value, is_known in known if is_known}}


def store_view(answer: Answer) -> dict[str, Any]:
    members = [
        {"endpoint": one.endpoint, "error": one.error}
        if one.error
        else {
            "endpoint": one.endpoint,
            "version": one.version,
            "leader": one.leader,
            "revision": one.revision,
            "lagEntries": one.lag_entries,
            "dbBytes": one.db_bytes,
            "alarms": list(one.alarms),
        }
        for one in answer.store
    ]
    view: dict[str, Any] = {"kind": answer.store_kind}
    if members:
        view["members"] = members
    if answer.store_error:
        view["error"] = answer.store_error
    return view


def describe_region(region: Region, answer: Answer) -> list[str]:
    from edgectl.text import Table

    now_ms = answer.now_ms
    lines = [f"Name:     {region.name}", f"State:    {state(region, now_ms)}"]
    lines.append(f"Store:    {_store([m for m in region.members if m.present], answer)}")
    lines.append(f"Told by:  member {answer.member}")
    if region.drill_until_ms > now_ms:
        lines.append(f"Drill:    until {moment(region.drill_until_ms, now_ms)}")
    rows = [member_row(member, answer, wide=False) for member in region.members]
    lines += ["Members:", *(f"  {line}" for line in Table(MEMBER_HEADERS).lines(rows))]
    wrong = [f"  {m.name}: {m.message}" for m in region.members if m.message]
    return [*lines, "Messages:", *wrong] if wrong else lines


# --- cells ----------------------------------------------------------------------------------------


def _brief(error: str) -> str:
    """gRPC wraps the cause in several layers; the innermost says what happened."""
    return error.rpartition(": ")[2] or error


def _leader_in(region: Region, answer: Answer) -> str:
    if answer.store_error:
        return UNKNOWN
    return next((member.name for member in region.members if member.leader), "-")


def _sessions(members: Iterable[Member]) -> str:
    """`120`, or `120 (1 unknown)`."""
    counts = [member.sessions for member in members]
    known = [count for count in counts if count >= 0]
    if counts and not known:
        return UNKNOWN
    missing = len(counts) - len(known)
    return f"{sum(known)} ({missing} unknown)" if missing else str(sum(known))


def _store(members: Iterable[Member], answer: Answer) -> str:
    """As the members there see it."""
    told = [member for member in members if member.lag_ms >= 0]
    if not told:
        return UNKNOWN
    cut_off = [member.name for member in told if not member.store_healthy]
    if cut_off:
        return f"{answer.store_kind} not read by {', '.join(cut_off)}"
    return f"{answer.store_kind} ok"


def _worst_lag(members: Iterable[Member]) -> str:
    return _milliseconds(max((member.lag_ms for member in members), default=-1))


def _oldest(members: list[Member], now_ms: int) -> str:
    """Of what is shown about the members there."""
    if not members or not all(member.heard_at_ms for member in members):
        return "never" if members else NONE
    return f"{age(min(member.heard_at_ms for member in members), now_ms)} ago"


def _heard(member: Member, now_ms: int) -> str:
    return f"{age(member.heard_at_ms, now_ms)} ago" if member.heard_at_ms else "never"


def _link(member: Member, answer: Answer) -> str:
    if member.name == answer.member:
        return "self"
    if not member.present:
        return "gone"
    return "ok" if member.reachable else "down"


def _skew(member: Member, answer: Answer) -> str:
    if member.name == answer.member:
        return "-"
    if not member.heard_at_ms or not member.reachable:
        return UNKNOWN
    if abs(member.clock_skew_ms) < _SKEW_SHOWN_MS:
        return "<1s"
    sign = "-" if member.clock_skew_ms < 0 else "+"
    return sign + format_duration(abs(member.clock_skew_ms) / 1000)


def _milliseconds(value: int) -> str:
    return UNKNOWN if value < 0 else format_duration(round(value / 1000))
