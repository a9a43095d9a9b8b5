"""The small pure parts: backoff, probes, disk pressure, devices, composed specs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain import compose
from agent.domain.backoff import CRASH, IMAGE, Policy, Retry
from agent.domain.compose import Settings, Unresolved, container_spec, registry_auth
from agent.domain.devices import DevicesTaken, allocate
from agent.domain.given import Given
from agent.domain.plan import Assignment, Secret
from agent.domain.pressure import DiskUse, disk_pressure
from agent.domain.probes import ProbeKind, after, begin
from agent.runtime.port import RegistryAuth
from polder.manifest import Probe, decode
from tests.sim.agent_plans import assignment, plan, template

SETTINGS = Settings("box-1", "nl-utr-1", "/logs")
GIB = 1 << 30


def one(pod: dict[str, object], replica: str = "hello-3") -> Assignment:
    return plan(1, [assignment("u", pod, replica=replica, epoch=7)]).assignments["u"]


def test_crash_backoff_is_the_documented_sequence() -> None:
    assert [CRASH.delay_s(n) for n in range(1, 8)] == [0.5, 1, 2, 4, 8, 16, 32]
    assert CRASH.delay_s(0) == 0 and CRASH.delay_s(10**6) == IMAGE.delay_s(10**6) == 300


@given(st.integers(0, 100), st.floats(0.001, 10), st.floats(10, 1000))
def test_backoff_never_shrinks_and_is_bounded(n: int, first: float, most: float) -> None:
    policy = Policy(first, most)
    assert policy.delay_s(n) <= policy.delay_s(n + 1) <= most


def test_hurry_keeps_the_count() -> None:
    retry = Retry(IMAGE)
    retry.failed(100.0, "X", "x")
    retry.failed(100.0, "X", "x")
    retry.hurry(101.0)
    assert not retry.waits(101.0) and retry.failed(101.0, "X", "x") == 8


PROBE = decode(
    Probe, {"tcp": {"port": 80}, "period": "5s", "failureThreshold": 3, "successThreshold": 2}
)


def test_readiness_is_repeated_quickly_until_it_succeeds_and_then_by_its_period() -> None:
    state = begin(ProbeKind.READINESS, PROBE, 100.0, 100.0)
    now, waits = state.due_at, []
    while now < 200:
        state = after(state, PROBE, False, "refused", now)
        waits.append(state.due_at - now)
        now = state.due_at
    assert waits[0] == pytest.approx(0.1) and waits == sorted(waits) and waits[-1] == 5
    assert state.passing is False
    state = after(state, PROBE, True, "", now)
    assert state.passing is False, "one success of two"
    state = after(state, PROBE, True, "", now)
    assert state.passing is True and abs(state.due_at - (now + 5)) <= 0.5


@pytest.mark.parametrize(
    ("period", "asked_at", "due_at"),
    [
        ("5s", 100.3, 105.0),
        ("5s", 105.01, 110.0),
        ("1s", 7.04, 8.0),
        ("500ms", 7.04, 7.5),
        ("2500ms", 7.04, 10.0),
    ],
)
def test_probes_are_due_at_whole_seconds(period: str, asked_at: float, due_at: float) -> None:
    """So that the agent wakes once for all of them."""
    probe = decode(Probe, {"tcp": {"port": 80}, "period": period})
    state = begin(ProbeKind.LIVENESS, probe, 0.0, asked_at)
    assert after(state, probe, True, "", asked_at).due_at == due_at
    assert after(state, probe, None, "runtime away", asked_at).due_at == due_at


def test_liveness_needs_failures_in_a_row_and_keeps_to_its_period() -> None:
    state = begin(ProbeKind.LIVENESS, PROBE, 100.0, 100.0)
    for passed in (False, False, True, False, False):
        state = after(state, PROBE, passed, "stuck", state.due_at)
        assert state.passing is not False
    assert state.due_at == 125.0
    assert after(state, PROBE, False, "stuck", 125.0).passing is False


def test_a_check_that_could_not_be_made_counts_for_nothing() -> None:
    state = begin(ProbeKind.LIVENESS, PROBE, 100.0, 100.0)
    for _ in range(10):
        state = after(state, PROBE, None, "runtime away", state.due_at)
    assert (state.failures, state.passing, state.runs) == (0, None, 0)


def test_initial_delay_counts_from_the_start_of_the_container() -> None:
    slow = decode(Probe, {"tcp": {"port": 80}, "initialDelay": "10s"})
    assert begin(ProbeKind.READINESS, slow, 100.0, 101.0).due_at == 110.0
    assert begin(ProbeKind.READINESS, slow, 100.0, 500.0).due_at == 500.0, "adopted: at once"


def test_what_started_before_the_clock_was_set_back_a_year_is_probed() -> None:
    adopted = begin(ProbeKind.READINESS, PROBE, 100.0 + 365 * 86_400, 100.0)
    assert adopted.due_at == 100.0
    assert after(adopted, PROBE, False, "refused", 100.0).due_at == pytest.approx(100.1)


def test_disk_pressure_has_hysteresis() -> None:
    assert disk_pressure(False, [DiskUse("state", 10 * GIB, GIB + 1)]) == (False, "")
    assert disk_pressure(True, [DiskUse("state", 10 * GIB, GIB + 1)])[0]
    assert disk_pressure(False, [DiskUse("state", 10 * GIB, GIB - 1)])[0]
    assert not disk_pressure(False, [DiskUse("big", 2000 * GIB, 6 * GIB)])[0]
    assert not disk_pressure(True, [DiskUse("nothing", 0, 0)])[0]


def test_devices_are_given_once() -> None:
    found = {"polder.eu/gpu": ("/dev/a", "/dev/b", "/dev/c")}
    assert allocate({"polder.eu/gpu": 2}, found, {"/dev/a"}) == ("/dev/b", "/dev/c")
    with pytest.raises(DevicesTaken, match="2 wanted, 1 free of 3"):
        allocate({"polder.eu/gpu": 2}, found, {"/dev/a", "/dev/b"})
    with pytest.raises(DevicesTaken):
        allocate({"other/x": 1}, found, set())


def test_container_spec_carries_what_the_template_says() -> None:
    wanted = one(
        template(
            env=[{"name": "A", "value": "1"}, {"name": "POLDER_EPOCH", "value": "forged"}],
            resources={"cpu": "250m", "memory": "64Mi"},
            args=["serve"],
        )
    )
    assert wanted.template is not None
    spec = container_spec(
        SETTINGS, wanted, wanted.template.containers[0],
        image="sha256:1", attempt=4, restarts=2, given=Given(), devices=("/dev/a", "v.com/gpu=0"),
    )  # fmt: skip
    env = dict(spec.env)
    assert len(env) == len(spec.env)
    assert env == {
        "A": "1",
        "POLDER_EPOCH": "7",
        "POLDER_NODE": "box-1",
        "POLDER_SITE": "nl-utr-1",
        "POLDER_NAMESPACE": "default",
        "POLDER_WORKLOAD": "hello",
        "POLDER_REPLICA": "hello-3",
        "POLDER_REPLICA_INDEX": "3",
    }
    assert (spec.resources.cpu_millis, spec.resources.memory_bytes) == (250, 64 << 20)
    assert [d.host_path for d in spec.devices] == ["/dev/a"]
    assert spec.cdi_devices == ("v.com/gpu=0",)
    assert spec.labels["polder.eu/restarts"] == "2"


def test_only_numbered_replicas_have_an_index() -> None:
    wanted = one(template(), replica="hello-box-1a")
    assert wanted.template is not None
    env = compose.environment(SETTINGS, wanted, wanted.template.containers[0], {})
    assert "POLDER_REPLICA_INDEX" not in dict(env)


def secret(server: str, kind: str = "Registry") -> Secret:
    data = {"server": server.encode(), "username": b"u", "password": b"p"}
    return Secret("default", "pull", kind, data)


@pytest.mark.parametrize(
    ("image", "server", "matches"),
    [
        ("registry.example/app:1", "registry.example", True),
        ("registry.example:5000/app:1", "registry.example:5000", True),
        ("registry.example:5000/app:1", "registry.example", False),
        ("registry.example/app:1", "https://registry.example/v2/", True),
        ("app:1", "docker.io", True),
        ("library/app", "https://index.docker.io/v1/", True),
        ("localhost/app", "docker.io", False),
        ("registry.example.evil.test/app", "registry.example", False),
    ],
)
def test_pull_secrets_go_to_their_registry_only(image: str, server: str, matches: bool) -> None:
    wanted = one(template(image, imagePullSecrets=["pull"]))
    assert wanted.template is not None
    secrets = {("default", "pull"): secret(server)}
    found = registry_auth(image, "default", wanted.template, Given(secrets))
    assert found == (RegistryAuth("u", "p") if matches else None)
    assert "p'" not in repr(found) and "b'p'" not in repr(secrets)


def test_missing_secrets_say_which() -> None:
    wanted = one(template(imagePullSecrets=["pull"]))
    assert wanted.template is not None
    with pytest.raises(Unresolved, match="'pull'"):
        compose.check(SETTINGS, wanted, wanted.template, Given())
    with pytest.raises(Unresolved, match="Registry is needed"):
        opaque = {("default", "pull"): secret("x", "Opaque")}
        compose.check(SETTINGS, wanted, wanted.template, Given(opaque))
    keyed = one(template(env=[{"name": "A", "secret": {"name": "pull", "key": "nope"}}]))
    assert keyed.template is not None
    with pytest.raises(Unresolved, match="no key 'nope'"):
        compose.check(SETTINGS, keyed, keyed.template, Given({("default", "pull"): secret("x")}))
