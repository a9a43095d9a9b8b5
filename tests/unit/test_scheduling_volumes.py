"""Data that ties a replica to its node, paths of the box, and what a namespace allows."""

import pytest

from orchestrator.domain.inventory import covers
from orchestrator.domain.liveness import Liveness
from orchestrator.domain.volumes import released, volume_records
from orchestrator.scheduling.decisions import Bind, Cause, Unbind
from orchestrator.scheduling.explain import explain
from orchestrator.scheduling.snapshot import Mode, Namespace, Resources, Template
from tests.unit.scheduling_world import SMALL, World, box

DATA = Template(Resources(cpu_millis=100), local_volumes=("data",))


def two(**facts: object) -> World:
    world = World().add(box("n1", "s1"), box("n2", "s2"))
    world.want("db", DATA, count=2, **facts)
    world.settle()
    return world


# --- local volumes --------------------------------------------------------------------------------


def test_a_first_place_binds_and_the_data_brings_the_replica_back() -> None:
    world = two()
    where = world.where()
    assert world.volumes == {("ns", replica): node for replica, node in where.items()}
    world.want("db", count=0)
    world.settle()
    assert world.where() == {} and len(world.volumes) == 2
    world.want("busy", Template(Resources(cpu_millis=700)), priority=-1)
    world.settle()
    world.want("db", count=2)
    world.settle()
    assert {r: n for r, n in world.where().items() if r.startswith("db")} == where


def test_the_commit_says_it_once() -> None:
    world = World().add(box("n1"))
    world.want("db", DATA)
    assert world.step().bind == (Bind("ns", "db-0", ("data",), "n1"),)
    assert world.step().bind == ()


def test_a_node_without_room_keeps_its_replica_away_and_says_so() -> None:
    world = two()
    node = world.where()["db-0"]
    world.want("db", count=0)
    world.settle()
    world.change(node, unschedulable=True)
    world.want("db", count=2)
    decided = world.step()
    assert [place.assignment.replica for place in decided.place] == ["db-1"]
    (why,) = decided.explanations
    assert why.code == "Unschedulable" and why.replicas == ("db-0",)
    assert f"the data of its volume data is on node {node}" in why.message
    assert "NodeUnschedulable" in why.message


@pytest.mark.parametrize("trouble", [{"draining": True}, {"liveness": Liveness.LOST}])
def test_what_has_data_there_stays_and_the_reason_is_told(trouble: dict[str, object]) -> None:
    world = two()
    node = world.where()["db-0"]
    world.change(node, **trouble)
    decided = world.step()
    assert decided.changes_nothing
    (why,) = decided.explanations
    assert why.code == "CannotMove" and why.replicas == ("db-0",)
    assert why.message.endswith("it stays, for the data of its volume data is there")


def test_the_deadline_of_a_drain_holds_for_data_too_and_it_returns_there() -> None:
    world = two()
    node = world.where()["db-0"]
    world.change(node, draining=True, drain_overdue=True)
    (stop,) = world.step().stop
    assert stop.cause is Cause.DRAINED
    world.settle()
    assert "db-0" not in world.where()
    world.change(node, draining=False, drain_overdue=False)
    world.settle()
    assert world.where()["db-0"] == node


def test_a_deleted_node_takes_its_data_with_it() -> None:
    world = two()
    node = world.where()["db-0"]
    other = world.where()["db-1"]
    world.change(node, deleting=True)
    world.settle()
    assert world.where() == {"db-0": other, "db-1": other}
    assert set(world.volumes.values()) == {other}


def test_data_of_nobody_on_a_node_that_is_gone_is_released() -> None:
    world = two()
    world.want("db", count=0)
    world.settle()
    expected = tuple(
        Unbind(*key, "n1") for key, node in sorted(world.volumes.items()) if node == "n1"
    )
    del world.nodes["n1"], world.placements["n1"]
    assert expected and world.step().unbind == expected
    assert set(world.volumes.values()) == {"n2"}
    world.nodes.clear()
    assert world.step().unbind == ()  # a snapshot without nodes says nothing of nodes


def test_an_update_of_what_has_data_is_made_in_place() -> None:
    world = two()
    where = world.where()
    world.update("db", DATA)
    plans = world.settle()
    assert sum(len(decided.revise) for decided in plans) == 2
    assert not any(decided.place or decided.stop for decided in plans)
    assert world.where() == where


def test_a_volume_that_comes_with_an_update_binds_where_the_replica_is() -> None:
    world = World().add(box("n1"), box("n2"))
    world.want("web", SMALL)
    world.settle()
    node = world.where()["web-0"]
    world.update("web", DATA)
    world.settle()
    assert world.where() == {"web-0": node} and world.volumes == {("ns", "web-0"): node}


def test_per_site_replicas_go_back_to_their_data() -> None:
    world = World().add(box("a1", "a"), box("a2", "a"))
    world.want("gw", DATA, mode=Mode.PER_SITE)
    world.settle()
    node = world.where()["gw-a"]
    world.want("gw", count=0)
    world.settle()
    world.want("gw", count=1)
    world.settle()
    assert world.where() == {"gw-a": node}


def test_why_says_where_the_data_of_the_next_replica_is() -> None:
    world = two()
    node = world.where()["db-0"]
    other = world.where()["db-1"]
    world.want("db", count=0)
    world.settle()
    world.change(node, unschedulable=True)
    world.want("db", count=1)
    found = explain(world.snapshot(), world.workloads["uid-db"], 0.0)
    reasons = {verdict.node: verdict.reasons for verdict in found.verdicts}
    assert [reason.code for reason in reasons[node]] == ["NodeUnschedulable"]
    (reason,) = reasons[other]
    assert reason.code == "VolumeElsewhere"
    assert reason.text == f"the data of volume data of db-0 is on node {node}"


def test_the_records_of_volumes() -> None:
    bind = Bind("ns", "db-0", ("data", "logs"), "n1")
    records = volume_records(bind, 7, 1000)
    assert [record.ref for record in records] == [
        ("Volume", "ns", "db-0-data"),
        ("Volume", "ns", "db-0-logs"),
    ]
    assert records[0].decoded.node == "n1" and len({record.uid for record in records}) == 2
    assert released(Unbind("ns", "db-0", "n1"), records) == records
    assert released(Unbind("ns", "db-0", "n2"), records) == []
    assert volume_records(bind, 8, 1000)[0].uid != records[0].uid


# --- paths of the box -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "path", "expected"),
    [
        ("/dev", "/dev/ttyS0", True),
        ("/dev/", "/dev", True),
        ("/dev", "/device", False),
        ("/dev/bus", "/dev", False),
        ("/", "/etc/passwd", True),
        ("/srv/data", "/srv/./data//x", True),
        ("/srv/data", "/srv/data/../secret", False),
        ("/srv/..", "/srv", False),
    ],
)
def test_what_a_path_covers(allowed: str, path: str, expected: bool) -> None:
    assert covers(allowed, path) is expected


@pytest.mark.parametrize("count", [1, 3])
def test_only_boxes_that_allow_the_path_are_used(count: int) -> None:
    world = World().add(
        box("n1"), box("n2", host_paths=("/dev/bus",)), box("n3", host_paths=("/dev",))
    )
    world.namespaces["ns"] = Namespace("ns", allow=frozenset({"hostPath"}))
    template = Template(Resources(10), host_paths=("/dev/ttyS0",))
    world.want("meter", template, count=count)
    world.settle()
    assert set(world.where().values()) == {"n3"}
    world.change("n3", host_paths=())
    assert world.step().changes_nothing  # what runs is left alone
    world.want("more", template)
    (why,) = world.step().explanations
    assert {reason.code for reason in why.reasons} == {"HostPathNotAllowed"}
    example = why.reasons[0].example
    assert "the box does not let replicas see /dev/ttyS0; its host_paths: none" in example


def test_what_opens_a_device_of_the_box_is_not_started_beside_itself_there() -> None:
    world = World().add(box("n1", host_paths=("/dev",)))
    world.namespaces["ns"] = Namespace("ns", allow=frozenset({"hostPath"}))
    template = Template(Resources(10), host_paths=("/dev/ttyS0",), demands=("hostPath",))
    world.want("meter", template)
    world.settle()
    world.update("meter", template)
    decided = world.step()
    assert len(decided.revise) == 1 and not decided.place


# --- what a namespace allows ----------------------------------------------------------------------


def test_what_the_namespace_allows_no_more_stays_but_nothing_new_comes() -> None:
    world = World().add(box("n1"), box("n2"))
    world.namespaces["ns"] = Namespace("ns", allow=frozenset({"hostNetwork"}))
    template = Template(Resources(10), demands=("hostNetwork",))
    world.want("net", template, count=2)
    world.settle()
    world.namespaces["ns"] = Namespace("ns")
    assert world.step().changes_nothing
    world.want("net", count=3)
    (why,) = world.step().explanations
    assert why.code == "Unschedulable" and {r.code for r in why.reasons} == {"NotAllowed"}
    assert "namespace.spec.allow of ns does not list" in why.reasons[0].example
    found = explain(world.snapshot(), world.workloads["uid-net"], 0.0)
    assert [reason.code for reason in found.blockers] == ["NotAllowed"]
    world.want("net", count=1)
    assert [stop.cause for stop in world.step().stop] == [Cause.SCALED_DOWN]


def test_without_a_record_of_the_namespace_nothing_is_allowed() -> None:
    world = World().add(box("n1"))
    world.want("net", Template(demands=("hostPID",)))
    assert not world.step().place


def test_an_update_that_is_not_allowed_leaves_what_runs() -> None:
    world = World().add(box("n1"), box("n2"))
    world.want("net", count=2)
    world.settle()
    world.update("net", Template(Resources(10), demands=("hostIPC",)))
    decided = world.step()
    assert decided.changes_nothing
    assert "revision 2 may not run on node n1" in str(decided.explanations)
