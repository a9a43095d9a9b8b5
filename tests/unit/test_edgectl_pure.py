"""The pure parts of edgectl: selectors, jsonpath, tables, ages, changes, conditions, diffs."""

import json
from base64 import b64encode
from hashlib import sha256
from typing import Any

import pytest

from edgectl import (
    changes,
    columns,
    conditions,
    describing,
    differences,
    durations,
    jsonpath,
    selectors,
    targets,
    text,
)
from edgectl.errors import CliError, UsageError
from edgectl.output import Printer
from edgectl.resources import Item
from polder.manifest import KINDS
from polder.v1 import common_pb2

NOW = 1_800_000_000_000


def item(
    kind: str,
    name: str = "x",
    spec: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    *,
    namespace: str = "",
    generation: int = 1,
    deleting: bool = False,
) -> Item:
    resource = common_pb2.Resource(api_version="polder.eu/v1", kind=kind)
    resource.metadata.name, resource.metadata.namespace = name, namespace
    resource.metadata.generation = generation
    resource.metadata.created_at_ms = NOW - 180_000
    resource.metadata.deletion_requested_at_ms = NOW if deleting else 0
    resource.spec_json = json.dumps(spec or {}).encode()
    resource.status_json = json.dumps(status or {}).encode()
    return Item(resource, NOW)


# --- selectors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "labels", "matches"),
    [
        ("", {}, True),
        ("app=triage", {"app": "triage"}, True),
        ("app == triage", {"app": "other"}, False),
        ("app!=triage", {}, True),
        ("zone in (a, b),!canary", {"zone": "b"}, True),
        ("zone in (a,b),!canary", {"zone": "b", "canary": ""}, False),
        ("zone notin (a,b)", {"zone": "c"}, True),
        ("example.eu/app", {"example.eu/app": "1"}, True),
        ("app=", {"app": ""}, True),
    ],
)
def test_selector(selector: str, labels: dict[str, str], matches: bool) -> None:
    assert all(r.matches(labels) for r in selectors.parse(selector)) is matches


@pytest.mark.parametrize(
    "selector", ["=x", "a b", "a in b", "a in (b", "a=b=c", "a,,b", "a>1", ","]
)
def test_bad_selector_is_a_usage_error(selector: str) -> None:
    with pytest.raises(UsageError):
        selectors.parse(selector)


# --- jsonpath ---------------------------------------------------------------------------------

DATA = {
    "kind": "List",
    "items": [
        {"metadata": {"name": "a", "labels": {"x.y/z": "1"}}, "n": 1, "ok": True},
        {"metadata": {"name": "b"}, "n": 5, "ok": False},
    ],
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{.kind}", "List"),
        (".kind", "List"),
        ("kind", "List"),
        ("{.items[*].metadata.name}", "a b"),
        ("{.items[0].metadata['name']}", "a"),
        ("{.items[-1:].metadata.name}", "b"),
        ("{.items[0,1].n}", "1 5"),
        ("{.items[0].metadata.labels.x\\.y/z}", "1"),
        ('{.items[?(@.metadata.name=="b")].n}', "5"),
        ("{.items[?(@.n>1)].metadata.name}", "b"),
        ("{.items[?(@.metadata.labels)].n}", "1"),
        ("{..name}", "a b"),
        ("{.items[*].ok}", "true false"),
        ('{range .items[*]}{.metadata.name}={.n}{"\\n"}{end}', "a=1\nb=5\n"),
        ("{.nothing.here}", ""),
        ("{.items[9].n}", ""),
        ("{.items[0].metadata.labels}", '{"x.y/z":"1"}'),
        ("name: {.items[0].metadata.name}!", "name: a!"),
        ("{$.kind}", "List"),
    ],
)
def test_jsonpath(template: str, expected: str) -> None:
    assert jsonpath.Template(template).render(DATA) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{.a",
        "{range .items[*]}{.x}",
        "{end}",
        "{.items[x]}",
        "{.a b}",
        "{..}",
        "{.items[?(@.a==b)]}",
    ],
)
def test_bad_jsonpath_is_a_usage_error(template: str) -> None:
    with pytest.raises(UsageError):
        jsonpath.Template(template)


# --- targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (["nodes"], ["node/"]),
        (["nodes,workloads"], ["node/", "workload/"]),
        (["wl", "a", "b"], ["workload/a", "workload/b"]),
        (["node/a", "Workload/b"], ["node/a", "workload/b"]),
        (["no", "a", "a"], ["node/a"]),
    ],
)
def test_targets(words: list[str], labels: list[str]) -> None:
    assert [target.label for target in targets.parse(words)] == labels


@pytest.mark.parametrize(
    "words", [[], ["pods"], ["nodes,pods"], ["nodes,workloads", "a"], ["node/"], ["a/b/c"], ["/x"]]
)
def test_bad_targets(words: list[str]) -> None:
    with pytest.raises(UsageError):
        targets.parse(words)


# --- tables and ages --------------------------------------------------------------------------


def test_table_aligns_and_keeps_headers_once() -> None:
    table = text.Table(("NAME", "AGE"))
    assert table.lines([("a", "5s"), ("longer", "6s")]) == [
        "NAME     AGE",
        "a        5s",
        "longer   6s",
    ]
    assert table.lines([("b", "")]) == ["b"]


def test_cells_carry_no_control_characters() -> None:
    (line,) = text.Table(("X",), show_headers=False).lines([("a\x1b[31m\r\nb\u202ec",)])
    assert line == "a?[31m? b?c"


@pytest.mark.parametrize(
    ("ago_ms", "expected"),
    [(0, "0s"), (59_000, "59s"), (180_000, "3m"), (7_200_000, "120m"), (400_000_000, "4d")],
)
def test_age(ago_ms: int, expected: str) -> None:
    assert text.age(NOW - ago_ms, NOW) == expected


def test_since_names_the_moment_and_the_age() -> None:
    assert text.since(0, NOW) == ""
    assert text.since(NOW - 180_000, NOW).endswith(" (3m ago)")
    assert "-" not in text.clock(NOW - 180_000, NOW)
    assert "-" in text.clock(NOW - 90_000_000, NOW)
    assert "(in 6d)" in text.moment(NOW + 6 * 86_400_000, NOW)


@pytest.mark.parametrize(
    ("spec", "status", "expected"),
    [
        ({}, {"ready": True}, "Ready"),
        ({"unschedulable": True}, {"ready": True}, "Ready,cordoned"),
        ({"unschedulable": True, "draining": True}, {"ready": True}, "Ready,draining"),
        ({}, {"ready": True, "revoked": True}, "Revoked"),
        ({}, {}, "Unknown"),
    ],
)
def test_node_status(spec: dict[str, Any], status: dict[str, Any], expected: str) -> None:
    assert columns.status_words(item("Node", spec=spec, status=status)) == expected


def test_a_silent_node_is_unknown_with_its_age() -> None:
    shown = columns.status_words(item("Node", status={"ready": None, "sinceAt": NOW - 180_000}))
    assert shown.startswith("Unknown since ")
    assert shown.endswith("(3m ago)")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"phase": "Running", "ready": True}, "Running"),
        ({"phase": "Pending", "reason": "HostPortTaken"}, "Pending (HostPortTaken)"),
        (
            {"phase": "Pending", "containers": [{"reason": "ImageNotFound", "ready": False}]},
            "Pending (ImageNotFound)",
        ),
        ({}, "Pending"),
    ],
)
def test_replica_status(status: dict[str, Any], expected: str) -> None:
    assert columns.status_words(item("Replica", status=status)) == expected


def test_every_kind_has_columns_and_a_description_even_when_empty() -> None:
    for kind in KINDS:
        for wide in (False, True):
            heads = columns.headers(kind, wide=wide, namespaces=True)
            row = columns.row(item(kind), wide=wide, namespaces=True)
            assert len(heads) == len(row)
            assert (heads[1], heads[-1], row[-1]) == ("NAME", "AGE", "3m")
        assert describing.description(item(kind))


def test_describe_shows_the_sensors_that_a_node_has() -> None:
    usage = {
        "cpuMillis": 250,
        "memoryBytes": 1 << 30,
        "networkRxBytes": 2048,
        "temperatureCelsius": 0.0,
        "batteryPercent": -1,
        "onBattery": False,
    }
    inventory = {"capacity": {"cpuMillis": 1000, "memoryBytes": 4 << 30}}
    status = {"usage": usage, "inventory": inventory, "lastSeenAt": NOW - 5000}
    shown = "\n".join(describing.description(item("Node", status=status)))
    assert "CPU:              0.25 cores (25 percent of 1)" in shown
    assert "Memory:           1Gi (25 percent of 4Gi)" in shown
    assert "2Ki received, 0 sent since it booted" in shown
    assert "(5s ago)" in next(line for line in shown.splitlines() if line.startswith("Usage:"))
    assert "emperature" not in shown
    assert "attery" not in shown
    usage.update({"temperatureCelsius": 61.5, "batteryPercent": 0, "onBattery": True})
    shown = "\n".join(describing.description(item("Node", status=status)))
    assert "Temperature:      61.5 degrees Celsius" in shown
    assert "Battery:          0 percent, running on it" in shown


def test_describe_claims_no_resources_of_a_node_that_never_reported() -> None:
    shown = "\n".join(describing.description(item("Node", status={"ready": None})))
    assert "not reported yet" in shown
    assert "CAPACITY" not in shown


def test_describe_shows_what_a_nodes_certificate_is_known_by_and_not_all_of_it() -> None:
    whole = b64encode(bytes(range(256)) * 2).decode()
    for certificate, known in (
        (whole, f"siteCertificate: sha256:{sha256(bytes(range(256)) * 2).hexdigest()}"),
        ("odd", "siteCertificate: not readable"),
    ):
        status = {"inventory": {"arch": "arm64", "siteCertificate": certificate}}
        shown = "\n".join(describing.description(item("Node", status=status)))
        assert known in shown and whole not in shown


def test_a_revoked_operator_is_not_active() -> None:
    expires = NOW + 86_400_000
    for status, word in (
        ({"certificateExpiresAt": expires}, "Valid"),
        ({"certificateExpiresAt": NOW - 1}, "Expired"),
        ({"certificateExpiresAt": expires, "revoked": True}, "Revoked"),
    ):
        shown = item("Operator", status=status)
        assert columns.status_words(shown) == word
        assert any(line.split() == ["Status:", word] for line in describing.description(shown))


def test_values_of_a_spec_are_described_as_they_are_written() -> None:
    lines = describing.description(item("Site", spec={"a": True, "b": {"cBytes": 1024}}))
    assert "  a: true" in lines
    assert "    cBytes: 1Ki" in lines


def test_odd_statuses_are_shown_rather_than_fatal() -> None:
    keys = "inventory conditions containers restarts ready replicas hostPorts unplaced usage"
    odd = dict.fromkeys(keys.split(), "odd")
    for kind in ("Node", "Workload", "Replica", "Site"):
        columns.row(item(kind, status=odd), wide=True, namespaces=True)
        assert describing.description(item(kind, status=odd))


def test_describe_never_shows_secrets() -> None:
    lines = describing.description(item("Secret", spec={"data": {"key": "hidden-value"}}))
    assert "hidden-value" not in "\n".join(lines)
    assert any("key: 12 characters" in line for line in lines)


def test_printer_formats() -> None:
    one = item("Workload", "a", {"replicas": 1}, namespace="default")
    assert Printer("name").all([("Workload", [one])], single=True) == "workload/a\n"
    assert json.loads(Printer("json").all([("Workload", [one])], single=True))["kind"] == "Workload"
    listed = json.loads(Printer("json").all([("Workload", [one])], single=False))
    assert [i["metadata"]["name"] for i in listed["items"]] == ["a"]
    path = Printer("jsonpath={.metadata.name}")
    assert path.all([("Workload", [one])], single=True) == "a"
    with pytest.raises(UsageError):
        Printer("xml")


# --- label and taint --------------------------------------------------------------------------


def test_label_changes() -> None:
    targets_, words = changes.split(["node/a", "x=1", "y-"])
    assert (targets_, words) == (["node/a"], ["x=1", "y-"])
    labels = {"x": "0", "y": "2"}
    wished = [changes.parse_label(word) for word in words]
    with pytest.raises(CliError, match="already has x=0"):
        changes.apply_labels(dict(labels), wished, overwrite=False, what="node/a")
    changes.apply_labels(labels, wished, overwrite=True, what="node/a")
    assert labels == {"x": "1"}


@pytest.mark.parametrize("word", ["x", "=1", "x=a b", "x y=1", "-", "x=" + "v" * 64])
def test_bad_label_change(word: str) -> None:
    with pytest.raises(UsageError):
        changes.parse_label(word)


def test_taint_changes() -> None:
    taints: list[dict[str, Any]] = []
    for word, expected in (
        ("m=x:NoSchedule", [{"key": "m", "effect": "NoSchedule", "value": "x"}]),
        ("m:NoExecute", [{"key": "m", "effect": "NoSchedule", "value": "x"},
                         {"key": "m", "effect": "NoExecute"}]),
        ("m:NoExecute-", [{"key": "m", "effect": "NoSchedule", "value": "x"}]),
        ("m-", []),
    ):  # fmt: skip
        taints = changes.apply_taints(
            taints, [changes.parse_taint(word)], overwrite=False, what="node/a"
        )
        assert taints == expected
    with pytest.raises(CliError, match="no taint m"):
        changes.apply_taints([], [changes.parse_taint("m-")], overwrite=False, what="node/a")


@pytest.mark.parametrize("word", ["m", "m=x", "m:Never", "m=x y:NoSchedule", ":NoSchedule"])
def test_bad_taint(word: str) -> None:
    with pytest.raises(UsageError):
        changes.parse_taint(word)


# --- conditions -------------------------------------------------------------------------------

ROLLED_OUT = {"observedGeneration": 2, "replicas": 2, "running": 2, "ready": 2, "updated": 2}


@pytest.mark.parametrize(
    ("condition", "change", "met"),
    [
        ("ready", {}, True),
        ("ready", {"ready": 1}, False),
        ("running", {"ready": 1}, True),
        ("ready", {"observedGeneration": 1}, False),
        ("ready", {"updated": 1}, False),
        ("delete", {}, False),
        ("jsonpath={.status.ready}=2", {}, True),
        ("jsonpath={.status.phase}", {}, False),
        ("jsonpath=.status.ready=2", {}, True),
        ("jsonpath={.status.ready}=3", {}, False),
    ],
)
def test_waiting_for_a_workload(condition: str, change: dict[str, Any], met: bool) -> None:
    workload = item("Workload", status={**ROLLED_OUT, **change}, generation=2)
    verdict = conditions.parse(condition)(workload)
    assert verdict.met is met
    assert verdict.why


def test_waiting_for_other_things() -> None:
    pressure = {"conditions": [{"type": "DiskPressure", "status": True, "reason": "DiskFull"}]}
    assert conditions.parse("condition=DiskPressure")(item("Node", status=pressure)).met
    assert not conditions.parse("condition=DiskPressure=false")(item("Node", status=pressure)).met
    assert not conditions.parse("condition=Other")(item("Node", status=pressure)).met
    assert conditions.parse("ready")(item("Node", status={"ready": True})).met
    assert conditions.parse("condition=Ready")(item("Node", status={"ready": True})).met
    assert not conditions.parse("condition=Ready")(item("Node", status={"ready": False})).met
    assert not conditions.parse("ready")(item("Node", status={"ready": True}, deleting=True)).met
    assert conditions.parse("delete")(None).met
    assert not conditions.parse("ready")(None).met


@pytest.mark.parametrize("word", ["", "redy", "condition=", "jsonpath=", "jsonpath={.a}x"])
def test_bad_condition(word: str) -> None:
    with pytest.raises(UsageError):
        conditions.parse(word)


# --- the rest ---------------------------------------------------------------------------------


def test_diff_shows_what_changes_and_hides_secrets() -> None:
    before = item("Workload", "a", {"replicas": 1}).manifest()
    after = item("Workload", "a", {"replicas": 2}).manifest()
    assert "-  replicas: 1\n+  replicas: 2\n" in differences.unified("workload/a", before, after)
    assert differences.unified("workload/a", before, before) == ""
    mixed = [item("Workload", "a", {"x": [{"b": 1, "a": 2}], "y": 1}).manifest()]
    mixed.append(item("Workload", "a", {"y": 1, "x": [{"a": 2, "b": 1}]}).manifest())
    assert differences.unified("workload/a", mixed[0], mixed[1]) == ""
    old = item("Secret", "s", {"data": {"a": "same-value", "b": "old-value"}}).manifest()
    new = item("Secret", "s", {"data": {"a": "same-value", "b": "new-value"}}).manifest()
    shown = differences.unified("secret/s", old, new)
    assert "value" not in shown
    assert "+    b: '*** (after)'" in shown
    assert "value" not in differences.unified("secret/s", None, new)


def test_durations_of_options() -> None:
    assert durations.option_seconds("1m30s", "--timeout") == 90
    with pytest.raises(UsageError, match="--timeout"):
        durations.option_seconds("soon", "--timeout")
    assert durations.since_seconds("2h", NOW / 1000) == 7200
    assert durations.since_seconds("2020-01-01T00:00Z", 1_577_836_900) == 100
    with pytest.raises(UsageError, match="--since"):
        durations.since_seconds("yesterday", 0)
