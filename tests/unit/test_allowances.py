"""What apply refuses of a template, whatever its namespace allows."""

from typing import Any

import pytest

from orchestrator.api.allowances import taken
from polder.manifest import WorkloadSpec, decode


def mounting(path: str, *, init: bool = False) -> WorkloadSpec:
    mounts = [{"name": "a", "mountPath": "/data"}, {"name": "b", "mountPath": path}]
    plain: dict[str, Any] = {"name": "plain", "image": "i"}
    holder = {"name": "holder", "image": "i", "volumeMounts": mounts}
    template: dict[str, Any] = {
        "containers": [plain] if init else [plain, holder],
        "volumes": [{"name": "a", "scratch": {}}, {"name": "b", "scratch": {}}],
    }
    if init:
        template["initContainers"] = [holder]
    return decode(WorkloadSpec, {"template": template})


@pytest.mark.parametrize(
    "path",
    [
        "/run/polder",
        "/run/polder/",
        "/run/polder/epoch",
        "/run/./polder",
        "//run//polder",
        "/run/x/../polder",
        "/var/run/polder/x",
    ],
)
def test_nothing_is_mounted_where_the_agent_tells_of_the_epoch(path: str) -> None:
    ((field, text),) = taken(mounting(path))
    assert field == "spec.template.containers[1].volumeMounts[1].mountPath"
    assert path in text and "/run/polder is Polder's" in text
    ((field, _),) = taken(mounting(path, init=True))
    assert field == "spec.template.initContainers[0].volumeMounts[1].mountPath"


@pytest.mark.parametrize("path", ["/run", "/run/polderer", "/srv/run/polder", "/var/run/x", "/"])
def test_what_is_beside_it_is_free(path: str) -> None:
    assert taken(mounting(path)) == []
