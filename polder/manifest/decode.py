"""Typed decoding of JSON-like data into frozen dataclasses, with every error and its path.

The dataclasses in `kinds.py` are the schema: field names become camelCase keys; `spec(...)` adds
the sentence that `edgectl explain` shows and the limits that are checked here. A library was not
taken because none gives all errors at once with paths while staying small enough for the agent.
"""

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

MAX_ITEMS = 1000
MAX_STRING = 65_536
MAX_VIOLATIONS = 50  # more than an operator will read; keeps an error message bounded


@dataclass(frozen=True, slots=True)
class Violation:
    """`path` as in `spec.template.containers[0].image`."""

    path: str
    message: str


class InvalidManifest(ValueError):
    """Raised with everything that is wrong, not only the first."""

    def __init__(self, violations: list[Violation]) -> None:
        self.violations = tuple(violations[:MAX_VIOLATIONS])
        super().__init__("; ".join(f"{v.path}: {v.message}" for v in self.violations))


@dataclass(frozen=True, slots=True)
class FieldRule:
    """What `spec()` says of a field. `parse` turns a raw scalar into the field's value."""

    doc: str
    key: str | None = None
    parse: Callable[[object], Any] | None = None
    shown_type: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    pattern: re.Pattern[str] | None = None
    pattern_help: str = ""
    choices: tuple[str, ...] = ()
    min_items: int = 0
    max_items: int = MAX_ITEMS
    max_length: int = MAX_STRING


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


def decode(cls: type[T], raw: object, path: str = "") -> T:
    """`raw` (parsed JSON) as `cls`. Raises InvalidManifest with all violations."""
    violations: list[Violation] = []
    value = _decode_class(cls, raw, path, violations)
    if violations or value is None:
        raise InvalidManifest(violations)
    return value


def _decode_class(cls: type[T], raw: object, path: str, out: list[Violation]) -> T | None:
    if not isinstance(raw, Mapping):
        out.append(Violation(path or ".", f"expected a mapping, found {describe(raw)}"))
        return None
    infos: tuple[FieldInfo, ...] = fields_of(cls)  # type: ignore[arg-type]
    known = {info.key for info in infos}
    before = len(out)
    for key in raw:
        if key not in known:
            out.append(Violation(_join(path, str(key)), _unknown(str(key), known)))
    values: dict[str, Any] = {}
    for info in infos:
        here = _join(path, info.key)
        if info.key not in raw:
            if info.required:
                out.append(Violation(here, "is required"))
            continue
        given = raw[info.key]
        if given is None:
            if info.required:
                out.append(Violation(here, "is required, but is empty"))
            continue  # an empty value means the default, as in YAML `key:`
        values[info.name] = _decode_value(info.type, given, here, info.rule, out)
    if len(out) > before:
        return None
    instance = cls(**values)
    check = getattr(instance, "violations", None)
    if check is not None:
        out.extend(Violation(_join(path, v.path), v.message) for v in check())
    return instance


def _decode_value(kind: Any, raw: object, path: str, rule: FieldRule, out: list[Violation]) -> Any:
    if rule.parse is not None and typing.get_origin(kind) is not dict:
        return _parsed(rule, raw, path, out)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return _decode_value(options[0], raw, path, rule, out)
    if origin is tuple:
        return _decode_list(typing.get_args(kind)[0], raw, path, rule, out)
    if origin is dict:
        return _decode_map(typing.get_args(kind)[1], raw, path, rule, out)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_class(kind, raw, path, out)
    return _decode_scalar(kind, raw, path, rule, out)


def _parsed(rule: FieldRule, raw: object, path: str, out: list[Violation]) -> Any:
    assert rule.parse is not None
    try:
        value = rule.parse(raw)
    except ValueError as error:
        out.append(Violation(path, str(error)))
        return None
    _check_range(value, path, rule, out)
    return value


def _decode_list(
    kind: Any, raw: object, path: str, rule: FieldRule, out: list[Violation]
) -> tuple[Any, ...] | None:
    if not isinstance(raw, list):
        out.append(Violation(path, f"expected a list, found {describe(raw)}"))
        return None
    if len(raw) > rule.max_items:
        out.append(Violation(path, f"has {len(raw)} items; at most {rule.max_items} are allowed"))
        return None
    if len(raw) < rule.min_items:
        out.append(Violation(path, f"needs at least {rule.min_items} item(s)"))
        return None
    return tuple(_decode_value(kind, v, f"{path}[{i}]", rule, out) for i, v in enumerate(raw))


def _decode_map(
    kind: Any, raw: object, path: str, rule: FieldRule, out: list[Violation]
) -> dict[str, Any] | None:
    if not isinstance(raw, Mapping):
        out.append(Violation(path, f"expected a mapping, found {describe(raw)}"))
        return None
    if len(raw) > rule.max_items:
        out.append(Violation(path, f"has {len(raw)} keys; at most {rule.max_items} are allowed"))
        return None
    result = {}
    for key, value in raw.items():
        here = _join(path, str(key))
        if not isinstance(key, str) or not key or len(key) > 253:
            out.append(Violation(here, "a key must be text of 1 to 253 characters"))
            continue
        if rule.parse is not None:
            result[key] = _parsed(rule, value, here, out)
        else:
            result[key] = _decode_value(kind, value, here, rule, out)
    return result


def _decode_scalar(kind: Any, raw: object, path: str, rule: FieldRule, out: list[Violation]) -> Any:
    if kind is Any:
        return raw
    if kind is bool:
        if isinstance(raw, bool):
            return raw
        out.append(Violation(path, f"expected true or false, found {describe(raw)}"))
    elif kind is int:
        if isinstance(raw, int) and not isinstance(raw, bool):
            _check_range(raw, path, rule, out)
            return raw
        out.append(Violation(path, f"expected a whole number, found {describe(raw)}"))
    elif kind is float:
        if isinstance(raw, int | float) and not isinstance(raw, bool) and math.isfinite(raw):
            _check_range(float(raw), path, rule, out)
            return float(raw)
        out.append(Violation(path, f"expected a number, found {describe(raw)}"))
    elif kind is str:
        if isinstance(raw, str):
            _check_text(raw, path, rule, out)
            return raw
        hint = (
            '; put it in quotes: "' + str(raw) + '"' if isinstance(raw, bool | int | float) else ""
        )
        out.append(Violation(path, f"expected text, found {describe(raw)}{hint}"))
    else:  # pragma: no cover - a schema class with a type that the decoder does not know
        raise TypeError(f"{path}: unsupported schema type {kind!r}")
    return None


def _check_range(value: Any, path: str, rule: FieldRule, out: list[Violation]) -> None:
    if rule.minimum is not None and value < rule.minimum:
        out.append(Violation(path, f"is {value:g}; the least allowed is {rule.minimum:g}"))
    if rule.maximum is not None and value > rule.maximum:
        out.append(Violation(path, f"is {value:g}; the most allowed is {rule.maximum:g}"))


def _check_text(value: str, path: str, rule: FieldRule, out: list[Violation]) -> None:
    if len(value) > rule.max_length:
        out.append(Violation(path, f"is longer than {rule.max_length} characters"))
    elif "\x00" in value:
        out.append(Violation(path, "contains a NUL character"))
    elif rule.choices and value not in rule.choices:
        out.append(Violation(path, f"is {value!r}; allowed are {', '.join(rule.choices)}"))
    elif rule.pattern is not None and rule.pattern.fullmatch(value) is None:
        help_text = rule.pattern_help or f"text like {rule.pattern.pattern}"
        out.append(Violation(path, f"{value!r} is not {help_text}"))


def _join(path: str, key: str) -> str:
    if not path:
        return key
    if not key:
        return path
    return f"{path}{key}" if key.startswith("[") else f"{path}.{key}"


def _unknown(key: str, known: set[str]) -> str:
    folded = key.replace("_", "").replace("-", "").lower()
    for candidate in sorted(known):
        if candidate.lower() == folded or _one_edit(candidate.lower(), folded):
            return f"unknown field; did you mean {candidate!r}?"
    return f"unknown field; known are {', '.join(sorted(known))}"


def _one_edit(a: str, b: str) -> bool:
    """Whether one insertion, deletion, substitution or swap of neighbours separates the two."""
    if abs(len(a) - len(b)) > 1:
        return False
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    rest_a, rest_b = a[start:], b[start:]
    return (
        rest_a[1:] == rest_b
        or rest_a == rest_b[1:]
        or rest_a[1:] == rest_b[1:]
        or (rest_a[:2] == rest_b[:2][::-1] and rest_a[2:] == rest_b[2:])
    )


def describe(raw: object) -> str:
    """A raw value for an error message, bounded."""
    if raw is None:
        return "nothing"
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, Mapping):
        return "a mapping"
    if isinstance(raw, list | tuple):
        return "a list"
    if isinstance(raw, str):
        return f"the text {raw[:40]!r}"
    if isinstance(raw, int | float):
        return f"the number {str(raw)[:40]}"
    return f"a {type(raw).__name__}"


def canonical(value: Any) -> Any:
    """JSON-like data of a schema instance, without the fields that equal their default.

    Two manifests that mean the same have the same canonical form; and a field added to the schema
    later changes nobody's digest, so that an upgrade restarts no container.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            info.key: canonical(given)
            for info in fields_of(type(value))
            if (given := getattr(value, info.name)) != info.default or info.required
        }
    if isinstance(value, tuple | list):
        return [canonical(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): canonical(value[key]) for key in sorted(value)}
    return value


def digest(value: Any) -> str:
    """Hex SHA-256 of the canonical form."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
