"""How a dataclass says what its fields look like in a manifest.

Used by `kinds.py` and `workload.py`, whose dataclasses are the schema: field names become camelCase
keys; `spec(...)` adds the sentence that `edgectl explain` shows and the limits that the decoder
checks. A library was not taken because none gives all errors at once with paths while staying small
enough for the agent.
"""

import dataclasses
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

MAX_ITEMS = 1000
MAX_STRING = 65_536


@dataclass(frozen=True, slots=True)
class Violation:
    """`path` as in `spec.template.containers[0].image`."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class FieldRule:
    """What `spec()` says of a field. In a list or a map it holds for every item.

    `parse` turns a raw scalar into the value, or raises ValueError with the message. `unit` is the
    one that limits and defaults are shown in. `key_pattern` is for the keys of a map. `explicit`:
    an empty value is an error and not the default, where that would open what is closed.
    """

    doc: str
    key: str | None = None
    parse: Callable[[object], Any] | None = None
    shown_type: str | None = None
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    pattern: re.Pattern[str] | None = None
    pattern_help: str = ""
    key_pattern: re.Pattern[str] | None = None
    key_help: str = ""
    choices: tuple[str, ...] = ()
    min_items: int = 0
    max_items: int = MAX_ITEMS
    max_length: int = MAX_STRING
    explicit: bool = False


_RULE = "polder"
_MISSING: Any = dataclasses.MISSING


def spec(doc: str, *, default: Any = _MISSING, default_factory: Any = _MISSING, **rule: Any) -> Any:
    """A dataclass field with its rule. Without a default the field is required."""
    metadata = {_RULE: FieldRule(doc, **rule)}
    if default_factory is not _MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    if default is not _MISSING:
        return dataclasses.field(default=default, metadata=metadata)
    return dataclasses.field(metadata=metadata)


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """One field of a schema class, as the decoder and `explain` see it."""

    name: str
    key: str
    type: Any
    required: bool
    rule: FieldRule
    default: Any


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


@cache
def fields_of(cls: Any) -> tuple[FieldInfo, ...]:
    """The schema of a dataclass, in order of declaration."""
    hints = typing.get_type_hints(cls)
    infos = []
    for item in dataclasses.fields(cls):
        rule: FieldRule = item.metadata.get(_RULE, FieldRule(""))
        if item.default is not _MISSING:
            required, default = False, item.default
        elif callable(item.default_factory):
            required, default = False, item.default_factory()
        else:
            required, default = True, None
        key = rule.key or camel(item.name)
        infos.append(FieldInfo(item.name, key, hints[item.name], required, rule, default))
    return tuple(infos)


def number_text(value: float, unit: str = "") -> str:
    """A number for people, without the rounding of `:g` (1000001 is not 1e+06)."""
    return f"{value}{unit}" if isinstance(value, int) else f"{value:.15g}{unit}"
