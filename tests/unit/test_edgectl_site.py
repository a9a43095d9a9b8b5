"""edgectl --site-endpoint without a connection: who is asked, what is shown, and how it is told."""

import json

import pytest

from edgectl.cli import parse, run
from edgectl.errors import CallError, CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.site import clocks
from edgectl.site.client import SiteClient
from edgectl.site.link import certificate_at, normal
from edgectl.site.survey import Survey
from edgectl.verbs import describe, events, get, local, logs, wait
from edgectl.verbs import exec as exec_verb
from polder.v1 import agent_pb2, common_pb2, local_pb2
from tests.unit.local_site import (
    NOW,
    FakeNode,
    FakeSite,
    override,
    runs,
    stands_by,
    status,
    unreachable,
    whole,
)

VERBS = {
    "get": get.run,
    "describe": describe.run,
    "events": events.run,
    "logs": logs.run,
    "exec": exec_verb.run,
    "wait": wait.run,
    "stop": local.stop,
    "start": local.start,
    "restart": local.restart,
    "move": local.move,
    "freeze": local.freeze,
    "unfreeze": local.unfreeze,
    "overrides": local.overrides,
}


class Operator:
    """Types commands."""

    def __init__(self, site: FakeSite, capsys: pytest.CaptureFixture[str]) -> None:
        self.site = site
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str, through: str = "node-a:7446") -> int:
        options = parse([words[0], "--site-endpoint", through, "-n", "shop", *words[1:]])
        invocation = Invocation(options)
        invocation.__dict__["site"] = SiteClient(options.site_endpoint, self.site.open)
        try:
            return VERBS[words[0]](invocation)
        finally:
            self.out, self.err = self._capsys.readouterr()

    def rows(self) -> list[list[str]]:
        """Cells of the last table, by the gaps between them."""
        return [[c for c in line.split("   ") if c] for line in self.out.splitlines()]

    def row(self, name: str) -> dict[str, str]:
        headers, *rows = self.rows()
        (found,) = [row for row in rows if row[0] == name]
        titles = [title.strip() for title in headers]
        return dict(zip(titles, [cell.strip() for cell in found], strict=True))


@pytest.fixture
def site() -> FakeSite:
    return whole()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgectl.site.survey.time.time_ns", lambda: NOW * 1_000_000)


@pytest.fixture
def operator(site: FakeSite, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(site, capsys)


# --- who is asked -----------------------------------------------------------------------------


def test_one_endpoint_leads_to_all_nodes(operator: Operator) -> None:
    assert operator("get", "nodes", through="node-b:7446") == 0
    assert [row[0].strip() for row in operator.rows()[1:]] == ["node-a", "node-b", "node-c"]
    assert operator.err == ""


def test_a_node_is_asked_at_all_its_addresses_and_once(site: FakeSite) -> None:
    site.nodes["node-b"].endpoints = ("10.9.9.9:7446", "node-b:7446", "192.168.0.7:7446")
    picture = Survey(["node-a:7446"], site.open).look()
    assert set(picture.answers) == set(site.nodes)
    assert not picture.silent
    survey = Survey(["node-a:7446", "node-b:7446", "node-b:7446"], site.open)
    assert set(survey.look().answers) == set(site.nodes)


def test_links_are_kept_and_tried_anew_when_they_break(site: FakeSite) -> None:
    survey = Survey(["node-a:7446"], site.open)
    survey.look()
    asked = len(site.asked)
    survey.look()
    assert len(site.asked) == asked
    site.nodes["node-c"].down = unreachable("node-c:7446")
    assert [one.node for one in survey.look().silent] == ["node-c"]
    site.nodes["node-c"].down = None
    assert not survey.look().silent


def test_an_address_where_another_node_answers_is_not_believed(site: FakeSite) -> None:
    del site.nodes["node-b"]
    site.nodes["node-x"] = FakeNode("node-x", endpoints=("node-b:7446",))
    shown = site.shown
    site.shown = lambda node: _renamed(shown(node))  # type: ignore[method-assign]
    picture = Survey(["node-a:7446"], site.open).look()
    assert set(picture.answers) == {"node-a", "node-c"}
    (silent,) = picture.silent
    assert silent.node == "node-b"
    assert "node-x of site ams answers there" in silent.error.message


def test_one_node_that_tells_nonsense_hides_nothing_that_others_say(
    site: FakeSite, operator: Operator
) -> None:
    """It may have been broken into."""
    shown = site.shown

    def lies(node: FakeNode) -> local_pb2.ShowResponse:
        said = shown(node)
        if node.name == "node-b":
            said.conditions.add(type="Odd", status=True, since_ms=2**63 - 1)
            clocks.shift(said, 5_000)
            for replica in said.replicas:
                replica.template_json = b'{"containers": [7, {"ports": 7}]}'
        if node.name == "node-a":
            for replica in said.replicas:
                replica.template_json = b"["
        return said

    site.shown = lies  # type: ignore[method-assign]
    for what in ("nodes", "replicas", "workloads"):
        assert operator("get", what) == 0
    assert operator.row("page")["READY"] == "1/1"
    assert operator("describe", "workload/page") == 0


def test_who_makes_up_names_and_addresses_keeps_nobody_from_being_found(site: FakeSite) -> None:
    shown = site.shown

    def lies(node: FakeNode) -> local_pb2.ShowResponse:
        said = shown(node)
        if node.name == "node-a":
            del said.peers[:]
            for number in range(100):
                said.peers.add(node=f"a-{number}", local_endpoints=["nowhere:1"])
            said.peers.add(node="node-c", local_endpoints=[f"no-{n}:1" for n in range(50)])
        return said

    site.shown = lies  # type: ignore[method-assign]
    picture = Survey(["node-a:7446", "node-b:7446"], site.open).look()
    assert set(picture.answers) == {"node-a", "node-b", "node-c"}


@pytest.mark.parametrize("address", ["nonsense", "a..b:7446", f"{'x' * 300}:7446", "h:port"])
def test_what_a_node_calls_an_address_of_another_may_be_none(address: str) -> None:
    with pytest.raises(CallError) as failed:
        certificate_at(address, 0.5)
    assert failed.value.code == "UNAVAILABLE"


def _renamed(shown: local_pb2.ShowResponse) -> local_pb2.ShowResponse:
    for peer in shown.peers:
        if peer.node == "node-x":
            peer.node = "node-b"
    return shown


def test_nodes_of_two_sites_are_an_error(site: FakeSite) -> None:
    site.nodes["node-z"] = FakeNode("node-z", site="utr")
    for node in ("node-b", "node-c"):
        del site.nodes[node]
    with pytest.raises(CliError, match="of site utr"):
        Survey(["node-a:7446", "node-z:7446"], site.open).look()


def test_nobody_answers(site: FakeSite) -> None:
    for node in site.nodes.values():
        node.down = unreachable(node.endpoints[0])
    with pytest.raises(CallError, match="no node of the site can be reached: node-a") as raised:
        Survey(["node-a:7446"], site.open).look()
    assert "7446" in raised.value.hints[0]


def test_a_refusal_says_more_than_silence(site: FakeSite) -> None:
    site.nodes["node-a"].down = CallError("revoked", code="PERMISSION_DENIED", reason="Revoked")
    with pytest.raises(CallError, match=r"^revoked$"):
        Survey(["nowhere:1", "node-a:7446"], site.open).look()


def test_warnings_are_said_once(site: FakeSite, operator: Operator) -> None:
    for node in site.nodes.values():
        node.warnings = ("the certificate of ann expired at 2026-01-01 00:00:00Z",)
    operator("get", "nodes")
    assert operator.err.count("expired") == 1


# --- what is shown ----------------------------------------------------------------------------


def test_replicas(operator: Operator) -> None:
    operator("get", "replicas", "-o", "wide")
    row = operator.row("one-0")
    assert (row["READY"], row["STATUS"], row["NODE"]) == ("1/1", "Running", "node-a")
    assert (row["STANDBYS"], row["EPOCH"], row["HOSTPORTS"]) == ("1/2", "7", "18080")
    assert (row["OVERRIDE"], row["KNOWN-FROM"], row["AGE"]) == ("<none>", "node-a", "12m")


def test_nodes_say_for_how_long_they_are_alone(site: FakeSite, operator: Operator) -> None:
    site.nodes["node-b"].isolated_ms = site.nodes["node-b"].autonomy_left_ms = 0
    operator("get", "nodes")
    row = operator.row("node-a")
    assert (row["STATUS"], row["ORCHESTRATOR"]) == ("Ready", "silent for 5m")
    assert (row["AUTONOMY"], row["REPLICAS"], row["PLAN-AGE"]) == ("6d left", "2", "60m")
    row = operator.row("node-b")
    assert (row["ORCHESTRATOR"], row["AUTONOMY"]) == ("heard", "over")
    operator("get", "nodes", "-o", "wide")
    assert (operator.row("node-a")["CPU"], operator.row("node-a")["MEMORY"]) == (
        "500m/4",
        "1Gi/4Gi",
    )
    operator("get", "node/node-a", "-o", "jsonpath={.status.inventory.allocatable.devices}")
    assert operator.out == '{"polder.eu/gpu":1}'


def test_what_runs_on_a_node_that_does_not_answer_is_hearsay(
    site: FakeSite, operator: Operator
) -> None:
    site.nodes["node-a"].down = unreachable("node-a:7446")
    assert operator("get", "replicas", through="node-b:7446") == 0
    row = operator.row("one-0")
    assert (row["READY"], row["STATUS"]) == ("?/0", "Unknown")
    assert row["KNOWN-FROM"] == "node-b about node-a"
    assert "warning: 2 of 3 nodes of the site answered" in operator.err
    assert "node-a did not answer: node-a:7446: connection refused" in operator.err
    operator("get", "replica/one-0", "-o", "json", through="node-b:7446")
    message = json.loads(operator.out)["status"]["message"]
    assert message == "node-a did not answer; node-b last heard that it runs there, ready"
    operator("get", "nodes", through="node-b:7446")
    assert operator.row("node-a")["STATUS"] == "NotReached"


def test_a_replica_that_runs_twice_is_shown_twice(site: FakeSite, operator: Operator) -> None:
    site.nodes["node-b"].replicas[1] = runs("page-0", epoch=(7 << 16) + 1, ready=False)
    operator("get", "replicas")
    assert [row[4].strip() for row in operator.rows() if row[0].strip() == "page-0"] == [
        "node-a",
        "node-b",
    ]
    operator("get", "replica", "page-0")
    assert operator.row("page-0")["NODE"] == "node-a", "the one that serves"


def test_a_replica_that_runs_nowhere(site: FakeSite, operator: Operator) -> None:
    for node in site.nodes.values():
        node.replicas = [stands_by("one-0", holder="", holder_epoch=0)]
    operator("get", "replicas")
    assert operator.row("one-0")["STATUS"] == "Pending (NotStarted)"
    site.nodes["node-b"].overrides = [override()]
    operator("get", "replicas")
    row = operator.row("one-0")
    assert (row["STATUS"], row["OVERRIDE"]) == ("Stopped (StoppedLocally)", "Stopped")
    site.nodes["node-c"].down = unreachable("node-c:7446")
    operator("get", "replicas", "-o", "json")
    (found,) = json.loads(operator.out)["items"]
    assert found["status"]["phase"] == "Unknown"
    assert "node-c did not answer" in found["status"]["message"]


def test_workloads_count_what_is_at_the_site(site: FakeSite, operator: Operator) -> None:
    site.nodes["node-a"].replicas.append(
        runs("page-1", ready=False, reason="CrashLoop", phase=agent_pb2.REPLICA_PHASE_PENDING)
    )
    operator("get", "workloads")
    row = operator.row("page")
    assert (row["READY"], row["STATUS"]) == ("1/2", "Pending (CrashLoop)")


def test_waiting_and_watching_ask_again(
    site: FakeSite, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, slept = site.nodes["node-a"], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        node.replicas = [runs("one-0")]

    monkeypatch.setattr("edgectl.watching.time.sleep", sleep)
    node.replicas = [runs("one-0", ready=False, reason="ProbeFailing")]
    assert operator("wait", "replica/one-0", "--for=ready", "--timeout", "30s") == 0
    assert slept
    assert operator("wait", "workload/one", "--for=ready", "--timeout", "30s") == 0
    with pytest.raises(CliError, match="timed out"):
        operator("wait", "replica/other-0", "--for=ready", "--timeout", "0.1s")


def test_a_watch_tells_changes_and_ages_are_none(
    site: FakeSite, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, rounds = site.nodes["node-a"], iter(range(4))

    def sleep(_: float) -> None:
        turn = next(rounds, None)
        if turn is None:
            raise KeyboardInterrupt
        node.isolated_ms += 2_000
        if turn == 2:
            node.isolated_ms = 0

    monkeypatch.setattr("edgectl.watching.time.sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        operator("get", "node/node-a", "-w")
    told = [row[2].strip() for row in operator.rows()[1:]]
    assert told == ["silent for 5m", "heard", "silent for 2s"]


def test_describe_of_a_workload(operator: Operator) -> None:
    operator("describe", "workload/page")
    assert "1 wanted, 1 placed, 1 running, 1 ready, 1 updated" in operator.out
    assert "web" in operator.out


def test_output_for_programs(operator: Operator) -> None:
    operator("get", "replicas", "-o", "name")
    assert operator.out == "replica/one-0\nreplica/page-0\n"
    operator("get", "replica/one-0", "-o", "jsonpath={.status.containers[0].startedAt}")
    assert operator.out == str(NOW - 720_000)
    operator("get", "nodes", "-o", "json")
    items = json.loads(operator.out)["items"]
    assert [item["status"]["ready"] for item in items] == [True, True, True]


def test_what_a_site_does_not_know_is_refused(operator: Operator) -> None:
    with pytest.raises(CliError, match="know no secret"):
        operator("get", "secrets")
    with pytest.raises(CliError, match="no labels"):
        operator("get", "replicas", "-l", "app=x")
    with pytest.raises(UsageError, match="only an orchestrator"):
        operator("get", "regions")


def test_what_may_not_be_seen_is_not_shown_as_empty(operator: Operator) -> None:
    for words in (["get", "replicas"], ["get", "replica/x-0"], ["stop", "x-0"]):
        with pytest.raises(CallError, match="not for ann"):
            operator(*words, "-n", "bank")


def test_not_found_says_who_was_not_asked(site: FakeSite, operator: Operator) -> None:
    with pytest.raises(CallError) as raised:
        operator("get", "replica/other-0")
    assert not raised.value.hints
    site.nodes["node-c"].down = unreachable("node-c:7446")
    with pytest.raises(CallError) as raised:
        operator("get", "replica/other-0")
    assert raised.value.hints == ("node-c did not answer: it may be there",)


def test_describe(site: FakeSite, operator: Operator) -> None:
    site.nodes["node-a"].overrides = [override("placedOn", "node-a", conflict="moved to edge-9")]
    operator("describe", "replica/one-0")
    assert "Lease:              held, 2.5 s left; renewed each second" in operator.out
    assert "LocalOverride true" in operator.out
    assert "placed on node-a by operator/ann at node-a: disk full" in operator.out
    assert "OverrideConflict true" in operator.out
    assert "moved to edge-9" in operator.out
    assert "node-c Unable: NoRoom" in operator.out
    operator("describe", "node/node-a")
    assert "Orchestrator:       silent for 5m" in operator.out
    assert "node-b: heard" in operator.out
    assert "Replicas:" in operator.out


def test_describe_of_one_that_has_not_started_yet(site: FakeSite, operator: Operator) -> None:
    """Where it is to run is no standby of it, and its epoch is what was decided."""
    pending = {"phase": agent_pb2.REPLICA_PHASE_PENDING, "ready": False, "reason": "ImagePull"}
    site.nodes["node-a"].replicas = [runs("page-0", **pending)]
    operator("describe", "replica/page-0")
    assert "Pending (ImagePull)" in operator.out
    assert "Standbys:           node-b Able" in operator.out
    assert "Epoch now" not in operator.out


def test_overrides_the_newest_counts(site: FakeSite, operator: Operator) -> None:
    operator("overrides")
    assert operator.out == ""
    assert "Nothing is decided locally at site ams" in operator.err
    site.nodes["node-a"].overrides = [override(), override("frozen", node="node-b")]
    site.nodes["node-b"].overrides = [override(value="", stamp=2, node="node-b")]
    operator("overrides")
    (frozen,) = operator.rows()[1:]
    assert [cell.strip() for cell in frozen] == [
        "site/ams", "frozen", "operator/ann", "node-b", "<none>", "node-a", "60s",
    ]  # fmt: skip
    operator("overrides", "--all")
    assert operator.row("shop/one-0")["DECIDED"] == "not stopped any more"
    operator("overrides", "--all", "-o", "json")
    stopped = next(o for o in json.loads(operator.out) if o["field"] == "stopped")
    assert (stopped["value"], stopped["stamp"], stopped["knownBy"]) == ("", 2, ["node-b"])


def test_events_of_all_nodes_and_the_journal_in_one_order(
    site: FakeSite, operator: Operator
) -> None:
    ref = common_pb2.ResourceRef(kind="Replica", namespace="shop", name="one-0")
    site.nodes["node-b"].events = [
        common_pb2.Event(object=ref, reason="TakenOver", last_at_ms=NOW - 5_000, count=1)
    ]
    site.nodes["node-a"].journal = [
        agent_pb2.JournalEntry(
            at_ms=NOW - 9_000, by="operator/ann", verb="stop", namespace="shop", replica="one-0"
        ),
        agent_pb2.JournalEntry(at_ms=NOW - 8_000, by="break-glass/1f", verb="enter", purpose="p"),
        agent_pb2.JournalEntry(at_ms=NOW - 7_000, by="operator/ann", verb="freeze"),
    ]
    operator("events", "--for", "replica/one-0", "-o", "json")
    found = [json.loads(line) for line in operator.out.splitlines()]
    assert [event["reason"] for event in found] == ["LocalStop", "TakenOver"]
    assert found[0]["source"] == "operator/ann at node-a"
    operator("events", "--for", "node/node-a", "-o", "json")
    assert [json.loads(line)["reason"] for line in operator.out.splitlines()] == ["LocalEnter"]
    operator("events", "--for", "site/ams", "-o", "json")
    assert [json.loads(line)["reason"] for line in operator.out.splitlines()] == ["LocalFreeze"]
    operator("events", "--for", "workload/one", "-o", "json")
    assert len(operator.out.splitlines()) == 2


# --- logs and commands ------------------------------------------------------------------------


def test_logs_come_from_the_node_that_runs_it(site: FakeSite, operator: Operator) -> None:
    node = site.nodes["node-a"]
    node.says = [agent_pb2.RelayRequest(stdout=b"hello\n"), agent_pb2.RelayRequest(stderr=b"x\n")]
    node.offset_ms = 3_600_000
    assert operator("logs", "one-0", "--since", "10m", through="node-c:7446") == 0
    assert operator.out == "hello\nx\n"
    (opened,) = node.opened
    assert (opened.open.replica, opened.open.logs.container) == ("one-0", "web")
    by_its_clock = NOW - 600_000 - 3_600_000
    assert abs(opened.open.logs.since_ms - by_its_clock) < 60_000


def test_logs_go_on_where_the_replica_goes_on(
    site: FakeSite, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node dies in the middle; first nobody runs it, then the standby does."""
    monkeypatch.setattr("edgectl.following.time.sleep", lambda _: None)
    one, two = site.nodes["node-a"], site.nodes["node-b"]
    line = b"2026-11-22T14:00:0%d.000000000Z line %d\n"
    one.says = [agent_pb2.RelayRequest(stdout=line % (1, 1) + line % (2, 2))]
    two.says = [agent_pb2.RelayRequest(stdout=line % (2, 2) + line % (9, 3))]
    looks: list[str] = []
    shown = site.shown

    def later(node: FakeNode) -> local_pb2.ShowResponse:
        looks.append(node.name)
        if one.down and looks.count("node-b") > 4:
            two.replicas = [runs("one-0", holder="node-b")]
        return shown(node)

    def breaks() -> None:
        one.down = unreachable("node-a:7446")
        two.replicas = [stands_by("one-0", holder="")]

    one.breaks = breaks
    site.shown = later  # type: ignore[method-assign]
    assert operator("logs", "-f", "one-0") == 0
    assert operator.out == "line 1\nline 2\nline 3\n"
    assert "connecting again" in operator.err


def test_a_command_that_cannot_run_says_why(site: FakeSite, operator: Operator) -> None:
    end = agent_pb2.RelayEnd(reason="ContainerNotFound", message="no container web runs")
    site.nodes["node-a"].says = [agent_pb2.RelayRequest(end=end)]
    with pytest.raises(CallError, match="no container web runs"):
        operator("exec", "one-0", "--", "date")
    site.nodes["node-a"].says = [agent_pb2.RelayRequest(end=agent_pb2.RelayEnd(exit_code=3))]
    assert operator("exec", "one-0", "--", "false") == 3


def test_logs_of_what_runs_out_of_reach(site: FakeSite, operator: Operator) -> None:
    site.nodes["node-a"].down = unreachable("node-a:7446")
    with pytest.raises(CallError, match="runs on node-a, which did not answer"):
        operator("logs", "one-0", through="node-b:7446")


# --- changes ----------------------------------------------------------------------------------


def test_a_change_goes_to_the_node_that_runs_it(site: FakeSite, operator: Operator) -> None:
    assert operator("stop", "one-0", "--reason", "disk full", "--dry-run") == 0
    assert operator.out == "stop it is [node-a]\n"
    (request,) = site.nodes["node-a"].changes
    assert (request.verb, request.namespace, request.replica) == ("stop", "shop", "one-0")
    assert (request.reason, request.dry_run) == ("disk full", True)
    assert len(request.id) == 32
    assert not site.nodes["node-b"].changes


def test_a_change_of_what_is_out_of_reach_is_written_down_by_a_standby(
    site: FakeSite, operator: Operator
) -> None:
    site.nodes["node-a"].down = unreachable("node-a:7446")
    operator("move", "one-0", "--to", "node-c", through="node-b:7446")
    (request,) = site.nodes["node-b"].changes
    assert (request.verb, request.to_node) == ("move", "node-c")
    with pytest.raises(CallError, match="runs on node-a, which did not answer"):
        operator("restart", "one-0", through="node-b:7446")


def test_all_replicas_of_a_workload(site: FakeSite, operator: Operator) -> None:
    site.nodes["node-a"].replicas.append(runs("page-1"))
    operator("stop", "workload/page", "-o", "json")
    assert [one["target"] for one in json.loads(operator.out)] == [
        "replica/page-0",
        "replica/page-1",
    ]
    assert [request.replica for request in site.nodes["node-a"].changes] == ["page-0", "page-1"]


def test_a_freeze_is_told_to_every_node(site: FakeSite, operator: Operator) -> None:
    assert operator("unfreeze") == 0
    assert {node.changes[0].id for node in site.nodes.values()} == {
        site.nodes["node-a"].changes[0].id
    }
    site.nodes["node-b"].refuses = CallError("disk full", code="UNAVAILABLE", reason="NotWritable")
    assert operator("unfreeze") == 1
    assert "warning: not at node-b: disk full" in operator.err
    site.nodes["node-b"].refuses = CallError("no", code="FAILED_PRECONDITION", reason="NotFrozen")
    assert operator("unfreeze") == 0
    with pytest.raises(UsageError, match="as a whole"):
        operator("freeze")


# --- the command line -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["apply", "-f", "x", "--site-endpoint", "a"], "apply needs an orchestrator"),
        (["config", "view", "--site-endpoint", "a"], "config needs an orchestrator"),
        (["get", "no", "--break-glass-token", "t"], "name one with --site-endpoint"),
        (["freeze", "--dry-run"], "at a site only"),
        (["stop", "x"], "name one of its nodes with --site-endpoint"),
        (["overrides"], "name one of its nodes with --site-endpoint"),
        (["get", "nodes", "--site-endpoint", "a:x"], "is not an endpoint"),
    ],
)
def test_wrong_usage(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECTL_CONFIG", "/nonexistent")
    with pytest.raises(UsageError, match=message):
        run(words)


def test_several_endpoints_before_or_after_the_verb() -> None:
    given = ["--site-endpoint", "a", "--site-endpoint", "b"]
    assert parse([*given, "get", "nodes"]).site_endpoint == ["a", "b"]
    assert parse(["get", *given, "nodes"]).site_endpoint == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("edge-1", "edge-1:7446"),
        ("10.0.0.1:7000", "10.0.0.1:7000"),
        ("fd00::1", "[fd00::1]:7446"),
        ("[fd00::1]", "[fd00::1]:7446"),
        ("[fd00::1]:7000", "[fd00::1]:7000"),
        ("edge-1:x", "edge-1:x"),
    ],
)
def test_the_port_may_be_left_out(given: str, expected: str) -> None:
    assert normal(given) == expected


# --- clocks -----------------------------------------------------------------------------------


def test_times_of_a_wrong_clock_are_moved() -> None:
    year = 365 * 86_400_000
    shown = local_pb2.ShowResponse(
        now_ms=NOW - year,
        replicas=[local_pb2.LocalReplica(status=status("one-0", started_at_ms=NOW - year - 5_000))],
        overrides=[override()],
    )
    shown.allocatable.devices["polder.eu/gpu"] = 1
    clocks.shift(shown, clocks.offset(NOW, shown.now_ms))
    assert shown.now_ms == NOW
    assert shown.replicas[0].status.started_at_ms == NOW - 5_000
    assert shown.overrides[0].at_ms == NOW - 60_000, "by another clock"
    assert clocks.offset(NOW, NOW - 400) == 0
    assert clocks.warning("node-b", year) == "the clock of node-b is 365d behind this machine's"
    assert clocks.warning("node-b", -year).endswith("365d ahead of this machine's")
    assert not clocks.warning("node-b", 20_000)
