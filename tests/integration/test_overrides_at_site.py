"""A site decides, against a real leader: obeyed, adopted, contradicted aloud; scripted agents."""

import asyncio
from typing import Any

from orchestrator.domain.overrides import overrides_in
from orchestrator.store import keys
from polder.v1 import agent_pb2, plan_pb2
from tests.integration.gateway_harness import eventually, status_of
from tests.integration.test_site_plans import NODES, Site, site  # noqa: F401 - a fixture


def override(where: Site, field: str, value: str = "true", **more: Any) -> plan_pb2.Override:
    holding = [agent for agent in where.agents.values() if agent.plan.assignments]
    (item,) = holding[0].plan.assignments
    facts: dict[str, Any] = {"by": "operator/ann", "reason": "smoke", "stamp": 1, "node": "a"}
    if field != "frozen":
        facts |= {"workload_uid": where.workload.uid, "namespace": "default", "replica": "web-0"}
        facts |= {"base_revision": 1, "base_epoch": item.epoch}
    return plan_pb2.Override(field=field, value=value, **{**facts, **more})


async def say(where: Site, node: str, *overrides: plan_pb2.Override) -> None:
    signed = [where.home.signed(one) for one in overrides]
    changes = agent_pb2.LocalChanges(overrides=signed)
    await where.agents[node].say(local_changes=changes)


def planned(where: Site, node: str) -> dict[str, plan_pb2.Override]:
    return {found.field: found for found in where.plan(node).overrides}


def stopped(item: plan_pb2.Assignment) -> agent_pb2.ReplicaStatus:
    status = status_of(item, ready=False)
    status.phase = agent_pb2.REPLICA_PHASE_STOPPED
    status.reason = "StoppedLocally"
    return status


async def test_what_was_stopped_is_not_replaced_when_its_node_dies(site: Site) -> None:  # noqa: F811
    holder = await site.holder()
    other = next(name for name in NODES if name != holder)
    await say(site, other, override(site, "stopped"))  # whoever reaches an orchestrator
    await eventually(
        lambda: all("stopped" in planned(site, node) for node in NODES), "all plans say so"
    )
    await site.say(holder, stopped(site.plan(holder).assignments[0]))
    await site.dies(holder)
    await eventually(lambda: "NodeLost" in site.home.reasons("Node", holder), "it is lost")

    def told() -> list[str]:
        said = site.home.leader.explanations.get(("default", "web"), ())
        return [explanation.code for explanation in said]

    await eventually(lambda: told() == ["StoppedLocally"], "the leader says why it waits")
    await asyncio.sleep(0.5)  # some ticks
    (record,) = site.home.cache.placement(holder).assignments
    assert record.replica == "web-0"
    # Taken back at the site, while its node is still away.
    await say(site, other, override(site, "stopped", "", stamp=2, node=other))
    await eventually(lambda: site.home.cache.placement(holder).assignments == (), "it is replaced")


async def test_a_move_is_adopted_and_then_it_is_over(site: Site) -> None:  # noqa: F811
    holder = await site.holder()
    taker = site.first_standby(holder)
    await say(site, taker, override(site, "placedOn", taker, node=taker))
    await eventually(lambda: planned(site, holder).get("placedOn"), "the plan says so")
    # Both serve. Without the operator the older one would stay.
    await site.say(taker, site.taken_over(taker))
    assert await eventually(lambda: site.plan(taker).assignments, "it is adopted")
    assert await site.holder() == taker
    (record,) = site.home.cache.placement(taker).assignments
    assert (record.replica_uid, record.took_over) == (f"s-local-{taker}", holder)
    await eventually(
        lambda: all(not planned(site, node)["placedOn"].value for node in NODES), "it is done"
    )
    assert planned(site, taker)["placedOn"].stamp == 2
    await eventually(
        lambda: "LocalOverrideDone" in site.home.reasons("Replica", "web-0"), "it is told"
    )


async def test_a_decision_that_the_site_did_not_know_of_is_shown_to_both(site: Site) -> None:  # noqa: F811
    holder = await site.holder()
    other = next(name for name in NODES if name != holder)
    late = override(site, "placedOn", other, node=other)
    late.base_epoch -= 1
    await say(site, other, late)
    for node in NODES:
        found = await eventually(
            lambda: planned(site, node).get("placedOn"),  # noqa: B023
            f"{node} is told",
        )
        await eventually(
            lambda: planned(site, node)["placedOn"].conflict,  # noqa: B023
            f"{node} is told of the conflict",
        )
        assert found.value == other
    assert f"placed on node {holder} meanwhile" in planned(site, other)["placedOn"].conflict
    await site.home.told("Replica", "web-0", "OverrideConflict")
    # What the site says again does not make it forgotten.
    await say(site, other, late)
    await asyncio.sleep(0.3)
    (record,) = overrides_in(site.home.cache.kept(keys.OVERRIDES))
    assert record.decision.conflict and record.decision.stands


async def test_a_frozen_site_is_left_alone_until_it_is_not(site: Site) -> None:  # noqa: F811
    holder = await site.holder()
    await say(site, holder, override(site, "frozen"))
    await eventually(
        lambda: all("frozen" in planned(site, node) for node in NODES), "all plans say so"
    )
    await site.home.put("Workload", "web", {**site.workload.spec, "replicas": 0})
    said = site.home.leader
    await eventually(
        lambda: "SiteFrozen" in [e.code for e in said.explanations.get(("default", "web"), ())],
        "the leader says why",
    )
    await asyncio.sleep(0.3)
    assert site.home.cache.placement(holder).assignments
    await say(site, holder, override(site, "frozen", "", stamp=2))
    await eventually(lambda: not site.home.cache.placement(holder).assignments, "it stops")
