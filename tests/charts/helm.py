"""Helm as a program, and what its templates come to: objects by kind and name."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from devcluster import preflight

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "polder"
DIGEST = "sha256:" + "a" * 64
IMAGES: dict[str, Any] = {
    "image": {"repository": "registry.example/polder/orchestrator", "digest": DIGEST},
    "etcd": {"image": {"repository": "registry.example/polder/etcd", "digest": DIGEST}},
}
MONITORING = "monitoring.coreos.com/v1/ServiceMonitor"
OLDEST, NEWEST = "1.27.0", "1.37.0"

Object = dict[str, Any]
Values = Mapping[str, Any]


class HelmRefused(Exception):
    """What it said on stderr."""


def helm(*arguments: str, stdin: str = "", **environment: str) -> str:
    """Its output. Raises HelmRefused."""
    program = preflight.helm()
    assert program is not None, "tests that use Helm are marked `helm`"
    done = subprocess.run(
        [str(program), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=150,
        check=False,
    )
    if done.returncode != 0:
        raise HelmRefused(done.stderr)
    return done.stdout


def merged(*layers: Values) -> dict[str, Any]:
    """Later ones win, key by key."""
    found: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = found.get(key)
            both = isinstance(value, Mapping) and isinstance(old, Mapping)
            found[key] = merged(old, value) if both and old is not None else value
    return found


@dataclass
class Rendered:
    """All objects of a release, hooks and tests included."""

    text: str
    objects: list[Object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.objects = [one for one in yaml.safe_load_all(self.text) if one]

    def of(self, kind: str) -> dict[str, Object]:
        return {o["metadata"]["name"]: o for o in self.objects if o["kind"] == kind}

    def one(self, kind: str, name: str) -> Object:
        return self.of(kind)[name]

    def pods(self) -> Iterator[tuple[str, Object]]:
        """Every pod, or what pods are made from: (owner, {metadata, spec})."""
        for item in self.objects:
            owner = f"{item['kind']}/{item['metadata']['name']}"
            if item["kind"] == "Pod":
                yield owner, item
            elif "template" in item.get("spec", {}):
                yield owner, item["spec"]["template"]

    def configs(self) -> dict[str, str]:
        """orchestrator.toml by pod."""
        (config,) = self.of("ConfigMap").values()
        return {name.removesuffix(".toml"): text for name, text in config["data"].items()}


def render(
    *layers: Values,
    kube: str = NEWEST,
    name: str = "polder",
    namespace: str = "edge",
    apis: Sequence[str] = (),
    images: bool = True,
) -> Rendered:
    """Raises HelmRefused."""
    values = merged(IMAGES if images else {}, *layers)
    arguments = [f"--namespace={namespace}", f"--kube-version={kube}", "--values=-"]
    arguments += [f"--api-versions={api}" for api in apis]
    return Rendered(helm("template", name, str(CHART), *arguments, stdin=json.dumps(values)))


def copy_of_chart(folder: Path) -> Path:
    return Path(shutil.copytree(CHART, folder / "polder"))
