"""What operators did at a site comes up: real gateway, leader and Store, scripted agents."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.overrides import LocalOverride, overrides_in, said
from orchestrator.gateway.settings import GatewaySettings
from orchestrator.leader import LeaderSettings
from orchestrator.records import StoredResource
from orchestrator.store import keys
from orchestrator.store.around import StoreAround
from orchestrator.store.port import Compare, Op, Put, Store, StoreUnavailable, TxnResult
from polder.override_proofs import unproven
from polder.overrides import SHARE_MAX, STAMP_MAX, BadOverride, from_message
from polder.v1 import agent_pb2, plan_pb2
from tests.integration.gateway_harness import TRUST_DOMAIN, Agent, Region, eventually, region

SETTINGS = GatewaySettings("m1", "eu", "test", heartbeat_s=5.0, retry_store_s=0.05)


class Lone:
    """One node at site s1 that runs web-0, and has no peers."""

    def __init__(self, home: Region, agent: Agent, workload: StoredResource) -> None:
        self.home = home
        self.agent = agent
        self.workload = workload

    def override(self, value: str = "true", stamp: int = 1, **more: Any) -> plan_pb2.Override:
        return plan_pb2.Override(
            **{
                "id": f"id-{stamp}",
                "workload_uid": self.workload.uid,
                "namespace": "default",
                "replica": "web-0",
                "field": "stopped",
                "value": value,
                "stamp": stamp,
                "node": "a",
                "by": "operator/ann",
                "reason": "smoke",
                "at_ms": 1_000,
                "base_revision": 1,
                "base_epoch": self.agent.plan.assignments[0].epoch,
                **more,
            }
        )

    async def say(
        self,
        *overrides: plan_pb2.Override,
        entries: tuple[agent_pb2.JournalEntry, ...] = (),
        dropped: int = 0,
    ) -> None:
        signed = [self.signed(one) for one in overrides]
        changes = agent_pb2.LocalChanges(overrides=signed, entries=entries, dropped=dropped)
        await self.agent.say(local_changes=changes)

    def signed(self, override: plan_pb2.Override) -> plan_pb2.Override:
        """By the node that it names, unless it is signed; what nobody understands by nobody."""
        try:
            return override if override.HasField("proof") else self.home.signed(override)
        except BadOverride:
            return override

    def all_taken(self) -> list[int]:
        """Up to which entries the agent was told that it may forget them."""
        answers = [m for m in self.agent.heard if m.HasField("local_changes_taken")]
        return [answer.local_changes_taken.journal_sequence for answer in answers]

    def taken(self) -> int:
        return (self.all_taken() or [0])[-1]

    def known(self) -> list[LocalOverride]:
        return overrides_in(self.home.cache.kept(keys.OVERRIDES))

    async def planned(self, value: str) -> plan_pb2.Override:
        def found() -> plan_pb2.Override | None:
            of_it = [o for o in self.agent.plan.overrides if o.value == value]
            return of_it[0] if of_it else None

        return await eventually(found, f"the plan says {value!r}")  # type: ignore[no-any-return]


@pytest.fixture
async def lone(tmp_path: Path) -> AsyncIterator[Lone]:
    async with region(tmp_path, SETTINGS, LeaderSettings("m1", poll_s=0.2)) as home:
        agent = await home.join("a")
        await (await agent.connect()).welcomed()
        workload = await home.workload("web", replicas=1)
        await eventually(agent.runs, "it runs")
        yield Lone(home, agent, workload)
        await agent.disconnect()


def entry(sequence: int, verb: str = "stop", **more: Any) -> agent_pb2.JournalEntry:
    return agent_pb2.JournalEntry(
        **{
            "sequence": sequence,
            "at_ms": 5_000,
            "by": "operator/ann",
            "verb": verb,
            "namespace": "default",
            "replica": "web-0",
            "reason": "smoke",
            **more,
        }
    )


async def test_an_override_stands_in_the_store_and_comes_back_in_the_plan(lone: Lone) -> None:
    before = lone.agent.plan.generation
    await lone.say(lone.override())
    planned = await lone.planned("true")
    assert lone.agent.plan.generation > before
    assert (planned.stamp, planned.node, planned.by) == (1, "a", "operator/ann")
    (record,) = lone.known()
    assert record.site == "s1" and record.decision.stands and record.heard_ms > 0
    # What is older does not undo it, and what is newer counts.
    await lone.say(lone.override(value="", stamp=1, node="Z"))
    await lone.say(lone.override(value="", stamp=2, node="b"))
    assert (await lone.planned("")).node == "b"
    (record,) = lone.known()
    assert (record.decision.stamp, record.decision.value) == (2, "")


async def test_the_journal_becomes_events_once_and_may_then_be_forgotten(lone: Lone) -> None:
    entries = (entry(7), entry(8, "exec", detail="sh -c ls", purpose="repair 12"))
    await lone.say(entries=entries)
    await eventually(lambda: lone.taken() == 8, "both are taken")
    await lone.say(entries=(*entries, entry(9, "enter", replica="", namespace="")))
    await eventually(lambda: lone.taken() == 9, "the third is taken")

    def told() -> list[tuple[str, str, int]]:
        found = lone.home.events.list(kind="Replica", namespace="default", name="web-0")
        return [(e.reason, e.source, e.count) for e in found if e.reason.startswith("Local")]

    await eventually(lambda: len(told()) >= 2, "events are shown")
    assert sorted(told()) == [
        ("LocalExec", "operator/ann at a", 1),
        ("LocalStop", "operator/ann at a", 1),
    ]
    (of_exec,) = [e for e in lone.home.events.list(name="web-0") if e.reason == "LocalExec"]
    assert "sh -c ls" in of_exec.message and "repair 12" in of_exec.message
    assert "1970-01-01 00:00:05Z at a, entry 8" in of_exec.message
    assert time.time() * 1000 - of_exec.last_at_ms < 60_000, "old news is not pruned as old"
    await eventually(lambda: "LocalEnter" in lone.home.reasons("Node", "a"), "of the node")


async def test_a_long_journal_is_taken_in_order(lone: Lone) -> None:
    await lone.say(entries=tuple(entry(n, detail=str(n)) for n in range(1, 131)))
    await eventually(lambda: lone.taken() == 130, "all are taken")
    assert lone.all_taken() == [50, 100, 130]


async def test_a_node_speaks_for_its_own_site_and_for_what_there_is(lone: Lone) -> None:
    await lone.say(
        lone.override(workload_uid="nobody"),
        lone.override(namespace="other"),
        lone.override(field="colour"),
        lone.override(stamp=1 << 60),
        lone.override(stamp=STAMP_MAX + 1),
        lone.override(stamp=0),
        lone.override(replica="../../x"),
        lone.override(),
        entries=(entry(1, replica="db-0"),),
    )
    await eventually(lambda: lone.taken() == 1, "it was looked at")
    (record,) = lone.known()
    assert record.decision.replica == "web-0" and record.site == "s1"
    reasons = lone.home.reasons("Node", "a")
    assert "LocalOverrideRefused" in reasons and "LocalOverrideUnknown" in reasons
    await eventually(
        lambda: [e for e in lone.home.events.list(kind="Node") if "default/db-0" in e.message],
        "what it is said to have done to others is told as its own",
    )


async def test_what_was_decided_of_a_deleted_workload_is_told_and_ends_at_the_site(
    lone: Lone,
) -> None:
    gone = lone.override(workload_uid="gone", stamp=5)
    await lone.home.store.txn([], [Put(keys.deleted("gone"), b"{}")])
    await eventually(lambda: lone.home.cache.kept_at(keys.deleted("gone")), "it is known")
    await lone.say(gone)
    ended = await lone.planned("")
    assert (ended.workload_uid, ended.stamp, ended.by) == ("gone", 6, "orchestrator")
    (told,) = [e for e in lone.home.events.list(kind="Node") if e.reason == "LocalOverrideUnknown"]
    assert "stopped by operator/ann at a: smoke" in told.message
    await lone.say(gone, entries=(entry(1),))
    await eventually(lambda: lone.taken() == 1, "it was looked at")
    assert [record.decision.stamp for record in lone.known()] == [6]


async def test_lost_entries_are_told(lone: Lone) -> None:
    await lone.say(dropped=12)
    await eventually(lambda: "LocalJournalFull" in lone.home.reasons("Node", "a"), "it is told")


class Away(StoreAround):
    """A Store that takes nothing for a while."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.refused = 0
        self.back = False

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        if not self.back:
            self.refused += 1
            raise StoreUnavailable("away")
        return await super().txn(compares, ops)


async def test_while_the_store_is_away_nothing_is_acknowledged_and_nothing_lost(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(lone.home.store)
    monkeypatch.setattr(lone.home.gateway._local_changes, "_store", away)
    await lone.say(lone.override(), entries=(entry(1),))
    await eventually(lambda: away.refused, "it was tried")
    await lone.say(entries=(entry(1), entry(2)))  # only more of the journal
    tried = away.refused
    await eventually(lambda: away.refused > tried + 1, "it is tried again")
    assert lone.taken() == 0 and not lone.known()
    away.back = True
    await eventually(lambda: lone.taken() == 2, "all is taken")
    assert [record.decision.replica for record in lone.known()] == ["web-0"]


async def test_a_record_that_changed_meanwhile_is_merged_and_not_overwritten(lone: Lone) -> None:
    """Another member took the same from a peer, and was quicker."""
    home = lone.home
    newer = said(lone.override(stamp=9, node="b", value=""), "s1", 5)
    await asyncio.gather(
        home.store.txn([], [Put(newer.key, newer.record().to_bytes())]),
        lone.say(lone.override(stamp=3), entries=(entry(1),)),
    )
    await eventually(lambda: lone.taken() == 1, "it was looked at")
    await eventually(
        lambda: [r.decision.stamp for r in lone.known()] == [9], "the greater one counts"
    )


# ---- who wrote it ----


async def test_a_node_decides_in_its_own_name_only_and_carries_what_others_signed(
    lone: Lone,
) -> None:
    of_b = lone.home.signed(lone.override(node="b", stamp=3))
    await lone.say(of_b)
    assert (await lone.planned("true")).node == "b"
    forged = lone.home.signed(lone.override(value="", node="b", stamp=4), by="a")
    await lone.say(forged, entries=(entry(1),))
    await eventually(lambda: lone.taken() == 1, "it was looked at")
    (record,) = lone.known()
    assert (record.decision.stamp, record.decision.value) == (3, "true")
    (told,) = [e for e in lone.home.events.list(name="a") if e.reason == "LocalOverrideUnproven"]
    assert "whom they name, b" in told.message and "node/a signed it" in told.message


@pytest.mark.parametrize("change", ["value", "site", "nobody"])
async def test_what_was_changed_or_is_of_another_site_or_unsigned_is_not_taken(
    lone: Lone, change: str
) -> None:
    forged = lone.home.signed(lone.override(), site="s2" if change == "site" else "s1")
    if change == "value":
        forged.reason = "another"
    if change == "nobody":
        forged.proof.Clear()
    await lone.say(forged, entries=(entry(1),))
    await eventually(lambda: lone.taken() == 1, "it was looked at")
    assert not lone.known() and "LocalOverrideUnproven" in lone.home.reasons("Node", "a")


async def test_what_is_decided_here_is_signed_for_the_nodes_of_the_site(lone: Lone) -> None:
    await lone.say(lone.override())
    await lone.planned("true")
    (known,) = lone.known()
    back = known.taken_back("operator/eve", "not now", int(time.time() * 1000))
    await lone.home.store.txn([], [Put(back.key, back.record().to_bytes())])
    planned = await lone.planned("")
    override = from_message(planned)
    assert (override.node, override.by) == ("", "operator/eve") and override.proof is not None
    roots = lone.home.roots_der
    assert not unproven([override], "s1", roots, time.time(), TRUST_DOMAIN)
    assert unproven([override], "s2", roots, time.time(), TRUST_DOMAIN)


async def test_one_node_does_not_take_all_places_of_its_site(lone: Lone) -> None:
    item = lone.override()
    full = []
    for number in range(SHARE_MAX):
        one = said(lone.override(replica=f"web-{number + 5}"), "s1", 5)
        full.append(Put(one.key, one.record().to_bytes()))
    for start in range(0, SHARE_MAX, 50):
        await lone.home.store.txn([], full[start : start + 50])
    await eventually(lambda: len(lone.known()) == SHARE_MAX, "they are known")
    await lone.say(item, lone.override(replica="web-1", node="b"), entries=(entry(1),))
    await eventually(lambda: lone.taken() == 1, "it was looked at")
    found = {record.decision.replica: record.decision.node for record in lone.known()}
    assert "web-0" not in found and found["web-1"] == "b"
    assert "LocalOverrideRefused" in lone.home.reasons("Node", "a")
