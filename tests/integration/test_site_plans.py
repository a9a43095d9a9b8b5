"""Real gateway, leader and Store: who may take over is in signed plans, and who did on record."""

import asyncio
import datetime
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.domain.deleted import KEPT_S
from orchestrator.domain.liveness import Periods
from orchestrator.gateway.settings import GatewaySettings
from orchestrator.identity.allowlist import revoke_identity
from orchestrator.leader import LeaderSettings
from orchestrator.records import KeptRecord, StoredResource
from orchestrator.store import keys
from orchestrator.store.port import Put
from polder.epochs import decided_at
from polder.identity import NodeId
from polder.v1 import agent_pb2, plan_pb2
from tests.integration.gateway_harness import (
    TRUST_DOMAIN,
    Agent,
    Region,
    eventually,
    region,
    status_of,
)

PERIODS = Periods(silent_after_s=1.0, lost_after_s=2.0)
SETTINGS = GatewaySettings("m1", "eu", "test", heartbeat_s=5.0, periods=PERIODS, autonomy_s=3600.0)
NODES = ("a", "b", "c")


def site_certificate(node: str, site: str = "s1") -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    uri = x509.UniformResourceIdentifier(str(NodeId(TRUST_DOMAIN, site, node)))
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(1970, 1, 1))
        .not_valid_after(datetime.datetime(9999, 12, 31))
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.DER)


def reachable(inventory: agent_pb2.NodeInventory, node: str, site: str = "s1") -> None:
    inventory.site_endpoints[:] = [f"{node}.example:7445"]
    inventory.site_certificate = site_certificate(node, site)


class Site:
    """Three scripted agents, and a workload that each of them may take over."""

    def __init__(self, home: Region, agents: dict[str, Agent], workload: StoredResource) -> None:
        self.home = home
        self.agents = agents
        self.workload = workload
        self.alive = set(NODES)

    async def beat(self) -> None:
        """Until cancelled: those that are alive are heard."""
        while True:
            for name in self.alive:
                await self.agents[name].beat()
            await asyncio.sleep(0.2)

    async def dies(self, node: str) -> None:
        self.alive.discard(node)
        await self.agents[node].disconnect()

    async def returns(self, node: str) -> None:
        agent = self.agents[node]
        agent.hello.plan_generation = agent.plan.generation
        agent.heard.clear()
        await (await agent.connect()).welcomed()
        self.alive.add(node)

    async def holder(self) -> str:
        """Who has the replica, once all plans say so."""

        def settled() -> str:
            having = [name for name, agent in self.agents.items() if agent.plan.assignments]
            others = [agent for name, agent in self.agents.items() if name not in having]
            told = all(
                [role.primary for role in agent.plan.standby_roles] == having for agent in others
            )
            return having[0] if len(having) == 1 and told else ""

        return str(await eventually(settled, "one has it, and the others know who"))

    def first_standby(self, holder: str) -> str:
        return str(self.agents[holder].plan.assignments[0].group.members[1])

    def taken_over(self, by: str, *, ready: bool = True) -> agent_pb2.ReplicaStatus:
        """What a standby says when it runs the replica by its site's own decision."""
        (role,) = self.agents[by].plan.standby_roles
        now_ms = int(time.time() * 1000)
        return agent_pb2.ReplicaStatus(
            namespace="default",
            workload="web",
            workload_uid=self.workload.uid,
            replica="web-0",
            replica_uid=f"s-local-{by}",
            phase=agent_pb2.REPLICA_PHASE_RUNNING,
            ready=ready,
            ready_since_ms=now_ms if ready else 0,
            observed_at_ms=now_ms,
            revision=role.assignment.revision,
            epoch=role.assignment.epoch + 1,
            takes_over=role.assignment.replica_uid,
        )

    async def say(self, node: str, *statuses: agent_pb2.ReplicaStatus) -> None:
        update = agent_pb2.ReplicaStatusUpdate(changed=statuses)
        await self.agents[node].say(replica_status=update)

    def plan(self, node: str) -> plan_pb2.NodePlan:
        return self.agents[node].plan


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    leader = LeaderSettings("m1", poll_s=0.2, periods=PERIODS)
    async with region(tmp_path, SETTINGS, leader) as home:
        agents = {}
        for name in NODES:
            agent = agents[name] = await home.join(name)
            reachable(agent.hello.inventory, name)
            await (await agent.connect()).welcomed()
        await eventually(lambda: all(map(home.cache.node_status, NODES)), "all were seen")
        workload = await home.workload("web", replicas=1, failover={"standbys": 2})
        made = Site(home, agents, workload)
        beating = asyncio.create_task(made.beat())
        yield made
        beating.cancel()
        for agent in agents.values():
            await agent.disconnect()


async def test_a_standby_gets_what_it_needs_and_every_change_of_it(site: Site) -> None:
    holder = await site.holder()
    others = [name for name in NODES if name != holder]
    for name in NODES:
        plan = site.plan(name)
        assert [peer.node for peer in plan.roster] == [n for n in NODES if n != name]
        assert plan.autonomy_ms == 3_600_000
        assert plan.standby_role_count == len(plan.standby_roles) == (name != holder)
    (held,) = site.plan(holder).assignments
    for name in others:
        (role,) = site.plan(name).standby_roles
        assert role.assignment == held, "as the primary has it"
    before = {name: site.plan(name).generation for name in NODES}
    renewed = agent_pb2.NodeInventory()
    renewed.CopyFrom(site.agents[holder].hello.inventory)
    reachable(renewed, holder)
    await site.agents[holder].say(inventory=renewed)

    def shown(name: str) -> bytes:
        return next(p.certificate for p in site.plan(name).roster if p.node == holder)

    await eventually(
        lambda: all(shown(name) == renewed.site_certificate for name in others), "told"
    )
    assert all(site.plan(name).generation > before[name] for name in others)
    stored = {p.node: p.roles_digest for p in site.home.cache.placements()}
    assert all(stored[name] for name in NODES)
    await site.home.workload("web", replicas=1, failover={"standbys": 0})
    await eventually(lambda: not any(site.plan(n).standby_roles for n in NODES), "none any more")
    await eventually(lambda: not any(site.plan(n).roster for n in NODES), "nobody to speak to")


async def test_what_the_site_did_is_adopted_and_nothing_is_placed_beside_it(site: Site) -> None:
    holder = await site.holder()
    taker = site.first_standby(holder)
    (third,) = set(NODES) - {holder, taker}
    (old,) = site.plan(holder).assignments
    await site.dies(holder)
    await site.say(taker, site.taken_over(taker))
    await eventually(
        lambda: [a.replica_uid for a in site.plan(taker).assignments] == [f"s-local-{taker}"],
        "the plan assigns what runs",
    )
    (made,) = site.plan(taker).assignments
    assert made.epoch == old.epoch + 1 and not made.replaces
    assert list(made.group.members) == [taker, holder, third]
    assert made.group.number == old.group.number
    await eventually(
        lambda: [role.primary for role in site.plan(third).standby_roles] == [taker],
        "the others know whom they stand by",
    )
    await site.home.told("Replica", "web-0", "TakenOver", "Adopted")
    ticks = site.home.leader.stats.ticks
    fleet = site.home.fleet
    await eventually(
        lambda: fleet.liveness(holder, True, PERIODS).state.value == "Lost", "long after it is lost"
    )
    await eventually(lambda: site.home.leader.stats.ticks > ticks + 3, "it looked again")
    placed = [a for p in site.home.cache.placements() for a in p.assignments]
    assert [a.replica_uid for a in placed] == [f"s-local-{taker}"]
    # The dead one comes back with its old plan and what it ran: it is told to stop it.
    await site.returns(holder)
    await eventually(lambda: not site.home.cache.placement(holder).stops, "it has stopped it")
    await eventually(
        lambda: [role.primary for role in site.plan(holder).standby_roles] == [taker],
        "and it stands by",
    )


async def test_of_two_that_serve_beside_each_other_one_is_stopped_and_it_is_told(
    site: Site,
) -> None:
    """The site is split in two, and both halves reach the orchestrator."""
    holder = await site.holder()
    taker = site.first_standby(holder)
    (old,) = site.plan(holder).assignments
    for name in (holder, taker):
        site.agents[name].obedient = False  # they say what is said here, and nothing else
    boxes_ms = int((time.time() - 86_400) * 1000)  # its clock is a day behind
    serving = status_of(old)
    serving.observed_at_ms, serving.ready_since_ms = boxes_ms, boxes_ms - 600_000
    taken = site.taken_over(taker)
    taken.ready_since_ms -= 60_000
    await site.say(holder, serving)
    await site.say(taker, taken)
    await eventually(
        lambda: (
            [(s.replica_uid, s.cause) for s in site.plan(taker).stops]
            == [(taken.replica_uid, "TakenOver")]
        ),
        "the younger one is to stop",
    )

    def newer() -> bool:
        found = site.plan(holder).assignments
        return [a.replica_uid for a in found] == [old.replica_uid] and found[0].epoch > taken.epoch

    await eventually(newer, "who stays is newer than all that was heard")
    await site.home.told("Replica", "web-0", "TakeoverEnds")
    await site.agents[taker].report()
    await eventually(lambda: not site.home.cache.placement(taker).stops, "it has stopped")


async def test_what_was_deleted_before_the_takeover_was_heard_of_is_stopped(site: Site) -> None:
    holder = await site.holder()
    taker = site.first_standby(holder)
    status = site.taken_over(taker)
    await site.dies(holder)
    await site.home.delete("Workload", "web")
    await eventually(lambda: not site.home.cache.resource("Workload", "default", "web"), "gone")
    assert site.home.cache.kept_at(keys.deleted(site.workload.uid)), "but not forgotten"
    agent = site.agents[taker]
    agent.obedient = False
    await site.say(taker, status)  # it comes late
    await eventually(
        lambda: (
            [(s.replica_uid, s.cause) for s in agent.plan.stops]
            == [(f"s-local-{taker}", "WorkloadDeleted")]
        ),
        "it is told by name, and why",
    )
    await agent.report()
    await eventually(lambda: not site.home.cache.placement(taker).stops, "and has obeyed")


async def test_a_deletion_is_forgotten_when_no_site_can_come_back(tmp_path: Path) -> None:
    settings = LeaderSettings("m1", poll_s=0.1, idle_plan_every_s=0.1, collect_every_s=0.1)
    async with region(tmp_path, leader_settings=settings) as home:
        now = time.time()
        records = {
            uid: KeptRecord(keys.deleted(uid), {"at_ms": int((now - age_s) * 1000)})
            for uid, age_s in (("old", KEPT_S + 60), ("young", KEPT_S - 60))
        }
        await home.store.txn([], [Put(r.key, r.to_bytes()) for r in records.values()])
        await eventually(lambda: home.cache.kept_at(keys.deleted("young")), "both are there")
        await eventually(lambda: not home.cache.kept_at(keys.deleted("old")), "the old one goes")
        ticks = home.leader.stats.ticks
        await eventually(lambda: home.leader.stats.ticks > ticks + 3, "it looked again")
        assert home.cache.kept_at(keys.deleted("young"))


async def test_a_box_that_joins_again_under_its_name_says_since_when(site: Site) -> None:
    """Groups of before must not count on what it granted."""
    home = site.home
    first = home.cache.identity("node", "a")
    await revoke_identity(home.store, "node", "a", "disk lost", time.time())
    site.alive.discard("a")
    site.agents["a"] = await home.join("a")
    again = home.cache.identity("node", "a")
    assert first is not None and again is not None
    assert again.joined_epoch > first.joined_epoch > 0
    assert again.joined_epoch <= decided_at(home.cache.epoch)
