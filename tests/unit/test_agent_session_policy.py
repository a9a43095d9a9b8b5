"""Which endpoint next, how long to wait, when to renew; what waits to be sent."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import connection_policy as policy
from agent.connection_policy import Attempts
from agent.outbox import BATCH_REPLICAS, EventQueue, Outbox, Overflow
from agent.plan_intake import PlanIntake
from agent.trim import clean_code
from polder.v1 import agent_pb2, common_pb2, plan_pb2

THREE = Attempts(("a", "b", "c"))


def test_every_endpoint_is_tried_before_the_wait_grows() -> None:
    attempts, seen, ceilings = THREE, [], []
    for _ in range(9):
        seen.append(attempts.endpoint)
        wait = policy.after_failure(attempts, dice=0.999999)
        ceilings.append(round(wait.seconds, 1))
        attempts = wait.attempts
    assert seen == ["a", "b", "c"] * 3
    assert ceilings == [0.2, 0.2, 0.4, 0.4, 0.4, 0.8, 0.8, 0.8, 1.6]


@given(failures=st.integers(0, 10**6), dice=st.floats(0, 1, exclude_max=True))
def test_waits_are_bounded_and_fully_jittered(failures: int, dice: float) -> None:
    wait = policy.after_failure(Attempts(("a",), failures=failures), dice=dice)
    assert 0 <= wait.seconds <= policy.CEILING_S
    assert policy.after_failure(Attempts(("a",), failures=failures), dice=0).seconds == 0


def test_a_session_that_lasted_starts_the_count_again() -> None:
    tired = Attempts(("a", "b"), failures=40)
    assert policy.after_session(tired, lived_s=3600, dice=0.99).seconds < 0.2
    assert policy.after_session(tired, lived_s=1, dice=0.99).seconds > 20


def test_the_server_decides_when_to_come_back_within_reason() -> None:
    wait = policy.after_goodbye(THREE, reason="Shutdown", retry_after_s=5, dice=0.5)
    assert wait.seconds == pytest.approx(5.25)
    assert wait.attempts.endpoint == "b"
    forever = policy.after_goodbye(THREE, reason="Overloaded", retry_after_s=1e9, dice=0)
    assert forever.seconds == policy.RETRY_AFTER_MAX_S
    twin = policy.after_goodbye(THREE, reason="Superseded", retry_after_s=0, dice=0)
    assert twin.seconds >= 5
    assert policy.after_goodbye(THREE, reason="Shutdown", retry_after_s=0, dice=0.5).seconds <= 0.2


def test_when_all_refuse_us_we_ask_seldom_and_do_not_stop() -> None:
    attempts, waits = THREE, []
    for _ in range(15):
        wait = policy.after_refusal(attempts, dice=0.5)
        waits.append(wait.seconds)
        attempts = wait.attempts
    assert all(seconds <= 1 for seconds in waits[:11])
    assert all(seconds == 45 for seconds in waits[11:])


def test_a_new_list_keeps_the_address_in_use() -> None:
    at_b = policy.after_failure(THREE, dice=0).attempts
    assert policy.with_endpoints(at_b, ("x", "b")).endpoint == "b"
    assert policy.with_endpoints(at_b, ("x", "y")).endpoint == "x"
    assert policy.with_endpoints(at_b, ()) is at_b


@given(dice=st.floats(0, 1))
def test_renewal_is_due_around_a_third_of_life(dice: float) -> None:
    due = policy.renewal_due_at(1000, 1000 + 3000, dice=dice)
    assert 1900 <= due <= 2100


def test_failed_renewals_are_tried_more_often_near_the_end() -> None:
    assert policy.renewal_retry_s(10_000, 0, 20, dice=1) == 3600
    assert policy.renewal_retry_s(100, 0, 20, dice=1) == 50
    assert policy.renewal_retry_s(-5, 0, 20, dice=1) == 1


def test_certificate_trouble_is_named_in_time() -> None:
    assert policy.certificate_trouble(0, 900, 500) == ""
    assert "was not renewed" in policy.certificate_trouble(0, 900, 700)
    assert "containers keep running" in policy.certificate_trouble(0, 900, 1000)
    assert "clock" in policy.certificate_trouble(10_000, 20_000, 0)


# --- outbox ---------------------------------------------------------------------------------------


def status(uid: str, restarts: int = 0) -> agent_pb2.ReplicaStatus:
    return agent_pb2.ReplicaStatus(replica_uid=uid, restarts=restarts)


def test_newer_statuses_replace_older_ones_and_batches_are_bounded() -> None:
    outbox = Outbox()
    for restarts in range(3):
        outbox.put_replicas([status(f"u{i}", restarts) for i in range(BATCH_REPLICAS + 1)])
    outbox.put_replicas([], ["u0"])
    first = outbox.take()
    second = outbox.take()
    assert first is not None and len(first.replica_status.changed) == BATCH_REPLICAS
    assert {r.restarts for r in first.replica_status.changed} == {2}
    assert first.replica_status.gone == ["u0"]
    assert second is None and not outbox


def test_urgent_messages_go_first_and_everything_is_bounded() -> None:
    outbox = Outbox()
    outbox.put_inventory(agent_pb2.NodeInventory(arch="arm64"))
    outbox.put_replicas([status("u")])
    outbox.put_urgent(agent_pb2.SessionRequest(plan_ack=agent_pb2.PlanAck(generation=1)))
    kinds = []
    while (request := outbox.take()) is not None:
        kinds.append(request.WhichOneof("message"))
    assert kinds == ["plan_ack", "replica_status", "inventory"]
    with pytest.raises(Overflow):
        outbox.put_replicas([status(str(i)) for i in range(20_001)])


def test_a_full_event_queue_counts_what_it_drops() -> None:
    queue = EventQueue(limit=3)
    for i in range(5):
        queue.put(common_pb2.Event(reason=str(i)))
    batch = queue.take()
    assert batch is not None
    assert [e.reason for e in batch.events] == ["2", "3", "4"] and batch.dropped == 2
    queue.put(common_pb2.Event(reason="5"))
    queue.give_back(batch)
    again = queue.take()
    assert again is not None
    assert [e.reason for e in again.events] == ["3", "4", "5"] and again.dropped == 3
    assert queue.take() is None


# --- plans ----------------------------------------------------------------------------------------


class SlowKeeper:
    def __init__(self, *reasons: str) -> None:
        self.generation = 0
        self.offered: list[int] = []
        self.gate = asyncio.Event()
        self._reasons = list(reasons)

    async def offer(self, signed: plan_pb2.SignedNodePlan) -> agent_pb2.PlanAck:
        self.offered.append(signed.generation)
        await self.gate.wait()
        reason = self._reasons.pop(0) if self._reasons else ""
        if not reason:
            self.generation = signed.generation
        return agent_pb2.PlanAck(generation=signed.generation, accepted=not reason, reason=reason)


async def settle(
    keeper: SlowKeeper, *generations: int
) -> tuple[PlanIntake, list[agent_pb2.PlanAck]]:
    acks: list[agent_pb2.PlanAck] = []
    intake = PlanIntake(keeper, acks.append, retry_s=0.001)
    task = asyncio.create_task(intake.run())
    for generation in generations:
        intake.offer(plan_pb2.SignedNodePlan(generation=generation))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    lag = intake.lag
    keeper.gate.set()
    for _ in range(5000):
        if acks and acks[-1].generation == max(generations):
            break
        await asyncio.sleep(0.001)
    task.cancel()
    assert lag == max(generations)
    return intake, acks


async def test_the_latest_plan_wins_while_one_is_verified() -> None:
    keeper = SlowKeeper()
    intake, acks = await settle(keeper, 1, 2, 5, 4)
    assert keeper.offered == [1, 5]
    assert [a.generation for a in acks] == [1, 5]
    assert intake.lag == 0


async def test_a_verifier_that_failed_is_asked_again() -> None:
    keeper = SlowKeeper("VerifierFailed", "VerifierFailed")
    _, acks = await settle(keeper, 7)
    assert keeper.offered == [7, 7, 7]
    assert acks[-1].accepted


async def test_a_refused_plan_is_not_tried_twice() -> None:
    keeper = SlowKeeper("BadSignature")
    intake, acks = await settle(keeper, 7)
    assert keeper.offered == [7] and not acks[-1].accepted and intake.lag == 0


# --- memory ---------------------------------------------------------------------------------------


def test_only_clean_code_is_given_back() -> None:
    smaps = """\
1000-2000 r-xp 00000000 fe:00 12   /lib/a.so.1
Rss:                   4 kB
Anonymous:             0 kB
2000-3000 r--p 00000000 fe:00 12   /lib/a.so.1
Anonymous:             0 kB
3000-4000 r-xp 00000000 fe:00 13   /lib/patched.so
Anonymous:             4 kB
4000-5000 r-xp 00000000 fe:00 14   /lib/gone.so (deleted)
Anonymous:             0 kB
5000-6000 rw-p 00000000 00:00 0
Anonymous:             4 kB
6000-7000 r-xp 00000000 00:00 0   [vdso]
Anonymous:             0 kB
"""
    assert list(clean_code(smaps.splitlines())) == [(0x1000, 0x2000)]
