"""Every bad input names file, line and path, and leaves nothing to apply."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgectl import manifests, yaml_nodes
from edgectl.errors import CliError, InvalidFiles
from edgectl.manifests import ManifestFile, check_text, load_all, load_references

GOOD = """\
apiVersion: polder.eu/v1
kind: Workload
metadata: {name: hello}
spec:
  template:
    containers:
      - name: web
        image: polder.local/hello:1
        resources: {cpu: 50m, memory: 32Mi}
"""
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n"
    for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


def checked(text: str | bytes, namespace: str = "default", only: str = "") -> ManifestFile:
    raw = text.encode() if isinstance(text, str) else text
    return check_text("f.yaml", raw, namespace, only)


def lines(text: str | bytes) -> list[str]:
    return checked(text).lines()


def test_good_manifest_is_complete() -> None:
    file = checked(GOOD)
    assert file.lines() == []
    (document,) = file.documents
    assert (document.kind, document.namespace, document.name) == ("Workload", "default", "hello")
    sent = json.loads(document.encoded())
    assert sent["metadata"] == {"name": "hello", "namespace": "default"}
    assert sent["spec"]["template"]["containers"][0]["resources"] == {
        "cpu": "50m",
        "memory": "32Mi",
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("image:", "imagge:"), "f.yaml:8: spec.template.containers[0].imagge: unknown field"),
        (("name: web", "name: [web]"), "f.yaml:7: spec.template.containers[0].name: expected text"),
        (("cpu: 50m", "cpu: -50m"), "f.yaml:9: spec.template.containers[0].resources.cpu: "),
        (("cpu: 50m", "cpu: 99999999999"), "f.yaml:9: spec.template.containers[0].resources.cpu: "),
        (("32Mi", "9999Ti"), "f.yaml:9: spec.template.containers[0].resources.memory: "),
        (("kind: Workload\n", ""), "f.yaml:1: kind: is required"),
        (("kind: Workload", "kind: Workloud"), "f.yaml:2: kind: "),
        (("polder.eu/v1", "polder.eu/v9"), "f.yaml:1: apiVersion: "),
        (("{name: hello}", "{name: Hello}"), "f.yaml:3: metadata.name: "),
        (("        image: polder.local/hello:1\n", ""), "f.yaml:7: spec.template.containers[0]"),
        (("spec:", "spec:\n  replicas: .inf"), "f.yaml:5: spec.replicas: '.inf' is not a finite"),
        (("spec:", "spec:\n  replicas: .NaN"), "f.yaml:5: spec.replicas: '.NaN' is not a finite"),
        (("spec:", "spec:\n  priority: 1e999"), "f.yaml:5: spec.priority: '1e999' is too large"),
        (("spec:", "spec:\n  priority: 2024-01-31"), "f.yaml:5: spec.priority: expected a whole"),
        (("spec:", "spec:\n\treplicas: 1"), "f.yaml:5: a tab is used for indentation"),
        (("image:", "name:"), "f.yaml:8: spec.template.containers[0].name: is given twice "),
        (("name: web", "name: *nope"), "f.yaml:7: spec.template.containers[0].name: the alias"),
        (("name: web", "name: !!python/name:os.system x"), "f.yaml:7: spec.template.containers"),
        (("name: web", "[x]: web"), "f.yaml:7: spec.template.containers[0]: a key must be text"),
        (("name: web", 'name: "web'), "f.yaml:"),
        (("name: web", "name: w\x07b"), "f.yaml:7: the character U+0007 is not allowed"),
    ],
)
def test_violation_names_line_and_path(change: tuple[str, str], expected: str) -> None:
    assert change[0] in GOOD
    file = checked(GOOD.replace(*change))
    assert any(line.startswith(expected) for line in file.lines()), file.lines()
    assert all(line.startswith("f.yaml:") for line in file.lines())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "f.yaml:1: the document is empty"),
        ("---\n", "f.yaml:1: the document is empty"),
        ("# only a comment\n\n---\n---\n", "f.yaml:"),
        ("null\n", "f.yaml:1: the document is empty"),
        (GOOD + "---\n---\n" + GOOD.replace("hello", "b"), "f.yaml:10: the document is empty"),
        ("just text\n", "f.yaml:1: .: expected a mapping"),
        ("- a\n- b\n", "f.yaml:1: .: expected a mapping"),
        (b"kind: X\nname: \xff\n", "f.yaml:2: not valid UTF-8 at byte offset 14 (0xff)"),
        ("x: " + "y" * (2 << 20), "f.yaml:1: the file is larger than 1 MiB"),
        (BOMB, "f.yaml:"),
        ("a: &a [*a]\n", "f.yaml:1: a[0]: the alias *a is inside of what it stands for"),
        ("[" * 100_000, "f.yaml:1: "),
        ("{a: " * 100_000, "f.yaml:1: "),
        ("- " * 5000 + "x", "f.yaml:1: "),
        (GOOD + "---\n" + GOOD, "f.yaml:13: metadata.name: workload/hello is already in this file"),
        (GOOD.replace("Workload", "Replica").replace("template", "workload"), "f.yaml:"),
    ],
)
def test_bad_file(text: str | bytes, expected: str) -> None:
    found = lines(text)
    assert found, "it was accepted"
    assert found[0].startswith(expected), found


def test_alias_bomb_is_named() -> None:
    (line,) = lines(BOMB)
    assert "its aliases expand to more than" in line


def test_deep_chain_of_aliases_is_refused() -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 5000))
    (line,) = lines(text)
    assert "levels deep through aliases" in line


def test_bomb_of_merges_is_refused() -> None:
    keys = ", ".join(f"k{i}: 1" for i in range(200))
    text = f"a: &a {{{keys}}}\n" + "".join(f"m{i}: {{<<: *a}}\n" for i in range(2000))
    assert any("its aliases expand to" in line for line in lines(text))


def test_all_violations_of_a_file_come_at_once() -> None:
    text = GOOD.replace("image:", "imagge:").replace("50m", "-1") + "---\nkind: Site\n"
    found = lines(text)
    assert len(found) >= 5
    assert [int(line.split(":")[1]) for line in found] == sorted(
        int(line.split(":")[1]) for line in found
    )


def test_number_of_violations_is_bounded() -> None:
    found = lines(GOOD + "".join(f"x{i}: 1\n" for i in range(5000)))
    assert 1 < len(found) <= yaml_nodes.MAX_PROBLEMS


def test_merge_keys_and_anchors_work() -> None:
    text = """\
apiVersion: polder.eu/v1
kind: Workload
metadata: {name: a}
spec:
  template:
    containers:
      - &base {name: one, image: i, resources: {cpu: 1}}
      - {<<: *base, name: two}
      - {<<: [*base, {args: [x]}], name: three}
"""
    file = checked(text)
    assert file.lines() == []
    one, two, three = file.documents[0].raw["spec"]["template"]["containers"]
    assert two == {**one, "name": "two"}
    assert three == {**one, "name": "three", "args": ["x"]}


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("NO", "NO"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        ("0777", "0777"),
        ("1_000", "1_000"),
        ("'7'", "7"),
        ("true", True),
        ("7", 7),
        ("-7", -7),
        ("0x10", 16),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("~", None),
        ("!!str 7", "7"),
        ("!!float 7", 7.0),
        ("! 7", "7"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars_are_what_an_operator_means(scalar: str, value: object) -> None:
    """YAML 1.1 would make Norway false and a time 750."""
    (node,), problems = yaml_nodes.read_documents(f"a: {scalar}\n")
    assert problems == []
    assert yaml_nodes.plain(node) == {"a": value}


def test_documents_are_ordered_by_kind() -> None:
    text = GOOD + (
        "---\napiVersion: polder.eu/v1\nkind: Site\nmetadata: {name: s}\n"
        "spec: {provider: p, country: NO}\n"
        "---\napiVersion: polder.eu/v1\nkind: Provider\nmetadata: {name: p}\n"
        "spec: {legalName: P, seatCountry: NL}\n---\n"
    )
    file = checked(text)
    assert file.lines() == []
    assert [document.kind for document in file.documents] == ["Provider", "Site", "Workload"]


def test_list_as_get_prints_it_can_be_applied() -> None:
    item = json.loads(checked(GOOD).documents[0].encoded())
    item["metadata"]["uid"] = "x"
    item["status"] = {"ready": 1}
    text = json.dumps({"apiVersion": "polder.eu/v1", "kind": "List", "items": [item]}, indent="\t")
    file = checked(text)
    assert file.lines() == []
    assert "status" not in file.documents[0].raw


def test_namespace_comes_from_context_and_must_fit_the_flag() -> None:
    assert checked(GOOD, "ward").documents[0].namespace == "ward"
    text = GOOD.replace("{name: hello}", "{name: hello, namespace: a}")
    assert checked(text, "a", "a").lines() == []
    (line,) = checked(text, "b", "b").lines()
    assert line == "f.yaml:3: metadata.namespace: is 'a', but -n says 'b'"


def test_server_violations_are_mapped_to_lines() -> None:
    file = checked(GOOD)
    mapped = file.from_server(
        [
            (0, "spec.template.containers[0].image", "is not there"),
            (0, "spec.placement.arch", "is unknown"),
            (9, "spec", "odd"),
        ]
    )
    assert mapped == [
        "f.yaml:8: spec.template.containers[0].image: is not there",
        "f.yaml:4: spec.placement.arch: is unknown",
        "f.yaml: spec: odd",
    ]


def test_line_of_a_key_with_dots() -> None:
    text = "metadata:\n  labels:\n    example.eu/app: x\n    example.eu/app.b: y\n"
    (node,), _ = yaml_nodes.read_documents(text)
    assert yaml_nodes.line_of(node, "metadata.labels.example.eu/app.b") == 4
    assert yaml_nodes.line_of(node, "metadata.labels.example.eu/app") == 3
    assert yaml_nodes.line_of(node, "metadata.labels.other") == 2


def test_all_files_are_checked_before_any_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yml").write_text("kind: X\n")
    (tmp_path / "c.txt").write_text("not a manifest")
    with pytest.raises(InvalidFiles) as caught:
        load_all([str(tmp_path)], recursive=False, default_namespace="default")
    assert "1 of 2 files" in caught.value.message
    assert all(line.startswith(f"{tmp_path}/b.yml:") for line in caught.value.lines)


def test_directories(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.yaml").write_text(GOOD)
    with pytest.raises(CliError, match=r"no \*\.yaml") as caught:
        load_all([str(tmp_path)], recursive=False, default_namespace="d")
    assert "-R" in caught.value.hints[0]
    (file,) = load_all([str(tmp_path)], recursive=True, default_namespace="d")
    assert file.documents[0].name == "hello"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="No such file"):
        load_all([str(tmp_path / "x.yaml")], recursive=False, default_namespace="d")


def test_deletion_goes_backwards(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    namespace = "apiVersion: polder.eu/v1\nkind: Namespace\nmetadata: {name: n}\nspec: {}\n"
    path.write_text(GOOD + "---\n" + namespace)
    refs = load_references([str(path)], recursive=False, default_namespace="d")
    assert refs == [("Workload", "d", "hello"), ("Namespace", "", "n")]


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(raw: bytes) -> None:
    file = check_text("f", raw, "default")
    assert file.problems or file.documents


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=10),
        lambda children: (
            st.lists(children, max_size=4)
            | st.dictionaries(st.text(min_size=1, max_size=8), children, max_size=4)
        ),
        max_leaves=20,
    )
)
def test_json_is_read_as_it_is(value: object) -> None:
    nodes, problems = yaml_nodes.read_documents(json.dumps(value))
    if not problems:  # lone surrogates and "<<" are no YAML
        assert yaml_nodes.plain(nodes[0]) == value or "<<" in json.dumps(value)


def test_limit_is_a_mebibyte() -> None:
    padding = "# " + "x" * (manifests.MAX_FILE_BYTES - len(GOOD) - 3) + "\n"
    assert lines(GOOD + padding) == []
    assert lines(GOOD + padding + "\n") != []
