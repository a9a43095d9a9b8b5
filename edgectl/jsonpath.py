r"""The JSONPath templates of kubectl: `{.items[*].metadata.name}`, `{range ...}...{end}`. Pure.

Supported inside braces: `.key`, `['key']`, `\.` in a key, `[n]`, `[a:b]`, `[*]`, `[0,2]`,
`..key`, `[?(@.a == "b")]` with == != < <= > >= or a bare path, `"text"`, `range` and `end`.
A path that finds nothing prints nothing, as kubectl does.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from edgectl.errors import UsageError

MAX_TEMPLATE = 10_000

_Step = Callable[[Any], Iterator[Any]]
_NAME = re.compile(r"(?:[^\s.\[\]{}'\"()\\,?@=<>!|]|\\.)+")
_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"' r"|'(?:[^'\\]|\\.)*'")
_INDEX = re.compile(r"-?\d+")
_SLICE = re.compile(r"(-?\d*):(-?\d*)")
_COMPARISON = re.compile(r"(.*?)\s*(==|!=|<=|>=|<|>)\s*(.*)")


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Path:
    steps: tuple[_Step, ...]


@dataclass(frozen=True, slots=True)
class _Range:
    over: _Path
    body: tuple["_Part", ...]


_Part = _Text | _Path | _Range


class Template:
    """A parsed template. Raises UsageError if it cannot be read."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE:
            raise UsageError(f"the template is longer than {MAX_TEMPLATE} characters")
        braced = source if "{" in source else "{" + (source if source[:1] in ".[@$" else
                                                     "." + source) + "}"  # fmt: skip
        self._parts = _parse(braced)

    def render(self, data: Any) -> str:
        """The text that kubectl would print: several values of a path are separated by a space."""
        return "".join(_rendered(self._parts, data))

    def values(self, data: Any) -> list[Any]:
        """What the template's only path finds. Raises UsageError for other templates."""
        if len(self._parts) != 1 or not isinstance(self._parts[0], _Path):
            raise UsageError("expected a single path such as {.status.phase}")
        return _find(self._parts[0], data)


def _rendered(parts: tuple[_Part, ...], data: Any) -> Iterator[str]:
    for part in parts:
        if isinstance(part, _Text):
            yield part.text
        elif isinstance(part, _Path):
            yield " ".join(_shown(value) for value in _find(part, data))
        else:
            for item in _find(part.over, data):
                yield from _rendered(part.body, item)


def _find(path: _Path, data: Any) -> list[Any]:
    found = [data]
    for step in path.steps:
        found = [result for value in found for result in step(value)]
    return found


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _parse(source: str) -> tuple[_Part, ...]:
    stack: list[tuple[_Path | None, list[_Part]]] = [(None, [])]
    for kind, text in _pieces(source):
        parts = stack[-1][1]
        if kind == "text":
            parts.append(_Text(text))
        elif text == "end":
            over, body = stack.pop()
            if over is None:
                raise UsageError("jsonpath: {end} without {range}")
            stack[-1][1].append(_Range(over, tuple(body)))
        elif match := re.fullmatch(r"range\s+(.+)", text, re.DOTALL):
            stack.append((_Path(tuple(_steps(match.group(1).strip()))), []))
        elif _LITERAL.fullmatch(text):
            parts.append(_Text(_unquoted(text)))
        else:
            parts.append(_Path(tuple(_steps(text))))
    if len(stack) > 1:
        raise UsageError("jsonpath: {range} without {end}")
    return tuple(stack[0][1])


def _pieces(source: str) -> Iterator[tuple[str, str]]:
    """Text outside of braces, and what is inside of each pair."""
    at = 0
    while at < len(source):
        start = source.find("{", at)
        if start < 0:
            yield "text", source[at:]
            return
        if start > at:
            yield "text", source[at:start]
        end = _closing(source, start + 1, "}")
        yield "code", source[start + 1 : end].strip()
        at = end + 1


def _closing(source: str, at: int, closer: str) -> int:
    """The closing character's place, past quoted text. Raises UsageError."""
    while at < len(source):
        match = _LITERAL.match(source, at)
        if match is not None:
            at = match.end()
        elif source[at] == closer:
            return at
        else:
            at += 1
    raise UsageError(f"jsonpath: {source[:60]!r} lacks a {closer!r}")


def _steps(path: str) -> Iterator[_Step]:
    at = 1 if path[:1] in ("$", "@") else 0
    while at < len(path):
        if path.startswith("..", at):
            match = _NAME.match(path, at + 2)
            if match is None:
                raise UsageError(f"jsonpath: {path!r}: '..' needs a key")
            yield _descend(_unescaped(match.group()))
            at = match.end()
        elif path[at] == ".":
            match = _NAME.match(path, at + 1)
            if match is None:
                if at == len(path) - 1:
                    return  # `{.}` is the whole
                if path[at + 1] == "[":
                    at += 1
                    continue
                raise UsageError(f"jsonpath: {path!r} cannot be read at {path[at:]!r}")
            yield _every if match.group() == "*" else _key(_unescaped(match.group()))
            at = match.end()
        elif path[at] == "[":
            end = _closing(path, at + 1, "]")
            yield _bracket(path[at + 1 : end].strip(), path)
            at = end + 1
        else:
            raise UsageError(
                f"jsonpath: {path!r} cannot be read at {path[at:]!r}",
                "a path starts with a dot, as in {.metadata.name}",
            )


def _bracket(inside: str, path: str) -> _Step:
    if inside == "*":
        return _every
    if inside.startswith("?(") and inside.endswith(")"):
        return _filter(inside[2:-1].strip())
    if match := _SLICE.fullmatch(inside):
        start, end = (int(text) if text else None for text in match.groups())
        return _index_slice(slice(start, end))
    steps = []
    for choice in re.split(r"\s*,\s*", inside):
        if _INDEX.fullmatch(choice):
            steps.append(_index(int(choice)))
        elif _LITERAL.fullmatch(choice):
            steps.append(_key(_unquoted(choice)))
        else:
            raise UsageError(f"jsonpath: {path!r}: [{inside}] cannot be read")
    return lambda value: (found for step in steps for found in step(value))


def _filter(condition: str) -> _Step:
    match = _COMPARISON.fullmatch(condition)
    left = _Path(tuple(_steps((match.group(1) if match else condition).strip())))
    if match is None:
        return lambda value: (item for item in _every(value) if _find(left, item))
    compare, wanted = _COMPARE[match.group(2)], _literal(match.group(3))

    def keep(item: Any) -> bool:
        try:
            return any(compare(found, wanted) for found in _find(left, item))
        except TypeError:
            return False

    return lambda value: (item for item in _every(value) if keep(item))


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: bool(a == b),
    "!=": lambda a, b: bool(a != b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}


def _literal(text: str) -> Any:
    if _LITERAL.fullmatch(text):
        return _unquoted(text)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise UsageError(f"jsonpath: {text!r} is neither quoted text nor a number") from None


def _key(name: str) -> _Step:
    return lambda value: iter([value[name]] if isinstance(value, dict) and name in value else [])


def _index(at: int) -> _Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list) and -len(value) <= at < len(value):
            yield value[at]

    return step


def _index_slice(part: slice) -> _Step:
    return lambda value: iter(value[part] if isinstance(value, list) else [])


def _every(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()


def _descend(name: str) -> _Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, dict) and name in value:
            yield value[name]
        for child in _every(value):
            yield from step(child)

    return step


def _unescaped(name: str) -> str:
    return re.sub(r"\\(.)", r"\1", name)


def _unquoted(literal: str) -> str:
    escapes = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"\\(.)", lambda m: escapes.get(m.group(1), m.group(1)), literal[1:-1])
