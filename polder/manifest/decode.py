"""Typed decoding of JSON-like data into frozen dataclasses, with every error and its path.

Called through `decode_document` for whole manifests, and by the agent for the template in its plan.
The readers for a class are built once from its schema: a document costs tens of microseconds. Input
is hostile: whatever it is, the outcome is a value or InvalidManifest with a bounded message.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from polder.manifest.schema import FieldRule, Violation, fields_of, number_text
from polder.manifest.text import MAX_KEY, describe, key_text, nearest, shown, text_fault

T = TypeVar("T")

MAX_VIOLATIONS = 50  # more than an operator will read; keeps an error message bounded
_INT64 = 1 << 63


class InvalidManifest(ValueError):
    """Raised with everything that is wrong, not only the first. The last may say: more."""

    def __init__(self, violations: list[Violation]) -> None:
        found = violations
        if len(found) > MAX_VIOLATIONS:
            more = f"has more errors than these {MAX_VIOLATIONS - 1}"
            found = [*found[: MAX_VIOLATIONS - 1], Violation(".", more)]
        self.violations = tuple(found)
        super().__init__("; ".join(f"{v.path}: {v.message}" for v in self.violations))


class _Enough(Exception):
    """There are more violations than will be shown: looking on would only cost time."""


class _Findings(list[Violation]):
    def add(self, path: str, message: str) -> None:
        self.append(Violation(path or ".", message))
        if len(self) > MAX_VIOLATIONS:
            raise _Enough


_Reader = Callable[[object, str, _Findings], Any]


def decode(cls: type[T], raw: object, path: str = "") -> T:
    """`raw` (parsed JSON) as `cls`. Raises InvalidManifest with all violations."""
    found = _Findings()
    value = None
    with contextlib.suppress(_Enough):
        value = _read_class(cls, raw, path, found)
    if found or value is None:
        raise InvalidManifest(found)
    return value


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    required: bool
    empty_text_is_default: bool
    explicit: bool
    read: _Reader


@dataclass(frozen=True, slots=True)
class _Schema:
    fields: dict[str, _Field]
    check: Callable[[Any], Iterator[Violation]] | None


@cache
def _schema(cls: Any) -> _Schema:
    fields = {
        info.key: _Field(
            info.name,
            info.required,
            info.default == "" and not info.required,
            info.rule.explicit,
            _reader(info.type, info.rule),
        )
        for info in fields_of(cls)
    }
    return _Schema(fields, getattr(cls, "violations", None))


def _read_class(cls: type[T], raw: object, path: str, out: _Findings) -> T | None:
    if type(raw) is not dict and not isinstance(raw, Mapping):  # the first is quick
        out.add(path, f"expected a mapping, found {describe(raw)}")
        return None
    schema = _schema(cls)  # type: ignore[arg-type]  # a class is hashable
    before = len(out)
    for key in raw:
        if key not in schema.fields:
            out.add(_join(path, key_text(key)), unknown_field(key, schema.fields))
    values: dict[str, Any] = {}
    for key, field in schema.fields.items():
        if key not in raw and not field.required:  # as most are
            continue
        given = raw.get(key)
        if field.explicit and key in raw and (given is None or given == ""):
            out.add(_join(path, key), "is empty: give a value, or leave it out")
            continue
        if given is None:
            if field.required:
                text = "is required, but is empty" if key in raw else "is required"
                out.add(_join(path, key), text)
            continue  # an empty value means the default, as in YAML `key:`
        if given == "" and field.empty_text_is_default:
            continue
        values[field.name] = field.read(given, _join(path, key), out)
    if len(out) > before:
        return None
    instance = cls(**values)
    if schema.check is not None:
        for violation in schema.check(instance):
            out.add(_join(path, violation.path), violation.message)
    return instance


def _reader(kind: Any, rule: FieldRule) -> _Reader:
    """What reads a value of a schema type. `rule` is about the scalars, wherever they are."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        (option,) = (arg for arg in typing.get_args(kind) if arg is not type(None))
        return _reader(option, rule)
    if origin is tuple:
        return _list_reader(_reader(typing.get_args(kind)[0], rule), rule)
    if origin is dict:
        return _map_reader(_reader(typing.get_args(kind)[1], rule), rule)
    if rule.parse is not None:
        return _parse_reader(rule.parse, rule)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return lambda raw, path, out: _read_class(kind, raw, path, out)
    scalar = _SCALARS.get(kind)
    if scalar is None:
        raise TypeError(f"unsupported schema type {kind!r}")
    return lambda raw, path, out: scalar(rule, raw, path, out)


def _parse_reader(parse: Callable[[object], Any], rule: FieldRule) -> _Reader:
    def read(raw: object, path: str, out: _Findings) -> Any:
        try:
            value = parse(raw)
        except ValueError as error:
            out.add(path, str(error))
            return None
        _check_range(value, path, rule, out)
        return value

    return read


def _list_reader(read_item: _Reader, rule: FieldRule) -> _Reader:
    def read(raw: object, path: str, out: _Findings) -> tuple[Any, ...] | None:
        if not isinstance(raw, list):
            out.add(path, f"expected a list, found {describe(raw)}")
        elif len(raw) > rule.max_items:
            out.add(path, f"has {len(raw)} items; at most {rule.max_items} are allowed")
        elif len(raw) < rule.min_items:
            plural = "" if rule.min_items == 1 else "s"
            out.add(path, f"needs at least {rule.min_items} item{plural}")
        else:
            return tuple([read_item(item, f"{path}[{i}]", out) for i, item in enumerate(raw)])
        return None

    return read


def _map_reader(read_value: _Reader, rule: FieldRule) -> _Reader:
    def read(raw: object, path: str, out: _Findings) -> dict[str, Any] | None:
        if not isinstance(raw, Mapping):
            out.add(path, f"expected a mapping, found {describe(raw)}")
            return None
        if len(raw) > rule.max_items:
            out.add(path, f"has {len(raw)} keys; at most {rule.max_items} are allowed")
            return None
        result = {}
        for key, value in raw.items():
            here = _join(path, key_text(key))
            if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY or text_fault(key):
                out.add(here, f"a key must be text of 1 to {MAX_KEY} characters")
                continue
            if rule.key_pattern is not None and rule.key_pattern.fullmatch(key) is None:
                out.add(here, f"the key is not {rule.key_help}")
            result[key] = read_value(value, here, out)
        return result

    return read


def _read_bool(rule: FieldRule, raw: object, path: str, out: _Findings) -> bool | None:
    if isinstance(raw, bool):
        return raw
    out.add(path, f"expected true or false, found {describe(raw)}")
    return None


def _read_int(rule: FieldRule, raw: object, path: str, out: _Findings) -> int | None:
    if not isinstance(raw, int) or isinstance(raw, bool):
        out.add(path, f"expected a whole number, found {describe(raw)}")
    elif not -_INT64 <= raw < _INT64:
        out.add(path, "is far too large a number")
    else:
        _check_range(raw, path, rule, out)
        return raw
    return None


def _read_float(rule: FieldRule, raw: object, path: str, out: _Findings) -> float | None:
    if not isinstance(raw, int | float) or isinstance(raw, bool):
        out.add(path, f"expected a number, found {describe(raw)}")
    elif isinstance(raw, int) and not -_INT64 <= raw < _INT64:
        out.add(path, "is far too large a number")
    elif not math.isfinite(raw):
        out.add(path, f"expected a finite number, found {describe(raw)}")
    else:
        value = float(raw) + 0.0  # -0.0 becomes 0.0: it means the same and must not differ
        _check_range(value, path, rule, out)
        return value
    return None


def _read_text(rule: FieldRule, raw: object, path: str, out: _Findings) -> str | None:
    if isinstance(raw, str):
        _check_text(raw, path, rule, out)
        return raw
    hint = "; put it in quotes" if isinstance(raw, bool | int | float) else ""
    out.add(path, f"expected text, found {describe(raw)}{hint}")
    return None


_SCALARS: dict[Any, Callable[[FieldRule, object, str, _Findings], Any]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_text,
}


def _check_range(value: Any, path: str, rule: FieldRule, out: _Findings) -> None:
    if rule.minimum is not None and value < rule.minimum:
        low = number_text(rule.minimum, rule.unit)
        out.add(path, f"is {number_text(value, rule.unit)}; the least allowed is {low}")
    if rule.maximum is not None and value > rule.maximum:
        high = number_text(rule.maximum, rule.unit)
        out.add(path, f"is {number_text(value, rule.unit)}; the most allowed is {high}")


def _check_text(value: str, path: str, rule: FieldRule, out: _Findings) -> None:
    if len(value) > rule.max_length:
        out.add(path, f"is longer than {rule.max_length} characters")
    elif fault := text_fault(value):
        out.add(path, fault)
    elif rule.choices and value not in rule.choices:
        allowed = ", ".join(choice for choice in rule.choices if choice)
        out.add(path, f"is {shown(value)}; allowed are {allowed}")
    elif rule.pattern is not None and rule.pattern.fullmatch(value) is None:
        out.add(path, f"{shown(value)} is not {rule.pattern_help}")


def _join(path: str, key: str) -> str:
    if not path or not key:
        return path or key
    return f"{path}{key}" if key.startswith("[") else f"{path}.{key}"


def unknown_field(key: object, known: typing.Iterable[str]) -> str:
    """What to say of a key that is in no schema."""
    near = nearest(key, known) if isinstance(key, str) else None
    if near is not None:
        return f"unknown field; did you mean {near!r}?"
    return f"unknown field; known are {', '.join(sorted(known))}"


_PLAIN = frozenset((str, int, float, bool, type(None)))
# One for all: json.dumps makes a new one per call when its arguments are not the defaults.
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def canonical(value: Any) -> Any:
    """JSON-like data of a schema instance, without the fields that equal their default.

    Two manifests that mean the same have the same canonical form; and a field added to the schema
    later changes nobody's digest, so that an upgrade restarts no container. It is for comparing
    and no manifest: quantities are numbers in base units (`cpu: 500` is half a core).
    """
    if type(value) in _PLAIN:
        return value
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
    return hashlib.sha256(_encode(canonical(value)).encode()).hexdigest()
