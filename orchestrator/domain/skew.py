"""Which versions of orchestrator members work together. Asked by `members.py`.

Members of adjacent minor versions do: 0.4 with 0.5, whatever the patch. So a group is upgraded one
member at a time and one minor version at a time. The group's floor is the version that all have
reached: it never falls, and who is older stays out, since what the others write meanwhile may be
beyond it. Two major versions never work together; which minor comes before 1.0 only 1.0 can know.
What else is supported together says `polder/skew.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from polder.skew import Minor, adjacent, minor_of


@dataclass(frozen=True, slots=True)
class Skew:
    """Why a version may not join, and what to do."""

    message: str
    hint: str


def why_not(own: str, floor: str, present: Mapping[str, str]) -> Skew | None:
    """Why a member with version `own` may not work with those `present` (version by name).

    `floor` is empty when none has been set. None: it may.
    """
    mine, least = minor_of(own), minor_of(floor)
    if mine is None:
        return None
    if least is not None and mine < least:
        return Skew(
            f"this is version {own}, and all members of this installation have been at {least} or "
            "later: it may not understand what they have written since",
            f"Upgrade this member to {_running(present) or f'{least} or later'}.",
        )
    for name, version in sorted(present.items()):
        theirs = minor_of(version)
        if theirs is not None and not adjacent(mine, theirs):
            return Skew(
                f"this is version {own}, and member {name} runs {version}: members work together "
                "with the same minor version or the one next to it",
                _way(mine, theirs),
            )
    return None


def _running(present: Mapping[str, str]) -> str:
    return ", ".join(sorted(set(present.values())))


def _way(mine: Minor, theirs: Minor) -> str:
    if mine.major != theirs.major:
        return "Between major versions stop all members first; what runs on the boxes goes on."
    if mine < theirs:
        least = Minor(theirs.major, theirs.minor - 1)
        return f"Upgrade this member to {least} or {theirs}."
    step = Minor(theirs.major, theirs.minor + 1)
    return f"Upgrade one minor version at a time: bring every member to {step} first."


def floor_of(floor: str, present: Iterable[str]) -> str:
    """The floor when those are all the members that are present: it rises to the oldest of them.

    The text that was given when it does not rise.
    """
    minors = [minor_of(version) for version in present]
    known = [minor for minor in minors if minor is not None]
    if not known or len(known) < len(minors):
        return floor
    least, oldest = minor_of(floor), min(known)
    return floor if least is not None and oldest <= least else str(oldest)
