"""Regions under one root: any of them issues, signs and shows the others; drills silence one."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from orchestrator.store import keys
from polder.signing import verify_chain
from polder.v1 import agent_pb2, operator_pb2
from tests.integration.etcd_server import EtcdCluster
from tests.integration.gateway_harness import good_inventory
from tests.integration.orchestrator_rig import (
    Credentials,
    Rig,
    certificate_request,
    refusal,
    until,
    workload,
)
from tests.integration.regions_rig import Wanderer, member, regions

pytestmark = pytest.mark.etcd


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    made = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    made.start()
    yield made
    made.stop()


def admin_of(rigs: list[Rig]) -> Credentials:
    """Of the member that was first."""
    return next(
        rig.admin_credentials() for rig in rigs if (rig.config.data_path / "admin.yaml").exists()
    )


@asynccontextmanager
async def wandering(*agents: Wanderer) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(agent.run()) for agent in agents]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def regions_of(rig: Rig, admin: Credentials) -> Any:
    return rig.operators(admin).Regions(operator_pb2.RegionsRequest())


async def heard(rigs: list[Rig]) -> None:
    """Until every member hears every other."""
    await until(
        lambda: all(
            len(rig.orchestrator.mesh.links.status()) == len(rigs) - 1
            and all(link.reachable for link in rig.orchestrator.mesh.links.status())
            for rig in rigs
        ),
        "the members hear each other",
        30.0,
    )


# --- issuing --------------------------------------------------------------------------------------


async def test_a_node_of_one_region_is_renewed_and_planned_for_by_another(
    cluster: EtcdCluster, tmp_path: Path
) -> None:
    async with regions(tmp_path, cluster, "/issuing", "east", "west") as (east, west):
        await east.site()
        node = await east.node("n1")  # by east's intermediate
        assert issuer_of(node.chain_der) == east.authority.intermediate.subject
        token = await west_token(west, east.admin_credentials())
        await until(
            lambda: west.orchestrator.parts.cache.identity("node", "n1") is not None, "n1 is known"
        )
        await east.orchestrator.stop()  # east is lost
        call = west.agents(node).Session()
        await call.write(agent_pb2.SessionRequest(hello=hello()))
        assert (await call.read()).welcome.region == "west"
        renew = agent_pb2.RenewRequest(csr=certificate_request())
        await call.write(agent_pb2.SessionRequest(renew=renew))
        while not (answer := await call.read()).HasField("renew"):
            pass
        chain = tuple(answer.renew.certificate_chain)
        assert issuer_of(chain) == west.authority.intermediate.subject
        verify_chain(chain, east.authority.roots_der, time.time())
        call.cancel()
        # And a box joins through the region that is left.
        request = agent_pb2.JoinRequest(token_secret=token, node="n2", csr=certificate_request())
        joined = await west.joiner().Join(request)
        verify_chain(joined.certificate_chain, east.authority.roots_der, time.time())


async def west_token(west: Rig, admin: Credentials) -> str:
    from polder.tokens import parse

    cache = west.orchestrator.parts.cache
    await until(lambda: cache.resource("Site", "", "ams-1") is not None, "the site is known")
    request = operator_pb2.CreateJoinTokenRequest(site="ams-1")
    return parse((await west.operators(admin).CreateJoinToken(request)).token).secret


def hello() -> agent_pb2.Hello:
    return agent_pb2.Hello(instance_id="i", inventory=good_inventory())


def issuer_of(chain_der: tuple[bytes, ...]) -> x509.Name:
    return x509.load_der_x509_certificate(chain_der[0]).issuer


async def test_a_plan_of_another_regions_member_is_accepted(
    cluster: EtcdCluster, tmp_path: Path
) -> None:
    async with regions(tmp_path, cluster, "/plans", "east", "west") as (east, west):
        await east.site()
        agent = Wanderer("n1", await east.node("n1"), [west])
        await east.apply(workload("hello", replicas=1))
        async with wandering(agent):
            await until(lambda: bool(agent.statuses), "the plan arrived", 30.0)
        assert set(agent.signers) == {"west/west-1"}


# --- showing --------------------------------------------------------------------------------------


async def test_regions_say_who_is_there_and_how(cluster: EtcdCluster, tmp_path: Path) -> None:
    async with regions(tmp_path, cluster, "/shown", "east", "west") as rigs:
        east, west = rigs
        await heard(rigs)
        admin = admin_of(rigs)
        await east.site()
        agent = Wanderer("n1", await east.node("n1"), [west])
        async with wandering(agent):
            await until(lambda: bool(agent.sessions), "connected")
            await until(
                lambda: east.orchestrator.mesh.links.status()[0].sessions == 1, "it was told"
            )
            answer = await regions_of(east, admin)
        assert [region.name for region in answer.regions] == ["east", "west"]
        assert (answer.member, answer.leader, answer.store_kind) == ("east-1", "east-1", "etcd")
        mine, other = (region.members[0] for region in answer.regions)
        assert mine.leader and mine.present and mine.reachable and mine.sessions == 0
        assert other.present and other.reachable and not other.leader and other.sessions == 1
        assert other.lag_ms == 0 and other.store_healthy and abs(other.clock_skew_ms) < 1000
        assert 0 < answer.now_ms - other.heard_at_ms < 5_000 and not other.message
        (etcd,) = answer.store
        assert etcd.leader and not etcd.error and etcd.revision > 1 and etcd.db_bytes > 0


async def test_a_member_that_is_gone_is_shown_so_and_can_be_forgotten(
    cluster: EtcdCluster, tmp_path: Path
) -> None:
    async with regions(tmp_path, cluster, "/forgotten", "east", "west") as rigs:
        east, west = rigs
        admin = admin_of(rigs)
        forget = operator_pb2.ForgetMemberRequest(member="west-1")
        refused = await refusal(east.operators(admin).ForgetMember(forget))
        assert refused.reason == "InUse" and "stop its process" in refused.detail.hint
        await west.orchestrator.stop()
        cache = east.orchestrator.parts.cache
        await until(lambda: cache.present("west-1") is None, "west is gone", 20.0)
        found = (await regions_of(east, admin)).regions[1].members[0]
        assert not found.present and "not there" in found.message and found.sessions == -1
        await east.operators(admin).ForgetMember(forget)
        assert [m.name for m in cache.members()] == ["east-1"]
        again = await refusal(east.operators(admin).ForgetMember(forget))
        assert again.code is grpc.StatusCode.NOT_FOUND


# --- drills ---------------------------------------------------------------------------------------


def drill_request(region: str, seconds: float, **more: Any) -> operator_pb2.DrillRequest:
    return operator_pb2.DrillRequest(region=region, duration_ms=int(seconds * 1000), **more)


async def followed(call: Any) -> tuple[list[str], operator_pb2.DrillReport]:
    """What was told, and the report."""
    told: list[str] = []
    async for response in call:
        if response.HasField("report"):
            return told, response.report
        told.append(response.progress.message)
    raise AssertionError(f"no report after {told}")


async def test_a_drill_of_the_leaders_region(cluster: EtcdCluster, tmp_path: Path) -> None:
    async with regions(tmp_path, cluster, "/drill", "east", "west") as rigs:
        east, west = rigs
        await heard(rigs)
        admin = admin_of(rigs)
        await east.site()
        agents = [Wanderer(f"n{n}", await east.node(f"n{n}"), [east, west]) for n in range(3)]
        await east.apply(workload("hello", perNode=1))
        async with wandering(*agents):
            await until(lambda: all(agent.statuses for agent in agents), "all run", 30.0)
            fleet = west.orchestrator.parts.fleet
            await until(
                lambda: sum(s.ready for n in fleet.nodes() for s in n.replicas.values()) == 3,
                "west knows what runs in east",
            )
            call = west.operators(admin).Drill(drill_request("east", 14.0, reason="quarterly"))
            following = asyncio.create_task(followed(call))
            await until(lambda: east.orchestrator.playing.active, "east plays dead")
            refused = await refusal(regions_of(east, admin))
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "Drill")
            assert (await refusal(east.joiner().Join(agent_pb2.JoinRequest()))).reason == "Drill"
            assert not east.orchestrator.leader.is_leading
            assert (await regions_of(west, admin)).regions[0].drill_until_ms > 0
            second = await refusal(west.operators(admin).Drill(drill_request("east", 10.0)))
            assert second.reason == "DrillRuns"
            told, report = await following
        assert report.nodes == report.nodes_back == 3 and not report.not_back, report
        assert 0 <= report.reconnect_p50_s <= report.reconnect_last_s < 5
        assert report.had_leader and report.leader == "west-1" and 0 < report.leader_s < 13
        assert 0 < report.detected_s < 14 and 0 <= report.write_s < 5
        assert (report.plan_changes, report.restarts) == (0, 0), told
        assert (report.measured_by, report.reason) == ("west-1", "quarterly")
        assert report.duration_s == pytest.approx(14.0, abs=1.5) and not report.ended_early
        assert "etcd" in told[0] and any("nodes are connected elsewhere" in text for text in told)
        # East serves again, with its presence, its links and its candidacy.
        assert (await regions_of(east, admin)).member == "east-1"
        await heard(rigs)
        cache = west.orchestrator.parts.cache
        await until(lambda: cache.present("east-1") is not None, "east is present again", 20.0)
        last = operator_pb2.DrillRequest(region="east", follow_only=True)
        assert (await followed(east.operators(admin).Drill(last)))[1] == report


async def test_a_drill_is_ended_early_and_a_restart_takes_it_up_again(
    cluster: EtcdCluster, tmp_path: Path
) -> None:
    async with regions(tmp_path, cluster, "/early", "east", "west") as rigs:
        east, west = rigs
        admin = admin_of(rigs)
        await heard(rigs)
        call = east.operators(admin).Drill(drill_request("west", 120.0))
        following = asyncio.create_task(followed(call))
        await until(lambda: west.orchestrator.playing.active, "west plays dead")
        settings = west.config
        await west.orchestrator.stop()
        folder = tmp_path / "west"
        changes = {
            key: getattr(settings, key)
            for key in ("store", "etcd_ca", "etcd_cert", "etcd_key", "etcd_prefix", "listen")
        }
        async with member(folder, "west", "west-1", **changes) as back:
            assert back.orchestrator.playing.active
            assert (await refusal(regions_of(back, admin))).reason == "Drill"
            end = operator_pb2.EndDrillRequest(region="west")
            assert "serve again" in (await east.operators(admin).EndDrill(end)).message
            await until(lambda: not back.orchestrator.playing.active, "west is back")
            assert (await regions_of(back, admin)).member == "west-1"
            _, report = await following
            assert report.ended_early and not report.had_leader and report.measured_by == "east-1"
            assert "already" in (await east.operators(admin).EndDrill(end)).message


async def test_what_a_drill_is_refused_for(cluster: EtcdCluster, tmp_path: Path) -> None:
    async with regions(tmp_path, cluster, "/refused", "east", "west") as rigs:
        east, west = rigs
        admin = admin_of(rigs)
        ask = east.operators(admin)
        for request, reason in (
            (drill_request("west", 5.0), "BadDuration"),
            (drill_request("west", 3601.0), "BadDuration"),
            (drill_request("mars", 60.0), "NotFound"),
            (drill_request("east", 60.0), "InsideRegion"),
            (operator_pb2.DrillRequest(region="west", follow_only=True), "NotFound"),
        ):
            assert (await refusal(ask.Drill(request))).reason == reason
        inside = await refusal(ask.Drill(drill_request("east", 60.0)))
        assert inside.code is grpc.StatusCode.UNAVAILABLE
        assert west.config.endpoints[0] in inside.detail.hint
        dry = [r async for r in ask.Drill(drill_request("west", 60.0, dry_run=True))]
        assert "would silence 1 members (west-1)" in dry[0].progress.message
        assert east.orchestrator.parts.cache.kept(keys.DRILLS) == []
        viewer = await east.operator("ann", "operator:default")
        refused = await refusal(east.operators(viewer).Drill(drill_request("west", 60.0)))
        assert refused.code is grpc.StatusCode.PERMISSION_DENIED
        await west.orchestrator.stop()
        cache = east.orchestrator.parts.cache
        await until(lambda: cache.present("west-1") is None, "west is gone", 20.0)
        assert (await refusal(ask.Drill(drill_request("west", 60.0)))).reason == "AlreadyLost"
        assert (await refusal(ask.Drill(drill_request("east", 60.0)))).reason == "NoOtherRegion"


async def test_a_drill_that_somebody_noticed_says_who(cluster: EtcdCluster, tmp_path: Path) -> None:
    """One node stays away, another comes back with its container started anew."""
    async with regions(tmp_path, cluster, "/noticed", "west", "east") as rigs:
        west, east = rigs
        admin = admin_of(rigs)
        await heard(rigs)
        await west.site()
        stuck = Wanderer("stuck", await west.node("stuck"), [east])
        shaky = Wanderer("shaky", await west.node("shaky"), [east, west])
        await west.apply(workload("hello", perNode=1))
        async with wandering(stuck, shaky):
            fleet = west.orchestrator.parts.fleet
            await until(
                lambda: sum(s.ready for n in fleet.nodes() for s in n.replicas.values()) == 2,
                "west knows what runs in east",
                30.0,
            )
            call = west.operators(admin).Drill(drill_request("east", 10.0))
            following = asyncio.create_task(followed(call))
            await until(lambda: west.orchestrator.drill.progress is not None, "noted how they are")
            for status in shaky.statuses:  # what it says with its next session
                status.containers[0].id += "-anew"
            _, report = await following
        assert (report.nodes, report.nodes_back, list(report.not_back)) == (2, 1, ["stuck"])
        assert report.restarts == 1 and not report.had_leader
