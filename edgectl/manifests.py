"""Manifests from files, directories and standard input, checked before anything is sent.

Called by apply, diff and delete. Every violation names file, line and path. The server checks again
and its violations are mapped back to lines here.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgectl import yaml_nodes
from edgectl.errors import CliError, InvalidFiles
from edgectl.yaml_nodes import Node, Problem
from polder.manifest import InvalidManifest, Manifest, decode_document

MAX_FILE_BYTES = 1 << 20
MAX_FILES = 10_000
SUFFIXES = (".yaml", ".yml", ".json")
STDIN = "-"
_KIND_ORDER = ("Provider", "Site", "Namespace", "Secret", "Config", "Workload")


@dataclass(frozen=True, slots=True)
class Document:
    """One manifest of a file. `raw` is what is sent: its namespace is filled in, no status."""

    kind: str
    namespace: str
    name: str
    raw: dict[str, Any]
    node: Node

    @property
    def label(self) -> str:
        return f"{self.kind.lower()}/{self.name}"

    def encoded(self) -> bytes:
        return json.dumps(self.raw, separators=(",", ":")).encode()


@dataclass(slots=True)
class ManifestFile:
    """`documents` are in the order in which they are applied."""

    name: str
    documents: list[Document] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [self.shown(problem) for problem in self.problems]

    def shown(self, problem: Problem) -> str:
        place = f"{problem.path}: " if problem.path else ""
        return f"{self.name}:{problem.line}: {place}{problem.message}"

    def from_server(self, violations: Sequence[tuple[int, str, str]]) -> list[str]:
        """The server's violations (document, path, message) as lines of this file."""
        lines = []
        for index, path, message in violations:
            if not 0 <= index < len(self.documents):
                lines.append(f"{self.name}: {path}: {message}")
                continue
            line = yaml_nodes.line_of(self.documents[index].node, path)
            lines.append(self.shown(Problem(line, path, message)))
        return lines


def load_all(
    names: Sequence[str], *, recursive: bool, default_namespace: str, only_namespace: str = ""
) -> list[ManifestFile]:
    """Every file that the arguments name. Raises InvalidFiles if anything in any of them is wrong.

    `only_namespace` is what -n says: a document of another namespace is then refused.
    """
    files = []
    for name in names:
        for path in _expand(name, recursive):
            files.append(_load(path, default_namespace, only_namespace))
            if len(files) > MAX_FILES:
                raise CliError(f"more than {MAX_FILES} files")
    lines = [line for file in files for line in file.lines()]
    if lines:
        bad = sum(1 for file in files if file.problems)
        what = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
        where = "the file" if len(files) == 1 else f"{bad} of {len(files)} files"
        raise InvalidFiles(f"{what} in {where}; nothing was changed", lines)
    return files


def check_text(
    name: str, raw: bytes, default_namespace: str, only_namespace: str = ""
) -> ManifestFile:
    """One file's content, read and checked; what is wrong is in `problems`."""
    file = ManifestFile(name)
    text = _text(raw, file)
    if text is None:
        return file
    nodes, problems = yaml_nodes.read_documents(text)
    file.problems.extend(problems or _empty_documents(nodes))
    seen: dict[tuple[str, str, str], int] = {}
    for node in nodes:
        for item in _list_items(node):
            _check_document(file, item, default_namespace, only_namespace, seen)
    file.problems.sort(key=lambda problem: problem.line)
    del file.problems[yaml_nodes.MAX_PROBLEMS :]
    file.documents.sort(key=_order)
    return file


def _check_document(
    file: ManifestFile,
    node: Node,
    default_namespace: str,
    only_namespace: str,
    seen: dict[tuple[str, str, str], int],
) -> None:
    if node.is_empty:
        return
    raw = yaml_nodes.plain(node)
    try:
        manifest = decode_document(raw, default_namespace=default_namespace)
    except InvalidManifest as error:
        for violation in error.violations:
            line = yaml_nodes.line_of(node, violation.path)
            file.problems.append(Problem(line, violation.path, violation.message))
        return
    for path, message in _objections(manifest, only_namespace):
        file.problems.append(Problem(yaml_nodes.line_of(node, path), path, message))
    document = _document(manifest, node)
    first = seen.setdefault(manifest.ref, node.line)
    if first != node.line:
        line = yaml_nodes.line_of(node, "metadata.name")
        message = f"{document.label} is already in this file, in the document of line {first}"
        file.problems.append(Problem(line, "metadata.name", message))
    file.documents.append(document)


def _objections(manifest: Manifest, only_namespace: str) -> Iterator[tuple[str, str]]:
    if not manifest.info.editable:
        yield "kind", f"a {manifest.kind} is read-only and cannot be applied"
    namespace = manifest.metadata.namespace
    if only_namespace and namespace and namespace != only_namespace:
        yield "metadata.namespace", f"is {namespace!r}, but -n says {only_namespace!r}"


def _document(manifest: Manifest, node: Node) -> Document:
    metadata: dict[str, Any] = {"name": manifest.metadata.name}
    if manifest.metadata.namespace:
        metadata["namespace"] = manifest.metadata.namespace
    if manifest.metadata.labels:
        metadata["labels"] = manifest.metadata.labels
    if manifest.metadata.annotations:
        metadata["annotations"] = manifest.metadata.annotations
    whole = yaml_nodes.plain(node)
    raw = {
        "apiVersion": whole["apiVersion"],
        "kind": manifest.kind,
        "metadata": metadata,
        "spec": manifest.raw_spec,
    }
    return Document(manifest.kind, manifest.metadata.namespace, manifest.metadata.name, raw, node)


def references(file: ManifestFile) -> list[tuple[str, str, str]]:
    """(kind, namespace, name) of each document."""
    return [(document.kind, document.namespace, document.name) for document in file.documents]


def _order(document: Document) -> int:
    if document.kind in _KIND_ORDER:
        return _KIND_ORDER.index(document.kind)
    return len(_KIND_ORDER)


def _text(raw: bytes, file: ManifestFile) -> str | None:
    if len(raw) > MAX_FILE_BYTES:
        text = f"the file is larger than {MAX_FILE_BYTES >> 20} MiB; split it"
        file.problems.append(Problem(1, "", text))
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = raw[error.start]
        text = f"not valid UTF-8 at byte offset {error.start} (0x{byte:02x})"
        file.problems.append(Problem(line, "", text))
        return None


def _empty_documents(nodes: list[Node]) -> Iterator[Problem]:
    """An empty document often is a template that went wrong. A `---` at the end is harmless."""
    if not any(not node.is_empty for node in nodes):
        line = nodes[0].line if nodes else 1
        yield Problem(line, "", "the document is empty: there is no manifest in the file")
        return
    for node in nodes[:-1]:
        if node.is_empty:
            yield Problem(node.line, "", "the document is empty")


def _list_items(node: Node) -> list[Node]:
    """`kind: List`, as `get -o yaml` prints it, stands for its items."""
    fields = node.fields or {}
    if "kind" in fields and fields["kind"][1].value == "List" and "items" in fields:
        return fields["items"][1].items or []
    return [node]


def _expand(name: str, recursive: bool) -> list[str]:
    path = Path(name)
    if name == STDIN or not path.is_dir():
        return [name]
    pattern = "**/*" if recursive else "*"
    found = sorted(
        str(item) for item in path.glob(pattern) if item.suffix in SUFFIXES and item.is_file()
    )
    if not found:
        hint = "" if recursive else "-R also looks into its directories"
        raise CliError(f"{name}: no {', '.join('*' + s for s in SUFFIXES)} in this directory", hint)
    return found


def _load(name: str, default_namespace: str, only_namespace: str) -> ManifestFile:
    if name == STDIN:
        raw = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        return check_text("<stdin>", raw, default_namespace, only_namespace)
    try:
        with Path(name).open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CliError(f"{name}: {error.strerror}") from error
    return check_text(name, raw, default_namespace, only_namespace)


def load_references(
    names: Sequence[str], *, recursive: bool, default_namespace: str
) -> list[tuple[str, str, str]]:
    """(kind, namespace, name) of what the files describe.

    In the order in which it is deleted: what was applied last goes first. Raises InvalidFiles.
    """
    found: list[tuple[str, str, str]] = []
    lines: list[str] = []
    for name in names:
        for path in _expand(name, recursive):
            file = _load(path, default_namespace, "")
            if file.problems:
                lines.extend(file.lines())
            found.extend(references(file))
    if lines:
        raise InvalidFiles("nothing was deleted", lines)
    return list(dict.fromkeys(reversed(found)))
