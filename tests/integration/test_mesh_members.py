"""Three members that follow each other: every one knows every node, and who has it."""

import asyncio
from pathlib import Path

import pytest

from orchestrator.store import keys
from orchestrator.store.port import Delete
from polder.v1 import agent_pb2
from tests.integration.gateway_harness import Agent, eventually
from tests.integration.mesh_harness import HEARTBEAT_S, Member, member, members


async def connected(home: Member, *others: Member, node: str = "n1") -> Agent:
    """A node that every member knows of."""
    agent = await home.join(node)
    agent.hello.session_number = 1
    for one in (home, *others):
        await eventually(lambda one=one: one.cache.resource("Node", "", node), "the node's record")
    await agent.connect()
    await agent.welcomed()
    for one in (home, *others):
        await eventually(lambda one=one: one.owner(node) == home.name, f"{one.name} knows {node}")
    return agent


async def beating(agent: Agent) -> None:
    """As an agent does, until it is disconnected."""
    while not agent.ended.is_set():
        await agent.beat()
        await asyncio.sleep(0.2)


def status(uid: str, *, ready: bool = True) -> agent_pb2.ReplicaStatus:
    return agent_pb2.ReplicaStatus(
        namespace="default", workload="hello", workload_uid="w", replica=f"hello-{uid}",
        replica_uid=uid, phase=agent_pb2.REPLICA_PHASE_RUNNING, ready=ready, revision=1,
    )  # fmt: skip


async def test_every_member_knows_a_node_and_its_replicas(tmp_path: Path) -> None:
    async with members(tmp_path, "a", "b", "c") as (a, b, c):
        agent = await connected(a, b, c)
        await agent.say(
            replica_status=agent_pb2.ReplicaStatusUpdate(changed=[status("r1"), status("r2")])
        )
        for one in (b, c):
            await eventually(lambda one=one: len(one.fleet.observe("n1").replicas) == 2, "both")
        await agent.say(
            replica_status=agent_pb2.ReplicaStatusUpdate(
                changed=[status("r1", ready=False)], gone=["r2"]
            )
        )
        for one in (b, c):
            seen = one.fleet.observe("n1")
            await eventually(lambda seen=seen: set(seen.replicas) == {"r1"}, "one is gone")
            await eventually(lambda seen=seen: not seen.replicas["r1"].ready, "one changed")
            assert seen.complete and seen.agent_version == "test"
            assert one.liveness("n1") == "Live"
        await agent.disconnect()
        for one in (a, b, c):
            await eventually(lambda one=one: one.owner("n1") == "", "nobody has it")
            assert one.liveness("n1") == "Live"  # it spoke just now
        for one in (a, b, c):
            await eventually(lambda one=one: one.liveness("n1") == "Lost", "it is lost")


async def test_how_it_is_with_an_upgrade_reaches_every_member(tmp_path: Path) -> None:
    """The leader need not have the session of a box that fails."""
    async with members(tmp_path, "a", "b") as (a, b):
        agent = await connected(a, b)
        for phase in ("Installing", "RolledBack"):
            said = agent_pb2.UpgradeStatus(id="1-aaaa", version="2", phase=phase, attempt=3)
            await agent.say(upgrade=said)
            for one in (a, b):
                seen = one.fleet.observe("n1")
                await eventually(lambda seen=seen, said=said: seen.upgrade == said, phase)
        # A new session that says nothing of it: there is nothing to say any more.
        await agent.disconnect()
        await agent.connect()
        for one in (a, b):
            seen = one.fleet.observe("n1")
            await eventually(lambda seen=seen: seen.connected and seen.upgrade is None, "forgotten")


async def test_a_member_that_comes_later_is_told_everything(tmp_path: Path) -> None:
    async with members(tmp_path, "a", "b") as (a, b):
        agents = [await connected(a, b, node=f"n{i}") for i in range(5)]
        for agent in agents:
            update = agent_pb2.ReplicaStatusUpdate(changed=[status(f"r{i}") for i in range(250)])
            await agent.say(replica_status=update)
        await eventually(lambda: len(a.fleet.observe("n4").replicas) == 250, "a knows them")
        async with member(tmp_path, a.store, "c") as c:
            for one in (a, b):
                await eventually(lambda one=one: c.hears(one), "c hears both")
                await eventually(lambda one=one: one.hears(c), "both hear c")
            for i in range(5):
                seen = c.fleet.observe(f"n{i}")
                assert (seen.member, len(seen.replicas), seen.complete) == ("a", 250, True)
        for agent in agents:
            await agent.disconnect()


async def test_every_member_knows_what_standbys_could_and_what_their_site_did(
    tmp_path: Path,
) -> None:
    """Whichever of them leads adopts it, and any of them is asked."""
    async with members(tmp_path, "a", "b") as (a, b):
        agent = await connected(a, b)
        taken = status("local")
        taken.takes_over, taken.epoch = "old", (7 << 16) + 1
        unable = agent_pb2.StandbyStatus(workload_uid="w", replica="hello-x", reason="NoRoom")
        update = agent_pb2.ReplicaStatusUpdate(changed=[taken], standbys=[unable])
        await agent.say(replica_status=update)
        seen = b.fleet.observe("n1")
        await eventually(lambda: seen.standbys, "what it could")
        assert seen.standbys["w", "hello-x"] == unable
        assert [(s.replica_uid, s.epoch) for s in seen.local_stays] == [("local", taken.epoch)]
        async with member(tmp_path, a.store, "c") as c:
            await eventually(lambda: c.hears(a), "c hears a from the beginning")
            assert c.fleet.observe("n1").standbys == seen.standbys
            assert c.fleet.observe("n1").local_stays == seen.local_stays
        await agent.disconnect()


async def test_a_node_that_moves_is_superseded_where_it_was(tmp_path: Path) -> None:
    async with members(tmp_path, "a", "b", "c") as (a, b, c):
        agent = await connected(a, b, c)
        first = agent._call
        await b.move(agent)
        for one in (a, b, c):
            await eventually(lambda one=one: one.owner("n1") == "b", f"{one.name} knows b has it")
        await eventually(lambda: a.gateway.sessions.get("n1") is None, "a has closed its session")
        await eventually(first.done, "the old stream has ended")
        assert b.gateway.sessions.get("n1") is not None
        assert "SessionSuperseded" not in a.reasons("Node", "n1")  # it superseded only itself
        await agent.disconnect()


@pytest.mark.parametrize("same_time", [False, True])
async def test_two_boxes_with_one_identity(tmp_path: Path, same_time: bool) -> None:
    """The newer stays; the other is told when to come back; one event tells of it."""
    async with members(tmp_path, "a", "b", "c") as (a, b, c):
        first = await a.join("n1")
        await eventually(lambda: b.cache.resource("Node", "", "n1"), "b knows the node")
        twin = Agent(b, "n1", first.key, first.chain)
        if same_time:
            await asyncio.gather(first.connect(), twin.connect())
        else:
            await first.connect()
            await eventually(lambda: b.owner("n1") == "a", "b knows that a has it")
            await twin.connect()
        await eventually(lambda: first.goodbye() or twin.goodbye(), "one has to go")
        if not same_time:
            assert first.goodbye() == "Superseded"
        loser = first if first.goodbye() else twin
        winner = "b" if loser is first else "a"
        goodbye = next(m.goodbye for m in loser.heard if m.HasField("goodbye"))
        assert goodbye.retry_after_ms >= 30_000 and f"member {winner}" in goodbye.message
        for one in (a, b, c):
            await eventually(lambda one=one: one.owner("n1") == winner, f"{winner} has it")
        told = [e for one in (a, b) for e in one.events.list(kind="Node", namespace="", name="n1")]
        sources = {(e.source, e.count) for e in told if e.reason == "SessionSuperseded"}
        assert sources == {(f"gateway/{'a' if loser is first else 'b'}", 1)}
        await first.disconnect()
        await twin.disconnect()


async def test_a_copy_is_refused_at_every_member_while_its_box_is_heard_at_one(
    tmp_path: Path,
) -> None:
    """And the first box is as if there were no other; a disk that moved is let in when that is
    silent."""
    async with members(tmp_path, "a", "b", "c") as (a, b, c):
        first = await a.join("n1")
        first.hello.inventory.hardware_id = "1" * 64
        await first.connect()
        beats = asyncio.create_task(beating(first))
        for one in (a, b, c):
            await eventually(lambda one=one: one.owner("n1") == "a", f"{one.name} knows")
            await eventually(lambda one=one: one.cache.node_status("n1"), "its inventory")
        twin = Agent(b, "n1", first.key, first.chain)
        twin.hello.inventory.hardware_id = "2" * 64
        for one in (b, c, a):
            twin.region = one
            await twin.connect()
            await asyncio.wait_for(twin.ended.wait(), 5)
            assert twin.kinds() == ["goodbye"] and twin.goodbye() == "IdentityCopied"
            assert twin.heard[0].goodbye.retry_after_ms >= 60_000
            assert "IdentityCopied" in one.reasons("Node", "n1")
            twin.heard.clear()
            await twin.disconnect()
        assert first.kinds() == ["welcome"] and not first.ended.is_set()
        for one in (a, b, c):
            assert one.owner("n1") == "a"
            said = one.cache.node_status("n1")
            assert said is not None and said.inventory["hardwareId"] == "1" * 64
        # Superseding itself elsewhere is as ever.
        await c.move(first)
        await eventually(lambda: b.owner("n1") == "c", "it moved")
        assert "SessionSuperseded" not in a.reasons("Node", "n1")
        beats.cancel()
        await first.disconnect()
        await eventually(lambda: b.fleet.silence_s("n1") > 6 * HEARTBEAT_S, "it is silent")
        moved = Agent(b, "n1", first.key, first.chain)
        moved.hello.inventory.hardware_id = "3" * 64
        await moved.connect()
        await moved.welcomed()
        assert "HardwareChanged" in b.reasons("Node", "n1")
        for one in (a, b, c):
            await eventually(lambda one=one: one.owner("n1") == "b", f"{one.name} knows")
        await moved.disconnect()


async def test_an_old_session_that_arrives_late_is_refused(tmp_path: Path) -> None:
    async with members(tmp_path, "a", "b") as (a, b):
        agent = await connected(a, b)
        late = Agent(b, "n1", agent.key, agent.chain)
        late.hello.CopyFrom(agent.hello)
        late.hello.session_number = 0  # below the one that a has
        await late.connect()
        await eventually(lambda: late.goodbye() == "Superseded", "the old one is refused")
        assert b.owner("n1") == "a" and not late.kinds().count("welcome")
        await late.disconnect()
        await agent.disconnect()


async def test_a_broken_link_to_a_member_that_is_there_doubts_and_loses_nothing(
    tmp_path: Path,
) -> None:
    async with members(tmp_path, "a", "b", "c", leads="b") as (a, b, c):
        assert a.proxy is not None
        agent = await connected(a, b, c)
        beats = asyncio.create_task(beating(agent))
        a.proxy.cut()
        await eventually(lambda: not b.hears(a) and not c.hears(a), "nobody hears a")
        await eventually(lambda: b.liveness("n1") == "Silent", "it is silent here")
        await eventually(lambda: b.fleet.silence_s("n1") > 3.0, "it would be lost")
        assert b.liveness("n1") == c.liveness("n1") == "Silent"
        await eventually(lambda: "n1" in b.leader.doubted, "the leader doubts it")
        assert "member a, which has its session, cannot be reached since" in b.leader.doubted["n1"]
        assert a.liveness("n1") == "Live"
        a.proxy.mend()
        await eventually(lambda: b.liveness("n1") == "Live", "it is heard again")
        await eventually(lambda: not b.leader.doubted, "no doubt is left")
        beats.cancel()
        await agent.disconnect()


async def test_a_member_that_cannot_be_reached_for_long_is_an_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.mesh.links.TOLD_AFTER_S", 1.0)
    async with members(tmp_path, "a", "b") as (a, b):
        assert a.proxy is not None
        a.proxy.cut()
        await eventually(lambda: b.reasons("Member", "a") == ["MemberUnreachable"], "told")
        assert a.reasons("Member", "b") == []
        a.proxy.mend()
        await eventually(lambda: "MemberReached" in b.reasons("Member", "a"), "told when over")


async def test_a_link_that_hangs_is_noticed(tmp_path: Path) -> None:
    async with members(tmp_path, "a", "b") as (a, b):
        assert a.proxy is not None
        a.proxy.hang()
        started = asyncio.get_running_loop().time()
        await eventually(lambda: not b.hears(a), "the link is given up", within_s=8)
        assert asyncio.get_running_loop().time() - started < 7.0
        assert a.hears(b)
        a.proxy.cut()
        a.proxy.mend()
        await eventually(lambda: b.hears(a), "it follows again")


async def test_a_member_that_dies_leaves_its_agents_time(tmp_path: Path) -> None:
    async with members(tmp_path, "a", "b", "c", leads="b") as (a, b, c):
        assert a.proxy is not None
        agent, dead = await connected(a, b, c), await connected(a, b, c, node="n2")
        a.proxy.cut()
        await eventually(lambda: b.fleet.silence_s("n1") > 2.5, "both would be lost")
        await a.leave()  # its lease has run out
        await eventually(lambda: not b.fleet.unasked, "b knows that a is gone")
        assert b.liveness("n1") == b.liveness("n2") == "Silent"
        await c.move(agent)
        await eventually(lambda: b.liveness("n1") == "Live", "it is heard elsewhere")
        beats = asyncio.create_task(beating(agent))
        began = b.fleet.steady()
        await eventually(lambda: b.liveness("n2") == "Lost", "who did not come back is lost")
        assert b.fleet.steady() - began > 1.0
        assert b.liveness("n1") == "Live"
        beats.cancel()
        await agent.disconnect()
        await dead.disconnect()


async def test_a_clock_that_is_an_hour_off_decides_nothing(tmp_path: Path) -> None:
    async with (
        members(tmp_path, "b", "c", leads="b") as (b, c),
        member(tmp_path, b.store, "a", clock_off_s=-3600.0) as a,
    ):
        for one in (b, c):
            await eventually(lambda one=one: one.hears(a), "a is heard")
            await eventually(lambda one=one: a.hears(one), "a hears")
        agent = await connected(a, b, c)
        beats = asyncio.create_task(beating(agent))
        await eventually(lambda: b.link(a).pulse_at, "a pulse")
        assert b.link(a).clock_skew_s == pytest.approx(-3600, abs=2)
        assert b.liveness("n1") == "Live"
        seen = b.fleet.get("n1")
        assert seen is not None and abs(seen.last_seen - b.link(a).pulse_at) < 3
        await b.move(agent)
        await eventually(lambda: a.owner("n1") == "b", "a knows")
        assert a.liveness("n1") == "Live"
        beats.cancel()
        await agent.disconnect()


async def test_replicas_report_through_any_member(tmp_path: Path) -> None:
    """The leader places, the node of another member starts it, and the leader knows."""
    async with members(tmp_path, "a", "b", leads="b") as (a, b):
        agent = await connected(a, b)
        beats = asyncio.create_task(beating(agent))  # or its session ends after three intervals
        await b.workload("hello", replicas=1)
        await eventually(lambda: agent.runs() == ["hello-0"], "it is placed")
        uid = agent.plan.assignments[0].replica_uid
        await eventually(lambda: b.fleet.observe("n1").replicas.get(uid), "the leader knows")
        generation = b.cache.placement("n1").generation
        await eventually(
            lambda: b.fleet.observe("n1").acked_generation == generation, "acknowledged"
        )
        await b.delete("Workload", "hello")
        await eventually(lambda: not agent.runs(), "it is stopped")
        await eventually(lambda: b.cache.resource("Workload", "default", "hello") is None, "gone")
        beats.cancel()
        await agent.disconnect()


async def test_a_renewed_certificate_opens_a_new_link_before_the_old_goes(tmp_path: Path) -> None:
    async with members(tmp_path, "a", "b", "c") as (a, b, c):
        agent = await connected(a, b, c)
        beats = asyncio.create_task(beating(agent))
        before, stub = a.member.current, a.mesh.links.stub("b")
        ended: list[bool] = []
        a.mesh.links._heard.fleet.link_ended = lambda: ended.append(True)
        a.member.renew()
        assert a.member.current is not before
        await eventually(
            lambda: a.mesh.links.stub("b") not in (stub, None), "a new channel", within_s=15
        )
        assert a.hears(b) and a.hears(c) and not ended
        beats.cancel()
        await agent.disconnect()


async def test_whom_the_store_does_not_name_is_not_followed(tmp_path: Path) -> None:
    async with members(tmp_path, "a", "b") as (a, b):
        await a.store.txn([], [Delete(keys.member("b")), Delete(keys.present("b"))])
        await eventually(lambda: not a.mesh.links.status(), "a follows nobody")
        assert not a.fleet.unasked
        assert b.mesh.links.status()


async def test_agents_of_a_member_that_died_come_back_elsewhere_and_nothing_moves(
    tmp_path: Path,
) -> None:
    async with members(tmp_path, "a", "b", "c", leads="b") as (a, b, c):
        assert a.proxy is not None
        agents = [await connected(a, b, c, node=f"n{i}") for i in range(3)]
        beats = [asyncio.create_task(beating(agent)) for agent in agents]
        await b.workload("hello", replicas=6)
        await eventually(lambda: sum(len(g.runs()) for g in agents) == 6, "all are placed")
        settled = {p.node: p.generation for p in b.cache.placements()}
        await eventually(
            lambda: all(
                b.fleet.observe(node).acked_generation == generation
                for node, generation in settled.items()
            ),
            "the leader knows that all run",
        )
        began = b.fleet.steady()
        a.proxy.cut()
        for agent, home in zip(agents, (b, c, c), strict=True):
            await agent.disconnect()
            await home.move(agent)
            beats.append(asyncio.create_task(beating(agent)))
        await asyncio.sleep(0.5)
        await a.leave()
        await eventually(lambda: b.fleet.steady() - began > 5.0, "a full period, twice")
        assert {p.node: p.generation for p in b.cache.placements()} == settled
        assert sorted(s.node for s in (*b.gateway.sessions, *c.gateway.sessions)) == [
            "n0", "n1", "n2",
        ]  # fmt: skip
        for one in (b, c):
            assert all(one.liveness(f"n{i}") == "Live" for i in range(3))
        for task in beats:
            task.cancel()
        for agent in agents:
            await agent.disconnect()


async def test_a_line_that_flaps_moves_nothing(tmp_path: Path) -> None:
    async with members(tmp_path, "a", "b", "c", leads="b") as (a, b, c):
        assert a.proxy is not None
        agent, other = await connected(a, b, c), await connected(b, a, c, node="n2")
        beats = [asyncio.create_task(beating(agent)), asyncio.create_task(beating(other))]
        await b.workload("hello", replicas=4)
        await eventually(lambda: len(agent.runs() + other.runs()) == 4, "all are placed")
        settled = {p.node: p.generation for p in b.cache.placements()}
        for _ in range(5):
            a.proxy.cut()
            await asyncio.sleep(1.3)
            a.proxy.mend()
            await asyncio.sleep(0.7)
        assert {p.node: p.generation for p in b.cache.placements()} == settled
        await eventually(lambda: b.hears(a), "it is heard in the end")
        await eventually(lambda: b.liveness("n1") == "Live", "and its node")
        assert "NodeLost" not in b.reasons("Node", "n1")
        for task in beats:
            task.cancel()
        await agent.disconnect()
        await other.disconnect()


async def test_what_is_not_known_any_more_is_heard_again_from_the_beginning(
    tmp_path: Path,
) -> None:
    async with members(tmp_path, "a", "b", "c") as (a, b, c):
        agent = await connected(a, b, c)
        beats = asyncio.create_task(beating(agent))
        ended: list[bool] = []
        b.fleet.link_ended = lambda: ended.append(True)
        b.fleet.forget("n1")  # as after a deletion that the mirror saw too late
        assert b.owner("n1") == ""
        await eventually(lambda: b.owner("n1") == "a", "b hears of it again")
        assert b.hears(a) and b.hears(c) and not ended
        beats.cancel()
        await agent.disconnect()
