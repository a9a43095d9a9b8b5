"""Who holds a provider in the end: shares along chains, and control.

Called by `profile.py`, once per version of a Provider. The graph has been checked at apply (sums,
names). How it is read, where a reading had to be chosen:

- A *share* of X in the provider is the chance that a walk upward from the provider, which picks a
  holder by the size of its holding at every step, meets X. So percentages multiply along a chain,
  parallel chains add, and a cycle is its geometric series: with cross-holdings the outsiders'
  shares grow, as they do in law and in value (the shares that a company holds in itself have no
  other owner). That is never less than counting each simple path once: the careful reading, and it
  cannot exceed 100. What has not settled after ROUNDS counts as 100.
- A holding with `control` counts as 100 percent of both capital and votes.
- The walk ends at the first holder outside the EU, so that a parent and its subsidiary outside the
  EU are not counted twice *together*; for the share of *one* holder it ends at that holder.
  An EU person behind a company outside the EU does not help: the company's seat counts.
- What no holder is declared for is *unknown*: it may belong to any one holder who, be it small, may
  have control with it. It is *dispersed* (nobody has 5 percent or control, countries unknown) if
  the provider says `ownersComplete`. Dispersed holders count together, never as one, and control
  nothing. A company whose own holders are not listed is the end of its chain if the list is
  complete, and unknown otherwise; persons and states are ends.
- Holders who hold each other, with nobody behind them, hide who holds: that part is *circular*, and
  counts as unknown.
- *Control* needs a declared `control`, or more than 50 percent of capital or votes held by parties
  of one country, or outside the EU, taken together with the companies that they control.

The EU is the 27 member states; territories with a code of their own are outside it.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from polder.countries import EU
from polder.manifest.facts import OWN_NAME, Owner, ProviderSpec

ROUNDS = 500
MAJORITY = 0.5
_SETTLED = 1e-12
GAP_IGNORED = 0.001  # registers round each holding
_ROUNDING = 1e-9  # what sums of percentages may miss by
MEASURES = ("capital", "votes")
_IN_EU = EU | {"EU"}

# Where a state's law reaches beyond its own code: US territories; Hong Kong and Macao, which
# mainland national-security and intelligence law is applied to.
_STATE_OF = {
    **dict.fromkeys(("AS", "GU", "MP", "PR", "UM", "VI"), "US"),
    **dict.fromkeys(("HK", "MO"), "CN"),
}


def state_of(country: str) -> str:
    """The country whose laws reach there."""
    return _STATE_OF.get(country, country)


@dataclass(frozen=True, slots=True)
class Stake:
    """One holder's part of one held entity, as fractions. `control` made both of them 1."""

    holder: str
    capital: float
    votes: float
    control: bool

    def of(self, measure: str) -> float:
        return self.capital if measure == "capital" else self.votes


@dataclass(frozen=True, slots=True)
class Gap:
    """What is not declared of an entity, per measure, as fractions."""

    unknown: float
    dispersed: float


@dataclass(frozen=True, slots=True)
class Graph:
    """Entities by name, the provider as OWN_NAME. `order` has holders before what they hold."""

    name: str
    country: Mapping[str, str]
    dispersed: frozenset[str]
    stakes: Mapping[str, tuple[Stake, ...]]
    gaps: Mapping[str, Mapping[str, Gap]]
    order: tuple[str, ...]

    def outside(self, entity: str) -> bool:
        """Whether its seat is known to be outside the EU."""
        country = self.country[entity]
        return entity != OWN_NAME and country != "" and country not in _IN_EU

    def shown(self, entity: str) -> str:
        return self.name if entity == OWN_NAME else f"{entity} ({self.country[entity] or '?'})"


def graph_of(provider: ProviderSpec) -> Graph:
    """The graph of a checked provider. One without declared owners is unknown altogether."""
    country = {OWN_NAME: provider.seat_country}
    kinds = {OWN_NAME: "company"}
    rows: dict[str, list[Owner]] = {}
    for owner in sorted(provider.owners or (), key=repr):
        holder = provider.entity(owner.holder)
        if holder != OWN_NAME:
            country[holder] = owner.country
            kinds[holder] = owner.kind
        rows.setdefault(provider.entity(owner.of), []).append(owner)
    stakes = {
        held: tuple(
            Stake(
                provider.entity(owner.holder),
                1.0 if owner.control else (owner.capital_percent or 0.0) / 100,
                1.0 if owner.control else (owner.votes_percent or 0.0) / 100,
                owner.control,
            )
            for owner in owners
        )
        for held, owners in rows.items()
    }
    gaps = {}
    for entity, kind in kinds.items():
        held = rows.get(entity, [])
        end = entity != OWN_NAME and (kind != "company" or provider.owners_complete)
        gaps[entity] = {
            "capital": _gap([o.capital_percent for o in held], end, provider.owners_complete),
            "votes": _gap([o.votes_percent for o in held], end, provider.owners_complete),
        }
    scattered = frozenset(entity for entity, kind in kinds.items() if kind == "dispersed")
    name = provider.legal_name
    return Graph(name, country, scattered, stakes, gaps, _order(stakes))


def _gap(percents: list[float | None], end: bool, complete: bool) -> Gap:
    if not percents and end:
        return Gap(0.0, 0.0)
    rest = 1 - math.fsum(percent or 0.0 for percent in percents) / 100
    if rest <= GAP_IGNORED + _ROUNDING:
        return Gap(0.0, 0.0)
    if complete and None not in percents:
        return Gap(0.0, rest)
    return Gap(rest, 0.0)


def _order(stakes: Mapping[str, tuple[Stake, ...]]) -> tuple[str, ...]:
    """The provider and everything above it, what holds before what is held (cycles apart)."""
    order: list[str] = []
    seen = {OWN_NAME}
    stack = [(OWN_NAME, iter(stakes.get(OWN_NAME, ())))]
    while stack:
        entity, holders = stack[-1]
        for stake in holders:
            if stake.holder not in seen:
                seen.add(stake.holder)
                stack.append((stake.holder, iter(stakes.get(stake.holder, ()))))
                break
        else:
            order.append(entity)
            stack.pop()
    return tuple(order)


def share(
    graph: Graph, measure: str, end: Callable[[str], float | None], rest: Callable[[Gap], float]
) -> float:
    """The part of the provider that ends where `end` says, from 0 to 1.

    `end` gives what a holder counts, or None to go on to its own holders; `rest` what a gap counts.
    """
    ends = {entity: end(entity) for entity in graph.order if entity != OWN_NAME}
    found = dict.fromkeys(graph.order, 0.0)
    for _ in range(ROUNDS):
        moved = 0.0
        for entity in graph.order:
            total = rest(graph.gaps[entity][measure])
            for stake in graph.stakes.get(entity, ()):
                known = ends.get(stake.holder)
                above = found[stake.holder] if known is None else known
                total += stake.of(measure) * above
            total = min(1.0, total)
            moved = max(moved, total - found[entity])
            found[entity] = total
        if moved <= _SETTLED:
            return found[OWN_NAME]
    return 1.0


def share_of(graph: Graph, measure: str, holder: str) -> float:
    """One holder's share, from 0 to 1."""
    return share(graph, measure, lambda entity: 1.0 if entity == holder else None, lambda _: 0.0)


def share_where(graph: Graph, measure: str, counts: Callable[[str], bool]) -> float:
    """The share of all holders that count, together."""
    return share(graph, measure, lambda entity: 1.0 if counts(entity) else None, lambda _: 0.0)


def unknown_share(graph: Graph, measure: str) -> float:
    """What may belong to anyone: undeclared, or circular."""
    undeclared = share(
        graph,
        measure,
        lambda entity: 0.0 if graph.outside(entity) or entity in graph.dispersed else None,
        lambda gap: gap.unknown,
    )
    return min(1.0, undeclared + circular_share(graph, measure))


def circular_share(graph: Graph, measure: str) -> float:
    """What no chain of holders ever ends, because they hold each other."""

    def ends(entity: str) -> float | None:
        end = graph.outside(entity) or entity in graph.dispersed or entity not in graph.stakes
        return 1.0 if end else None

    lost = 1 - share(graph, measure, ends, lambda gap: gap.unknown + gap.dispersed)
    return lost if lost > GAP_IGNORED * len(graph.order) else 0.0


def dispersed_share(graph: Graph, measure: str) -> float:
    """What is widely spread over holders whose countries are not known to be in the EU."""

    def end(entity: str) -> float | None:
        if entity in graph.dispersed and not graph.country[entity]:
            return 1.0
        return 0.0 if graph.outside(entity) else None

    return share(graph, measure, end, lambda gap: gap.dispersed)


def path_of(graph: Graph, measure: str, holder: str) -> tuple[str, ...]:
    """The entities between a holder and the provider on the chain that carries most."""
    best = {OWN_NAME: (1.0, OWN_NAME)}
    for _ in graph.order:
        before = dict(best)
        for held, (carried, _) in before.items():
            for stake in graph.stakes.get(held, ()):
                through = carried * stake.of(measure)
                if through > best.get(stake.holder, (0.0, ""))[0]:
                    best[stake.holder] = (through, held)
        if best == before:
            break
    path = []
    entity = best.get(holder, (0.0, OWN_NAME))[1]
    while entity != OWN_NAME:
        path.append(entity)
        entity = best[entity][1]
    return tuple(path)


@dataclass(frozen=True, slots=True)
class _Grip:
    """Why an entity counts as controlled: by which holders, and by what."""

    holders: tuple[str, ...]
    what: str


def control_by(
    graph: Graph, counts: Callable[[str], bool], *, with_unknown: bool = False
) -> str | None:
    """How holders that count control the provider, as a sentence without its stop, or None.

    Together, as one party, with the companies that they control: the fixpoint of "who is held by
    more than half". `with_unknown`: undeclared holdings could be theirs too.
    """
    grips: dict[str, _Grip] = {}
    members = {e for e in graph.order if e not in graph.dispersed and e != OWN_NAME and counts(e)}
    for _ in graph.order:
        before = len(grips)
        for entity in graph.order:
            if entity not in grips and entity not in members:
                grip = _grip(graph, entity, members | grips.keys(), with_unknown)
                if grip is not None:
                    grips[entity] = grip
        if len(grips) == before or OWN_NAME in grips:
            break
    return _control_text(graph, grips) if OWN_NAME in grips else None


def _grip(graph: Graph, entity: str, party: Collection[str], with_unknown: bool) -> _Grip | None:
    held = [stake for stake in graph.stakes.get(entity, ()) if stake.holder in party]
    for stake in held:
        if stake.control:
            return _Grip((stake.holder,), "has control of")
    for measure in reversed(MEASURES):  # votes are what people look for first
        total = math.fsum(stake.of(measure) for stake in held)
        if total > MAJORITY + _ROUNDING:
            holders = tuple(dict.fromkeys(stake.holder for stake in held if stake.of(measure)))
            verb = "holds" if len(holders) == 1 else "hold"
            amount = percent_text(100 * min(1.0, total))
            return _Grip(holders, f"{verb} {amount} of the {measure} of")
        hidden = graph.gaps[entity][measure].unknown
        if with_unknown and hidden:
            amount = percent_text(100 * hidden)
            return _Grip((), f"may have control by an undeclared {amount} of the {measure} of")
    return None


def _control_text(graph: Graph, grips: Mapping[str, _Grip]) -> str:
    """The chain from the controlling party down to the provider."""
    parts: list[str] = []
    entity, seen = OWN_NAME, set()
    while entity in grips and entity not in seen:
        seen.add(entity)
        grip = grips[entity]
        who = " and ".join(graph.shown(holder) for holder in grip.holders) or "somebody"
        parts.append(f"{who} {grip.what} {graph.shown(entity)}")
        entity = next((holder for holder in grip.holders if holder in grips), "")
    return "; ".join(parts)


def percent_text(percent: float) -> str:
    """`62 percent`, `24.5 percent`: two decimals at most."""
    return f"{round(percent, 2):g} percent"
