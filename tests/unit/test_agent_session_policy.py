"""Which endpoint next, how long to wait, when to renew; what waits to be sent."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import connection_policy as policy
from agent.connection_policy import Attempts
from agent.outbox import BATCH_REPLICAS, EventQueue, Outbox, Overflow
from agent.plan_intake import PlanIntake
from polder.v1 import agent_pb2, common_pb2, plan_pb2

THREE = Attempts(("a", "b", "c"))


def failed(attempts: Attempts, dice: float = 0.0, now: float = 0.0) -> policy.Wait:
    return policy.after_failure(attempts, now=now, dice=dice)


def told(
    attempts: Attempts,
    reason: str,
    retry_s: float = 0.0,
    *,
    lived_s: float = -1.0,
    now: float = 0.0,
    dice: float = 0.0,
) -> policy.Wait:
    return policy.after_goodbye(
        attempts, reason=reason, retry_after_s=retry_s, lived_s=lived_s, now=now, dice=dice
    )


def test_every_endpoint_is_tried_before_the_wait_grows() -> None:
    attempts, seen, ceilings = THREE, [], []
    for _ in range(9):
        seen.append(attempts.endpoint)
        wait = failed(attempts, 0.999999)
        ceilings.append(round(wait.seconds, 1))
        attempts = wait.attempts
    assert seen == ["a", "b", "c"] * 3
    assert ceilings == [0.2, 0.2, 0.4, 0.4, 0.4, 0.8, 0.8, 0.8, 1.6]


@given(rounds=st.integers(0, 10**6), dice=st.floats(0, 1, exclude_max=True))
def test_waits_are_bounded_and_fully_jittered(rounds: int, dice: float) -> None:
    wait = failed(Attempts(("a",), rounds=rounds), dice)
    assert 0 <= wait.seconds <= policy.CEILING_S
    assert failed(Attempts(("a",), rounds=rounds)).seconds == 0


def test_a_connection_that_nobody_answers_costs_seconds_and_more_only_when_all_are_slow() -> None:
    attempts, patience = THREE, []
    for _ in range(9):
        patience.append((attempts.dial_s, attempts.welcome_s))
        attempts = failed(attempts).attempts
    assert patience == [(3, 10)] * 3 + [(6, 20)] * 3 + [(12, 40)] * 3
    assert (attempts.dial_s, attempts.welcome_s) == (20, 40)


def test_after_a_round_without_an_answer_in_time_it_rests_as_long() -> None:
    def slow(attempts: Attempts) -> policy.Wait:
        return policy.after_failure(attempts, now=0.0, dice=0.99, slow=True)

    first = slow(THREE)
    assert first.seconds < policy.BASE_S, "the others may be well"
    last = failed(failed(first.attempts, 0.99).attempts, 0.99)
    assert 2.9 < last.seconds < 3.0
    assert failed(last.attempts, 0.99).seconds < 0.4, "what was, was"
    patient = slow(slow(slow(last.attempts).attempts).attempts)
    assert 5.9 < patient.seconds < 6.0


def test_a_session_that_lasted_starts_the_count_again_and_the_next_is_the_nearest_other() -> None:
    tired = Attempts(("a", "b", "c"), index=1, rounds=9, failures=40)
    wait = policy.after_session(tired, lived_s=3600, now=0.0, dice=0.99)
    assert wait.attempts.endpoint == "a" and wait.attempts.rounds == 0
    # Nobody knows how many others lost theirs at this moment.
    assert 1.9 < wait.seconds < policy.FIRST_S
    then = failed(wait.attempts, 0.99)
    assert then.attempts.endpoint == "c" and then.seconds < policy.BASE_S
    assert failed(then.attempts).attempts.endpoint == "a"
    young = policy.after_session(tired, lived_s=1, now=0.0, dice=0.99)
    assert 2.9 < young.seconds < policy.FLAPPING_S and young.attempts.endpoint == "a"
    assert failed(tired, 0.99).seconds > 20


@pytest.mark.parametrize("seed", range(50))
def test_a_line_that_flaps_every_two_seconds_makes_no_node_look_lost(seed: int) -> None:
    """For two minutes: connections are reset, and refused while it is down."""
    dice, attempts, now, silent_since, longest = random.Random(seed).random, THREE, 0.0, 0.0, 0.0
    while now < 120.0:
        if now % 4.0 < 2.0:
            longest = max(longest, now - silent_since)
            silent_since = now + 2.0 - now % 4.0
            lived = silent_since - now
            now = silent_since
            wait = policy.after_session(attempts, lived_s=lived, now=now, dice=dice())
        else:
            wait = failed(attempts, dice(), now)
        attempts, now = wait.attempts, now + wait.seconds + 0.05
    assert max(longest, now - silent_since) < 8.0, "silent_after is 8.5 s"


@pytest.mark.parametrize("reason", ["Shutdown", "Drill"])
def test_a_member_that_goes_away_sends_us_elsewhere_at_once(reason: str) -> None:
    wait = told(THREE, reason, 0.0, lived_s=3600, dice=0.5)
    assert wait.attempts.endpoint == "b" and wait.seconds <= policy.BASE_S
    # It wants to be left alone for a while, and the others may be asked meanwhile.
    wait = told(THREE, reason, 5.0, lived_s=3600, dice=0.5)
    assert wait.attempts.endpoint == "b" and wait.seconds <= policy.BASE_S
    wait = failed(failed(wait.attempts, now=0.1).attempts, now=0.2)
    assert wait.attempts.endpoint == "b", "not `a`, before its time"
    later = failed(failed(wait.attempts, now=1.0).attempts, now=6.0)
    assert later.attempts.endpoint == "a"
    alone = told(Attempts(("a",)), reason, 5.0, lived_s=3600, dice=0.5)
    assert alone.seconds == pytest.approx(5.25) and alone.attempts.endpoint == "a"


def test_a_member_that_shares_its_address_is_not_left() -> None:
    """Another process serves it, in the same region."""
    wait = told(THREE, "Shutdown", 0.3, lived_s=3600, dice=0.5)
    assert wait.attempts.endpoint == "a" and wait.seconds == pytest.approx(0.315)
    # It was wrong: no second time.
    again = told(wait.attempts, "Shutdown", 0.3, now=1.0)
    assert again.attempts.endpoint == "b"
    young = told(THREE, "Shutdown", 0.3, lived_s=3)
    assert young.attempts.endpoint == "b"


def test_a_full_member_is_asked_again_when_it_said_and_one_other_before() -> None:
    first = told(THREE, "Overloaded", 9.0, dice=0.5)
    assert first.attempts.endpoint == "b" and first.seconds <= policy.HOP_S
    # Two full ones: no third is bothered.
    second = told(first.attempts, "Overloaded", 12.0, now=1.0, dice=0.5)
    assert second.attempts.endpoint == "a"
    assert 1.0 + second.seconds == pytest.approx(9.0 * 1.05)
    # The other one is dead: the appointment is kept, whatever else could be tried.
    dead = failed(first.attempts, now=7.0)
    assert dead.attempts.endpoint == "a" and 7.0 + dead.seconds == pytest.approx(9.45)
    late = failed(first.attempts, now=11.0)
    assert late.attempts.endpoint == "a" and late.seconds == 0
    # An appointment is for once.
    again = failed(late.attempts, now=11.0)
    assert again.attempts.endpoint == "c" and not again.attempts.appointments
    short = told(THREE, "Overloaded", 2.0, dice=0.0)
    assert short.attempts.endpoint == "a" and short.seconds == pytest.approx(2.0)


def test_a_server_cannot_send_us_away_for_days() -> None:
    wait = told(Attempts(("a",)), "Overloaded", 1e9)
    assert wait.seconds == policy.RETRY_AFTER_MAX_S


def test_what_is_not_the_members_own_trouble_is_obeyed_everywhere() -> None:
    for reason in ("InvalidInventory", "SomethingNew"):
        wait = told(THREE, reason, 30.0, lived_s=3600)
        assert wait.seconds == 30.0
    attempts, waits = THREE, []
    for _ in range(9):
        wait = told(attempts, "Superseded", lived_s=60)
        waits.append(wait.seconds)
        attempts = wait.attempts
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    alone = policy.after_session(attempts, lived_s=policy.UNDISPUTED_S, now=0.0, dice=0.0)
    assert told(alone.attempts, "Superseded").seconds == 5


def test_when_all_refuse_us_we_ask_seldom_and_do_not_stop() -> None:
    attempts, waits = THREE, []
    for _ in range(15):
        wait = policy.after_refusal(attempts, now=0.0, dice=0.5)
        waits.append(wait.seconds)
        attempts = wait.attempts
    assert all(seconds <= 1.6 for seconds in waits[:11])
    assert all(seconds == 45 for seconds in waits[11:])


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["fails", "breaks", "Shutdown", "Overloaded", "Drill", "Superseded"]),
            st.floats(0, 40),
            st.floats(0, 1, exclude_max=True),
            st.floats(0, 30),
        ),
        max_size=40,
    ),
    count=st.integers(1, 5),
)
def test_whatever_happens_nobody_is_hammered(
    steps: list[tuple[str, float, float, float]], count: int
) -> None:
    """No endpoint is tried before the time that it asked for, and none is left out for good."""
    attempts, now = Attempts(tuple("abcde"[:count])), 0.0
    not_before: dict[str, float] = {}
    for what, retry_s, dice, pause_s in steps:
        here = attempts.endpoint
        assert now >= not_before.get(here, 0.0) - 1e-6
        if what == "fails":
            wait = failed(attempts, dice, now)
        elif what == "breaks":
            now += pause_s
            wait = policy.after_session(attempts, lived_s=pause_s, now=now, dice=dice)
        else:
            wait = told(attempts, what, retry_s, now=now, dice=dice)
            not_before[here] = now + min(retry_s, policy.RETRY_AFTER_MAX_S)
        assert wait.seconds >= 0
        if count > 1 and wait.seconds < 1e-9 and dice > 0.01:
            assert wait.attempts.endpoint != here
        attempts = wait.attempts
        now += wait.seconds
    assert len({one.endpoint for one in attempts.appointments}) == len(attempts.appointments)
    seen = set()
    for _ in range(40):
        seen.add(attempts.endpoint)
        now += 50
        attempts = failed(attempts, 0.5, now).attempts
    assert seen == set(attempts.endpoints)


# --- the list -------------------------------------------------------------------------------------


def test_a_new_list_keeps_the_address_in_use() -> None:
    at_b = failed(THREE).attempts
    assert policy.with_endpoints(at_b, ("x", "b")).endpoint == "b"
    assert policy.with_endpoints(at_b, ("x", "y")).endpoint == "x"
    assert policy.with_endpoints(at_b, ()) is at_b
    full = told(THREE, "Overloaded", 9.0).attempts
    assert not policy.with_endpoints(full, ("b", "c")).appointments


def test_the_address_that_works_is_not_forgotten() -> None:
    assert policy.pinned(("a:1", "b:1"), "c:1") == ("a:1", "b:1", "c:1")
    assert policy.pinned(("a:1", "b:1"), "b:1") == ("a:1", "b:1")
    assert policy.pinned((), "b:1") == ()
    many = tuple(f"h{n}:1" for n in range(100))
    assert len(policy.pinned(policy.usable(many), "c:1")) == policy.ENDPOINTS_MAX


def test_what_cannot_be_dialled_is_left_out() -> None:
    bad = [
        "",
        "host",
        "unix:/run/x:1",
        "dns:///x:1",
        "a b:1",
        "x:http",
        ":1",
        "fe80::1:7443",
        "é:1",
    ]
    good = ["10.0.0.1:7443", "[fd00::1]:7443", "orchestrator.example:7443"]
    assert policy.usable([*bad, *good, good[0]]) == tuple(good)


def test_an_old_session_is_replaced_at_the_nearest_that_answers() -> None:
    at_b = policy.at(THREE, "b")
    assert at_b.endpoint == "b" and policy.nearer(at_b) == ("a", "b")
    assert policy.nearer(THREE) == ("a",)
    assert policy.at(THREE, "elsewhere") is THREE


@given(dice=st.floats(0, 1))
def test_renewal_is_due_around_a_third_of_life(dice: float) -> None:
    due = policy.renewal_due_at(1000, 1000 + 3000, dice=dice)
    assert 1900 <= due <= 2100


def test_failed_renewals_are_tried_more_often_near_the_end() -> None:
    assert policy.renewal_retry_s(10_000, 0, 20, dice=1) == 3600
    assert policy.renewal_retry_s(100, 0, 20, dice=1) == 50
    assert policy.renewal_retry_s(-5, 0, 20, dice=1) == 1


def test_certificate_trouble_is_named_in_time() -> None:
    def told(not_before: float, not_after: float, now: float) -> tuple[str, str]:
        found = policy.certificate_trouble(not_before, not_after, now)
        assert found is not None and found.condition in policy.CERTIFICATE_CONDITIONS
        return found.condition, found.message

    assert policy.certificate_trouble(0, 900, 500) is None
    condition, text = told(0, 900, 700)
    assert condition == "CertificateExpiring" and "was not renewed" in text
    condition, text = told(0, 900, 1000)
    assert condition == "CertificateExpired" and "containers keep running" in text
    condition, text = told(10_000, 20_000, 0)
    assert condition == "CertificateNotYetValid" and "clock" in text


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
