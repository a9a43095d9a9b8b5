"""The schema of what changes and ends: updates, jobs, schedules, volumes, rights, windows."""

import pytest

from polder.manifest import InvalidManifest, PodTemplate, WorkloadSpec, decode, digest
from polder.manifest.facts import Maintenance
from polder.manifest.kinds import ALLOWANCES, CONFIG_BYTES_MAX, ConfigSpec, NamespaceSpec
from polder.manifest.quantity import amount, amount_of, format_timestamp, timestamp_s

CONTAINER = {"name": "app", "image": "app:1"}


def template(**more: object) -> dict[str, object]:
    return {"containers": [CONTAINER], **more}


def container(**more: object) -> dict[str, object]:
    return {"containers": [{**CONTAINER, **more}]}


def faults(spec_class: type, raw: object) -> dict[str, str]:
    with pytest.raises(InvalidManifest) as raised:
        decode(spec_class, raw)
    return {violation.path: violation.message for violation in raised.value.violations}


@pytest.mark.parametrize(
    ("raw", "text"), [(0, "0"), (3, "3"), ("3", "3"), ("25%", "25%"), ("025%", "25%")]
)
def test_amounts_have_one_spelling(raw: object, text: str) -> None:
    assert amount(raw) == text


@pytest.mark.parametrize("raw", ["", "x", "-1", "1.5", "101%", "%", None, True, 2_000_000])
def test_what_is_no_amount(raw: object) -> None:
    with pytest.raises(ValueError):
        amount(raw)


@pytest.mark.parametrize(
    ("text", "total", "up", "count"),
    [("2", 10, True, 2), ("25%", 10, True, 3), ("25%", 10, False, 2), ("0%", 10, True, 0)],
)
def test_a_share_of_a_whole(text: str, total: int, up: bool, count: int) -> None:
    assert amount_of(text, total, up=up) == count


def test_times_need_a_zone_and_are_read_back() -> None:
    assert format_timestamp(timestamp_s("2026-11-22T04:00:00+01:00")) == "2026-11-22T03:00:00Z"
    for raw in ("2026-11-22T04:00:00", "tomorrow", 5, "9" * 80):
        with pytest.raises(ValueError):
            timestamp_s(raw)


@pytest.mark.parametrize("surge", [0, "0%"])
def test_an_update_that_could_never_change_anything(surge: object) -> None:
    update = {"maxUnavailable": "0", "maxSurge": surge}
    found = faults(WorkloadSpec, {"template": template(), "update": update})
    assert "nothing could ever change" in found["update.maxUnavailable"]


@pytest.mark.parametrize(
    ("spec", "path", "words"),
    [
        ({"run": "once", "replicas": 2}, "replicas", "job.completions"),
        ({"job": {"completions": 2}}, "job", "needs run: once"),
        ({"schedule": {"cron": "0 3 * * *"}}, "schedule", "needs run: once"),
        ({"run": "once", "schedule": {"cron": "daily"}}, "schedule.cron", "five fields"),
        (
            {"run": "once", "schedule": {"cron": "0 3 * * *", "timeZone": "Mars/"}},
            "schedule.timeZone",
            "time zone such as",
        ),
    ],
)
def test_jobs_and_schedules(spec: dict[str, object], path: str, words: str) -> None:
    assert words in faults(WorkloadSpec, {"template": template(), **spec})[path]


def test_a_job_has_no_local_volumes() -> None:
    spec = {"run": "once", "template": template(volumes=[{"name": "data", "local": {}}])}
    assert "template.volumes" in faults(WorkloadSpec, spec)


@pytest.mark.parametrize(
    ("raw", "path", "words"),
    [
        (template(volumes=[{"name": "v"}]), "volumes[0]", "found none"),
        (
            template(volumes=[{"name": "v", "scratch": {}, "local": {}}]),
            "volumes[0]",
            "found scratch and local",
        ),
        (
            container(volumeMounts=[{"name": "v", "mountPath": "/v"}]),
            "containers[0].volumeMounts[0].name",
            "which is not in volumes",
        ),
        (
            template(
                volumes=[{"name": "v", "config": {"name": "c", "items": {"key": "../escape"}}}]
            ),
            "volumes[0].config.items.key",
            "file name",
        ),
        (template(initContainers=[CONTAINER]), "initContainers[0].name", "already taken"),
        (
            template(
                initContainers=[
                    {"name": "i", "image": "i", "readinessProbe": {"exec": {"command": ["true"]}}}
                ]
            ),
            "initContainers[0]",
            "without probes",
        ),
        (
            template(
                hostNetwork=True,
                containers=[{**CONTAINER, "ports": [{"containerPort": 80, "hostPort": 81}]}],
            ),
            "containers[0].ports[0].hostPort",
            "must be the containerPort",
        ),
        (
            container(env=[{"name": "A", "fact": "site.altitude"}]),
            "containers[0].env[0].fact",
            "site.country",
        ),
        (
            container(env=[{"name": "A", "value": "x", "fact": "site.name"}]),
            "containers[0].env[0]",
            "value and fact",
        ),
        (
            container(security={"capabilities": ["CAP-NET"]}),
            "containers[0].security.capabilities[0]",
            "Linux capability",
        ),
    ],
)
def test_templates(raw: dict[str, object], path: str, words: str) -> None:
    assert words in faults(PodTemplate, raw)[path]


def test_what_a_pod_shares_with_its_node_takes_the_nodes_ports() -> None:
    made = decode(
        PodTemplate,
        template(hostNetwork=True, containers=[{**CONTAINER, "ports": [{"containerPort": 8080}]}]),
    )
    assert [port.host_port for port in made.host_ports()] == [8080]


def test_every_demand_has_an_allowance_of_its_name() -> None:
    greedy = decode(
        PodTemplate,
        template(
            hostNetwork=True,
            hostPID=True,
            hostIPC=True,
            volumes=[{"name": "v", "hostPath": {"path": "/dev/kvm"}}],
            containers=[
                {**CONTAINER, "security": {"capabilities": ["SYS_TIME"], "seccomp": "Unconfined"}}
            ],
        ),
    )
    assert set(greedy.demands()) == set(ALLOWANCES)
    assert decode(PodTemplate, template()).demands() == ()
    assert decode(NamespaceSpec, {"allow": list(ALLOWANCES)}).allow == ALLOWANCES


def test_configs_of_variables_and_volumes_are_named_once() -> None:
    made = decode(
        PodTemplate,
        {
            "containers": [
                {**CONTAINER, "env": [{"name": "A", "config": {"name": "b", "key": "k"}}]}
            ],
            "volumes": [
                {"name": "v", "config": {"name": "a"}},
                {"name": "w", "config": {"name": "b"}},
            ],
        },
    )
    assert made.named_configs() == ("a", "b")


def test_what_is_safe_by_default_is_not_written_into_the_digest() -> None:
    """An upgrade must not restart what runs."""
    plain = decode(PodTemplate, template())
    (first,) = plain.containers
    assert first.security.read_only_root
    assert first.security.read_only_root_filesystem is None
    spelled = decode(PodTemplate, container(security={"readOnlyRootFilesystem": True}))
    assert digest(spelled) != digest(plain)


def test_a_config_is_bounded_as_a_whole() -> None:
    parts = {f"k{n}": "x" * (CONFIG_BYTES_MAX // 3) for n in range(4)}
    assert "at most" in faults(ConfigSpec, {"data": parts})["data"]


def test_a_window_ends_after_it_starts() -> None:
    window = {"start": "2026-11-22T04:00:00Z", "end": "2026-11-22T04:00:00+01:00"}
    assert faults(Maintenance, window)["end"] == "is not after start"
