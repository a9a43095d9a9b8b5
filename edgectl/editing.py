"""The text that `edgectl edit` opens: comments above a manifest, and what came back. Pure.

The comments are thrown away when the text is read again; lines of problems count from the top of
the file as it is opened next, comments included.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edgectl.manifests import Document, check_text
from edgectl.resources import Item
from edgectl.text import clock, safe
from edgectl.yaml_nodes import Problem, line_of

MARK = "#"
PROBLEMS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Edited:
    """What an operator saved. `document` is None when `problems` say why."""

    document: Document | None
    problems: tuple[Problem, ...] = ()


def heading(item: Item) -> list[str]:
    """Above every text: what it is, and what saving does."""
    metadata = item.resource.metadata
    where = f" in namespace {item.namespace}" if item.namespace else ""
    lines = [f"{item.label}{where}, generation {metadata.generation}"]
    if metadata.changed_by:
        at = clock(metadata.changed_at_ms, item.now_ms)
        lines.append(f"last changed by {metadata.changed_by} at {at}")
    lines += [
        "Save and close to apply it. Without a change, or with nothing left, nothing happens.",
        "These first lines with a # are left out.",
    ]
    return lines


def with_comments(comments: Sequence[str], body: str) -> str:
    """One comment line each; a line of its own that ends them."""
    shown = [f"{MARK} {safe(line)}".rstrip() for line in comments]
    return "\n".join([*shown, MARK, body])


def without_comments(text: str) -> str:
    """The text from its first line that is no comment."""
    lines = text.splitlines(keepends=True)
    start = next((i for i, line in enumerate(lines) if not line.startswith(MARK)), len(lines))
    return "".join(lines[start:])


def with_problems(comments: Sequence[str], problems: Sequence[Problem], body: str) -> str:
    """The body again, with what is wrong on top; lines as this text has them."""
    shown = list(problems[:PROBLEMS_SHOWN])
    more = len(problems) - len(shown)
    rest = [f"and {more} more"] if more > 0 else []
    above = len(comments) + 1 + len(shown) + len(rest) + 2  # the title and the marks
    title = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}; nothing was applied:"
    lines = [_told(problem, above) for problem in shown]
    return with_comments([*comments, "", title, *(f"  {line}" for line in [*lines, *rest])], body)


def _told(problem: Problem, above: int) -> str:
    place = f"{problem.path}: " if problem.path else ""
    return f"line {problem.line + above}: {place}{problem.message}"


def checked(body: str, item: Item) -> Edited:
    """Raises nothing: everything that is wrong is a problem with its line of the body."""
    file = check_text(item.label, body.encode(), item.namespace or "default")
    if file.problems:
        return Edited(None, tuple(file.problems))
    if len(file.documents) != 1:
        text = f"has {len(file.documents)} documents; edit one resource at a time"
        return Edited(None, (Problem(1, "", text),))
    document = file.documents[0]
    found = tuple(_objections(document, item))
    return Edited(None if found else document, found)


def _objections(document: Document, item: Item) -> list[Problem]:
    wanted = (
        ("kind", document.kind, item.kind),
        ("metadata.name", document.name, item.name),
        ("metadata.namespace", document.namespace, item.namespace),
    )
    return [
        Problem(line_of(document.node, path), path, f"cannot change: it is {was!r}")
        for path, now, was in wanted
        if now != was
    ]


def from_server(
    violations: Sequence[tuple[int, str, str]], document: Document
) -> tuple[Problem, ...]:
    """The server's violations with lines of the body."""
    return tuple(
        Problem(line_of(document.node, path), path, message) for _, path, message in violations
    )
