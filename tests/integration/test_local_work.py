"""What an operator sees and does at a node itself, and what the orchestrator hears of it later."""

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.local import journal as journals
from polder.overrides import FROZEN, STOPPED
from polder.v1 import agent_pb2, local_pb2, plan_pb2
from tests.integration.agent_fakes import Ca, Orchestrator, eventually
from tests.integration.local_node import SLOW_S, Node
from tests.integration.local_rig import Client, Person, Refusal, token


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr(gc, "freeze", lambda: None)
    ca = Ca()
    server = await Orchestrator(ca).start()
    made = Node(tmp_path, ca, server)
    await made.start()
    await made.use_plan()
    yield made
    await made.stop()
    await server.stop()


@pytest.fixture
async def ann(node: Node) -> Client:
    """An operator of umc who is in."""
    return await node.entered(Person(node.ca, "ann", "operator:umc"))


@pytest.fixture
async def admin(node: Node) -> Client:
    return await node.entered(Person(node.ca, "root", "admin"))


def changes(node: Node) -> list[agent_pb2.LocalChanges]:
    """Of the newest session."""
    return list(node.visit.of("local_changes"))


def verbs(node: Node) -> list[str]:
    """Of all that was carried up, each once."""
    found = {e.sequence: e.verb for said in changes(node) for e in said.entries}
    return [found[sequence] for sequence in sorted(found)]


# --- seeing ---------------------------------------------------------------------------------------


async def test_everybody_sees_the_node_and_a_tenant_its_own_replicas(
    node: Node, ann: Client, admin: Client
) -> None:
    shown = await ann.show()
    assert {r.status.replica for r in shown.replicas} == {"triage-0", "lab-0"}
    assert shown.plan_generation == 5 and shown.allocatable.cpu_millis > 0 and shown.arch
    one = next(r for r in shown.replicas if r.status.replica == "triage-0")
    assert (one.role, one.holder, one.holder_ready, one.lease_left_ms) == (
        "Runs",
        "box-1",
        True,
        -1,
    )
    assert b"app:1" in one.template_json
    assert len((await admin.show()).replicas) == 3
    assert [r.status.replica for r in (await admin.show("city")).replicas] == ["lamps-0"]
    for call in (ann.show("city"), ann.recall(namespace="city")):
        with pytest.raises(Refusal) as refused:
            await call
        assert refused.value.reason == "NotAllowed"


async def test_events_and_the_journal_are_recalled_within_what_one_may_see(
    node: Node, ann: Client, admin: Client
) -> None:
    await admin.change("restart", "city/lamps-0", reason="stuck")
    await ann.change("restart", "umc/lab-0", reason="slow")
    seen = await ann.recall()
    assert {e.replica for e in seen.journal} == {"", "lab-0"}
    assert {e.object.namespace for e in seen.events} <= {"", "umc"}
    assert {e.replica for e in (await admin.recall()).journal} == {"", "lab-0", "lamps-0"}
    only = (await admin.recall(namespace="city", replica="lamps-0")).journal
    assert [(e.verb, e.by, e.reason) for e in only] == [("restart", "operator/root", "stuck")]
    assert len((await admin.recall(limit=1)).journal) == 1
    await eventually(lambda: "RestartedLocally" in str(node.agent.local._showing._events), SLOW_S)


async def test_the_directory_says_who_else_is_there(node: Node, ann: Client) -> None:
    nodes = [
        agent_pb2.SiteNode(node="box-1", local_endpoints=["127.0.0.1:1"]),
        agent_pb2.SiteNode(node="box-2", local_endpoints=["10.0.0.2:7446"]),
    ]
    node.visit.say(site_directory=agent_pb2.SiteDirectory(nodes=nodes))
    directory = node.agent._book.directory
    await eventually(lambda: directory.nodes, SLOW_S)
    (peer,) = (await ann.show()).peers
    assert (peer.node, peer.shares, peer.heard) == ("box-2", False, False)
    assert list(peer.local_endpoints) == ["10.0.0.2:7446"]


# --- reaching -------------------------------------------------------------------------------------


def opened(replica: str = "triage-0", **what: object) -> local_pb2.ReachOpen:
    return local_pb2.ReachOpen(namespace="umc", replica=replica, **what)  # type: ignore[arg-type]


def running(node: Node, workload: str) -> str:
    """Where its log is."""
    return node.agent.supervisor.find(f"u-{workload}").log_path


async def test_logs_of_a_replica_here(node: Node, ann: Client) -> None:
    path = Path(running(node, "triage"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("2026-11-22T13:00:00.000000000Z stdout F hello\n")
    got = [m async for m in ann.reach(opened(logs=agent_pb2.LogOptions(tail_lines=-1)))]
    assert got[0].stdout == b"hello\n" and got[-1].HasField("end")


async def test_a_command_in_a_replica_is_journaled_before_it_runs(node: Node, ann: Client) -> None:
    def run(_container: object, command: object) -> tuple[int, bytes]:
        (entry,) = [e for e in node.agent._book.journal if e.verb == "exec"]
        assert entry.detail == "date -u" and entry.replica == "triage-0"
        return 3, str(command).encode()

    node.runtime.exec_handler = run
    options = agent_pb2.ExecOptions(command=["date", "-u"])
    got = [m async for m in ann.reach(opened(exec=options))]
    assert b"date" in got[0].stdout and got[-1].end.exit_code == 3


async def test_a_viewer_reads_logs_and_runs_nothing(node: Node) -> None:
    bob = await node.entered(Person(node.ca, "bob", "viewer:umc"))
    with pytest.raises(Refusal) as refused:
        _ = [m async for m in bob.reach(opened(exec=agent_pb2.ExecOptions(command=["sh"])))]
    assert refused.value.reason == "NotAllowed"
    (entry,) = [e for e in node.agent._book.journal if e.refused]
    assert (entry.verb, entry.detail, entry.replica) == ("exec", "sh", "triage-0")
    for verb in ("stop", "restart"):
        with pytest.raises(Refusal) as refused:
            await bob.change(verb, "umc/triage-0")
        assert refused.value.reason == "NotAllowed"


async def test_what_a_token_reads_is_journaled(node: Node) -> None:
    glass = await node.entered(token(node.ca, "read", "umc"))
    _ = [m async for m in glass.reach(opened(logs=agent_pb2.LogOptions()))]
    entry = list(node.agent._book.journal)[-1]
    assert (entry.verb, entry.replica, entry.purpose) == ("logs", "triage-0", "ward 3 floods")


async def test_a_uid_of_another_namespace_does_not_open_it(node: Node, ann: Client) -> None:
    options = agent_pb2.LogOptions(replica_uid="u-lamps", tail_lines=-1)
    with pytest.raises(Refusal) as refused:
        _ = [m async for m in ann.reach(opened(logs=options))]
    assert refused.value.reason == "NotHere"
    with pytest.raises(Refusal) as refused:
        _ = [m async for m in ann.reach(opened("unknown-0", logs=agent_pb2.LogOptions()))]
    assert refused.value.reason == "NotFound"


# --- changing -------------------------------------------------------------------------------------


async def test_what_is_stopped_stays_stopped_until_it_is_started(node: Node, ann: Client) -> None:
    said = await ann.change("stop", "umc/triage-0", reason="leaks")
    assert (said.override.field, said.override.by) == (STOPPED, "operator/ann")
    assert "umc/triage-0" in said.message and not said.warnings
    await eventually(lambda: node.agent.supervisor.counts() == (2, 2), SLOW_S)
    await node.stop()
    await node.start()
    assert node.agent.supervisor.counts()[0] <= 2
    again = await node.entered(Person(node.ca, "ann", "operator:umc"))
    await again.change("start", "umc/triage-0")
    await eventually(lambda: node.agent.supervisor.counts() == (3, 3), SLOW_S)


async def test_a_change_is_done_once_however_often_it_is_sent(node: Node, ann: Client) -> None:
    first = await ann.change("stop", "umc/triage-0", id="one")
    twice = await asyncio.gather(*(ann.change("stop", "umc/triage-0", id="one") for _ in range(3)))
    assert all(again == first for again in twice)
    await ann.change("start", "umc/triage-0", id="two")
    assert (await ann.change("stop", "umc/triage-0", id="one")).override == first.override
    assert not (await ann.show()).overrides[0].value  # it was started since
    assert verbs(node).count("stop") <= 1
    with pytest.raises(Refusal) as refused:
        await ann.change("stop", "umc/lab-0", id="one")
    assert refused.value.reason == "InvalidArgument"


async def test_a_dry_run_says_what_it_would_do_and_does_nothing(node: Node, ann: Client) -> None:
    said = await ann.change("stop", "umc/triage-0", dry_run=True)
    assert said.message.startswith("nothing was done")
    with pytest.raises(Refusal) as refused:
        await ann.change("start", "umc/triage-0", dry_run=True)
    assert refused.value.reason == "NotStopped"
    assert not (await ann.show()).overrides
    assert {e.verb for e in (await ann.recall()).journal} == {"enter"}


async def test_a_restart_exchanges_the_containers_once(node: Node, ann: Client) -> None:
    before = node.agent.supervisor.find("u-triage").container_id
    await ann.change("restart", "umc/triage-0", id="r", reason="stuck")

    def other() -> bool:
        try:
            found = node.agent.supervisor.find("u-triage")
        except Exception:
            return False
        return found.running and found.container_id != before

    await eventually(other, SLOW_S)
    after = node.agent.supervisor.find("u-triage").container_id
    await ann.change("restart", "umc/triage-0", id="r", reason="stuck")
    assert node.agent.supervisor.find("u-triage").container_id == after
    assert [e.verb for e in node.agent._book.journal].count("restart") == 1


async def test_freezing_is_for_admins(node: Node, ann: Client, admin: Client) -> None:
    with pytest.raises(Refusal) as refused:
        await ann.change("freeze")
    assert refused.value.reason == "NotAllowed"
    said = await admin.change("freeze", reason="works on the power")
    assert said.override.field == FROZEN
    assert "Frozen" in [c.type for c in (await ann.show()).conditions]
    assert [o.field for o in (await ann.show()).overrides] == [FROZEN]
    await admin.change("unfreeze")
    assert "Frozen" not in [c.type for c in (await ann.show()).conditions]


@pytest.mark.parametrize(
    ("verb", "replica", "more", "reason"),
    [
        ("delete", "umc/triage-0", {}, "InvalidArgument"),
        ("stop", "", {}, "InvalidArgument"),
        ("stop", "umc/triage-0", {"id": ""}, "InvalidArgument"),
        ("stop", "umc/triage-0", {"to_node": "box-2"}, "InvalidArgument"),
        ("stop", "umc/triage-0", {"reason": "x" * 501}, "InvalidArgument"),
        ("move", "umc/triage-0", {}, "InvalidArgument"),
        ("freeze", "umc/triage-0", {}, "InvalidArgument"),
        ("move", "umc/triage-0", {"to_node": "box-2"}, "NoStandbys"),
        ("stop", "umc/unknown-0", {}, "NotFound"),
        ("stop", "city/lamps-0", {}, "NotAllowed"),
        ("start", "umc/triage-0", {}, "NotStopped"),
    ],
)
async def test_what_cannot_be_done_is_said(
    node: Node, ann: Client, verb: str, replica: str, more: dict[str, str], reason: str
) -> None:
    with pytest.raises(Refusal) as refused:
        await ann.change(verb, replica, **more)
    assert refused.value.reason == reason, refused.value


async def test_what_was_refused_stands_in_the_journal(node: Node, ann: Client) -> None:
    for _ in range(20):
        with pytest.raises(Refusal):
            await ann.change("stop", "city/lamps-0")
    kept = [e for e in node.agent._book.journal if e.refused]
    assert len(kept) == 10  # of one caller in a minute: it shall not push the rest out
    assert (kept[0].verb, kept[0].by, kept[0].namespace) == ("stop", "operator/ann", "city")


# --- telling the orchestrator ---------------------------------------------------------------------


async def test_what_was_done_alone_goes_up_when_an_orchestrator_is_back(
    node: Node, ann: Client
) -> None:
    port = node.server.port
    await node.server.stop()
    await eventually(lambda: not node.agent.client.state.connected, SLOW_S)
    await ann.change("stop", "umc/triage-0", reason="leaks")
    assert (await ann.show()).isolated_ms >= 0
    visits = len(node.server.visits)
    await node.server.start(port)
    await eventually(lambda: len(node.server.visits) > visits, SLOW_S)
    await eventually(lambda: verbs(node) == ["enter", "stop"], SLOW_S)
    (override,) = changes(node)[-1].overrides
    assert (override.field, override.value, override.replica) == (STOPPED, "true", "triage-0")
    last = changes(node)[-1].entries[-1]
    assert (last.by, last.reason, last.workload_uid) == ("operator/ann", "leaks", "w-triage")


async def test_what_was_taken_is_not_told_again_and_numbers_go_on(node: Node, ann: Client) -> None:
    await ann.change("stop", "umc/triage-0")
    await eventually(lambda: verbs(node) == ["enter", "stop"], SLOW_S)
    node.visit.say(local_changes_taken=agent_pb2.LocalChangesTaken(journal_sequence=2))
    journal = node.agent._book.journal
    await eventually(lambda: not journal.waiting()[0], SLOW_S)
    await node.stop()
    await node.start()
    again = await node.entered(Person(node.ca, "ann", "operator:umc"))
    await again.change("start", "umc/triage-0")
    await eventually(lambda: verbs(node) == ["enter", "start"], SLOW_S)
    assert [e.sequence for e in changes(node)[-1].entries] == [3, 4]
    assert len((await again.recall()).journal) == 4  # what was taken is still shown here


async def test_a_long_journal_goes_up_in_parts(
    node: Node, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "BATCH", 2)
    port = node.server.port
    await node.server.stop()
    for verb in ("stop", "start", "stop", "start"):
        await ann.change(verb, "umc/triage-0")
    visits = len(node.server.visits)
    await node.server.start(port)
    await eventually(lambda: len(node.server.visits) > visits, SLOW_S)
    for taken in (2, 4):
        await eventually(
            lambda n=taken: changes(node) and changes(node)[-1].entries[-1].sequence == n, SLOW_S
        )
        said = agent_pb2.LocalChangesTaken(journal_sequence=taken)
        node.visit.say(local_changes_taken=said)
    await eventually(lambda: verbs(node) == ["enter", *["stop", "start"] * 2], SLOW_S)


async def test_a_plan_takes_a_decision_back(node: Node, ann: Client) -> None:
    said = await ann.change("stop", "umc/triage-0")
    await eventually(lambda: node.agent.supervisor.counts() == (2, 2), SLOW_S)
    back = plan_pb2.Override()
    back.CopyFrom(said.override)
    back.value, back.stamp, back.node = "", said.override.stamp + 1, ""
    await node.use_plan(generation=6, overrides=[back])
    await eventually(lambda: node.agent.supervisor.counts() == (3, 3), SLOW_S)


async def test_nothing_is_done_with_a_token_that_cannot_be_journaled(
    node: Node, ann: Client
) -> None:
    journal = node.agent._book.journal

    async def full(_name: str, _body: object) -> str:
        return "No space left on device"

    journal._memory.save = full
    client = await node.client()
    with pytest.raises(Refusal) as refused:
        await client.enter(token(node.ca, "stop"))
    assert refused.value.reason == "NotWritable"
    said = await client.enter(Person(node.ca, "ann", "operator:umc"))  # may look after the disk
    assert "No space left" in said.warnings[0]
    with pytest.raises(Refusal) as refused:
        await client.change("restart", "umc/triage-0")
    assert refused.value.reason == "NotWritable"
