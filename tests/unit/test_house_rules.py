"""Style rules that matter, as tests (shared habits: make the architecture executable)."""

import ast
import re
from pathlib import Path

import pytest

from polder.v1 import agent_pb2, common_pb2, operator_pb2, plan_pb2

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "polder",
    "agent",
    "orchestrator",
    "edgectl",
    "devcluster",
    "quickstart",
    "bench",
    "images",
    "releasing",
)
MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
ENTRY_POINT_PRINTERS = ("edgectl", "quickstart", "bench", "devcluster")


def sources() -> list[Path]:
    found = [
        path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if "v1" not in path.parts and "pb" not in path.parts
    ]
    assert len(found) > 20, "the rules are looking in the wrong place"
    return found


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_module_says_who_calls_it_and_why(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if tree.body:  # an empty __init__.py needs none
        docstring = ast.get_docstring(tree)
        assert docstring, "a module starts with a docstring"
        assert docstring.split("\n")[0].endswith((".", ":", "?")), "its first line is a sentence"


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MODULE_LINES_MAX, "a module holds one idea"
    for item in ast.walk(ast.parse(text)):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            assert item.end_lineno is not None
            length = item.end_lineno - item.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{item.name} has {length} lines: split it"


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_nothing_is_left_to_do(path: Path) -> None:
    words = re.findall(r"\b(?:TODO|FIXME|XXX|HACK|NotImplementedError)\b", path.read_text())
    assert not words


def test_pure_code_takes_now_as_an_argument() -> None:
    """import-linter forbids `time` there; `datetime.now()` would slip through."""
    for folder in ("polder", "agent/domain", "orchestrator/domain", "orchestrator/scheduling"):
        for path in (ROOT / folder).rglob("*.py"):
            found = re.search(r"\b(?:datetime|date)\.(?:now|today|utcnow)\(", path.read_text())
            assert not found, relative(path)


def test_every_package_has_its_paragraph_in_the_architecture() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    for package in sorted({path.parent for path in sources()}):
        if (package / "__init__.py").exists():
            assert f"`{relative(package)}/`" in text, f"no paragraph on {relative(package)}/"


def test_adr_are_one_page_and_numbered() -> None:
    pages = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert pages
    for number, page in enumerate(pages, start=1):
        assert page.name.startswith(f"{number:04d}-"), page.name
        text = page.read_text()
        assert text.count("\n") <= 60
        for part in ("## Context", "## Decision", "## Consequences"):
            assert part in text, f"{page.name} lacks {part}"


PROTO_FILES = (agent_pb2, common_pb2, operator_pb2, plan_pb2)


@pytest.mark.parametrize("module", PROTO_FILES, ids=lambda module: str(module.DESCRIPTOR.name))
def test_protos_follow_buf_style(module: object) -> None:
    """The rules of Buf's STANDARD lint category that matter to readers and to compatibility."""
    file = module.DESCRIPTOR  # type: ignore[attr-defined]
    assert file.package == "polder.v1"
    assert file.name.startswith("polder/v1/")
    for service in file.services_by_name.values():
        assert service.name.endswith("Service")
        for method in service.methods:
            assert method.input_type.name == f"{method.name}Request"
            assert method.output_type.name == f"{method.name}Response"
    for enum in file.enum_types_by_name.values():
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
        assert enum.values[0].name == f"{prefix}_UNSPECIFIED"
        assert all(value.name.startswith(prefix + "_") for value in enum.values)
    for message in file.message_types_by_name.values():
        assert re.fullmatch(r"([A-Z][a-z0-9]*)+", message.name.replace("AmI", "Ami"))
        for field in message.fields:
            assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", field.name), field.full_name
