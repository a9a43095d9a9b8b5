"""The leader's tick with rollouts in it: records, memory, refused writes, waves over real plans."""

import json
from dataclasses import replace

import pytest

from orchestrator.domain.liveness import Liveness
from orchestrator.domain.rollout_state import Past, Phase, RolloutState, Standing, Wave
from orchestrator.records import KeptRecord
from orchestrator.scheduling.rollouts import SAVE_EVERY_S, as_rolled_out, steer_rollouts
from orchestrator.scheduling.snapshot import Mode
from orchestrator.scheduling.steer import RIPE_CHECK_S, Memory, Moment, World, steer
from orchestrator.store import keys
from orchestrator.store.port import MAX_TXN_BYTES
from polder.manifest.update import Canary, Update
from tests.unit.rollout_world import RolloutWorld
from tests.unit.scheduling_world import box

QUICK = Update(proven_after=20.0, progress_deadline=60.0)
CANARY = replace(QUICK, canary=Canary(sites=1, soak=10.0))
KEY = keys.rollout("uid-web")


@pytest.fixture
def world() -> RolloutWorld:
    """Four sites in two regions, a box each."""
    made = RolloutWorld()
    for number, region in enumerate(("a", "a", "b", "b"), start=1):
        made.world.add(box(f"n{number}", f"s{number}", region=region))
    return made


def test_a_new_workload_is_placed_in_the_tick_that_begins_its_rollout(world: RolloutWorld) -> None:
    world.apply("web", "app:1", count=4, update=CANARY)
    decided = world.tick()
    assert len(decided.plan.place) == 4
    assert not decided.batches, "nothing has happened yet that a restart would lose"
    world.goes_on(3)
    assert world.state("web").phase is Phase.PROVING
    assert world.kept[KEY].body["phase"] == "Proving"
    world.goes_on(20)
    assert world.state("web").phase is Phase.PROVEN
    assert world.told == ["RolloutProven"]


def test_waves_reach_canary_region_and_everywhere(world: RolloutWorld) -> None:
    world.apply("web", "app:1", mode=Mode.PER_NODE, count=1, update=CANARY)
    world.goes_on(25)
    world.apply("web", "app:2")
    world.goes_on(5)
    assert world.state("web").wave is Wave.CANARY
    assert world.versions("web") == {"web-n1": 2, "web-n2": 1, "web-n3": 1, "web-n4": 1}
    world.goes_on(10)
    assert world.state("web").wave is Wave.REGION
    assert world.versions("web") == {"web-n1": 2, "web-n2": 2, "web-n3": 1, "web-n4": 1}
    world.goes_on(15)
    assert set(world.versions("web").values()) == {2}
    world.goes_on(25)
    assert world.state("web").phase is Phase.PROVEN and world.state("web").proven == 2


def test_a_crashing_canary_is_rolled_back_and_the_rest_never_sees_it(world: RolloutWorld) -> None:
    world.apply("web", "app:1", mode=Mode.PER_NODE, count=1, update=CANARY)
    world.goes_on(25)
    world.crashing.add("app:2")
    world.apply("web", "app:2")
    for _ in range(40):
        world.goes_on(1)
        assert [world.versions("web")[f"web-n{n}"] for n in (2, 3, 4)] == [1, 1, 1]
    assert world.versions("web")["web-n1"] == 1
    state = world.state("web")
    assert (state.phase, state.target, state.newest) == (Phase.ROLLED_BACK, 1, 2)
    past = state.past(2)
    assert past is not None and past.standing is Standing.FAILED and "crash" in past.cause
    assert world.told[-3:] == ["RolloutStarted", "RolloutFailed", "RolledBack"]


def test_an_image_that_never_comes_rolls_back_at_the_deadline(world: RolloutWorld) -> None:
    world.apply("web", "app:1", count=4, update=QUICK)
    world.goes_on(25)
    world.bad.add("app:2")
    world.apply("web", "app:2")
    world.goes_on(50)
    assert world.state("web").phase is Phase.PROGRESSING
    world.goes_on(20)
    state = world.state("web")
    assert state.phase is Phase.ROLLED_BACK and "ImagePull" in state.message
    assert set(world.versions("web").values()) == {1}


def test_a_node_that_dies_in_mid_step_is_not_the_revisions_fault(world: RolloutWorld) -> None:
    world.apply("web", "app:1", mode=Mode.PER_NODE, count=1, update=QUICK)
    world.goes_on(25)
    world.apply("web", "app:2")
    world.tick(1)
    world.world.change("n1", liveness=Liveness.SILENT)
    world.goes_on(70)
    world.world.change("n1", liveness=Liveness.LOST)
    world.goes_on(70)
    assert world.state("web").proven == 2
    world.world.change("n1", liveness=Liveness.LIVE)
    world.goes_on(5)
    assert set(world.versions("web").values()) == {2}


def test_the_leader_looks_again_when_a_replica_has_been_ready_for_long_enough(
    world: RolloutWorld,
) -> None:
    """A step with `minReady: 2s` took as long as the leader's idle interval, five seconds."""
    world.apply("web", "app:1", count=4, update=replace(QUICK, min_ready=2.0))
    world.goes_on(25)
    world.apply("web", "app:2")
    world.tick()
    world.obey()
    observed = world.world.observed
    for key, seen in list(observed.items()):
        if seen.revision == 2:
            observed[key] = replace(seen, ready_for_s=0.5)
    assert world.tick().due_s <= 1.5


def test_a_drain_goes_on_soon_after_min_ready_is_over(world: RolloutWorld) -> None:
    world.apply("web", "app:1", count=4, update=replace(QUICK, min_ready=2.0, proven_after=0.0))
    world.goes_on(25)
    assert world.state("web").phase is Phase.PROVEN
    quiet = world.tick()
    assert not quiet.plan.explanations and quiet.due_s > RIPE_CHECK_S
    world.world.add(replace(world.world.nodes["n1"], draining=True))
    world.tick()
    world.obey()
    for key, seen in list(world.world.observed.items()):
        world.world.observed[key] = replace(seen, ready_for_s=1.0)
    waiting = world.tick()
    assert [e.code for e in waiting.plan.explanations] == ["ReplacementWaits"]
    assert waiting.due_s <= RIPE_CHECK_S


def test_a_refused_write_is_decided_again_from_the_record(world: RolloutWorld) -> None:
    world.apply("web", "app:1", count=4, update=QUICK)
    world.goes_on(25)
    before = dict(world.kept)
    world.apply("web", "app:2")
    refused = world.tick(refuse=True)
    assert refused.batches and world.kept == before
    again = world.tick()
    assert [w.key for batch in again.batches for w in batch.writes] == [KEY]
    assert world.kept[KEY].body["newest"] == 2


def test_a_new_leader_goes_on_where_the_record_stands(world: RolloutWorld) -> None:
    update = replace(QUICK, proven_after=100.0)
    world.apply("web", "app:1", count=4, update=update)
    world.goes_on(40)
    held_s = world.state("web").held_s
    world.memory, world.steady = Memory(), 1.0
    world.tick()
    state = world.state("web")
    assert held_s - SAVE_EVERY_S - 1 <= state.held_s <= held_s, "at most a few seconds are lost"
    world.goes_on(100 - int(state.held_s) + 2)
    assert world.state("web").phase is Phase.PROVEN


def test_clocks_are_written_now_and_then_and_rest_costs_nothing(world: RolloutWorld) -> None:
    world.apply("web", "app:1", count=4, update=replace(QUICK, proven_after=100.0))
    world.goes_on(5)
    written = world.writes
    world.goes_on(60, step_s=0.5)
    assert world.writes - written <= 60 / SAVE_EVERY_S + 1
    world.goes_on(50)
    assert world.state("web").phase is Phase.PROVEN
    written = world.writes
    world.goes_on(50)
    assert world.writes == written


def test_time_that_nobody_watched_does_not_count(world: RolloutWorld) -> None:
    world.apply("web", "app:1", count=4, update=replace(QUICK, proven_after=3600.0))
    world.goes_on(5)
    before = world.state("web").held_s
    world.tick(7200.0)
    assert world.state("web").held_s - before <= 20.0


@pytest.mark.parametrize("jump_s", [86_400.0, -86_400.0])
def test_the_wall_clock_may_jump_by_a_day(world: RolloutWorld, jump_s: float) -> None:
    world.apply("web", "app:1", count=4, update=QUICK)
    world.goes_on(10)
    before = world.state("web").held_s
    world.now += jump_s
    world.goes_on(1)
    assert world.state("web").phase is Phase.PROVING
    assert world.state("web").held_s - before <= 2.0


def test_deletion_in_mid_rollout_stops_everything(world: RolloutWorld) -> None:
    world.apply("web", "app:1", count=4, update=CANARY)
    world.goes_on(25)
    world.apply("web", "app:2")
    world.goes_on(2)
    world.world.want("web", deleting=True)
    world.goes_on(3)
    assert world.versions("web") == {}


def test_pause_in_mid_rollout_and_resume(world: RolloutWorld) -> None:
    world.apply("web", "app:1", mode=Mode.PER_NODE, count=1, update=QUICK)
    world.goes_on(25)
    world.apply("web", "app:2")
    world.obey()
    world.tick(1)
    world.world.want("web", update=replace(QUICK, paused=True))
    world.goes_on(100)
    assert world.state("web").phase is Phase.PAUSED
    assert 1 in world.versions("web").values()
    world.world.want("web", update=QUICK)
    world.goes_on(30)
    assert set(world.versions("web").values()) == {2}
    assert world.state("web").phase is Phase.PROVEN


def test_frozen_rollouts_wait_without_failing(world: RolloutWorld) -> None:
    world.apply("web", "app:1", count=4, update=QUICK)
    world.goes_on(25)
    world.bad.add("app:2")
    world.apply("web", "app:2")
    world.goes_on(5)
    world.world.want("web", frozen=True)
    world.goes_on(200)
    assert world.state("web").phase is Phase.PROGRESSING
    world.world.want("web", frozen=False)
    world.goes_on(70)
    assert world.state("web").phase is Phase.ROLLED_BACK


@pytest.mark.parametrize(
    "body",
    [{"phase": "Levitating"}, {"phase": "Proving", "held_s": "long"}],
    ids=["newer", "broken"],
)
def test_a_record_that_is_not_understood_changes_nothing_and_stops_nobody_else(
    world: RolloutWorld, body: dict[str, object]
) -> None:
    world.apply("web", "app:1", count=4, update=QUICK)
    world.goes_on(5)
    body = {"newest": 1, "target": 1, **body}
    world.kept[KEY] = KeptRecord(KEY, body, 99)
    world.goes_on(10)
    world.apply("other", "app:1", count=1, update=QUICK)
    world.goes_on(30)
    assert set(world.versions("web").values()) == {1}
    assert world.told.count("RolloutUnreadable") == 1
    assert world.kept[KEY].body == body
    assert world.state("other").phase is Phase.PROVEN


def test_workloads_at_rest_are_handed_to_the_plan_as_they_are(world: RolloutWorld) -> None:
    world.apply("web", "app:1", count=4, update=QUICK)
    world.goes_on(30)
    seen = world.look()
    taken = steer_rollouts(seen, world.memory.rollouts, Moment(world.now, world.steady))
    assert taken.snapshot is seen.snapshot and not taken.batches
    assert taken.memory.followed["uid-web"] is world.memory.rollouts.followed["uid-web"]


def test_those_who_only_ask_see_the_workload_as_it_is_led(world: RolloutWorld) -> None:
    world.apply("web", "app:1", mode=Mode.PER_NODE, count=1, update=CANARY)
    world.goes_on(25)
    world.apply("web", "app:2")
    world.goes_on(3)
    (asked,) = as_rolled_out(world.look().snapshot, world.kept).workloads
    assert (asked.revision, asked.stable, asked.admitted) == (2, 1, frozenset({"s1"}))


def test_an_incomplete_world_changes_nothing(world: RolloutWorld) -> None:
    world.apply("web", "app:1", count=4, update=QUICK)
    world.goes_on(5)
    seen = world.look()
    blind = World(replace(seen.snapshot, complete=False), (), {}, {})
    decided = steer(blind, world.memory, Moment(world.now, world.steady))
    assert not decided.batches and decided.plan.changes_nothing
    assert decided.memory.rollouts == world.memory.rollouts


def test_written_records_are_json_that_reads_back(world: RolloutWorld) -> None:
    world.apply("web", "app:1", mode=Mode.PER_NODE, count=1, update=CANARY)
    world.goes_on(25)
    world.apply("web", "app:2")
    world.goes_on(3)
    followed = world.memory.rollouts.followed["uid-web"]
    assert followed.written == json.loads(world.kept[KEY].to_bytes())


def test_what_waits_for_an_approval_to_stop_fails_no_revision(world: RolloutWorld) -> None:
    """Scaled down and updated in one edit: the stops are held, and nobody updates those."""
    world.apply("web", "app:1", count=40, update=QUICK)
    world.goes_on(30)
    world.apply("web", "app:2", count=4)
    world.goes_on(120)
    assert "StopsHeld" in world.told and len(world.versions("web")) == 40
    assert world.state("web").proven == 2
    assert [world.versions("web")[f"web-{n}"] for n in range(5)] == [2, 2, 2, 2, 1]


def test_large_records_do_not_make_a_transaction_too_large(world: RolloutWorld) -> None:
    """The canaries of fifty workloads, of a thousand sites with long names each."""
    sites = tuple(f"s{n:04}-{'x' * 57}" for n in range(1000))
    body = RolloutState(1, 1, wave=Wave.CANARY, sites=sites, history=(Past(1, "d", "p"),)).to_dict()
    for number in range(50):
        world.apply(f"w{number}", "app:1", update=replace(CANARY, paused=True))
        key = keys.rollout(f"uid-w{number}")
        world.kept[key] = KeptRecord(key, body, 5)
    batches = world.tick().batches
    written = [write.value or b"" for batch in batches for write in batch.writes]
    assert len(written) == 50 and sum(map(len, written)) > MAX_TXN_BYTES
    for batch in batches:
        assert sum(len(write.value or b"") for write in batch.writes) <= MAX_TXN_BYTES * 0.9
