"""What an agent says is checked and cut: inventories, heartbeats, statuses, events, stops."""

import json
import math

import pytest

from orchestrator.domain import inventory, reports
from orchestrator.domain.revisions import collectable
from orchestrator.domain.stops import SETTLED_AFTER_S, is_gone
from orchestrator.records import AssignmentRecord, NodePlacement, StopRecord
from polder.v1 import agent_pb2, common_pb2


def sound() -> agent_pb2.NodeInventory:
    amounts = agent_pb2.Resources(cpu_millis=4000, memory_bytes=1 << 32, disk_bytes=1 << 33)
    return agent_pb2.NodeInventory(arch="arm64", capacity=amounts, allocatable=amounts)


def test_a_sound_inventory_has_no_problems_and_survives_the_store() -> None:
    given = sound()
    given.allocatable.devices["polder.eu/gpu"] = 2
    given.accelerators.add(resource="polder.eu/gpu", id="v.eu/gpu=0", attributes={"m": "x"})
    assert inventory.problems(given) == []
    assert inventory.from_stored(inventory.stored_form(given)) == given


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("allocatable.cpu_millis", -1),
        ("capacity.memory_bytes", -1),
        ("reserved.disk_bytes", -1),
        ("capacity.cpu_millis", 10**9),
        ("capacity.memory_bytes", 1 << 61),
        ("allocatable.memory_bytes", 1 << 40),  # more than the capacity
        ("arch", "vax"),
        ("kernel", "x" * 1000),
    ],
)
def test_an_absurd_inventory_is_told_by_field(path: str, value: object) -> None:
    given = sound()
    *outer, name = path.split(".")
    setattr(getattr(given, outer[0]) if outer else given, name, value)
    (problem, *_) = inventory.problems(given)
    assert name in problem


def test_how_its_peers_reach_it_is_checked_and_survives_the_store() -> None:
    given = sound()
    given.site_endpoints.extend(["192.0.2.7:7445", "[2001:db8::7]:7445"])
    given.site_certificate = bytes(range(256))
    assert inventory.problems(given) == []
    stored = json.loads(json.dumps(inventory.stored_form(given)))
    assert inventory.from_stored(stored) == given
    assert inventory.site_access(stored) == (
        ("192.0.2.7:7445", "[2001:db8::7]:7445"),
        bytes(range(256)),
    )
    assert inventory.site_access({}) == ((), b"")
    assert inventory.site_access(stored | {"siteCertificate": "?"}) == ((), b"")


@pytest.mark.parametrize(
    "endpoint", ["", "host", ":7445", "h:0", "h:65536", "h:٣", "h" * 300 + ":1"]
)
@pytest.mark.parametrize("of", ["site", "local"])
def test_an_endpoint_that_nobody_can_dial_is_told(of: str, endpoint: str) -> None:
    given = sound()
    getattr(given, f"{of}_endpoints").append(endpoint)
    (problem,) = inventory.problems(given)
    assert f"{of}Endpoints" in problem


def test_too_much_for_a_roster_is_told() -> None:
    given = sound()
    given.site_endpoints.extend(["h:1"] * (inventory.SITE_ENDPOINTS_MAX + 1))
    given.local_endpoints.extend(["h:1"] * (inventory.SITE_ENDPOINTS_MAX + 1))
    given.site_certificate = b"x" * (inventory.SITE_CERTIFICATE_MAX + 1)
    assert len(inventory.problems(given)) == 3


def test_negative_devices_are_a_problem() -> None:
    given = sound()
    given.allocatable.devices["polder.eu/gpu"] = -2
    assert inventory.problems(given)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_heartbeat_with_impossible_numbers_is_not_believed(value: float) -> None:
    usage = agent_pb2.Usage(temperature_celsius=value)
    assert not inventory.believable(agent_pb2.Heartbeat(usage=usage))
    assert not inventory.believable(agent_pb2.Heartbeat(agent_cpu_seconds=value))
    assert not inventory.believable(agent_pb2.Heartbeat(usage=agent_pb2.Usage(cpu_millis=-1)))
    assert inventory.believable(agent_pb2.Heartbeat(usage=agent_pb2.Usage(temperature_celsius=-9)))


def test_statuses_are_cut_and_counted() -> None:
    status = agent_pb2.ReplicaStatus(replica_uid="u", message="x" * 9999)
    status.containers.add(message="y" * 9999).last_exit.last_log = "z" * 99999
    for _ in range(40):
        status.containers.add()
    known: dict[str, agent_pb2.ReplicaStatus] = {}
    assert reports.merge(known, [status]) == 0
    assert known["u"].ByteSize() < 10_000 and len(known["u"].containers) == reports.CONTAINERS_MAX
    many = [agent_pb2.ReplicaStatus(replica_uid=str(n)) for n in range(reports.REPLICAS_MAX)]
    assert reports.merge(known, many) == 1
    changed = agent_pb2.ReplicaStatus(replica_uid="u", ready=True)
    assert reports.merge(known, [changed]) == 0 and known["u"].ready


def test_what_standbys_say_is_cut_and_counted() -> None:
    said = [
        agent_pb2.StandbyStatus(workload_uid="w", replica=f"web-{n}", message="x" * 9999)
        for n in range(reports.STANDBYS_MAX + 3)
    ]
    found = reports.standbys(said)
    assert len(found) == reports.STANDBYS_MAX
    assert len(found["w", "web-0"].message) == reports.TEXT_MAX
    assert len(said[0].message) == 9999, "the message is the sender's"


PLACEMENT = NodePlacement(
    "n1",
    7,
    (AssignmentRecord("ns", "web", "uid", "web-0", "r0", 1, 1),),
    (StopRecord("ns", "old", "old-3", "r3", "ScaledDown", "", 1_000_000),),
)


@pytest.mark.parametrize(
    ("kind", "namespace", "name", "expected"),
    [
        ("Replica", "ns", "web-0", ("Replica", "ns", "web-0", "")),
        ("Replica", "ns", "old-3", ("Replica", "ns", "old-3", "")),
        ("Replica", "ns", "web-1", ("Node", "", "n1", "ns/web-1: ")),
        ("Replica", "other", "web-0", ("Node", "", "n1", "other/web-0: ")),
        ("Workload", "ns", "web", ("Workload", "ns", "web", "")),
        ("Workload", "ns", "theirs", None),
        ("Node", "", "n1", ("Node", "", "n1", "")),
        ("Node", "", "n2", None),
        ("Operator", "", "root", None),
    ],
)
def test_what_an_agents_event_may_be_about(
    kind: str, namespace: str, name: str, expected: object
) -> None:
    ref = common_pb2.ResourceRef(kind=kind, namespace=namespace, name=name)
    assert reports.event_object(common_pb2.Event(object=ref), PLACEMENT) == expected


def test_a_standby_speaks_of_what_it_may_take_over() -> None:
    theirs = AssignmentRecord("ns", "api", "uid-2", "api-0", "r9", 1, 1)
    ref = common_pb2.ResourceRef(kind="Replica", namespace="ns", name="api-0")
    event = common_pb2.Event(object=ref)
    assert reports.event_object(event, PLACEMENT, lambda: [theirs]) == (
        "Replica",
        "ns",
        "api-0",
        "",
    )
    other = common_pb2.Event(object=common_pb2.ResourceRef(kind="Replica", name="api-0"))
    found = reports.event_object(other, PLACEMENT, lambda: [theirs])
    assert found is not None and found[0] == "Node", "of that namespace only"


@pytest.mark.parametrize(
    ("said", "reported", "complete", "acked", "later_s", "expected"),
    [
        ({"r3"}, set(), False, 0, 0.0, True),  # it said so
        (set(), set(), True, 7, SETTLED_AFTER_S, True),  # it had the order, and has no such replica
        (set(), set(), True, 7, SETTLED_AFTER_S - 1, False),
        (set(), set(), True, 6, 999.0, False),  # it may not have had the order
        (set(), set(), False, 7, 999.0, False),  # it may have more than it says
        (set(), {"r3"}, True, 7, 999.0, False),
    ],
)
def test_when_a_stopped_replica_is_gone(
    said: set[str], reported: set[str], complete: bool, acked: int, later_s: float, expected: bool
) -> None:
    assert (
        is_gone(
            PLACEMENT.stops[0],
            PLACEMENT,
            said_gone=said,
            reported=reported,
            complete=complete,
            acked_generation=acked,
            now=1000.0 + later_s,
        )
        is expected
    )


def test_revisions_that_may_go() -> None:
    assert collectable(range(1, 31), {30, 7}, {3}) == [n for n in range(1, 21) if n not in (3, 7)]
    assert collectable(range(1, 6), {5}, set()) == []
    assert collectable([1, 2], {0}, {2}, keep_last=0) == [1]
