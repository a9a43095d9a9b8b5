"""What apply says of a failover that cannot keep what it seems to promise."""

from typing import Any

import pytest

from orchestrator.api.failover_checks import unkept
from polder.manifest import InvalidManifest, WorkloadSpec, decode

POD = {"containers": [{"name": "c", "image": "registry.example/c:1"}]}
DATA = {
    "containers": [
        {
            "name": "c",
            "image": "registry.example/c:1",
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        }
    ],
    "volumes": [{"name": "data", "local": {}}],
}


def spec(failover: dict[str, Any], **fields: Any) -> WorkloadSpec:
    return decode(WorkloadSpec, {"template": POD, "failover": failover, **fields}, "spec")


@pytest.mark.parametrize(
    ("failover", "fields", "told"),
    [
        ({"exclusive": True}, {}, "spec.failover.standbys: while its node is lost nobody takes"),
        (
            {"exclusive": True, "standbys": 1, "lostAfter": "60s"},
            {},
            "spec.failover.lostAfter: has no effect",
        ),
        (
            {"exclusive": True, "standbys": 1},
            {"update": {"maxUnavailable": 0}},
            "spec.failover.exclusive: an exclusive replica stops before it starts anew",
        ),
        ({"standbys": 1}, {"perNode": 1}, "nobody takes it over: perNode replicas belong"),
        ({"standbys": 1}, {"run": "once"}, "nobody takes it over: a job's replica is placed"),
        ({"standbys": 1}, {"template": DATA}, "nobody takes it over: the data of its local"),
        (
            {"standbys": 1, "exclusive": True},
            {"template": DATA},
            "the data of its local volumes stays on its node, so nobody takes it over",
        ),
        (
            {"standbys": 1, "scope": "any", "whenIsolated": "stop"},
            {},
            "spec.failover.whenIsolated: has no effect",
        ),
    ],
)
def test_what_is_not_kept_is_told(
    failover: dict[str, Any], fields: dict[str, Any], told: str
) -> None:
    (warning,) = unkept(spec(failover, **fields))
    assert told in warning


@pytest.mark.parametrize(
    "failover",
    [
        {},
        {"standbys": 2, "whenIsolated": "stop"},
        {"standbys": 1, "exclusive": True, "whenIsolated": "stop", "lostAfter": "60s"},
    ],
)
def test_what_is_kept_needs_no_word(failover: dict[str, Any]) -> None:
    assert unkept(spec(failover)) == []


@pytest.mark.parametrize("fields", [{"perNode": 1}, {"run": "once"}])
def test_what_nobody_else_runs_cannot_be_exclusive(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidManifest, match=r"failover\.exclusive"):
        spec({"exclusive": True}, **fields)


def test_only_nodes_of_one_site_vote_together() -> None:
    with pytest.raises(InvalidManifest, match="needs scope: site"):
        spec({"exclusive": True, "scope": "any"})
