"""Label selectors as operators write them: `app=triage,zone in (a,b),!canary`. Pure.

The server selects; edgectl checks the syntax first, so that a typo is a clear usage error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgectl.errors import UsageError

MAX_SELECTOR = 4096
_KEY = r"[A-Za-z0-9](?:[-A-Za-z0-9_./]*[A-Za-z0-9])?"
_VALUE = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?|"
_SET = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)")
_EQUAL = re.compile(rf"({_KEY})\s*(==|=|!=)\s*({_VALUE})")
_EXISTS = re.compile(rf"(!?)\s*({_KEY})")
_VALUE_ONLY = re.compile(_VALUE)


@dataclass(frozen=True, slots=True)
class Requirement:
    """`operator` is in, notin, exists or absent."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """As in Kubernetes, `!=` and `notin` also hold for a missing label."""
        if self.operator == "exists":
            return self.key in labels
        if self.operator == "absent":
            return self.key not in labels
        if self.operator == "in":
            return self.key in labels and labels[self.key] in self.values
        return labels.get(self.key) not in self.values


def parse(text: str) -> tuple[Requirement, ...]:
    """Raises UsageError that shows where the selector cannot be read."""
    if len(text) > MAX_SELECTOR:
        raise UsageError(f"the selector is longer than {MAX_SELECTOR} characters")
    found = []
    for part in _split(text):
        requirement = _parse_one(part)
        if requirement is None:
            raise UsageError(
                f"{part!r} is not a label selector",
                "write key=value, key!=value, key, !key, 'key in (a,b)' or 'key notin (a,b)', "
                "separated by commas",
            )
        found.append(requirement)
    return tuple(found)


def _split(text: str) -> list[str]:
    """At commas outside of parentheses."""
    if not text.strip():
        return []
    return [part.strip() for part in re.split(r",(?![^()]*\))", text)]


def _parse_one(part: str) -> Requirement | None:
    if match := _SET.fullmatch(part):
        values = tuple(value.strip() for value in match.group(3).split(","))
        if not all(_VALUE_ONLY.fullmatch(value) for value in values):
            return None
        return Requirement(match.group(1), match.group(2), values)
    if match := _EQUAL.fullmatch(part):
        operator = "notin" if match.group(2) == "!=" else "in"
        return Requirement(match.group(1), operator, (match.group(3),))
    if match := _EXISTS.fullmatch(part):
        return Requirement(match.group(2), "absent" if match.group(1) else "exists")
    return None
