"""Many nodes silent at once: the orchestrator doubts itself, and nobody is evicted. Pure.

When a network or the orchestrator's own uplink fails, its nodes look dead, run on, and everything
that it could do about it would make things worse. So where more than half of a site's or region's
nodes (of three or more) are silent, none of them is lost; and none anywhere while all are silent.

    Clear --Many--> Suspected --Few--> Clear        half of them are heard again
                       |  +--Approved--> Lifted     an operator knows that they are gone
                       |  +--Overdue---> Lifted     ten minutes went by while others were heard
                       Lifted --Few--> Clear

Everything is suspected without a limit of time. Nodes that were lost before, one by one, count
neither among the silent nor among all. When a suspicion ends because nodes are heard again, those
that are not heard yet get a full period more.

The leader asks in every tick (`orchestrator/scheduling/guards_step.py`). A suspicion is a hold, so
that operators see it, can approve of evictions, and a new leader knows of the approval.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum

from orchestrator.domain.holds import Hold, HoldKind, Scope, identifier

NODES_MIN = 3
"""Of a site or region: in smaller ones a node more or less is no sign."""
EVERYTHING_MIN = 2
LIMIT_S = 600.0
_REWRITE_AFTER_S = 10.0

ScopeKey = tuple[Scope, str]
_WIDEST: ScopeKey = (Scope.EVERYTHING, "")


class Doubt(StrEnum):
    CLEAR = "Clear"
    SUSPECTED = "Suspected"
    LIFTED = "Lifted"


class Sign(StrEnum):
    """What of a scope is seen at one moment."""

    MANY = "Many"
    FEW = "Few"
    APPROVED = "Approved"
    OVERDUE = "Overdue"


TRANSITIONS: Mapping[tuple[Doubt, Sign], Doubt] = {
    (Doubt.CLEAR, Sign.MANY): Doubt.SUSPECTED,
    (Doubt.CLEAR, Sign.FEW): Doubt.CLEAR,
    (Doubt.CLEAR, Sign.APPROVED): Doubt.LIFTED,
    (Doubt.CLEAR, Sign.OVERDUE): Doubt.LIFTED,
    (Doubt.SUSPECTED, Sign.MANY): Doubt.SUSPECTED,
    (Doubt.SUSPECTED, Sign.FEW): Doubt.CLEAR,
    (Doubt.SUSPECTED, Sign.APPROVED): Doubt.LIFTED,
    (Doubt.SUSPECTED, Sign.OVERDUE): Doubt.LIFTED,
    (Doubt.LIFTED, Sign.MANY): Doubt.LIFTED,
    (Doubt.LIFTED, Sign.FEW): Doubt.CLEAR,
    (Doubt.LIFTED, Sign.APPROVED): Doubt.LIFTED,
    (Doubt.LIFTED, Sign.OVERDUE): Doubt.LIFTED,
}


@dataclass(frozen=True, slots=True)
class Quiet:
    """One node as silence goes. `quiet`: silent or lost; `lost`: for longer than `lost_after_s`.
    `settled`: it was lost before, and for long: no news."""

    node: str
    site: str
    region: str
    quiet: bool
    lost: bool
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What was seen of one scope. `since`: steady seconds; the limit counts from there.

    `until_ms`: what people were told, unix ms. `silent` of `nodes`.
    """

    doubt: Doubt
    since: float
    nodes: int
    silent: int
    since_ms: int
    until_ms: int = 0
    written_at: float = -_REWRITE_AFTER_S


@dataclass(frozen=True, slots=True)
class Judged:
    """`doubted`: why a node's silence proves nothing, by node. `spared`: nodes that are not heard
    yet although others of a suspicion are. `holds`: the silences that are to stand in the Store,
    and no others; `begun`: those of them that are new."""

    suspicions: Mapping[ScopeKey, Suspicion] = field(default_factory=dict)
    doubted: Mapping[str, str] = field(default_factory=dict)
    spared: frozenset[str] = frozenset()
    holds: tuple[Hold, ...] = ()
    begun: tuple[Hold, ...] = ()


def hold_id(scope: Scope, name: str) -> str:
    return f"silence-{identifier(scope, name)}"


def judge(
    nodes: Iterable[Quiet],
    before: Mapping[ScopeKey, Suspicion],
    stored: Mapping[str, Hold],
    now: float,
    steady: float,
    limit_s: float = LIMIT_S,
) -> Judged:
    """`stored`: holds by id. `now` in unix seconds, for what people are shown."""
    known = list(nodes)
    remembered = any(hold.kind is HoldKind.SILENCE for hold in stored.values())
    if not before and not remembered and not any(node.lost for node in known):
        return Judged()  # as nearly always
    members = _scopes(known)
    everything_quiet = _count(members[_WIDEST], settled_too=True)[1] == len(known)
    after: dict[ScopeKey, Suspicion] = {}
    ended: list[ScopeKey] = []
    for key in _wide_to_narrow(members):
        was = before.get(key)
        if was is not None and everything_quiet and key != _WIDEST:
            was = replace(was, since=steady, until_ms=0)  # the limit counts while others are heard
        found = _look(key, members[key], was, stored, now, steady, limit_s)
        if found is not None:
            after[key] = found
        elif was is not None and was.doubt is Doubt.SUSPECTED:
            ended.append(key)
    _lift_below(after, members, stored)
    return _judged(after, ended, members, stored, steady)


def _scopes(nodes: Iterable[Quiet]) -> dict[ScopeKey, list[Quiet]]:
    found: dict[ScopeKey, list[Quiet]] = {_WIDEST: []}
    for node in nodes:
        keys = (_WIDEST, (Scope.REGION, node.region), (Scope.SITE, node.site))
        for key in keys:
            if key[1] or key == _WIDEST:  # sites that declare no region have nothing in common
                found.setdefault(key, []).append(node)
    # A region of one site is that site, by its better known name.
    return {
        key: members
        for key, members in found.items()
        if key[0] is not Scope.REGION or any(node.site != members[0].site for node in members)
    }


def _wide_to_narrow(members: Mapping[ScopeKey, list[Quiet]]) -> list[ScopeKey]:
    order = (Scope.EVERYTHING, Scope.REGION, Scope.SITE)
    return sorted(members, key=lambda key: (order.index(key[0]), key[1]))


def _count(members: Iterable[Quiet], *, settled_too: bool) -> tuple[int, int]:
    """(nodes, silent ones)."""
    counted = [node for node in members if settled_too or not node.settled]
    return len(counted), sum(1 for node in counted if node.quiet)


def _look(
    key: ScopeKey,
    members: list[Quiet],
    was: Suspicion | None,
    stored: Mapping[str, Hold],
    now: float,
    steady: float,
    limit_s: float,
) -> Suspicion | None:
    """The scope's suspicion now; None: it is clear."""
    widest = key == _WIDEST
    nodes, silent = _count(members, settled_too=widest)
    if widest:
        many = nodes >= EVERYTHING_MIN and silent == nodes
    else:
        many = nodes >= NODES_MIN and 2 * silent > nodes
    hold = stored.get(hold_id(*key))
    # Before anybody is lost there is nothing to hold back, and most silences are short. What an
    # earlier leader suspected stays suspected.
    lost = hold is not None or any(node.lost and not node.settled for node in members)
    if was is None and not (many and lost):
        return None
    sign = Sign.MANY if many else Sign.FEW
    if many and hold is not None and hold.approved:
        sign = Sign.APPROVED
    elif many and not widest and was is not None and steady - was.since >= limit_s:
        sign = Sign.OVERDUE
    doubt = TRANSITIONS[was.doubt if was is not None else Doubt.CLEAR, sign]
    if doubt is Doubt.CLEAR:
        return None
    if was is None:
        since_ms = hold.since_ms if hold is not None else int(now * 1000)
        was = Suspicion(doubt, steady, nodes, silent, since_ms)
    until_ms = was.until_ms
    if not widest and not until_ms:
        until_ms = int((now + limit_s - (steady - was.since)) * 1000)
    return replace(was, doubt=doubt, nodes=nodes, silent=silent, until_ms=until_ms)


def _lift_below(
    after: dict[ScopeKey, Suspicion],
    members: Mapping[ScopeKey, list[Quiet]],
    stored: Mapping[str, Hold],
) -> None:
    """Who approves of a region's evictions approves of those of its sites."""
    for key in [key for key in _wide_to_narrow(members) if key in after]:
        hold = stored.get(hold_id(*key))
        if after[key].doubt is not Doubt.LIFTED or hold is None or not hold.approved:
            continue
        inside = {node.node for node in members[key]}
        for other, suspicion in list(after.items()):
            if other != key and inside.issuperset(node.node for node in members[other]):
                after[other] = replace(suspicion, doubt=Doubt.LIFTED)


def _judged(
    after: dict[ScopeKey, Suspicion],
    ended: Iterable[ScopeKey],
    members: Mapping[ScopeKey, list[Quiet]],
    stored: Mapping[str, Hold],
    steady: float,
) -> Judged:
    doubted: dict[str, str] = {}
    holds: list[Hold] = []
    begun: list[Hold] = []
    for key in [key for key in _wide_to_narrow(members) if key in after]:
        suspicion = after[key]
        quiet = [node.node for node in members[key] if node.quiet and not node.settled]
        if key == _WIDEST:
            quiet = [node.node for node in members[key]]
        stands = stored.get(hold_id(*key))
        if suspicion.doubt is Doubt.LIFTED:
            if stands is not None and stands.approved:
                holds.append(stands)
            continue
        if doubted.keys() >= set(quiet):
            continue  # told as part of a wider one
        hold = _hold(key, suspicion, stands)
        if stands is None:
            begun.append(hold)
        elif hold.until_ms == stands.until_ms and steady - suspicion.written_at < _REWRITE_AFTER_S:
            hold = stands  # counts that change by the second are not written by the second
        if hold != stands:
            after[key] = replace(suspicion, written_at=steady)
        holds.append(hold)
        text = _text(key, suspicion, hold.id)
        doubted.update((node, f"node {node} {text}") for node in quiet if node not in doubted)
    spared = {node.node for key in ended for node in members[key] if node.quiet}
    return Judged(after, doubted, frozenset(spared), tuple(holds), tuple(begun))


def _hold(key: ScopeKey, suspicion: Suspicion, stands: Hold | None) -> Hold:
    scope, name = key
    what = f"{suspicion.silent} of {suspicion.nodes} nodes {_of(key)} are silent"
    return Hold(
        hold_id(scope, name),
        HoldKind.SILENCE,
        scope,
        name,
        message=f"{what}: more likely they cannot be heard than that they are gone",
        since_ms=suspicion.since_ms,
        until_ms=suspicion.until_ms,
        nodes=suspicion.nodes,
        silent=suspicion.silent,
        store_revision=stands.store_revision if stands is not None else 0,
    )


def _text(key: ScopeKey, suspicion: Suspicion, identifier: str) -> str:
    others = f"is silent, as are {suspicion.silent} of {suspicion.nodes} {_of(key)}"
    until = "until some are heard"
    if suspicion.until_ms:
        until = f"until {datetime.fromtimestamp(suspicion.until_ms / 1000, UTC):%H:%M:%S} UTC"
    return f"{others}: evictions wait {until}, or `edgectl approve {identifier}`"


def _of(key: ScopeKey) -> str:
    scope, name = key
    if scope is Scope.EVERYTHING:
        return "of everything"
    return f"of {scope} {name}" if name else f"of no {scope}"
