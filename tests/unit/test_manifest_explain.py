"""`explain`: every field can be found, and mistakes are answered with what there is."""

from collections.abc import Iterator

import pytest

from polder.manifest import KINDS
from polder.manifest.explain import _document_fields, _fields_by_key, _inner_class, explain
from polder.manifest.schema import FieldInfo


def every_path(start: str, fields: dict[str, FieldInfo]) -> Iterator[tuple[str, FieldInfo]]:
    for key, info in fields.items():
        yield f"{start}.{key}", info
        yield from every_path(f"{start}.{key}", _fields_by_key(_inner_class(info.type)))


PATHS = [pair for kind in KINDS.values() for pair in every_path(kind.name, _document_fields(kind))]


@pytest.mark.parametrize(("path", "info"), PATHS, ids=[path for path, _ in PATHS])
def test_every_field_is_explained(path: str, info: FieldInfo) -> None:
    text = explain(path, recursive=False)
    assert info.rule.doc, "a field without a sentence"
    assert " ".join(info.rule.doc.split()) in " ".join(text.split())
    assert all(len(line) <= 120 for line in text.splitlines())
    for key in _fields_by_key(_inner_class(info.type)):
        assert f"\n  {key} <" in text
        assert f"\n  {key} <" in explain(path, recursive=True)


def test_types_limits_and_defaults() -> None:
    containers = explain("workload.spec.template.containers", False)
    assert "FIELD: spec.template.containers <list of Container>" in containers
    assert "From 1 to 16 items." in containers
    assert "  image <text> required\n" in containers
    assert "One of IfNotPresent, Always, Never. Default: IfNotPresent." in containers
    devices = explain("workload.spec.template.containers.resources.devices", False)
    assert "<map of text to whole number>" in devices
    assert "From 1 to 1024.\n" in devices
    assert "At most 16 items." in devices
    assert "Default: 10s." in explain("workload.spec.template.stopGrace", False)
    assert "Default: false." in explain("node.spec.draining", False)
    assert "<quantity such as 256Mi>" in explain("wl.template.containers.resources.memory", False)
    assert "<country code such as NL>" in explain("site.country", False)


def test_short_and_pasted_paths() -> None:
    whole = explain("workload.spec.template.containers.env.secret", False)
    assert explain("wl.template.containers[0].env[12].secret", False) == whole
    assert explain("Workloads.spec.template.containers.env.secret", False) == whole


def test_recursive_shows_the_tree() -> None:
    text = explain("workload", True)
    assert "\n      containers <list of Container> required\n" in text
    assert "\n          port <port name or number> required\n" not in explain("workload", False)


def test_no_path_lists_the_kinds() -> None:
    text = explain("", False)
    assert all(f"\n  {name} " in text for name in KINDS)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("pod", "'pod' is not a kind; known are provider, site, node"),
        ("workload.spec.tmplate", "workload.spec has no field 'tmplate'; did you mean template?"),
        ("workload.spec.x", "workload.spec has no field 'x'; known are template, replicas"),
        ("workload.template.x", "workload.spec.template has no field 'x'; known are containers"),
        ("workload.", "workload has no field ''; known are apiVersion, kind, metadata, spec"),
        ("wl.metadata.labels.app", "workload.metadata.labels is a map of text to text: it has no"),
        ("wl.priority.x.y", "workload.spec.priority is a whole number: it has no fields"),
        ("node.draining.x", "node.spec.draining is true or false: it has no fields"),
        ("." * 1000, "'' is not a kind"),
    ],
)
def test_unknown_paths(path: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        explain(path, False)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 300
