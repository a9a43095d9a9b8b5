"""What operators see of standbys: who could take over now, who could not and why, who did."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edgectl.columns import headers, row
from edgectl.describing import description
from edgectl.resources import Item
from edgectl.verbs.why import _placed
from orchestrator.api.index import Placed
from orchestrator.api.standbys import (
    local_stays,
    standby_text,
    standbys_condition,
    standbys_of,
    with_standbys,
)
from orchestrator.api.views import NodeView, without_age
from orchestrator.domain.liveness import Liveness, NodeLiveness
from orchestrator.fleet import NodeObservation
from orchestrator.records import AssignmentRecord, GroupRecord
from polder.epochs import decided_at
from polder.v1 import agent_pb2, common_pb2, operator_pb2

GROUP = GroupRecord(1, ("a", "b", "c"), ("d",), exclusive=True)
RECORD = AssignmentRecord("ns", "web", "w", "web-0", "u", decided_at(5), 1, group=GROUP)
PLACED = Placed("a", RECORD)
NOW = 2_000_000


class Site:
    """Four nodes, of which each has been heard; `b` is able, `c` has no room."""

    def __init__(self) -> None:
        self.silent: set[str] = set()
        self.seen = {name: NodeObservation(name, last_seen=100.0, complete=True) for name in "abcd"}
        self.says("b", able=True)
        self.says("c", able=False, reason="NoRoom", message="64 MiB are free")

    def says(self, node: str, **facts: Any) -> None:
        status = agent_pb2.StandbyStatus(workload_uid="w", replica="web-0", **facts)
        self.seen[node].standbys = {("w", "web-0"): status}

    def runs(self, node: str, uid: str, epoch: int, **facts: Any) -> None:
        self.seen[node].replicas[uid] = agent_pb2.ReplicaStatus(
            workload_uid="w", replica="web-0", replica_uid=uid, epoch=epoch, **facts
        )
        self.seen[node].note_readiness(0.0)

    @property
    def view(self) -> Callable[[str], NodeView]:
        def of(node: str) -> NodeView:
            state = Liveness.SILENT if node in self.silent else Liveness.LIVE
            return NodeView(NodeLiveness(state, 100.0), self.seen.get(node))

        return of


def states(site: Site, placed: Placed = PLACED) -> dict[str, tuple[str, str]]:
    return {f["node"]: (f["state"], f["reason"]) for f in standbys_of(placed, site.view)}


def test_each_standby_says_whether_it_could_and_why_not() -> None:
    site = Site()
    assert states(site) == {"b": ("Able", ""), "c": ("Unable", "NoRoom"), "d": ("Votes", "")}
    site.silent = {"b", "d"}
    found = standbys_of(PLACED, site.view)
    assert [(f["state"], f["reason"]) for f in found] == [
        ("Unknown", "NodeSilent"),
        ("Unable", "NoRoom"),
        ("Unknown", "NodeSilent"),
    ]
    assert all(f["lastHeardAt"] == 100_000 for f in found)
    site.silent.clear()
    site.seen["b"].standbys = {}
    assert states(site)["b"] == ("Unknown", "NotReported")
    assert [standby_text(f) for f in standbys_of(PLACED, site.view)][1:] == [
        "c (Unable: NoRoom: 64 MiB are free)",
        "d (Votes)",
    ]


def test_a_replica_without_a_group_has_none() -> None:
    alone = Placed("a", replace(RECORD, group=None, standbys=("b",)))
    assert standbys_of(alone, Site().view) == [] and local_stays(alone, Site().view) == []
    assert standbys_condition([alone], Site().view) is None


def test_what_a_site_did_is_seen_before_it_is_on_record() -> None:
    site = Site()
    site.runs("b", "local", decided_at(5) + 1, takes_over="u", ready=True, ready_since_ms=99_000)
    site.runs("a", "u", decided_at(5) + 2, ready=True)
    found = with_standbys({}, PLACED, site.view)
    assert found["localStays"] == [
        {"node": "b", "epoch": decided_at(5) + 1, "ready": True, "sinceAt": 99_000}
    ]
    assert found["epoch"] == decided_at(5) + 2, "its site counted on"
    assert "tookOver" not in found
    adopted = replace(RECORD, replica_uid="local", took_over="a", placed_at_ms=99_000)
    found = with_standbys({}, Placed("b", adopted), site.view)
    assert found["tookOver"] == {"from": "a", "at": 99_000} and "localStays" not in found


def test_the_age_of_what_a_standby_says_is_no_news() -> None:
    site = Site()
    before = without_age(with_standbys({}, PLACED, site.view))
    site.seen["b"].last_seen = 200.0
    assert without_age(with_standbys({}, PLACED, site.view)) == before
    site.says("b", able=False, reason="ImagePull")
    assert without_age(with_standbys({}, PLACED, site.view)) != before


def test_a_workload_says_whether_every_replica_could_be_taken_over() -> None:
    site, other = Site(), Placed("a", replace(RECORD, replica="web-1"))
    found = standbys_condition([PLACED], site.view)
    assert found is not None and (found["status"], found["lastHeardAt"]) == (True, 100_000)
    found = standbys_condition([PLACED, other], site.view)
    assert found is not None and (found["status"], found["reason"]) == (None, "NotReported")
    assert found["message"].startswith("nobody could take over web-1: b (Unknown: NotReported")
    site.says("b", able=False, reason="NoVoters")
    found = standbys_condition([PLACED], site.view)
    assert found is not None and (found["status"], found["reason"]) == (False, "NoVoters")
    alone = Placed("a", replace(RECORD, group=replace(GROUP, members=("a",), witnesses=())))
    found = standbys_condition([alone], site.view)
    assert found is not None and (found["status"], found["reason"]) == (False, "NoStandbys")
    nobody = Placed("a", replace(RECORD, group=None, standbys=()))
    assert standbys_condition([nobody], site.view) is None
    found = standbys_condition([nobody], site.view, wanted=True)
    assert found is not None and (found["status"], found["reason"]) == (False, "NoStandbys")


def test_describe_tells_it_in_words() -> None:
    site = Site()
    site.runs("b", "local", decided_at(5) + 1, takes_over="u", ready=True, ready_since_ms=1_990_000)
    status = with_standbys({"phase": "Running"}, PLACED, site.view)
    status["tookOver"] = {"from": "d", "at": 1_940_000}
    resource = common_pb2.Resource(kind="Replica", status_json=json.dumps(status).encode())
    item = Item(resource, NOW)
    text = "\n".join(description(item))
    assert "Taken over:         from d since " in text
    assert "Runs also:          on b, ready since " in text and "(epoch 5+1)" in text
    assert "Standbys:           b Able [heard " in text
    assert "c Unable: NoRoom: 64 MiB are free [heard" in text and "d Votes" in text


def test_get_counts_those_that_could() -> None:
    def cells(status: dict[str, Any]) -> dict[str, str]:
        resource = common_pb2.Resource(kind="Replica", status_json=json.dumps(status).encode())
        shown = row(Item(resource, NOW), wide=True, namespaces=False)
        return dict(zip(headers("Replica", wide=True, namespaces=False), shown, strict=True))

    site = Site()
    assert cells(with_standbys({}, PLACED, site.view))["STANDBYS"] == "1/2", "a witness is none"
    assert cells({})["STANDBYS"] == "<none>"
    assert cells({"epoch": decided_at(5) + 2})["EPOCH"] == "5+2"


def test_why_tells_it_in_words() -> None:
    placed = operator_pb2.PlacedReplica(
        replica="web-0", node="b", took_over_from="a", took_over_at_ms=1_940_000
    )
    placed.standbys.add(node="a", state="Unknown", reason="NodeSilent", message="no word")
    placed.standbys.add(node="c", state="Able")
    placed.standbys.add(node="d", state="Votes", witness=True)
    found = list(_placed(operator_pb2.WorkloadDiagnosis(placed=[placed]), NOW))
    assert found[1].startswith("  taken over from a since ")
    assert found[2:] == [
        "  standby a: Unknown: NodeSilent: no word",
        "  standby c: could take it over now",
        "  witness d: votes, and never takes it over",
    ]
