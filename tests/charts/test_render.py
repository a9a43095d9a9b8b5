"""What the chart comes to, for every way to run it: properties that must hold, and golden files."""

import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from images.chart import package_chart, with_digest
from images.inputs import CannotBuild
from orchestrator.config import Config, load_config, settings
from tests.charts.cases import APIS, CASES, EXTERNAL, GOLDEN, THREE
from tests.charts.golden import FOLDER, golden_text
from tests.charts.helm import (
    CHART,
    DIGEST,
    IMAGES,
    NEWEST,
    OLDEST,
    ROOT,
    HelmRefused,
    Object,
    Rendered,
    copy_of_chart,
    helm,
    merged,
    render,
)

pytestmark = pytest.mark.helm

_RENDERED: dict[tuple[str, str], Rendered] = {}


@pytest.fixture(params=[(name, kube) for name in CASES for kube in (OLDEST, NEWEST)], ids=str)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    """Each once for all tests."""
    name, kube = request.param
    if (name, kube) not in _RENDERED:
        _RENDERED[name, kube] = render(CASES[name], kube=kube, apis=APIS)
    return _RENDERED[name, kube]


def containers(pod: Object) -> Iterator[Object]:
    yield from pod["spec"].get("initContainers", ())
    yield from pod["spec"]["containers"]


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


# --- every pod ------------------------------------------------------------------------------------


def test_every_pod_is_restricted(rendered: Rendered) -> None:
    """As the level `restricted` of Kubernetes' Pod Security Standards, and a read-only root."""
    pods = list(rendered.pods())
    assert len(pods) >= 4
    for owner, pod in pods:
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, owner
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, owner
        for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
            assert key not in spec, owner
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, owner
            assert all("hostPort" not in port for port in container.get("ports", ())), owner
        kinds = {"configMap", "secret", "emptyDir"}
        for volume in spec.get("volumes", ()):
            assert set(volume) - {"name"} <= kinds, f"{owner}: {volume}"


def test_every_image_is_named_by_digest(rendered: Rendered) -> None:
    for owner, pod in rendered.pods():
        for container in containers(pod):
            repository, _, digest = container["image"].partition("@")
            assert digest == DIGEST, owner
            assert repository.startswith("registry.example/polder/"), owner


def test_every_pod_may_go_where_members_may(rendered: Rendered) -> None:
    """Jobs and the test, too: where every machine is tainted they would wait for ever."""
    (members,) = [i for n, i in rendered.of("StatefulSet").items() if not n.endswith("-etcd")]
    spec = members["spec"]["template"]["spec"]
    for owner, pod in rendered.pods():
        if not owner.endswith("-etcd"):  # its own values say
            for key in ("nodeSelector", "tolerations"):
                assert pod["spec"].get(key) == spec.get(key), owner


def test_every_container_says_what_it_needs(rendered: Rendered) -> None:
    for owner, pod in rendered.pods():
        for container in containers(pod):
            asked = container["resources"]
            assert {"cpu", "memory"} <= set(asked["requests"]), owner
            assert "memory" in asked["limits"], owner


def test_only_the_jobs_have_a_token(rendered: Rendered) -> None:
    for owner, pod in rendered.pods():
        is_job = owner.startswith("Job/")
        assert pod["spec"]["automountServiceAccountToken"] is is_job, owner
        assert pod["spec"]["serviceAccountName"], owner
    for account in rendered.of("ServiceAccount").values():
        assert account["automountServiceAccountToken"] is False


def test_the_jobs_may_do_little_and_nobody_else_anything(rendered: Rendered) -> None:
    assert not rendered.of("ClusterRole") and not rendered.of("ClusterRoleBinding")
    (role,) = rendered.of("Role").values()
    (binding,) = rendered.of("RoleBinding").values()
    assert [s["name"] for s in binding["subjects"]] == [role["metadata"]["name"]]
    for rule in role["rules"]:
        assert rule["apiGroups"] == [""]
        assert rule["resources"] in (["secrets"], ["configmaps"])
        assert set(rule["verbs"]) <= {"create", "get", "update"}
        if "create" not in rule["verbs"]:
            assert rule["resourceNames"], "reading is limited to names"
        if rule["resources"] == ["secrets"]:
            assert "update" not in rule["verbs"], "a secret is never changed"
    for item in (role, binding):
        assert "hook-succeeded" in item["metadata"]["annotations"]["helm.sh/hook-delete-policy"]


def test_no_secret_is_in_what_helm_keeps(rendered: Rendered) -> None:
    """What helm renders is stored in the cluster, shown by `helm get`, and kept in git by some."""
    assert not rendered.of("Secret")
    assert "PRIVATE KEY" not in rendered.text


def test_no_pod_reads_a_key_that_it_does_not_need(rendered: Rendered) -> None:
    for owner, pod in rendered.pods():
        for volume in pod["spec"].get("volumes", ()):
            if "secret" not in volume:
                continue
            name = volume["secret"]["secretName"]
            assert not name.endswith(("-root", "-etcd-ca")), owner
            assert volume["secret"]["defaultMode"] == 0o440, owner
            if owner.startswith("Pod/"):
                assert [i["key"] for i in volume["secret"]["items"]] == ["root.crt"], owner
        for container in containers(pod):
            assert not any("secretKeyRef" in str(env) for env in container.get("env", ())), owner
            assert "envFrom" not in container, owner


# --- network --------------------------------------------------------------------------------------


def test_what_is_not_allowed_is_denied(rendered: Rendered) -> None:
    policies = rendered.of("NetworkPolicy")
    if not policies:
        assert "control" in rendered.of("StatefulSet"), "the case that turns them off"
        return
    deny = next(p for name, p in policies.items() if name.endswith("-deny"))
    assert set(deny["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in deny["spec"] and "egress" not in deny["spec"]
    for owner, pod in rendered.pods():
        labels = pod["metadata"]["labels"]
        assert selects(deny["spec"]["podSelector"]["matchLabels"], labels), owner
    ports = {
        port["port"]
        for policy in policies.values()
        for rule in policy["spec"].get("ingress", ())
        for port in rule["ports"]
    }
    assert ports <= {7443, 7444, 7480, 2379, 2380}
    for policy in policies.values():
        for rule in (*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())):
            assert rule["ports"], "no rule opens all ports"


def test_etcd_is_for_members_only() -> None:
    policy = render(THREE).one("NetworkPolicy", "polder-etcd")
    for rule in policy["spec"]["ingress"]:
        for peer in rule["from"]:
            component = peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            assert component in ("orchestrator", "etcd")
            if component == "orchestrator":
                assert [p["port"] for p in rule["ports"]] == [2379]


def test_with_sqlite_a_member_dials_nobody() -> None:
    assert "egress" not in render().one("NetworkPolicy", "polder")["spec"]


def test_members_of_other_regions_get_in_where_clients_are_named() -> None:
    clients = [{"ipBlock": {"cidr": "192.0.2.0/24"}}]
    found = render(merged(CASES["region"], {"networkPolicy": {"clients": clients}}))
    rules = found.one("NetworkPolicy", "polder")["spec"]["ingress"]
    (rule,) = [r for r in rules if r["from"] == CASES["region"]["networkPolicy"]["members"]]
    assert rule["ports"] == [{"protocol": "TCP", "port": 7443}], "and not to join"


def test_the_first_job_gets_out_of_a_namespace_that_denies_everything(rendered: Rendered) -> None:
    """It runs before the release's other policies, and before its account's rights otherwise."""
    policies = [n for n in rendered.of("NetworkPolicy").values() if "-jobs" in str(n["metadata"])]
    (role,) = rendered.of("Role").values()
    for policy in policies:
        assert policy["metadata"]["annotations"] == role["metadata"]["annotations"]
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in policy


def test_names_are_asked_for_where_they_are_answered() -> None:
    ports = {"networkPolicy": {"dnsPorts": [5353]}}
    for policy in render(THREE, ports).of("NetworkPolicy").values():
        numbers = {p["port"] for rule in policy["spec"].get("egress", ()) for p in rule["ports"]}
        assert 53 not in numbers, policy["metadata"]["name"]
        assert 5353 in numbers or not numbers & {2379, 7443}, policy["metadata"]["name"]


def test_metrics_are_read_by_those_that_are_named() -> None:
    on = {"metrics": {"enabled": True}}
    for rule in render(on).one("NetworkPolicy", "polder")["spec"]["ingress"]:
        assert 7480 not in [p["port"] for p in rule["ports"]]
    rules = render(CASES["metrics"], apis=APIS).one("NetworkPolicy", "polder")["spec"]["ingress"]
    (rule,) = [r for r in rules if 7480 in [p["port"] for p in r["ports"]]]
    assert rule["from"] == CASES["metrics"]["networkPolicy"]["metrics"]
    assert "metrics" not in str(render().of("Service")), "off by default"


def test_every_service_leads_to_ports_that_are_there(rendered: Rendered) -> None:
    for name, service in rendered.of("Service").items():
        selector = service["spec"]["selector"]
        selector.pop("statefulset.kubernetes.io/pod-name", None)
        found = [
            {port["name"] for c in containers(pod) for port in c["ports"]}
            for owner, pod in rendered.pods()
            if owner.startswith("StatefulSet/") and selects(selector, pod["metadata"]["labels"])
        ]
        assert len(found) == 1, name
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= found[0], name


# --- members --------------------------------------------------------------------------------------


def test_every_configuration_is_one(rendered: Rendered, tmp_path: Path) -> None:
    """As `edge-orchestrator serve` reads it: strictly."""
    names = set()
    (members,) = [
        s
        for s in rendered.of("StatefulSet").values()
        if s["metadata"]["labels"]["app.kubernetes.io/component"] == "orchestrator"
    ]
    configs = rendered.configs()
    pod = members["metadata"]["name"]
    assert set(configs) == {f"{pod}-{n}" for n in range(members["spec"]["replicas"])}
    for text in configs.values():
        path = tmp_path / "orchestrator.toml"
        path.write_text(text)
        config = load_config(path, {})
        names.add(config.member_name)
        assert config.health_listen
        if config.shares_store:
            assert config.advertise_peer
    assert len(names) == len(configs)


def test_members_of_two_regions_have_different_names() -> None:
    west = render({**THREE, "region": "eu-west"}).configs()["polder-0"]
    north = render({**THREE, "region": "eu-north"}).configs()["polder-0"]
    assert tomllib.loads(west)["member"] != tomllib.loads(north)["member"]


def test_a_region_joins_with_its_own_addresses() -> None:
    configs = render(CASES["region"]).configs()
    for n, text in enumerate(configs.values()):
        config = tomllib.loads(text)
        assert config["store"] == "etcd:etcd.eu-west.example:2379,etcd.eu-north.example:2379"
        assert config["advertise"] == ["192.0.2.10:7443"]
        assert config["advertise_peer"] == f"192.0.2.1{n + 1}:7443"
        assert config["location"] == "52.37,4.90"


def test_the_same_digest_of_configuration_until_it_changes() -> None:
    def annotation(values: dict[str, Any]) -> str:
        pod = render(values).one("StatefulSet", "polder")["spec"]["template"]
        return str(pod["metadata"]["annotations"]["polder.eu/config"])

    assert annotation({}) == annotation({"resources": {"limits": {"memory": "3Gi"}}})
    assert annotation({}) != annotation({"settings": {"lost_after": "45s"}})
    assert annotation(THREE) == annotation({**THREE, "replicas": 5}), "one more rolls no others"
    moved = {"advertise": {"members": ["192.0.2.11:7443", "192.0.2.13:7443"]}}
    assert annotation(CASES["region"]) != annotation(merged(CASES["region"], moved))


def test_probes_ask_the_health_service(rendered: Rendered) -> None:
    for name, item in rendered.of("StatefulSet").items():
        if name.endswith("-etcd"):
            continue
        (container,) = item["spec"]["template"]["spec"]["containers"]
        port = {p["name"]: p["containerPort"] for p in container["ports"]}["health"]
        for probe, service in (
            ("startupProbe", "liveness"),
            ("livenessProbe", "liveness"),
            ("readinessProbe", "readiness"),
        ):
            assert container[probe]["grpc"] == {"port": port, "service": service}
        (text, *_) = rendered.configs().values()
        assert tomllib.loads(text)["health_listen"].endswith(f":{port}")


def test_data_outlives_the_release(rendered: Rendered) -> None:
    for name, item in rendered.of("StatefulSet").items():
        kept = item["spec"]["persistentVolumeClaimRetentionPolicy"]
        assert kept == {"whenDeleted": "Retain", "whenScaled": "Retain"}, name
    assert not rendered.of("PersistentVolumeClaim"), "helm would delete it at uninstall"


def test_what_cannot_be_changed_is_the_same_in_every_version(rendered: Rendered) -> None:
    """Selectors and claims are fixed: a version in their labels would refuse every upgrade."""
    for item in rendered.of("StatefulSet").values():
        fixed = [item["spec"]["selector"], item["spec"].get("volumeClaimTemplates", [])]
        assert "helm.sh/chart" not in str(fixed)
        assert "app.kubernetes.io/version" not in str(fixed)


def test_a_budget_and_a_spread_where_there_is_more_than_one() -> None:
    alone, three = render(), render(THREE)
    assert not alone.of("PodDisruptionBudget"), "it would only hinder who drains the machine"
    budgets = three.of("PodDisruptionBudget")
    assert set(budgets) == {"polder", "polder-etcd"}
    assert all(b["spec"]["maxUnavailable"] == 1 for b in budgets.values())
    for item in three.of("StatefulSet").values():
        pod = item["spec"]["template"]
        keys = [c["topologyKey"] for c in pod["spec"]["topologySpreadConstraints"]]
        assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
        for constraint in pod["spec"]["topologySpreadConstraints"]:
            assert selects(constraint["labelSelector"]["matchLabels"], pod["metadata"]["labels"])
    for name, budget in budgets.items():
        pod = three.one("StatefulSet", name)["spec"]["template"]
        assert selects(budget["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"])


# --- what is refused ------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"replicas": "three"}, "at '/replicas': got string, want integer"),
    ({"store": {"tpye": "etcd"}}, "at '/store': additional properties 'tpye' not allowed"),
    ({"replica": 3}, "additional properties 'replica' not allowed"),
    ({"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match pattern"),
    ({"image": {"repository": "r.example/p:v1"}}, "at '/image/repository'"),
    ({"settings": {"lost_aftre": "45s"}}, "additional properties 'lost_aftre' not allowed"),
    ({"settings": {"lost_after": 45}}, "at '/settings/lost_after': got number, want string"),
    ({"advertise": {"agents": ["orchestrator.example"]}}, "at '/advertise/agents/0'"),
    ({"etcd": {"replicas": 2}}, "at '/etcd/replicas'"),
    ({"security": {"runAsUser": 0}}, "at '/security/runAsUser'"),
    ({"replicas": None}, "at '': missing property 'replicas'"),
    ({"networkPolicy": {"dnsPorts": None}}, "at '/networkPolicy': missing property 'dnsPorts'"),
    ({"tolerations": [{"kye": "x"}]}, "at '/tolerations/0': additional properties 'kye' not"),
    ({"affinity": {"nodeAfinity": {}}}, "at '/affinity': additional properties 'nodeAfinity' not"),
    ({"resources": {"limits": {"memroy": "1Gi"}}}, "additional properties 'memroy' not allowed"),
    ({"resources": {"limits": {"memory": "2gigs"}}}, "at '/resources/limits/memory': '2gigs' does"),
    (
        {"networkPolicy": {"clients": [{"ipBlock": {"cidr": "192.0.2.7"}}]}},
        "at '/networkPolicy/clients/0/ipBlock/cidr': '192.0.2.7' does not match pattern",
    ),
    (
        {"networkPolicy": {"clients": [{"podSelector": {"matchLabel": {}}}]}},
        "at '/networkPolicy/clients/0/podSelector': additional properties 'matchLabel' not",
    ),
    ({"fullnameOverride": "1st"}, "at '/fullnameOverride': '1st' does not match pattern"),
    ({"nameOverride": "edge.1"}, "at '/nameOverride': 'edge.1' does not match pattern"),
    ({"nameOverride": "x" * 40}, "cannot be what names of Services begin with"),
    ({"service": {"joinPort": 7443}}, "service.joinPort: is 7443, as service.port"),
    (
        {"service": {"nodePort": 30443}},
        "service.nodePort: a Service of type ClusterIP has none; set service.type=LoadBalancer or",
    ),
    (
        {"service": {"type": "NodePort", "loadBalancerSourceRanges": ["192.0.2.0/24"]}},
        "service.loadBalancerSourceRanges: a Service of type NodePort has none",
    ),
    ({"metrics": {"port": 7481}}, "metrics.port: members have something else at 7481"),
    (
        {"podLabels": {"app.kubernetes.io/component": "x"}},
        "podLabels: app.kubernetes.io/component is the chart's own to say",
    ),
    ({"advertise": {"members": ["a:1"]}}, "advertise.members: a member with SQLite has no others"),
    ({"memberService": {"enabled": True}}, "memberService.enabled: a member with SQLite has no"),
    ({"replicas": 3}, "replicas: 3 members cannot share one SQLite file"),
    ({"persistence": {"enabled": False}}, "SQLite without a volume would forget everything"),
    ({"store": {**EXTERNAL, "type": "sqlite"}}, "store.etcd: is given, and store.type is sqlite"),
    (
        {"store": {"type": "etcd", "etcd": {"endpoints": ["e:2379"]}}},
        "store.etcd.existingSecret: an etcd of your own",
    ),
    (
        {"store": {"type": "etcd", "etcd": {"existingSecret": "x"}}},
        "store.etcd.existingSecret: is for the etcd at store.etcd.endpoints",
    ),
    ({**THREE, "etcd": {"image": {"digest": ""}}}, "etcd.image: the bundled etcd needs"),
    (
        {**THREE, "advertise": {"members": ["a:1"]}},
        "advertise.members: has 1 addresses for 3 members",
    ),
    ({"image": {"digest": ""}}, "image.digest: images are named by digest"),
    ({"image": {"repository": ""}}, "image.repository: say where your image is"),
    (
        {"metrics": {"serviceMonitor": {"enabled": True}}},
        "metrics.serviceMonitor.enabled: needs metrics.enabled=true",
    ),
    (
        {"metrics": {"enabled": True, "serviceMonitor": {"enabled": True}}},
        "this cluster does not know ServiceMonitor",
    ),
]


@pytest.mark.parametrize(("values", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_refused_with_the_reason(values: dict[str, Any], words: str) -> None:
    with pytest.raises(HelmRefused) as caught:
        render(values)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["1edge", "edge.1", "a" * 39 + "-polder"])
def test_a_name_that_services_cannot_have_is_refused(name: str) -> None:
    with pytest.raises(HelmRefused, match="cannot be what names of Services begin with"):
        render(name=name)


def test_an_empty_value_is_refused_or_means_the_default() -> None:
    """`replicas:` with nothing behind it takes Helm's default away; it must not mean 0."""
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def walk(schema: Any, values: dict[str, Any]) -> dict[str, Any]:
        """All that may be empty, emptied."""
        emptied: dict[str, Any] = {}
        for key, value in values.items():
            may_be_null = "null" in schema["properties"][key].get("type", ())
            if value in ("", None, [], {}):
                emptied[key] = None
                assert key not in schema.get("required", ()), key
            elif not may_be_null:
                assert key in schema["required"], f"{key} has a default that is needed"
            if value and "properties" in schema["properties"][key]:
                emptied[key] = walk(schema["properties"][key], value)
        return emptied

    emptied = merged(walk(schema, values), {"image": None, "etcd": {"image": None}})
    assert emptied["store"]["etcd"]["endpoints"] is None
    del emptied["image"], emptied["etcd"]["image"]  # those are asked for, see below
    for case in ({}, THREE):
        assert render(emptied, case).objects == render(case).objects


def test_an_older_kubernetes_is_refused() -> None:
    with pytest.raises(HelmRefused, match=r"requires kubeVersion: >=1\.27"):
        render(kube="1.26.0")


def test_lint_is_strict(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    for case in CASES.values():
        if case is not CASES["metrics"]:  # `helm lint` cannot be told of other APIs
            values.write_text(yaml.safe_dump(merged(IMAGES, case)))
            helm("lint", "--strict", "--quiet", f"--values={values}", str(CHART))


# --- golden, and what must stay together ----------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    found = golden_text(render(CASES[name], apis=APIS))
    wanted = (FOLDER / f"{name}.yaml").read_text()
    assert found == wanted, "if the change is meant: python -m tests.charts.golden"


def test_the_job_reads_what_a_member_will_read(rendered: Rendered) -> None:
    """So that it can refuse what the member would refuse."""
    name = next(n for n in rendered.of("Job") if n.endswith("-prepare"))
    (container,) = containers(rendered.one("Job", name)["spec"]["template"])
    given = container["args"][container["args"].index("--config") + 1]
    assert given.strip() == next(iter(rendered.configs().values())).strip()


def test_the_schema_knows_the_orchestrators_settings() -> None:
    """Those that the chart does not set itself; a new one must be added to one or the other."""
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    offered = schema["properties"]["settings"]["properties"]
    config = tomllib.loads(render(CASES["region"]).configs()["polder-0"])
    elsewhere = {"peer_listen", "share_port", "hosts"} - set(offered)
    assert set(offered) | set(config) | elsewhere == {info.key for info in settings()}
    assert not set(offered) & set(config)
    assert len(fields(Config)) == len(settings())


def test_every_value_is_in_the_schema_and_the_other_way_round() -> None:
    def keys(schema: Any, path: str = "") -> Iterator[str]:
        for key, sub in schema.get("properties", {}).items():
            yield f"{path}.{key}"
            yield from keys(sub, f"{path}.{key}")

    def given(values: Any, path: str = "") -> Iterator[str]:
        if isinstance(values, dict):
            for key, value in values.items():
                yield f"{path}.{key}"
                yield from given(value, f"{path}.{key}")

    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    loose = (".settings.", ".resources.", ".etcd.resources.", ".global", ".networkPolicy.")
    known = {key for key in keys(schema) if not key.startswith(loose)}
    assert known == {key for key in given(values) if not key.startswith(loose)}


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_a_packaged_chart_names_the_images_of_its_release(tmp_path: Path) -> None:
    """And nothing else is changed; the same sources give the same bytes."""
    digests = {"polder-orchestrator": "sha256:" + "b" * 64, "polder-etcd": "sha256:" + "c" * 64}
    archive = package_chart(digests, tmp_path / "one", 1_790_000_000.0)
    again = package_chart(digests, tmp_path / "two", 1_790_000_000.0)
    assert archive.read_bytes() == again.read_bytes()
    repositories = {"image": {"repository": "r.example/o"}}
    repositories["etcd"] = {"image": {"repository": "r.example/e"}}
    values = yaml.safe_dump(merged(repositories, THREE))
    found = Rendered(helm("template", "polder", str(archive), "--values=-", stdin=values))
    images = {c["image"] for _, pod in found.pods() for c in containers(pod)}
    assert images == {
        f"r.example/o@{digests['polder-orchestrator']}", f"r.example/e@{digests['polder-etcd']}",
    }  # fmt: skip
    helm("lint", "--strict", str(archive), "--values=-", stdin=values)
    inside = helm("show", "values", str(archive))
    assert inside.count("sha256:b") == inside.count("sha256:c") == 1
    with pytest.raises(CannotBuild, match="has no line"):
        with_digest("image:\n  repository: x\n", ("image",), "sha256:")


def notes(folder: Path, values: dict[str, Any]) -> str:
    """`helm template` leaves them out: they are made an object here."""
    templates = copy_of_chart(folder) / "templates"
    text = (templates / "NOTES.txt").read_text()
    (templates / "_notes.tpl").write_text('{{ define "notes" }}' + text + "{{ end }}")
    (templates / "notes.yaml").write_text('notes: {{ include "notes" . | toJson }}\n')
    command = ["template", "polder", str(templates.parent), "--namespace=edge", "--values=-"]
    stdin = yaml.safe_dump(merged(IMAGES, values))
    shown = helm(*command, "--show-only=templates/notes.yaml", stdin=stdin)
    found: str = yaml.safe_load(shown)["notes"]
    return found


def test_notes_give_the_next_three_commands(tmp_path: Path) -> None:
    text = notes(tmp_path, {})
    assert [line[:2] for line in text.splitlines() if line[:1].isdigit()] == ["1.", "2.", "3."]
    assert "operator admin-context" in text and "edgectl get regions" in text


def test_notes_leave_no_key_where_others_can_read_it(tmp_path: Path) -> None:
    """Nor do they write over a root's key that was saved already."""
    lines = notes(tmp_path, {}).splitlines()
    (admin,) = [line for line in lines if "admin-context" in line]
    assert admin.endswith("| edgectl config import - --use")
    (root,) = [line for line in lines if "polder-root -o yaml" in line]
    saving, _, deleting = root.strip().partition(") && ")
    assert saving.startswith("(umask 077; set -C; ") and "delete secret" in deleting


def test_notes_say_what_is_still_missing(tmp_path: Path) -> None:
    text = notes(tmp_path / "one", {"advertise": {"agents": ["192.0.2.10:7443"]}})
    assert "polder.edge.svc.cluster.local:7443" not in text
    assert "polder.edge.svc.cluster.local:7444, which only this cluster knows" in text
    assert "set advertise.join" in text and "service.type=LoadBalancer" in text
    assert "Nobody may read the metrics" not in text
    text = notes(tmp_path / "two", {**CASES["region"], "metrics": {"enabled": True}})
    assert "only this cluster knows" not in text and "-root" not in text
    assert "Nobody may read the metrics yet" in text
