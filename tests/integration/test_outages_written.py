"""Guard rails against the outages that they come from, over a real Store and real sessions.

The pure ones are in tests/unit/test_outages.py.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.revisions import KEEP_LAST
from orchestrator.election import Election
from orchestrator.gateway import plans
from orchestrator.leader import LeaderSettings
from orchestrator.leader_commit import Committer
from orchestrator.leader_snapshot import SnapshotBuilder
from orchestrator.records import TemplateRevision
from orchestrator.scheduling.plan import plan
from orchestrator.store import keys
from orchestrator.store.port import Put
from tests.integration.gateway_harness import HELLO_TEMPLATE, Agent, Region, eventually, region

QUICK = LeaderSettings("m1", poll_s=0.05, idle_plan_every_s=0.2, lease_ttl_s=2.0)


async def joined(home: Region, node: str) -> Agent:
    agent = await (await (await home.join(node)).connect()).welcomed()
    await eventually(lambda: home.cache.node_status(node), "seen")
    return agent


async def test_aws_2025_10_20_a_late_plan_and_the_clean_up_of_the_one_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delayed enactor applied a plan that was older than the one in use, since it had compared
    long before it wrote; and the clean-up then deleted it as obsolete while it was in use. Here the
    write itself compares, and a revision that any node has is not collected, however old.
    https://aws.amazon.com/message/101925/
    """
    async with region(tmp_path, leading=False) as home:
        agent = await joined(home, "n1")
        await home.workload("hello")
        term = await Election(home.store, "m1", time.monotonic, 60.0).campaign()
        committer = Committer(home.store, home.cache, home.fleet, time.time)
        builder = SnapshotBuilder(home.cache, home.fleet)

        def decided() -> tuple[Any, Any]:
            snapshot = builder.build(time.time(), home.fleet.steady())
            return plan(snapshot, time.time()), snapshot

        late = decided()
        await home.workload("other")
        newer = decided()
        done = await committer.commit(*newer, term)
        await home.cache.wait_for(done.revision)
        generation = home.cache.placement("n1").generation
        refused = await committer.commit(*late, term)  # the enactor that was delayed
        assert refused.refused == ["n1"] and not refused.place
        assert home.cache.placement("n1").generation == generation
        await eventually(lambda: agent.runs() == ["hello-0", "other-0"], "the newer one is used")

        workload = home.cache.resource("Workload", "default", "hello")
        assert workload is not None
        newest = 3 * KEEP_LAST
        many = [TemplateRevision(workload.uid, n, HELLO_TEMPLATE, "d", 0) for n in range(2, newest)]
        await home.store.txn(
            [], [Put(keys.revision(workload.uid, r.number), r.to_bytes()) for r in many]
        )
        revised = replace(workload, template_revision=newest - 1)
        written = Put(keys.spec(*workload.ref), revised.to_bytes())
        result = await home.store.txn([], [written])
        await home.cache.wait_for(result.revision)
        txn = home.store.txn

        async def undone_meanwhile(compares: Any, ops: Any) -> Any:
            await txn([], [written])  # an operator's change, that the mirror does not show yet
            return await txn(compares, ops)

        monkeypatch.setattr(home.store, "txn", undone_meanwhile)
        assert await committer.collect_revisions(time.time(), term) == 0
        monkeypatch.undo()
        await home.cache.wait_for(await home.store.revision())
        assert await committer.collect_revisions(time.time(), term) > KEEP_LAST
        kept = {r.number async for r in _revisions(home, workload.uid)}
        assert 1 in kept  # many revisions old, and what n1 runs
        await agent.disconnect()


async def _revisions(home: Region, uid: str) -> Any:
    for entry in (await home.store.range(f"{keys.REVISIONS}{uid}/")).entries:
        yield TemplateRevision.from_bytes(entry.value)


async def test_google_cloud_2025_06_12_a_record_with_blank_fields(tmp_path: Path) -> None:
    """A policy with blank fields crashed every binary that read it. Here a workload whose record
    has nothing where its template should be is not understood: what runs of it runs on with the
    plan that it has, an event tells of it, and everything else goes on.
    https://status.cloud.google.com/incidents/ow5i3PPK96RduMcb1SsW
    """
    async with region(tmp_path, leader_settings=QUICK) as home:
        agent = await joined(home, "n1")
        workload = await home.workload("hello")
        await eventually(lambda: agent.runs() == ["hello-0"], "planned")
        blank: dict[str, Any] = {"template": None, "replicas": None, "placement": None}
        broken = replace(workload, spec=blank)
        await home.store.txn([], [Put(keys.spec(*workload.ref), broken.to_bytes())])
        other = await joined(home, "n2")
        await home.workload("other", perNode=1)
        await eventually(lambda: other.runs() == ["other-n2"], "the rest goes on")
        await eventually(lambda: "PlanNotSent" in home.reasons("Node", "n1"), "told")
        assert home.leader.stats.failures == 0
        assert agent.runs() == ["hello-0"] and not agent.plan.stops
        for each in (agent, other):
            await each.disconnect()


async def test_cloudflare_2025_11_18_a_file_that_was_twice_as_large_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generated feature file doubled in size, was sent to every machine within minutes, and the
    proxies that read it failed at their limit. Here a plan that is larger than agents take is not
    sent to them at all: the node keeps the one that it has, and an event says so.
    https://blog.cloudflare.com/18-november-2025-outage/
    """
    async with region(tmp_path, leader_settings=QUICK) as home:
        agent = await joined(home, "n1")
        await home.workload("hello")
        await eventually(lambda: agent.runs() == ["hello-0"], "planned")
        generation = agent.plan.generation
        monkeypatch.setattr(plans, "MAX_PLAN_BYTES", 4_000)
        large = {"containers": [{"name": "app", "image": "x", "args": ["y" * 8_000]}]}
        await home.workload("large", large)
        await eventually(lambda: "PlanNotSent" in home.reasons("Node", "n1"), "told")
        assert agent.plan.generation == generation and agent.runs() == ["hello-0"]
        await home.delete("Workload", "large")
        await eventually(lambda: agent.plan.generation > generation, "small again, and sent")
        assert agent.runs() == ["hello-0"]
        await agent.disconnect()
