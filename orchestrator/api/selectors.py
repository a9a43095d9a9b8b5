"""Label selectors, as in `app=triage,zone in (a,b),!canary`. Pure; used by List and Watch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.refusals import Refused, invalid
from polder.manifest.names import LABEL_VALUE, QUALIFIED

MAX_TEXT = 4096
_SET = re.compile(r"(?P<key>\S+)\s+(?P<word>in|notin)\s*\((?P<values>[^()]*)\)")
_EQUAL = re.compile(r"(?P<key>[^\s=!]+)\s*(?P<operator>==|=|!=)\s*(?P<value>[^\s=!]*)")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One part. `values` empty: only whether the key is there counts."""

    key: str
    values: frozenset[str]
    negated: bool

    def matches(self, labels: Mapping[str, str]) -> bool:
        found = labels.get(self.key)
        holds = found is not None and (not self.values or found in self.values)
        return holds != self.negated


@dataclass(frozen=True, slots=True)
class Selector:
    """All requirements must hold. As in Kubernetes, `!=` and `notin` match an absent label."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)


def parse_selector(text: str) -> Selector:
    """Raises Refused (BadSelector)."""
    if len(text) > MAX_TEXT:
        raise _bad(f"the label selector is longer than {MAX_TEXT} characters")
    return Selector(tuple(_requirement(part) for part in _split(text)))


def _split(text: str) -> list[str]:
    """At commas outside parentheses."""
    parts = [part.strip() for part in re.split(r",(?![^()]*\))", text)]
    if parts == [""]:
        return []
    if "" in parts:
        raise _bad(f"the label selector {text[:80]!r} has an empty part")
    return parts


def _requirement(part: str) -> Requirement:
    found = _SET.fullmatch(part)
    if found is not None:
        values = [value.strip() for value in found["values"].split(",")]
        return _checked(found["key"], values, found["word"] == "notin", part)
    found = _EQUAL.fullmatch(part)
    if found is not None:
        return _checked(found["key"], [found["value"]], found["operator"] == "!=", part)
    negated = part.startswith("!")
    return _checked(part[negated:].strip(), [], negated, part)


def _checked(key: str, values: list[str], negated: bool, part: str) -> Requirement:
    if QUALIFIED.fullmatch(key) is None:
        raise _bad(f"{part[:80]!r}: {key[:80]!r} is not a label key")
    for value in values:
        if LABEL_VALUE.fullmatch(value) is None:
            raise _bad(f"{part[:80]!r}: {value[:80]!r} is not a label value")
    return Requirement(key, frozenset(values), negated)


def _bad(message: str) -> Refused:
    return invalid(message, "such as app=triage,zone in (a,b),!canary", reason="BadSelector")
