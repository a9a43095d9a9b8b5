"""An installation from before rollouts, jobs and guard rails: the upgrade itself changes nothing,
but that a replica with standbys gets its failover group.

`data/store_before_rollouts.json` is what an orchestrator of that version wrote: its records, and
the plans that its agents had when it was stopped.
"""

import base64
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.domain.rollout_state import Phase, from_dict
from orchestrator.fact_book import FactBook
from orchestrator.gateway.compose import Surroundings, compose
from orchestrator.gateway.signed_facts import SignedFacts
from orchestrator.leader import LeaderSettings
from orchestrator.store import keys
from orchestrator.store.port import Op, Put
from orchestrator.store.sqlite import open_sqlite
from polder.manifest import PodTemplate, decode, digest
from polder.v1 import agent_pb2, plan_pb2
from tests.integration.gateway_harness import TRUST_DOMAIN, Region, eventually, region, status_of

BEFORE = json.loads((Path(__file__).parent / "data/store_before_rollouts.json").read_text())
QUICK = LeaderSettings("m1", poll_s=0.05, idle_plan_every_s=0.1, lease_ttl_s=2.0)


def plans() -> dict[str, plan_pb2.NodePlan]:
    return {
        node: plan_pb2.NodePlan.FromString(base64.b64decode(text))
        for node, text in BEFORE["plans"].items()
    }


async def restore(folder: Path) -> None:
    store = await open_sqlite(folder / "store.db")
    ops: list[Op] = [Put(key, json.dumps(body).encode()) for key, body in BEFORE["records"].items()]
    assert len(ops) <= 128
    await store.txn([], ops)
    await store.close()


def agents_say(home: Region) -> None:
    """What runs where, as before."""
    for node, plan in plans().items():
        seen = home.fleet.heard(node, time.time())
        seen.connected = seen.complete = True
        seen.heartbeat = agent_pb2.Heartbeat()
        seen.acked_generation = plan.generation
        seen.replicas = {item.replica_uid: status_of(item) for item in plan.assignments}


def placed(home: Region) -> dict[str, dict[str, Any]]:
    return {p.node: json.loads(p.to_bytes()) for p in home.cache.placements()}


def composed(home: Region, node: str) -> plan_pb2.NodePlan:
    """As the gateway would send it now, to an agent that lost it."""
    before, facts = plans()[node], SignedFacts(home.cache, FactBook(home.cache))
    around = Surroundings(before.site, TRUST_DOMAIN, tuple(before.endpoints))
    raw = compose(
        home.cache.placement(node),
        around,
        home.cache.revision_of,
        partial(home.cache.resource, "Secret"),
        facts.demands_at(before.site),
        partial(home.cache.resource, "Config"),
        facts.of_node(node, before.site),
    )
    return plan_pb2.NodePlan.FromString(raw)


def without_groups(placements: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """And without what a generation differs in anyway."""
    return {
        node: {
            **placement,
            "assignments": [{**item, "group": None} for item in placement["assignments"]],
            "generation": 0,
            "decided_at_ms": 0,
        }
        for node, placement in placements.items()
    }


def plan_without_groups(plan: plan_pb2.NodePlan) -> plan_pb2.NodePlan:
    plan.generation = plan.issued_at_ms = 0
    for item in plan.assignments:
        item.ClearField("group")
    return plan


async def test_it_makes_no_new_plans_and_restarts_nothing(tmp_path: Path) -> None:
    await restore(tmp_path)
    async with region(tmp_path, leader_settings=QUICK) as home:
        agents_say(home)
        before, stored = placed(home), {p.node: p.store_revision for p in home.cache.placements()}
        await eventually(lambda: home.leader.is_leading, "it leads")
        await eventually(
            lambda: [r for r in home.cache.kept(keys.ROLLOUTS) if r.body["phase"] == Phase.PROVING],
            "rollouts are followed",
        )
        ticks = home.leader.stats.ticks
        await eventually(lambda: home.leader.stats.ticks > ticks + 10, "it looked again and again")
        rollouts = home.cache.kept(keys.ROLLOUTS)
        assert len(rollouts) == 5 and home.leader.stats.failures == 0
        states = [from_dict(record.body) for record in rollouts]
        assert all(s.phase is Phase.PROVING and s.newest == s.target for s in states)
        assert without_groups(placed(home)) == without_groups(before)
        now = {p.node: p for p in home.cache.placements()}
        shared = {node for node, p in now.items() if any(item.group for item in p.assignments)}
        assert shared == {"n2"}, "the one with a replica that has standbys"
        assert {n: p.store_revision for n, p in now.items() if n not in shared} == {
            node: revision for node, revision in stored.items() if node not in shared
        }
        assert {node: plan_without_groups(composed(home, node)) for node in plans()} == {
            node: plan_without_groups(plan) for node, plan in plans().items()
        }


def test_templates_of_before_are_the_same_templates() -> None:
    """A manifest that is applied once more is no change, and rolls nothing out."""
    revisions = [b for k, b in BEFORE["records"].items() if k.startswith(keys.REVISIONS)]
    assert len(revisions) == 6
    for body in revisions:
        assert digest(decode(PodTemplate, body["template"])) == body["digest"]
