"""Digests of templates. A digest that changes restarts containers on every box of the fleet."""

from typing import Any

import pytest

from polder.manifest import PodTemplate, WorkloadSpec, canonical, decode, digest

FULL: dict[str, Any] = {
    "containers": [
        {
            "name": "app",
            "image": "registry.example/triage@sha256:" + "a" * 64,
            "imagePullPolicy": "Always",
            "command": ["/app", "--größe"],
            "args": ["x"],
            "workingDir": "/srv",
            "env": [
                {"name": "MODE", "value": "day"},
                {"name": "KEY", "secret": {"name": "s", "key": "k"}},
            ],
            "ports": [{"name": "http", "containerPort": 8080, "hostPort": 18080}],
            "resources": {
                "cpu": "500m",
                "cpuLimit": 1,
                "memory": "256Mi",
                "disk": "1Gi",
                "devices": {"polder.eu/gpu": 1, "polder.eu/camera": 2},
            },
            "readinessProbe": {"http": {"path": "/healthz", "port": "http"}, "period": "2s"},
            "livenessProbe": {"exec": {"command": ["true"]}, "failureThreshold": 5},
            "security": {"runAsUser": 1000, "readOnlyRootFilesystem": True},
            "stopSignal": "SIGINT",
        }
    ],
    "imagePullSecrets": ["pull"],
    "stopGrace": "1m30s",
}
MINIMAL: dict[str, Any] = {"containers": [{"name": "app", "image": "app:1"}]}


@pytest.mark.parametrize(
    ("template", "golden"),
    [
        (MINIMAL, "05c0cdf145b23deb8db076aa660bed516adaec1d97642c7319ff4c7019098f0f"),
        (FULL, "c7e09a8ce1cf2ddf937589d3236129bc21450cbbd60835e68637953bb313d8a7"),
    ],
    ids=["minimal", "full"],
)
def test_digests_never_change(template: dict[str, Any], golden: str) -> None:
    """If this fails, the change at hand would restart every container. Change the code instead."""
    assert digest(decode(PodTemplate, template)) == golden


@pytest.mark.parametrize(
    "same",
    [
        {"stopGrace": "10s"},
        {"stopGrace": 10},
        {"stopGrace": "10000ms"},
        {"stopGrace": None},
        {"imagePullSecrets": []},
        {"containers": [{"image": "app:1", "name": "app", "resources": {}, "env": None}]},
        {"containers": [{"image": "app:1", "name": "app", "resources": {"cpu": "0m"}}]},
        {"containers": [{"image": "app:1", "name": "app", "workingDir": ""}]},
    ],
)
def test_what_means_the_same_has_the_same_digest(same: dict[str, Any]) -> None:
    assert digest(decode(PodTemplate, MINIMAL | same)) == digest(decode(PodTemplate, MINIMAL))


def test_the_order_of_a_map_does_not_matter_and_that_of_a_list_does() -> None:
    def template(devices: dict[str, int], args: list[str]) -> PodTemplate:
        container = {"name": "a", "image": "b", "args": args, "resources": {"devices": devices}}
        return decode(PodTemplate, {"containers": [container]})

    first = digest(template({"a": 1, "b": 2}, ["x", "y"]))
    assert first == digest(template({"b": 2, "a": 1}, ["x", "y"]))
    assert first != digest(template({"a": 1, "b": 2}, ["y", "x"]))
    assert first != digest(template({"a": 1, "b": 3}, ["x", "y"]))


def test_the_canonical_form_leaves_defaults_out() -> None:
    assert canonical(decode(PodTemplate, MINIMAL)) == MINIMAL
    spec = decode(WorkloadSpec, {"template": MINIMAL, "replicas": 0, "priority": 0})
    assert canonical(spec) == {"template": MINIMAL, "replicas": 0}


def test_every_field_of_a_template_counts() -> None:
    whole = digest(decode(PodTemplate, FULL))
    container = FULL["containers"][0]
    for key in container.keys() - {"name", "image", "ports"}:
        less = {k: v for k, v in container.items() if k != key}
        assert digest(decode(PodTemplate, FULL | {"containers": [less]})) != whole, key
