"""Whole documents: what operators get wrong, and where they are told that it is."""

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polder.manifest import KINDS, InvalidManifest, WorkloadSpec, decode_document, kind_named
from polder.manifest.decode import MAX_VIOLATIONS
from polder.manifest.document import API_VERSION
from tests.unit.yardstick import pieces

MAX_MESSAGE = 50 * 1200  # fifty violations, each with a path and a few words


def workload() -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "Workload",
        "metadata": {"name": "triage", "namespace": "umc-utrecht", "labels": {"app": "triage"}},
        "spec": {
            "replicas": 3,
            "template": {
                "containers": [
                    {
                        "name": "app",
                        "image": "registry.example/triage:1",
                        "ports": [{"name": "http", "containerPort": 8080, "hostPort": 18080}],
                        "env": [{"name": "MODE", "value": "day"}],
                        "resources": {
                            "cpu": "500m",
                            "memory": "256Mi",
                            "devices": {"polder.eu/gpu": 1},
                        },
                        "readinessProbe": {"http": {"path": "/healthz", "port": "http"}},
                    },
                    {"name": "log", "image": "log:2"},
                ],
                "stopGrace": "30s",
            },
            "placement": {
                "arch": ["arm64"],
                "nodeSelector": {"zone": "ward-3"},
                "tolerations": [{"key": "maintenance"}],
                "spread": {"by": "site", "maxSkew": 1},
            },
        },
    }


def violations(raw: object) -> dict[str, str]:
    with pytest.raises(InvalidManifest) as caught:
        decode_document(raw)
    assert len(caught.value.violations) <= MAX_VIOLATIONS
    assert len(str(caught.value)) <= MAX_MESSAGE
    str(caught.value).encode()  # can be printed and sent
    return {violation.path: violation.message for violation in caught.value.violations}


def changed(path: str, value: object) -> dict[str, Any]:
    """The workload with the value at `a/b/0/c` replaced."""
    raw = workload()
    *parents, last = path.split("/")
    place: Any = raw
    for step in parents:
        place = place[int(step)] if isinstance(place, list) else place.setdefault(step, {})
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return raw


def test_a_good_workload_is_read() -> None:
    raw = workload()
    manifest = decode_document(raw)
    assert manifest.ref == ("Workload", "umc-utrecht", "triage")
    assert isinstance(manifest.spec, WorkloadSpec)
    container = manifest.spec.template.containers[0]
    assert (container.resources.cpu, container.resources.memory) == (500, 256 << 20)
    assert container.readiness_probe is not None
    assert container.port_number("http") == container.port_number("8080") == 8080
    with pytest.raises(KeyError):
        container.port_number("metrics")
    assert manifest.spec.template.stop_grace == 30.0
    assert manifest.raw_spec == raw["spec"]
    assert raw == workload(), "the input is left alone"


C0 = "spec/template/containers/0"
P0 = "spec.template.containers[0]"


@pytest.mark.parametrize(
    ("where", "value", "path", "words"),
    [
        (f"{C0}/resources/memory", "256mi", f"{P0}.resources.memory", "unknown suffix 'mi'"),
        (f"{C0}/resources/memory", "1Mi", f"{P0}.resources.memory", "under 4Mi"),
        (f"{C0}/resources/cpu", -1, f"{P0}.resources.cpu", "is negative"),
        (f"{C0}/resources/cpuLimit", "100m", f"{P0}.resources.cpuLimit", "less than cpu"),
        (f"{C0}/resources/devices", {"a/b": 0}, f"{P0}.resources.devices.a/b", "least allowed"),
        (f"{C0}/resources/devices", {"a/b": 1025}, f"{P0}.resources.devices.a/b", "most allowed"),
        (f"{C0}/resources/devices", {"a/b": True}, f"{P0}.resources.devices.a/b", "whole number"),
        (f"{C0}/resources/devices", {"a/b": None}, f"{P0}.resources.devices.a/b", "found nothing"),
        (f"{C0}/resources/devices", {"a b": 1}, f"{P0}.resources.devices.a b", "the key is not"),
        (
            f"{C0}/resources/devices",
            {f"x/g{n}": 1 for n in range(17)},
            f"{P0}.resources.devices",
            "has 17 keys; at most 16",
        ),
        (f"{C0}/image", "", f"{P0}.image", "not an image reference"),
        (f"{C0}/image", None, f"{P0}.image", "is required, but is empty"),
        (f"{C0}/imagee", "x", f"{P0}.imagee", "did you mean 'image'?"),
        (f"{C0}/Ports", [], f"{P0}.Ports", "did you mean 'ports'?"),
        (f"{C0}/image_pull_policy", "", f"{P0}.image_pull_policy", "mean 'imagePullPolicy'?"),
        (f"{C0}/volumes", [], f"{P0}.volumes", "unknown field; known are args, command"),
        (f"{C0}/imagePullPolicy", "always", f"{P0}.imagePullPolicy", "allowed are IfNotPresent"),
        (f"{C0}/stopSignal", "TERM", f"{P0}.stopSignal", "allowed are SIGTERM, SIGINT"),
        (f"{C0}/command", "sh -c x", f"{P0}.command", "expected a list, found the text"),
        (f"{C0}/command", [1], f"{P0}.command[0]", "expected text, found the number 1; put it in"),
        (f"{C0}/command", ["a", "b\x00"], f"{P0}.command[1]", "NUL"),
        (f"{C0}/command", ["\ud800"], f"{P0}.command[0]", "surrogate"),
        (f"{C0}/command", ["x" * 65_537], f"{P0}.command[0]", "longer than 65536"),
        (f"{C0}/command", ["x"] * 1001, f"{P0}.command", "has 1001 items"),
        (f"{C0}/workingDir", "srv", f"{P0}.workingDir", "not an absolute path"),
        (f"{C0}/env", [{"name": "A"}, {"name": "A"}], f"{P0}.env[1].name", "'A' is already taken"),
        (f"{C0}/env", [{"name": "1A"}], f"{P0}.env[0].name", "not a variable name"),
        (f"{C0}/env", [{"name": "A", "value": True}], f"{P0}.env[0].value", "found true; put it"),
        (
            f"{C0}/env",
            [{"name": "A", "value": "x", "secret": {"name": "s", "key": "k"}}],
            f"{P0}.env[0]",
            "value and secret; give one",
        ),
        (f"{C0}/ports/0/containerPort", 65536, f"{P0}.ports[0].containerPort", "is 65536; the mos"),
        (f"{C0}/ports/0/containerPort", "80", f"{P0}.ports[0].containerPort", "whole number"),
        (f"{C0}/ports/0/containerPort", 80.0, f"{P0}.ports[0].containerPort", "whole number"),
        (f"{C0}/ports/0/name", "8080", f"{P0}.ports[0].name", "with a letter in it"),
        (f"{C0}/ports/0/protocol", "tcp", f"{P0}.ports[0].protocol", "allowed are TCP, UDP"),
        (f"{C0}/readinessProbe", {}, f"{P0}.readinessProbe", "exactly one of"),
        (
            f"{C0}/readinessProbe",
            {"tcp": {"port": 1}, "exec": {"command": ["x"]}},
            f"{P0}.readinessProbe",
            "found tcp and exec",
        ),
        (f"{C0}/readinessProbe/http/port", "web", f"{P0}.readinessProbe.http.port", "not in ports"),
        (f"{C0}/readinessProbe/http/port", "٣", f"{P0}.readinessProbe.http.port", "neither"),
        (f"{C0}/readinessProbe/http/port", "²", f"{P0}.readinessProbe.http.port", "neither"),
        (f"{C0}/readinessProbe/http/port", 0, f"{P0}.readinessProbe.http.port", "neither"),
        (f"{C0}/readinessProbe/http/port", "080", f"{P0}.readinessProbe.http.port", "neither"),
        (f"{C0}/readinessProbe/http/port", "70000", f"{P0}.readinessProbe.http.port", "neither"),
        (f"{C0}/readinessProbe/http/port", "1" * 5000, f"{P0}.readinessProbe.http.port", "neithe"),
        (f"{C0}/readinessProbe/http/port", True, f"{P0}.readinessProbe.http.port", "neither"),
        (f"{C0}/readinessProbe/http/path", "x", f"{P0}.readinessProbe.http.path", "starts with"),
        (
            f"{C0}/readinessProbe/http/path",
            "/x HTTP/1.1\r\nHost: y",
            f"{P0}.readinessProbe.http.path",
            "without spaces",
        ),
        (f"{C0}/readinessProbe/period", "1ms", f"{P0}.readinessProbe.period", "is 0.001s; the lea"),
        (
            f"{C0}/security",
            {"runAsUser": 2**31},
            f"{P0}.security.runAsUser",
            "most allowed is 2147",
        ),
        ("spec/template/containers", [], "spec.template.containers", "needs at least 1 item"),
        ("spec/template/containers", [None], "spec.template.containers[0]", "found nothing"),
        ("spec/template/containers", {}, "spec.template.containers", "expected a list"),
        ("spec/template/containers/1/name", "app", "spec.template.containers[1].name", "taken"),
        (
            "spec/template/containers/1/ports",
            [{"containerPort": 1}, {"containerPort": 2, "hostPort": 18080}],
            "spec.template.containers[1].ports[1].hostPort",
            "18080/TCP is already taken",
        ),
        ("spec/template/stopGrace", "2h", "spec.template.stopGrace", "is 7200s; the most allowed"),
        ("spec/template/imagePullSecrets", ["A B"], "spec.template.imagePullSecrets[0]", "a name"),
        ("spec/replicas", 1_000_001, "spec.replicas", "is 1000001; the most allowed is 1000000"),
        ("spec/replicas", -1, "spec.replicas", "is -1; the least allowed is 0"),
        ("spec/replicas", True, "spec.replicas", "expected a whole number, found true"),
        ("spec/replicas", 3.0, "spec.replicas", "expected a whole number"),
        ("spec/perSite", 1, "spec", "has replicas and perSite; give one"),
        ("spec/placement/arch", ["riscv"], "spec.placement.arch[0]", "allowed are amd64, arm64"),
        ("spec/placement/nodeSelector", {"a": "x y"}, "spec.placement.nodeSelector.a", "a label"),
        ("spec/placement/nodeSelector", {"": "x"}, "spec.placement.nodeSelector.''", "a key must"),
        ("spec/placement/nodeSelector", {5: "x"}, "spec.placement.nodeSelector.5", "a key must be"),
        ("spec/placement/spread", [], "spec.placement.spread", "expected a mapping, found a list"),
        ("spec", None, "spec.template", "is required"),
        ("spec", [], "spec", "expected a mapping, found a list"),
        ("metadata", None, "metadata.name", "is required"),
        ("metadata", "triage", "metadata", "expected a mapping, found the text 'triage'"),
        ("metadata/name", "Triage", "metadata.name", "not a name of lower-case"),
        (
            "metadata/name",
            5,
            "metadata.name",
            "expected text, found the number 5; put it in quotes",
        ),
        ("metadata/namespace", "a.b", "metadata.namespace", "not a name of lower-case"),
        ("metadata/labels", {"a/b/c": "x"}, "metadata.labels.a/b/c", "the key is not a name such"),
        ("metadata/labels", {"app": "-"}, "metadata.labels.app", "'-' is not a label value"),
        ("metadata/annotations", {"a": 1.5}, "metadata.annotations.a", "put it in quotes"),
        ("apiVersion", "v1", "apiVersion", "must be polder.eu/v1, not 'v1'"),
        ("apiVersion", None, "apiVersion", "must be polder.eu/v1; it is missing"),
        ("kind", None, "kind", "is required"),
        ("kind", "workload", "kind", "did you mean Workload?"),
        ("kind", "Worklaod", "kind", "did you mean Workload?"),
        ("kind", "Deployment", "kind", "known are Provider, Site"),
        ("kind", ["Workload"], "kind", "a list is not a kind"),
        ("Spec", {}, "Spec", "did you mean 'spec'?"),
    ],
)
def test_the_path_and_the_reason_of_an_error(
    where: str, value: object, path: str, words: str
) -> None:
    found = violations(changed(where, value))
    assert path in found, found
    assert words in found[path]


def test_every_error_is_told_at_once() -> None:
    raw = changed(f"{C0}/resources/memory", "1Q")
    raw["metadata"] = {"name": "A", "namespace": "B", "labels": {"-": "x"}, "extra": 1}
    raw["apiVersion"] = "v2"
    raw["spec"]["replicas"] = "three"
    assert set(violations(raw)) == {
        "apiVersion",
        "metadata.name",
        "metadata.namespace",
        "metadata.labels.-",
        "metadata.extra",
        "spec.replicas",
        f"{P0}.resources.memory",
    }


@pytest.mark.parametrize(
    ("raw", "words"),
    [(None, "empty"), ([], "a list"), ("x", "the text 'x'"), (5, "number 5"), ({}, "required")],
)
def test_what_is_no_document(raw: object, words: str) -> None:
    assert any(words in message for message in violations(raw).values())


def test_an_empty_value_means_the_default() -> None:
    raw = changed(f"{C0}/env", None)
    raw["spec"]["template"]["containers"][0]["ports"][0]["name"] = ""
    raw["spec"]["template"]["containers"][0]["readinessProbe"] = {"tcp": {"port": 8080}}
    container = decode_document(raw).spec.template.containers[0]
    assert (container.env, container.ports[0].name) == ((), "")


def test_what_the_server_adds_is_ignored() -> None:
    raw = workload()
    raw["metadata"] |= {"uid": "x", "generation": 3, "revision": 1, "createdAt": None}
    raw["status"] = {"anything": [1]}
    assert decode_document(raw) == decode_document(workload())


def test_the_default_namespace_goes_to_kinds_that_have_one() -> None:
    raw = workload()
    del raw["metadata"]["namespace"]
    assert decode_document(raw).metadata.namespace == "default"
    assert decode_document(raw, default_namespace="team").metadata.namespace == "team"
    with pytest.raises(InvalidManifest, match=r"metadata\.namespace: 'A b' is not"):
        decode_document(raw, default_namespace="A b")
    namespace = {"apiVersion": API_VERSION, "kind": "Namespace", "metadata": {"name": "team"}}
    assert decode_document(namespace, default_namespace="x").metadata.namespace == ""
    namespace["metadata"] = {"name": "team", "namespace": "x"}
    assert "belongs to no namespace" in violations(namespace)["metadata.namespace"]


def test_a_registry_secret_needs_its_keys() -> None:
    raw = {
        "apiVersion": API_VERSION,
        "kind": "Secret",
        "metadata": {"name": "pull"},
        "spec": {"type": "Registry", "data": {"server": "r", "username": "u", "password": ""}},
    }
    assert violations(raw) == {"spec.data": "a Registry secret needs the key 'password'"}


@pytest.mark.parametrize("word", ["Workload", "workload", "WORKLOADS", "wl"])
def test_kinds_go_by_several_names(word: str) -> None:
    assert kind_named(word) is KINDS["Workload"]


def test_no_name_of_a_kind_means_two() -> None:
    words = [w for k in KINDS.values() for w in {k.name.lower(), k.plural, *k.short}]
    assert len(words) == len(set(words))


# --- hostile input ----------------------------------------------------------------------------


def test_a_huge_key_or_value_gives_a_small_error() -> None:
    mebibyte = "x" * (1 << 20)
    for where in ("", "spec/", "metadata/", "metadata/labels/", f"{C0}/resources/devices/"):
        assert len(str(violations(changed(where + mebibyte, 1)))) < 2000
    for where in ("kind", "apiVersion", "metadata/name", f"{C0}/image", f"{C0}/resources/cpu"):
        assert len(str(violations(changed(where, mebibyte)))) < 2000


def test_very_many_errors_are_cut_and_quick() -> None:
    found = violations(changed("spec/template", {f"f{n}": n for n in range(300_000)}))
    assert "more errors" in found["."]
    assert "more errors" in violations({n: n for n in range(300_000)})["."]


def test_control_characters_in_keys_do_not_reach_the_terminal() -> None:
    found = violations(changed("spec/\x1b[31mred\n\ud800", 1))
    assert all(path.isprintable() and message.isprintable() for path, message in found.items())


@pytest.mark.parametrize(
    "number",
    [10**6000, -(10**6000), 2**63, float("inf"), float("nan")],
    ids=["huge", "huge negative", "2**63", "inf", "nan"],
)
def test_numbers_that_no_json_reader_expects(number: float) -> None:
    for where in (
        "spec/replicas",
        "spec/template/stopGrace",
        f"{C0}/resources/memory",
        f"{C0}/resources/devices/x",
        f"{C0}/readinessProbe/http/port",
        f"{C0}/image",
        "kind",
        "apiVersion",
        "metadata/name",
        "metadata",
    ):
        assert violations(changed(where, number))
    site = {
        "apiVersion": API_VERSION,
        "kind": "Site",
        "metadata": {"name": "s"},
        "spec": {
            "provider": "p",
            "country": "NL",
            "coordinates": {"latitude": number, "longitude": 0},
        },
    }
    assert "spec.coordinates.latitude" in violations(site)
    assert violations(changed("spec", {number: number}))


def nested(depth: int, *, lists: bool) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


@pytest.mark.parametrize("lists", [True, False])
def test_deep_nesting_anywhere_is_refused_without_recursion(lists: bool) -> None:
    deep = nested(50_000, lists=lists)
    for where in (
        "kind",
        "apiVersion",
        "metadata",
        "metadata/name",
        "spec",
        f"{C0}/image",
        f"{C0}/env",
        f"{C0}/resources/cpu",
        f"{C0}/readinessProbe/http/port",
        "extra",
    ):
        assert violations(changed(where, deep))
    assert violations(deep)


KEYS = sorted(
    {"apiVersion", "kind", "metadata", "spec", "name", "labels", "template", "containers", "image"}
    | {"ports", "resources", "devices", "memory", "readinessProbe", "http", "country", "data"}
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["Workload", API_VERSION, "Site", "Secret", "NL", "500m"]),
    st.just(10**4000),
    st.binary(max_size=3),
    st.just("\ud800"),
)
keys = st.one_of(st.sampled_from(KEYS), st.text(max_size=8), st.integers(), st.none())
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(anything)
def test_only_invalid_manifest_is_ever_raised(raw: object) -> None:
    with pytest.raises(InvalidManifest) as caught:
        decode_document(raw)
    assert caught.value.violations
    assert len(str(caught.value)) < MAX_MESSAGE


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON-like value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in list(items):
        found.append((value, key))
        if isinstance(inner, dict | list):
            found.extend(places(inner))
    return found


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(KINDS)), st.integers(0, 10_000), st.integers(0, 10_000), anything)
def test_a_good_document_with_two_places_spoilt(
    kind: str, first: int, second: int, value: object
) -> None:
    raw = workload()
    raw["kind"] = kind if first % 5 == 0 else "Workload"
    for number in (first, second):
        every = places(raw)
        container, key = every[number % len(every)]
        container[key] = copy.deepcopy(value)
        if not isinstance(raw["spec"], dict):
            break
    try:
        manifest = decode_document(raw)
    except InvalidManifest as error:
        assert error.violations
        str(error).encode()
    else:  # what is accepted can be stored, sent and read again with the same meaning
        again = copy.deepcopy(raw) | {"spec": json.loads(json.dumps(manifest.raw_spec))}
        assert decode_document(again) == manifest


def test_a_normal_workload_is_decoded_within_its_budget() -> None:
    """The budget is 100 microseconds on an idle core, about a piece; three times that is no bug."""
    raw = workload()
    assert pieces(lambda: decode_document(raw)) < 3.0
