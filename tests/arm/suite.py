"""Which tests are the agent's: those that need the agent's package and nothing else of ours.

Found by what test files import, directly or by their helpers, so that a new test belongs to it
without being listed anywhere. What needs an orchestrator or edgectl is not the box's business; what
needs containers or namespaces the tests leave out themselves (`tests/conftest.py`).
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

FOLDERS = ("tests/unit", "tests/integration", "tests/sim")
OURS = ("tests", "devcluster", "bench")
"""Packages whose modules are followed."""
NEEDED = "agent"
FOREIGN = ("orchestrator", "edgectl", "quickstart", "images", "devcluster.debian_root")
"""The last: what installs packages does so on this machine."""


def agent_tests(root: Path) -> list[str]:
    """Paths relative to `root`, in order."""
    known: dict[str, frozenset[str]] = {}
    found = []
    for folder in FOLDERS:
        for file in sorted((root / folder).glob("test_*.py")):
            used = used_by(root, ".".join(file.relative_to(root).with_suffix("").parts), known)
            if NEEDED in used and not used.intersection(FOREIGN):
                found.append(str(file.relative_to(root)))
    return found


def used_by(root: Path, module: str, known: dict[str, frozenset[str]]) -> frozenset[str]:
    """Packages that it imports, and modules of OURS: it, or one of those modules. What is found is
    kept in `known`."""
    if module in known:
        return known[module]
    known[module] = frozenset()  # modules that import each other end here
    found: set[str] = set()
    for name in _imports(_file(root, module).read_text()):
        top = name.partition(".")[0]
        if top not in OURS:
            found.add(top)
        elif _file(root, name).exists():
            found |= {name, *used_by(root, name, known)}
    known[module] = frozenset(found)
    return known[module]


def _file(root: Path, module: str) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports(source: str) -> Iterator[str]:
    """Modules, and names that may be modules of a package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from _members(node.module, node.names)


def _members(module: str, names: Iterable[ast.alias]) -> Iterator[str]:
    if module.partition(".")[0] in OURS:
        yield from (f"{module}.{item.name}" for item in names)
