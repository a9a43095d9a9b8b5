"""Tables and descriptions of what the nodes of a site say. Pure.

Columns are the orchestrator's, and beside them what matters where nobody else can be asked: what
was decided locally, from whom a fact is known, for how long the site goes on by itself.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from edgectl import columns
from edgectl.columns import number
from edgectl.describing import description
from edgectl.output import Printer
from edgectl.resources import Item
from edgectl.site.picture import KnownOverride, Picture
from edgectl.text import NONE, Table, age, moment, safe
from polder.manifest.quantity import format_bytes, format_cpu, format_duration
from polder.overrides import FROZEN, PLACED_ON, to_body

_NODE = ("STATUS", "ORCHESTRATOR", "AUTONOMY", "REPLICAS", "OVERRIDE", "KNOWN-FROM")
_NODE_WIDE = ("ARCH", "CPU", "MEMORY", "AGENT", "PLAN", "PEERS", "CONDITIONS", "MESSAGE")
_MORE = ("OVERRIDE", "KNOWN-FROM")
_OVERRIDE = ("NAME", "DECIDED", "BY", "NODE", "CONFLICT", "KNOWN-BY", "AGE")


class SitePrinter(Printer):
    """As `Printer`, with the tables of a site."""

    def headers(self, kind: str, *, namespaces: bool) -> list[str]:
        if kind == "Node":
            more = _NODE_WIDE if self.format == "wide" else ()
            return ["NAME", *_NODE, *more, "PLAN-AGE"]
        found = super().headers(kind, namespaces=namespaces)
        return [*found[:-1], *_MORE, found[-1]]

    def cells(self, item: Item, *, namespaces: bool, prefixed: bool) -> list[str]:
        if item.kind == "Node":
            name = item.label if prefixed else item.name
            wide = _node_wide(item) if self.format == "wide" else []
            issued = number(item.status.get("planIssuedAt"))
            return [name, *_node(item), *wide, age(issued, item.now_ms)]
        found = super().cells(item, namespaces=namespaces, prefixed=prefixed)
        return [*found[:-1], _override(item), _known_from(item), found[-1]]


def _node(item: Item) -> list[str]:
    status = item.status
    reached = status.get("ready") is not None
    return [
        columns.status_words(item) if reached else "NotReached",
        _orchestrator(item) if reached else "?",
        _autonomy(item) if reached else "?",
        str(number(status.get("replicas"))) if reached else "?",
        _override(item),
        _known_from(item),
    ]


def _node_wide(item: Item) -> list[str]:
    status = item.status
    inventory, usage = columns.part(status, "inventory"), columns.part(status, "usage")
    total = columns.part(inventory, "allocatable")
    peers = status.get("peers") or []
    heard = [peer["node"] for peer in peers if peer["shares"] and peer["heard"]]
    shared = [peer["node"] for peer in peers if peer["shares"]]
    return [
        str(inventory.get("arch") or NONE),
        _used(usage, total, "cpuMillis", format_cpu),
        _used(usage, total, "memoryBytes", format_bytes),
        str(status.get("agentVersion") or NONE),
        str(number(status.get("planGeneration"))),
        f"{len(heard)}/{len(shared)}",
        ",".join(c for c in columns.bad_conditions(item) if c != "LocalOverride") or NONE,
        str(status.get("message") or NONE),
    ]


def _used(usage: dict[str, Any], total: dict[str, Any], key: str, shown: Any) -> str:
    return f"{shown(number(usage.get(key)))}/{shown(number(total.get(key)))}" if total else NONE


def _orchestrator(item: Item) -> str:
    """Whether it hears one."""
    since = number(item.status.get("isolatedSinceAt"))
    return f"silent for {age(since, item.now_ms)}" if since else "heard"


def _autonomy(item: Item) -> str:
    """For how long it takes replicas over yet."""
    until = number(item.status.get("autonomyUntilAt"))
    return f"{format_duration((until - item.now_ms) / 1000)} left" if until else "over"


def _override(item: Item) -> str:
    """What was decided locally; `!` where the orchestrator decided otherwise meanwhile."""
    found = columns.conditions(item.status)
    reasons = [str(c.get("reason")) for c in found if c.get("type") == "LocalOverride"]
    words = list(dict.fromkeys(reasons))
    if any(c.get("type") == "OverrideConflict" for c in found):
        words.append("Conflict!")
    return ",".join(words) or NONE


def _known_from(item: Item) -> str:
    """Who says so: a node of what is on it, or another one about it."""
    source = str(item.status.get("source") or "").replace("agent/", "") or "nobody"
    if item.kind == "Node" and item.status.get("ready") is None:
        return f"{source} (heard there)" if source != "nobody" else source
    subject = str(item.spec.get("node") or "")
    if item.kind == "Replica" and subject not in ("", source):
        return f"{source} about {subject}"
    return source


# --- describe ---------------------------------------------------------------------------------


def described(item: Item) -> list[str]:
    """Of a node what a site knows; of the others what an orchestrator would show."""
    if item.kind == "Node":
        return list(_described_node(item))
    return [*description(item), *_described_lease(item)]


def _described_node(item: Item) -> Iterator[str]:
    status, now_ms = item.status, item.now_ms
    inventory = columns.part(status, "inventory")
    yield _pair("Name", item.name)
    yield _pair("Kind", "Node")
    yield _pair("Site", item.spec.get("site") or NONE)
    yield _pair("Known from", _known_from(item))
    if status.get("ready") is None:
        yield _pair("Status", f"NotReached: {status.get('message')}")
        return
    yield _pair("Status", columns.status_words(item))
    yield _pair("Orchestrator", _orchestrator(item))
    yield _pair("Autonomy", f"{_autonomy(item)}: past it the node takes nothing over")
    yield _pair("Agent version", status.get("agentVersion") or NONE)
    issued = moment(number(status.get("planIssuedAt")), now_ms)
    yield _pair("Plan", f"generation {number(status.get('planGeneration'))}, issued {issued}")
    yield _pair("Arch", inventory.get("arch") or NONE)
    usage, total = columns.part(status, "usage"), columns.part(inventory, "allocatable")
    if usage:
        yield _pair("CPU", _used(usage, total, "cpuMillis", format_cpu))
        yield _pair("Memory", _used(usage, total, "memoryBytes", format_bytes))
        yield _pair("Disk", _used(usage, total, "diskBytes", format_bytes))
    for peer in status.get("peers") or []:
        words = "shares no replica with it"
        if peer["shares"]:
            words = "heard" if peer["heard"] else "not heard"
        yield _pair("Peer", f"{peer['node']}: {words}")
    for found in columns.conditions(status):
        if columns.holds(found):
            words = f"{found.get('type')} {found.get('reason') or ''}: {found.get('message') or ''}"
            since = age(number(found.get("lastTransitionAt")), now_ms)
            yield _pair("Condition", f"{words} [for {since}]")


def _described_lease(item: Item) -> Iterator[str]:
    if item.kind != "Replica":
        return
    status = item.status
    yield _pair("Known from", _known_from(item))
    if status.get("exclusive"):
        until = number(status.get("leaseUntilAt"))
        left = (until - item.now_ms) / 1000
        lease = f"held, {left:.1f} s left; renewed each second" if until else "not held here"
        yield _pair("Lease", lease)
    members = status.get("members")
    yield _pair("Members", ", ".join(members) if isinstance(members, list) else NONE)


# --- overrides --------------------------------------------------------------------------------


def override_lines(picture: Picture, shown: Sequence[KnownOverride], *, wide: bool) -> list[str]:
    headers = [*_OVERRIDE[:-1], *(["REASON"] if wide else []), _OVERRIDE[-1]]
    rows = []
    for known in shown:
        found = known.override
        row = [
            _subject(known, picture.site),
            _decided(known),
            found.by or NONE,
            found.node or "orchestrator",
            found.conflict or NONE,
            _knowing(picture, known),
        ]
        rows.append(
            [*row, *([found.reason or NONE] if wide else []), age(found.at_ms, picture.now_ms)]
        )
    return Table(headers).lines(rows)


def override_view(known: KnownOverride) -> dict[str, Any]:
    """For json: as it stands on the disks of the nodes."""
    return {**to_body(known.override), "value": known.override.value, "knownBy": list(known.nodes)}


def _subject(known: KnownOverride, site: str) -> str:
    found = known.override
    return f"{found.namespace}/{found.replica}" if found.replica else f"site/{site}"


def _decided(known: KnownOverride) -> str:
    found = known.override
    words = f"placed on {found.value}" if found.field == PLACED_ON else found.field
    if not known.in_force:
        words = {FROZEN: "frozen", PLACED_ON: "placed"}.get(found.field, found.field)
        return f"not {words} any more"
    return words


def _knowing(picture: Picture, known: KnownOverride) -> str:
    """`all 3`, or which of those that answered."""
    if len(known.nodes) == len(picture.answers):
        return f"all {len(known.nodes)}"
    return ",".join(known.nodes)


def _pair(title: str, value: object) -> str:
    return f"{title + ':':<20}{safe(value)}".rstrip()
