"""The floor of a namespace: what its workloads can tighten and never loosen.

Called by the operator API at apply (`loosens` explains a refusal) and by whoever needs the policy
that holds in effect (`tighten`): the scheduler, and the composer of signed plans.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

from polder.manifest.facts import ASSURANCES
from polder.manifest.identifiers import area_text, countries_in
from polder.manifest.policy import OWNERSHIPS, SealMinimum, SovereigntySpec
from polder.manifest.schema import Violation, fields_of, number_text

T = TypeVar("T")


def tighten(floor: SovereigntySpec, policy: SovereigntySpec) -> SovereigntySpec:
    """Both at once: a place that it admits is admitted by each, and the other way round.

    A residency in which nothing is left stays, as `()`, and admits no place.
    """
    return SovereigntySpec(
        residency=_residency(floor.residency, policy.residency),
        forbid_laws=_union(floor.forbid_laws, policy.forbid_laws),
        ownership=_stronger(OWNERSHIPS)(floor.ownership, policy.ownership),
        gaiax_label=_highest(floor.gaiax_label, policy.gaiax_label),
        seal=_seal(floor.seal, policy.seal),
        certifications=_union(floor.certifications, policy.certifications),
        energy=_each(floor.energy, policy.energy, _energy_side),
        assurance=_each(floor.assurance, policy.assurance, lambda _: _stronger(ASSURANCES)),
    )


def loosens(floor: SovereigntySpec, policy: SovereigntySpec) -> list[Violation]:
    """What a policy says that is weaker than its floor, so that its author learns it at apply.

    Silence is not weaker: the floor then holds. Paths are those of the policy's fields.
    """
    return [Violation(path, text) for path, text in _weaker(floor, policy)]


def _weaker(floor: SovereigntySpec, policy: SovereigntySpec) -> Iterator[tuple[str, str]]:
    if floor.residency is not None and policy.residency is not None:
        ours, theirs = countries_in(policy.residency), countries_in(floor.residency)
        allows = f"the namespace's floor allows {area_text(theirs)}"
        if not ours & theirs:
            yield "residency", f"no country is left: it allows {area_text(ours)}, {allows}"
        elif ours - theirs:
            yield "residency", f"allows {area_text(ours - theirs)}; {allows}"
    if policy.ownership and _order(OWNERSHIPS, policy.ownership) < _order(
        OWNERSHIPS, floor.ownership
    ):
        yield "ownership", _text(policy.ownership, floor.ownership)
    if _below(policy.gaiax_label, floor.gaiax_label):
        yield "gaiaxLabel", _text(policy.gaiax_label, floor.gaiax_label)
    yield from _weaker_seal(floor, policy)
    for name, key, ours, theirs in _pairs(policy.energy, floor.energy):
        if ours is not None and _energy_side(name)(ours, theirs) != ours:
            yield f"energy.{key}", _text(ours, theirs)
    for _, key, ours, theirs in _pairs(policy.assurance, floor.assurance):
        if ours and _order(ASSURANCES, ours) < _order(ASSURANCES, theirs):
            yield f"assurance.{key}", _text(ours, theirs)


def _weaker_seal(floor: SovereigntySpec, policy: SovereigntySpec) -> Iterator[tuple[str, str]]:
    for objective in range(1, 9):
        ours, theirs = policy.seal.of(objective), floor.seal.asked(objective)
        if _below(ours, theirs):
            yield f"seal.SOV-{objective}", _text(ours, theirs)
    if _below(policy.seal.overall, floor.seal.overall):
        yield "seal.overall", _text(policy.seal.overall, floor.seal.overall)


def _text(ours: float | str | None, theirs: float | str | None) -> str:
    parts = [one if isinstance(one, str) else number_text(one or 0) for one in (ours, theirs)]
    return f"is {parts[0]}, weaker than the namespace's floor of {parts[1]}"


def _pairs(ours: T, theirs: T) -> Iterator[tuple[str, str, Any, Any]]:
    """Field by field: name, key in a manifest, both values."""
    schema: Any = type(ours)
    for info in fields_of(schema):
        yield info.name, info.key, getattr(ours, info.name), getattr(theirs, info.name)


def _each(floor: T, policy: T, merge: Callable[[str], Callable[[Any, Any], Any]]) -> T:
    names = (item.name for item in fields(floor))  # type: ignore[arg-type]  # they are dataclasses
    merged = {name: merge(name)(getattr(floor, name), getattr(policy, name)) for name in names}
    return type(floor)(**merged)


def _residency(
    floor: tuple[str, ...] | None, policy: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    if floor is None or policy is None or floor == policy:
        return policy if floor is None else floor
    return tuple(sorted(countries_in(floor) & countries_in(policy)))


def _seal(floor: SealMinimum, policy: SealMinimum) -> SealMinimum:
    """What is named is raised to what is asked of every objective."""
    merged = _each(floor, policy, lambda _: _highest)
    named = {f"sov_{n}": merged.asked(n) for n in range(1, 9) if merged.of(n) is not None}
    return replace(merged, **named)


def _union(floor: tuple[str, ...], policy: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*floor, *policy)))


def _highest(one: float | None, other: float | None) -> Any:
    return max((value for value in (one, other) if value is not None), default=None)


def _lowest(one: float | None, other: float | None) -> Any:
    return min((value for value in (one, other) if value is not None), default=None)


def _energy_side(name: str) -> Callable[[Any, Any], Any]:
    return _highest if name.endswith("_min") else _lowest


def _below(ours: float | None, theirs: float | None) -> bool:
    return ours is not None and theirs is not None and ours < theirs


def _order(levels: tuple[str, ...], level: str) -> int:
    return levels.index(level) if level else -1


def _stronger(levels: tuple[str, ...]) -> Callable[[str, str], str]:
    return lambda one, other: max(one, other, key=lambda level: _order(levels, level))
