"""YAML to nodes that know their lines. Pure. Called by `edgectl.manifests`.

Built from libyaml's events rather than from PyYAML's composer, because a manifest may come from
anywhere: depth, size after expansion of aliases, and keys are checked while it is read.

Scalars follow the core schema of YAML 1.2, so that the country `NO` and the time `12:30` stay text
(YAML 1.1 makes them false and 750), while a number that JSON knows is a number.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_DEPTH = 64
MAX_NODES = 100_000  # after expansion of aliases
MAX_PROBLEMS = 50

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = ("", "~", "null", "Null", "NULL")
_TAG = "tag:yaml.org,2002:"
_MERGE = "<<"


@dataclass(frozen=True, slots=True)
class Problem:
    """`line` counts from 1; `path` is empty when no field can be named."""

    line: int
    path: str
    message: str


@dataclass(slots=True)
class Node:
    """A scalar (`value`), a sequence (`items`) or a mapping (`fields`: key -> (line, node))."""

    line: int
    value: Any = None
    items: list["Node"] | None = None
    fields: dict[str, tuple[int, "Node"]] | None = None
    size: int = 1
    height: int = 1
    closed: bool = True

    @property
    def is_empty(self) -> bool:
        return self.value is None and self.items is None and self.fields is None


class Unreadable(Exception):
    """Reading cannot go on after this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(slots=True)
class _Open:
    """A collection that is being read. `key` waits for its value in a mapping."""

    node: Node
    path: str
    key: tuple[int, str] | None = None
    merges: list[tuple[int, Node]] = field(default_factory=list)


def read_documents(text: str) -> tuple[list[Node], list[Problem]]:
    """All documents, and what is wrong with them. Reading stops at a syntax error."""
    reader = _Reader()
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            reader.feed(event)
    except Unreadable as error:
        reader.problems.append(error.problem)
    except yaml.YAMLError as error:
        reader.problems.append(_syntax_problem(error, text))
    return reader.documents, reader.problems[:MAX_PROBLEMS]


def plain(node: Node) -> Any:
    """The node as JSON-like data."""
    if node.fields is not None:
        return {key: plain(child) for key, (_, child) in node.fields.items()}
    if node.items is not None:
        return [plain(child) for child in node.items]
    return node.value


def line_of(node: Node, path: str) -> int:
    """The line of a path such as `spec.containers[0].image`, or of its nearest ancestor."""
    line, rest = node.line, path
    while rest and rest != ".":
        step = _step(node, rest)
        if step is None:
            break
        line, node, rest = step
    return line


def _step(node: Node, rest: str) -> tuple[int, Node, str] | None:
    if node.items is not None:
        match = re.match(r"\[(\d+)\]\.?", rest)
        if match is None or int(match.group(1)) >= len(node.items):
            return None
        child = node.items[int(match.group(1))]
        return child.line, child, rest[match.end() :]
    # A key may itself contain dots, as labels do: the longest that fits is meant.
    for key in sorted(node.fields or (), key=len, reverse=True):
        if rest.startswith(key) and rest[len(key) : len(key) + 1] in ("", ".", "["):
            line, child = (node.fields or {})[key]
            return line, child, rest[len(key) :].removeprefix(".")
    return None


class _Reader:
    """Turns events into nodes without recursion, so that depth costs no stack."""

    def __init__(self) -> None:
        self.documents: list[Node] = []
        self.problems: list[Problem] = []
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._size = 0
        self._begin = 1

    def feed(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._place(self._scalar(event), event)
        elif isinstance(event, yaml.AliasEvent):
            self._place(self._aliased(event), event)
        elif isinstance(event, yaml.MappingStartEvent):
            self._open(event, Node(_line(event), fields={}, closed=False))
        elif isinstance(event, yaml.SequenceStartEvent):
            self._open(event, Node(_line(event), items=[], closed=False))
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._close()
        elif isinstance(event, yaml.DocumentStartEvent):
            self._anchors, self._size, self._begin = {}, 0, _line(event)

    def _open(self, event: Any, node: Node) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and top.node.fields is not None and top.key is None:
            raise Unreadable(Problem(_line(event), top.path, "a key must be text"))
        if len(self._stack) >= MAX_DEPTH:
            text = f"is nested more than {MAX_DEPTH} levels deep"
            raise Unreadable(Problem(_line(event), self._path_here(), text))
        expected = _TAG + ("map" if node.fields is not None else "seq")
        if event.tag not in (None, "!", expected):
            self._problem(event, self._path_here(), f"the tag {event.tag!r} is not supported")
        if event.anchor:
            self._anchors[event.anchor] = node
        self._count(event, 1)
        self._stack.append(_Open(node, self._path_here()))

    def _close(self) -> None:
        done = self._stack.pop()
        for line, source in done.merges:
            self._merge(done, line, source)
        done.node.closed = True
        self._attach(done.node)

    def _place(self, node: Node, event: Any) -> None:
        top = self._stack[-1] if self._stack else None
        if top is None or top.node.fields is None or top.key is not None:
            self._attach(node)
            return
        if (
            node.items is not None
            or node.fields is not None
            or not isinstance(event, yaml.ScalarEvent)
        ):
            raise Unreadable(Problem(_line(event), top.path, "a key must be text"))
        key = event.value
        if not key:
            self._problem(event, top.path, "a key must be text, not empty")
        top.key = (_line(event), key)

    def _attach(self, node: Node) -> None:
        if not self._stack:
            self.documents.append(node)
            return
        top = self._stack[-1]
        parent = top.node
        if parent.items is not None:
            parent.items.append(node)
        elif parent.fields is not None:
            assert top.key is not None
            (line, key), top.key = top.key, None
            if key == _MERGE:
                top.merges.append((line, node))
            elif key in parent.fields:
                first = parent.fields[key][0]
                text = f"is given twice (first in line {first})"
                self.problems.append(Problem(line, _join(top.path, key), text))
            else:
                parent.fields[key] = (line, node)
        parent.size += node.size
        parent.height = max(parent.height, node.height + 1)

    def _merge(self, target: _Open, line: int, source: Node) -> None:
        """`<<`: keys that are given win over merged ones (yaml.org/type/merge.html)."""
        for mapping in source.items if source.items is not None else [source]:
            if mapping.fields is None or target.node.fields is None:
                text = "a merge (<<) needs a mapping or a list of mappings"
                self.problems.append(Problem(line, target.path, text))
                return
            for key, value in mapping.fields.items():
                target.node.fields.setdefault(key, value)

    def _aliased(self, event: yaml.AliasEvent) -> Node:
        name = str(event.anchor)
        node = self._anchors.get(name)
        if node is None:
            text = f"the alias *{name} has no anchor &{name} before it"
            raise Unreadable(Problem(_line(event), self._path_here(), text))
        if not node.closed:
            text = f"the alias *{name} is inside of what it stands for"
            raise Unreadable(Problem(_line(event), self._path_here(), text))
        if node.height + len(self._stack) > MAX_DEPTH:
            text = f"is nested more than {MAX_DEPTH} levels deep through aliases"
            raise Unreadable(Problem(_line(event), self._path_here(), text))
        self._count(event, node.size)
        return node

    def _count(self, event: yaml.Event, added: int) -> None:
        self._size += added
        if self._size > MAX_NODES:
            how = "its aliases expand to" if isinstance(event, yaml.AliasEvent) else "it has"
            text = f"the document is too large: {how} more than {MAX_NODES} values"
            raise Unreadable(Problem(_line(event), self._path_here(), text))

    def _scalar(self, event: yaml.ScalarEvent) -> Node:
        self._count(event, 1)
        node = Node(_line(event) if event.value or self._stack else self._begin)
        if event.anchor:
            self._anchors[event.anchor] = node
        is_key = bool(self._stack) and self._expects_key(self._stack[-1])
        try:
            node.value = str(event.value) if is_key else _value(event)
        except ValueError as error:
            self._problem(event, self._path_here(), str(error))
        return node

    @staticmethod
    def _expects_key(top: _Open) -> bool:
        return top.node.fields is not None and top.key is None

    def _path_here(self) -> str:
        """The path of the value that comes next."""
        if not self._stack:
            return ""
        top = self._stack[-1]
        if top.node.items is not None:
            return f"{top.path}[{len(top.node.items)}]"
        return _join(top.path, top.key[1]) if top.key is not None else top.path

    def _problem(self, event: yaml.Event, path: str, message: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(_line(event), path, message))


def _value(event: Any) -> Any:
    """The scalar's value. Raises ValueError for what JSON cannot say."""
    text, tag = str(event.value), event.tag
    if tag == "!" or (tag is None and event.style):  # quoted or a block
        return text
    if tag is None:
        return _untagged(text)
    if tag == _TAG + "str":
        return text
    wanted = {"int": int, "float": float, "bool": bool, "null": type(None)}
    kind = wanted.get(str(tag).removeprefix(_TAG))
    if kind is None:
        raise ValueError(f"the tag {tag!r} is not supported")
    value = _untagged(text)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{text[:40]!r} does not fit its tag {tag!r}")
    return value


def _untagged(text: str) -> Any:
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if len(text) > 400:  # no number that means anything
        return text
    if _INT.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text[:40]!r} is too large for a number")
        return number
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text!r} is not a finite number; as text it needs quotes")
    return text


def _syntax_problem(error: yaml.YAMLError, text: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        position = int(getattr(error, "position", 0) or 0)
        line = text.count("\n", 0, position) + 1
        character = getattr(error, "character", None)
        shown = f"U+{character:04X}" if isinstance(character, int) else repr(character)
        return Problem(line, "", f"the character {shown} is not allowed in YAML")
    line = mark.line + 1
    lines = text.splitlines()
    content = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in content[: mark.column + 1]:
        return Problem(line, "", "a tab is used for indentation; YAML wants spaces")
    context = getattr(error, "context", "") or ""
    problem = getattr(error, "problem", "") or "syntax error"
    return Problem(line, "", f"not YAML: {problem}{f' ({context})' if context else ''}")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
