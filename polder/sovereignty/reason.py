"""Why a place is refused, as data: for messages, for grouping, and for finding what would help."""

from collections.abc import Iterable
from dataclasses import dataclass

Value = str | float | None


@dataclass(frozen=True, slots=True)
class Reason:
    """One demand that one fact does not meet.

    `predicate` and `item` name the demand as the policy does (`seal`, `SOV-2`); `code` is for
    programs (NotDeclared when the fact is unknown); `fact` is where the fact is declared
    (`provider.headOffice`); `needed` and `actual` are what was asked and what was found, None for
    unknown; `message` is a sentence without a full stop that names provider or site.
    """

    predicate: str
    code: str
    fact: str
    message: str
    item: str = ""
    needed: Value = None
    actual: Value = None

    @property
    def knob(self) -> str:
        """What an operator would change: `seal.SOV-2`, `residency`, `forbidLaws.US-CLOUD-ACT`."""
        return f"{self.predicate}.{self.item}" if self.item else self.predicate


@dataclass(frozen=True, slots=True)
class Change:
    """A single change of a policy. `value` is the weakest demand that helps; None: drop it."""

    knob: str
    value: Value


def single_change(reasons: Iterable[Reason]) -> Change | None:
    """The one change of the policy that would admit a place, or None if it takes several.

    For a number or a level it is what the fact has; for residency the country to add; a law, a
    certification or a demand whose fact is unknown is dropped.
    """
    found = tuple(reasons)
    if len({reason.knob for reason in found}) != 1:
        return None
    first = found[0]
    actual = [reason.actual for reason in found]
    if first.predicate in ("forbidLaws", "certifications", "ownership") or None in actual:
        return Change(first.knob, None)
    levels = [value for value in actual if not isinstance(value, str) and value is not None]
    return Change(first.knob, min(levels) if len(levels) == len(actual) else actual[0])
