"""The schema in words: what `edgectl explain workload.spec.template.containers` prints.

Called by edgectl alone. Pure text from the same dataclasses that the decoder reads, so that help
and validation cannot disagree.
"""

import dataclasses
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from polder.manifest.document import API_VERSION, DEFAULT_NAMESPACE, ManifestMetadata
from polder.manifest.kinds import KINDS, KindInfo, kind_named
from polder.manifest.schema import MAX_ITEMS, MAX_STRING, FieldInfo, FieldRule, fields_of
from polder.manifest.schema import number_text as number
from polder.manifest.text import nearest, shown

_WIDTH = 88
_SCALARS = {str: "text", int: "whole number", float: "number", bool: "true or false"}
_INDEX = re.compile(r"\[[0-9]*\]")


def explain(path: str, recursive: bool) -> str:
    """Help on a kind or on a field of one, such as `workload.spec.template` or `wl.template`.

    `spec.` may be left out, and indexes as in error messages are ignored. An empty path lists the
    kinds. `recursive` shows the fields of fields, without their descriptions. Raises ValueError
    that names the known kinds or fields.
    """
    if not path:
        return _kinds()
    word, *keys = _INDEX.sub("", path).split(".")
    kind = kind_named(word)
    if kind is None:
        known = ", ".join(info.name.lower() for info in KINDS.values())
        raise ValueError(f"{shown(word)} is not a kind; known are {known}")
    fields = _document_fields(kind)
    if keys and keys[0] not in fields and keys[0] in _fields_by_key(kind.spec_class):
        keys.insert(0, "spec")
    if not keys:
        intro = typing.cast(str, kind.spec_class.__doc__)
        return _page(_title(kind), _paragraph(intro, 0), fields, recursive)
    info = _find(kind.name.lower(), keys, fields)
    title = f"{_title(kind)}\nFIELD: {'.'.join(keys)} <{type_text(info)}>"
    about = [_paragraph(info.rule.doc, 0)]
    inner = _inner_class(info.type)
    if inner is not None and inner.__doc__ and inner.__doc__ != info.rule.doc:
        about.append(_paragraph(inner.__doc__, 0))
    about.extend(_paragraph(line, 0) for line in _limits(info))
    return _page(title, "\n".join(about), _fields_by_key(inner), recursive)


def type_text(info: FieldInfo) -> str:
    """A field's type: `text`, `list of Container`, `map of text to whole number`."""
    return _type_text(info.type, info.rule)


def _type_text(kind: Any, rule: FieldRule) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _type_text(next(a for a in arguments if a is not type(None)), rule)
    if origin is tuple:
        return f"list of {_type_text(arguments[0], rule)}"
    if origin is dict:
        return f"map of text to {_type_text(arguments[1], rule)}"
    return rule.shown_type or _SCALARS.get(kind) or str(kind.__name__)


def _document_fields(kind: KindInfo) -> dict[str, FieldInfo]:
    spec_required = any(info.required for info in fields_of(kind.spec_class))
    rows = (
        ("apiVersion", str, True, FieldRule("The version of the schema.", choices=(API_VERSION,))),
        ("kind", str, True, FieldRule("What the document describes.", choices=(kind.name,))),
        ("metadata", ManifestMetadata, True, FieldRule("What it is called.")),
        ("spec", kind.spec_class, spec_required, FieldRule("What is wanted.")),
    )
    return {key: FieldInfo(key, key, type_, need, rule, None) for key, type_, need, rule in rows}


def _inner_class(kind: Any) -> type | None:
    """The schema class of a field, of its list's items or of its map's values."""
    if typing.get_origin(kind) is not None:
        found = (_inner_class(argument) for argument in typing.get_args(kind))
        return next((cls for cls in found if cls is not None), None)
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def _fields_by_key(cls: type | None) -> dict[str, FieldInfo]:
    return {} if cls is None else {info.key: info for info in fields_of(cls)}


def _find(start: str, keys: list[str], fields: dict[str, FieldInfo]) -> FieldInfo:
    here = start
    for key in keys[:-1]:
        info = _one(here, key, fields)
        here, fields = f"{here}.{key}", _fields_by_key(_inner_class(info.type))
        if not fields:
            raise ValueError(f"{here} is {_article(type_text(info))}: it has no fields")
    return _one(here, keys[-1], fields)


def _one(here: str, key: str, fields: dict[str, FieldInfo]) -> FieldInfo:
    if key in fields:
        return fields[key]
    near = nearest(key, fields)
    hint = f"did you mean {near}?" if near else f"known are {', '.join(fields)}"
    raise ValueError(f"{here} has no field {shown(key)}; {hint}")


def _article(text: str) -> str:
    return text if text == _SCALARS[bool] else f"a {text}"


def _kinds() -> str:
    rows = [
        (
            info.name,
            ", ".join((info.plural, *info.short)),
            typing.cast(str, info.spec_class.__doc__).split(". ")[0].rstrip("."),
        )
        for info in KINDS.values()
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
    return "\n".join(["KINDS:", *lines])


def _title(kind: KindInfo) -> str:
    words = ", ".join((kind.plural, *kind.short))
    place = f"in a namespace, {DEFAULT_NAMESPACE} unless given" if kind.namespaced else "global"
    return f"KIND:  {kind.name} ({words}; {place})"


def _page(title: str, about: str, fields: dict[str, FieldInfo], recursive: bool) -> str:
    parts = [title, "", about]
    if fields:
        parts += ["", "FIELDS:"]
        parts += _tree(fields, 1) if recursive else _described(fields)
    return "\n".join(parts)


def _described(fields: dict[str, FieldInfo]) -> Iterator[str]:
    for info in fields.values():
        yield f"  {info.key} <{type_text(info)}>{' required' if info.required else ''}"
        yield _paragraph(" ".join((info.rule.doc, *_limits(info))), 6)


def _tree(fields: dict[str, FieldInfo], depth: int) -> Iterator[str]:
    for info in fields.values():
        needed = " required" if info.required else ""
        yield f"{'  ' * depth}{info.key} <{type_text(info)}>{needed}"
        yield from _tree(_fields_by_key(_inner_class(info.type)), depth + 1)


def _paragraph(text: str, indent: int) -> str:
    margin = " " * indent
    return textwrap.fill(
        " ".join(text.split()), _WIDTH, initial_indent=margin, subsequent_indent=margin
    )


def _limits(info: FieldInfo) -> Iterator[str]:
    """What the decoder checks, a sentence each."""
    rule = info.rule
    if rule.choices:
        yield f"One of {', '.join(choice for choice in rule.choices if choice)}."
    if rule.key_help:
        yield f"Keys: {rule.key_help}."
    if rule.pattern is not None:
        yield f"Must be {rule.pattern_help}{'' if rule.pattern_help.endswith('.') else '.'}"
    low = None if rule.minimum is None else number(rule.minimum, rule.unit)
    high = None if rule.maximum is None else number(rule.maximum, rule.unit)
    yield from _span("", low, high)
    least = str(rule.min_items) if rule.min_items else None
    most = str(rule.max_items) if rule.max_items != MAX_ITEMS else None
    yield from _span(" items", least, most)
    if rule.max_length != MAX_STRING:
        yield f"At most {rule.max_length} characters."
    if isinstance(info.default, bool):
        yield f"Default: {'true' if info.default else 'false'}."
    elif isinstance(info.default, int | float):
        yield f"Default: {number(info.default, rule.unit)}."
    elif isinstance(info.default, str) and info.default:
        yield f"Default: {info.default}."


def _span(of_what: str, low: str | None, high: str | None) -> Iterator[str]:
    if low is not None and high is not None:
        yield f"From {low} to {high}{of_what}."
    elif low is not None:
        yield f"At least {low}{of_what.rstrip('s') if low == '1' else of_what}."
    elif high is not None:
        yield f"At most {high}{of_what}."
