"""Releases on a real API server: install, upgrade, rollback, `helm test`, uninstall, and again.

kube-apiserver with its admission (Pod Security at `restricted`), RBAC and controllers are real, and
so are helm, the jobs, the members and etcd; `kubelet.py` runs what the pods say.
"""

import base64
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.etcd_api import command
from devcluster.ports import free_port
from images.build import IMAGES
from images.inputs import own_architecture
from images.layout import Layout
from orchestrator.main import main
from orchestrator.store.etcd.settings import EtcdTls
from tests.charts.api import ApiRefused
from tests.charts.cases import APIS, CASES, THREE
from tests.charts.cluster import ControlPlane, until
from tests.charts.conftest import Built
from tests.charts.helm import CHART, ROOT, HelmRefused, helm, merged, render
from tests.charts.helm import IMAGES as NAMES
from tests.charts.kubelet import Kubelet, Running, Unpacked

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.machine,
    pytest.mark.long,
    pytest.mark.timeout(600),
]

PROVIDER = """
apiVersion: polder.eu/v1
kind: Provider
metadata: {name: telco}
spec: {legalName: Telco B.V., seatCountry: NL}
"""
ADMIN_CONTEXT = (
    "edge-orchestrator", "operator", "admin-context", "--config", "/etc/polder/orchestrator.toml",
)  # fmt: skip


class Stage:
    """A cluster with its kubelet, and helm and edgectl that speak to it."""

    def __init__(self, folder: Path, images: Mapping[str, Unpacked] | None = None) -> None:
        self.folder = folder
        self.plane = ControlPlane(folder)
        self.kubelet = Kubelet(self.plane, images)

    def helm(
        self, *arguments: str, values: dict[str, Any] | None = None, namespace: str = "edge"
    ) -> str:
        stdin = json.dumps(merged(NAMES, values or {})) if values is not None else ""
        more = ["--values=-"] if values is not None else []
        words = [*arguments, f"--namespace={namespace}", *more]
        return helm(*words, stdin=stdin, KUBECONFIG=str(self.plane.kubeconfig))

    def install(self, values: dict[str, Any], *more: str, namespace: str = "edge") -> str:
        upgrade = ["upgrade", "--install", "polder", str(CHART), "--wait", "--timeout=2m"]
        return self.helm(*upgrade, *more, values=values, namespace=namespace)

    def pod(self, name: str = "polder-0", namespace: str = "edge") -> Running:
        return self.kubelet.find(namespace, name)

    def uid(self, name: str = "polder-0") -> str:
        found = self.plane.api.get("pods", "edge", name)
        assert found is not None
        return str(found["metadata"]["uid"])

    def secrets(self) -> dict[str, Any]:
        return {
            item["metadata"]["name"]: (item["metadata"]["uid"], item["data"])
            for item in self.plane.api.list("secrets", "edge")
            if item["type"] == "Opaque"
        }

    def context(self) -> Path:
        """The first admin's, by the command of the notes."""
        path = self.folder / "admin.yaml"
        path.write_text(self.kubelet.execute(self.pod(), *ADMIN_CONTEXT))
        return path

    def edgectl(
        self, context: Path, *arguments: str, stdin: str = "", namespace: str = "edge"
    ) -> str:
        endpoint = f"{self.pod(namespace=namespace).address}:7443"
        edgectl = [sys.executable, "-m", "edgectl", "--config", str(context)]
        done = subprocess.run(
            [*edgectl, "--endpoint", endpoint, *arguments],
            input=stdin, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def record(self) -> dict[str, str]:
        found = self.plane.api.get("configmaps", "edge", "polder-installation")
        assert found is not None
        return dict(found["data"])

    def write_record(self, data: dict[str, str]) -> None:
        path = self.plane.api.path("configmaps", "edge", "polder-installation")
        self.plane.api.patch(path, {"data": data})


@contextmanager
def staged(folder: Path, images: Mapping[str, Unpacked] | None = None) -> Iterator[Stage]:
    stage = Stage(folder, images)
    try:
        stage.plane.start()
        stage.plane.namespace("edge")
        stage.kubelet.start()
        yield stage
    finally:
        stage.kubelet.stop()
        stage.plane.stop()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(tmp_path) as stage:
        yield stage


def test_every_way_to_run_it_is_one_that_the_api_server_takes(stage: Stage) -> None:
    """Every field is known and every pod admitted, by the server's own word."""
    for name, values in CASES.items():
        rendered = render(values, apis=APIS)
        for account in {pod["spec"]["serviceAccountName"] for _, pod in rendered.pods()}:
            if stage.plane.api.get("serviceaccounts", "edge", account) is None:
                path = stage.plane.api.path("serviceaccounts", "edge")
                stage.plane.api.call("POST", path, {"metadata": {"name": account}})
        for body in rendered.objects:
            if body["kind"] in ("ServiceAccount", "ServiceMonitor"):  # there; the operator's
                continue
            try:
                stage.plane.api.would_take("edge", body)
            except ApiRefused as refusal:
                raise AssertionError(f"{name}: {body['kind']}: {refusal}") from refusal


def test_a_release_with_sqlite_lives_and_comes_back(stage: Stage) -> None:
    api = stage.plane.api
    notes = stage.install({}, "--hide-notes=false")
    assert "operator admin-context" in notes

    # What it made, and what the jobs left behind: no rights.
    made = stage.secrets()
    assert set(made) == {"polder-root", "polder-ca"}
    assert "polder-jobs" not in api.names("roles", "edge")
    assert "polder-jobs" not in api.names("serviceaccounts", "edge")
    assert not api.names("jobs", "edge")
    for log in stage.kubelet.folder.glob("*/log"):
        assert "PRIVATE KEY" not in log.read_text()
    assert "PRIVATE KEY" not in stage.helm("get", "all", "polder")
    ca_key = base64.b64decode(made["polder-ca"][1]["ca.key"]).decode().splitlines()[1]
    assert ca_key not in stage.helm("get", "all", "polder")

    # It serves, by helm's own test, and by an operator's hands.
    assert "Succeeded" in stage.helm("test", "polder", "--timeout=2m")
    assert phase(stage, "polder-test") == "Succeeded", "it is there for --logs, once it has passed"
    context = stage.context()
    stage.edgectl(context, "apply", "-f", "-", stdin=PROVIDER)

    # An upgrade rolls the member, and keeps secrets and data.
    before = stage.uid()
    stage.install({"settings": {"lost_after": "45s"}})
    assert stage.uid() != before
    assert stage.secrets() == made
    assert "telco" in stage.edgectl(context, "get", "providers")

    # The same again rolls nothing.
    before = stage.uid()
    stage.install({"settings": {"lost_after": "45s"}})
    assert stage.uid() == before

    # A rollback brings the former configuration back, over the same data.
    stage.helm("rollback", "polder", "1", "--wait", "--timeout=2m")
    assert stage.uid() != before
    assert "lost_after" not in (stage.pod().file("/etc/polder/orchestrator.toml"))
    assert stage.secrets() == made
    assert "telco" in stage.edgectl(context, "get", "providers")

    # Uninstalled, it leaves what a later install of the same name takes up again.
    stage.helm("uninstall", "polder", "--wait", "--timeout=2m")
    until(lambda: api.names("pods", "edge") == {"polder-test"}, "its pods are gone")
    assert not api.names("statefulsets", "edge")
    assert stage.secrets() == made
    assert api.names("persistentvolumeclaims", "edge") == {"data-polder-0"}
    stage.install({})
    assert "telco" in stage.edgectl(context, "get", "providers")

    # Larger volumes, as the guide says: refused, and then without touching the member.
    before, larger = stage.uid(), {"persistence": {"size": "16Gi"}}
    with pytest.raises(HelmRefused, match=r'"polder" is invalid: spec.volumeClaimTemplates'):
        stage.install(larger)
    api.call("DELETE", api.path("statefulsets", "edge", "polder"), {"propagationPolicy": "Orphan"})
    until(lambda: not api.names("statefulsets", "edge"), "its StatefulSet is gone, without pods")
    stage.install(larger)
    assert stage.uid() == before


def test_what_does_not_fit_is_refused_before_anything_changes(stage: Stage) -> None:
    stage.install({})
    before, revision = stage.uid(), stage.helm("history", "polder", "--output=json")
    recorded = stage.record()

    # A version whose members would not know the store any more, by upgrade and by rollback.
    stage.write_record({"schema": "2", "version": "9.9.9"})
    with pytest.raises(HelmRefused, match="pre-upgrade hooks failed"):
        stage.install({"settings": {"lost_after": "45s"}})
    assert "the store has schema 2, written by version 9.9.9" in said_by_pods(stage)
    assert "polder-jobs" not in stage.plane.api.names("roles", "edge"), "also after a failure"
    with pytest.raises(HelmRefused, match="job polder-prepare failed"):
        stage.helm("rollback", "polder", "1", "--wait", "--timeout=2m")
    assert stage.uid() == before
    assert json.loads(revision)[-1]["status"] == "deployed"
    stage.write_record(recorded)

    # Helm keeps a refused rollback for one that is under way, until one to what runs is made.
    with pytest.raises(HelmRefused, match="another operation"):
        stage.install({})
    stage.helm("rollback", "polder", "1", "--wait", "--timeout=2m")
    assert stage.uid() == before

    # Another trust domain, which no box would know.
    with pytest.raises(HelmRefused, match="pre-upgrade hooks failed"):
        stage.install({"trustDomain": "other.example"})
    assert "trustDomain says other.example: that cannot be changed" in said_by_pods(stage)
    assert stage.uid() == before

    # Settings that each member would refuse at its start, when nobody serves any more.
    with pytest.raises(HelmRefused, match="pre-upgrade hooks failed"):
        stage.install({"settings": {"lost_after": "5s"}})
    assert "orchestrator.toml: lost_after: must be longer than silent_after" in said_by_pods(stage)
    assert stage.uid() == before

    # And what is right is taken afterwards.
    stage.install({"settings": {"lost_after": "45s"}})
    assert stage.uid() != before


def said_by_pods(stage: Stage) -> str:
    return "\n".join(log.read_text() for log in stage.kubelet.folder.glob("*/log"))


def test_three_members_with_an_etcd_of_their_own(stage: Stage) -> None:
    api = stage.plane.api
    stage.install(THREE)
    made = stage.secrets()
    assert set(made) == {
        "polder-root", "polder-ca", "polder-etcd-ca", "polder-etcd-server", "polder-etcd-client",
    }  # fmt: skip
    assert "Succeeded" in stage.helm("test", "polder", "--timeout=2m")
    context = admin_of_any(stage)
    stage.edgectl(context, "apply", "-f", "-", stdin=PROVIDER)
    members = json.loads(stage.edgectl(context, "get", "members", "-o", "json"))
    names = {item["name"] for item in members["items"]}
    assert names == {f"local-polder-{n}" for n in range(3)}

    # One after the other, each ready before the next.
    before = {name: stage.uid(name) for name in ("polder-0", "polder-1", "polder-2")}
    stage.install({**THREE, "settings": {"lost_after": "45s"}})
    until(
        lambda: all(stage.uid(name) != uid for name, uid in before.items()), "all members are new"
    )
    assert stage.secrets() == made
    assert "telco" in stage.edgectl(context, "get", "providers")
    assert api.names("persistentvolumeclaims", "edge") == {
        *(f"data-polder-{n}" for n in range(3)),
        *(f"data-polder-etcd-{n}" for n in range(3)),
    }

    # etcd's members are replaced likewise.
    etcd = {name: stage.uid(name) for name in (f"polder-etcd-{n}" for n in range(3))}
    stage.install(merged(THREE, {"etcd": {"quotaBytes": 2 << 30}}))
    until(lambda: all(stage.uid(name) != uid for name, uid in etcd.items()), "all of etcd is new")
    assert "telco" in stage.edgectl(context, "get", "providers")

    # What only a member finds out stops at the first of them. The others serve until the rollback.
    before = {name: stage.uid(name) for name in before}
    wrong = merged(THREE, {"store": {"etcd": {"prefix": "/other"}}})
    stage.helm("upgrade", "polder", str(CHART), values=wrong)
    until(lambda: "a second one of the same CA" in said_by_pods(stage), "the first one refuses")
    assert {n for n, uid in before.items() if stage.uid(n) == uid} == {"polder-0", "polder-1"}
    assert "telco" in stage.edgectl(context, "get", "providers")
    stage.helm("rollback", "polder", "--wait", "--timeout=2m")
    until(lambda: stage.pod("polder-2").ready, "it serves again")
    assert stage.uid("polder-0") == before["polder-0"]

    # More members of etcd are not made by a number.
    with pytest.raises(HelmRefused, match="pre-upgrade hooks failed"):
        stage.install(merged(THREE, {"etcd": {"replicas": 5}}))
    assert "etcd.replicas" in said_by_pods(stage)


def test_sqlite_moves_to_etcd_as_the_guide_says(stage: Stage) -> None:
    stage.install({})
    context = stage.context()
    stage.edgectl(context, "apply", "-f", "-", stdin=PROVIDER)
    made = stage.secrets()

    upgrade = ["upgrade", "polder", str(CHART)]
    stage.helm(*upgrade, values={"store": {"type": "etcd"}})
    until(
        lambda: "holds no installation" in said_by_pods(stage), "the member refuses to begin anew"
    )
    api = stage.plane.api
    api.patch(api.path("statefulsets", "edge", "polder"), {"spec": {"replicas": 0}})
    until(lambda: "polder-0" not in api.names("pods", "edge"), "nobody runs")
    api.call("POST", api.path("pods", "edge"), migrating_pod())
    until(lambda: phase(stage, "migrate") == "Succeeded", "everything is moved")
    api.call("DELETE", api.path("pods", "edge", "migrate"))
    stage.install(THREE)
    assert "telco" in stage.edgectl(context, "get", "providers"), "as the operator that it knew"
    assert made.items() <= stage.secrets().items()

    # The volume still has what it had before the move: nobody may go on from there.
    before = stage.uid()
    with pytest.raises(HelmRefused, match="job polder-prepare failed"):
        stage.helm("rollback", "polder", "1", "--wait", "--timeout=2m")
    assert "is in etcd, and store.type says sqlite" in said_by_pods(stage)
    assert stage.uid() == before
    assert "telco" in stage.edgectl(context, "get", "providers")


def migrating_pod() -> dict[str, Any]:
    """The guide's own."""
    text = (ROOT / "docs/helm.md").read_text().partition("# migrate.yaml")[2]
    block = text.partition("\n")[2].partition("\n\n")[0].replace("DIGEST", "a" * 64)
    found: dict[str, Any] = yaml.safe_load(textwrap.dedent(block))
    return found


def phase(stage: Stage, name: str) -> str:
    found = stage.plane.api.get("pods", "edge", name)
    said = str((found or {}).get("status", {}).get("phase"))
    assert said != "Failed", said_by_pods(stage)
    return said


@pytest.mark.images
@pytest.mark.timeout(1200)
def test_the_built_images_run_as_the_chart_says(built: Built, tmp_path: Path) -> None:
    """What is in them, and nothing else, is all that members, jobs, etcd and the test need."""
    images = {}
    for name, home in IMAGES.items():
        image = Layout(built.out / name).images()[own_architecture()]
        image.unpack(tmp_path / name)
        images[f"registry.example/polder/{home}"] = Unpacked(
            tmp_path / name, image.config["config"]
        )
    (tmp_path / "cluster").mkdir()
    with staged(tmp_path / "cluster", images) as stage:
        stage.install(THREE)
        assert "Succeeded" in stage.helm("test", "polder", "--timeout=2m")
        context = admin_of_any(stage)
        stage.edgectl(context, "apply", "-f", "-", stdin=PROVIDER)
        assert "telco" in stage.edgectl(context, "get", "providers")


def test_two_regions_are_joined_by_root_and_etcd(stage: Stage) -> None:
    """As docs/helm.md says: CAs and certificates of a safe machine, Secrets, two releases."""
    ca = stage.folder / "ca"
    host, port, peer = stage.plane.host, free_port(), free_port()
    for region in ("eu-west", "eu-north"):
        init = ["--trust-domain=polder.example", f"--region={region}"]
        assert main(["ca", "init", f"--dir={ca}", *init]) == 0
    assert main(["ca", "etcd", f"--dir={ca}", "--name=polder", "--client"]) == 0
    assert main(["ca", "etcd", f"--dir={ca}", "--name=member", f"--host={host}"]) == 0
    home = ca / "etcd/member"
    tls = EtcdTls(home / "ca.crt", home / "etcd.crt", home / "etcd.key")
    peer_url = f"https://127.0.0.1:{peer}"
    flags = command("m", stage.folder / "own", f"{host}:{port}", peer_url, tls, f"m={peer_url}")
    etcd = subprocess.Popen(flags, stderr=subprocess.DEVNULL)
    try:
        for region in ("eu-west", "eu-north"):
            stage.plane.namespace(region)
            of_region = ca / "regions" / region
            files = {key: of_region / key for key in ("ca.crt", "ca.key")}
            make_secret(stage, region, "own-ca", {"root.crt": ca / "root.crt", **files})
            of_client = ca / "etcd/polder"
            files = {"tls.crt": of_client / "etcd.crt", "tls.key": of_client / "etcd.key"}
            make_secret(stage, region, "etcd-client", {"ca.crt": of_client / "ca.crt", **files})
            where = {"endpoints": [f"{host}:{port}"], "existingSecret": "etcd-client"}
            values: dict[str, Any] = {
                "region": region,
                "trustDomain": "polder.example",
                "replicas": 2,
                "ca": {"existingSecret": "own-ca"},
                "store": {"type": "etcd", "etcd": where},
            }
            wrong = merged(values, {"store": {"etcd": {"existingSecret": "own-ca"}}})
            with pytest.raises(HelmRefused, match="failed pre-install: "):
                stage.install(wrong, namespace=region)
            assert "Secret own-ca lacks tls.crt, tls.key" in said_by_pods(stage)
            stage.install(values, namespace=region)
            assert "Succeeded" in stage.helm("test", "polder", namespace=region)
            names = stage.plane.api.names("secrets", region)
            assert not names & {"polder-ca", "polder-root"}, "it has its own"
        context = admin_of_any(stage, "eu-west")
        stage.edgectl(context, "apply", "-f", "-", stdin=PROVIDER, namespace="eu-west")
        assert "telco" in stage.edgectl(context, "get", "providers", namespace="eu-north")

        def members() -> dict[str, str]:
            text = stage.edgectl(context, "get", "members", "-o", "json", namespace="eu-north")
            return {item["name"]: item["region"] for item in json.loads(text)["items"]}

        wanted = {f"{r}-polder-{n}": r for r in ("eu-west", "eu-north") for n in range(2)}
        until(lambda: members() == wanted, "every member knows the others")
        until(
            lambda: (
                stage.edgectl(context, "get", "regions", namespace="eu-north").count("Ready") == 2
            ),
            "the regions hear each other",
        )
    finally:
        etcd.terminate()
        etcd.wait(20)


def make_secret(stage: Stage, namespace: str, name: str, files: dict[str, Path]) -> None:
    data = {key: base64.b64encode(path.read_bytes()).decode() for key, path in files.items()}
    body = {"metadata": {"name": name}, "data": data}
    stage.plane.api.call("POST", stage.plane.api.path("secrets", namespace), body)


def admin_of_any(stage: Stage, namespace: str = "edge") -> Path:
    """The first of the members made it."""
    for n in range(3):
        try:
            pod = stage.pod(f"polder-{n}", namespace)
            text = stage.kubelet.execute(pod, *ADMIN_CONTEXT)
        except (AssertionError, StopIteration):
            continue
        path = stage.folder / "admin.yaml"
        path.write_text(text)
        return path
    raise AssertionError("no member has the first admin's context")
