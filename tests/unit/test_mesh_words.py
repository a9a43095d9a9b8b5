"""What one member that leads says, and another one then knows: nothing lost, nothing left over."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.api.explaining import SILENT_AFTER_S, Explaining
from orchestrator.domain.rollout_state import Phase, RolloutState
from orchestrator.mesh.speaking import Speaker
from orchestrator.mesh.voice import Hearsay, Voice
from orchestrator.mesh.words import NAMED_MAX, Clocks, Words, clocks_of, workload_of
from orchestrator.records import KeptRecord
from orchestrator.scheduling.decisions import Explanation
from orchestrator.scheduling.placements import Names
from orchestrator.scheduling.reasons import ReasonCount
from orchestrator.store import keys
from polder.v1 import member_pb2

WEB = ("default", "web")
STUCK = Explanation(
    *WEB,
    "Unschedulable",
    "0 of 3 nodes fit",
    ("web-0", "web-2"),
    (ReasonCount("InsufficientCpu", 3, "has 100m free"),),
)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class FakeLeader:
    """A leader that says what the test wants."""

    def __init__(self, member: str, clock: Clock) -> None:
        self.member = member
        self.clock = clock
        self.term = 0
        self.said: Words | None = None
        self.said_at = 0.0
        self.led_since = 0.0
        self.guards: Any = None

    def say(self, term: int = 0, **what: Any) -> None:
        self.term = term or self.term
        old = self.said if self.said is not None and self.said.term == self.term else None
        base = old or Words(self.term, 0.0)
        what.setdefault("desired", dict(base.desired))  # each tick makes a new one
        self.said = replace(base, told_at=self.clock.now + 7_200, **what)
        self.said_at = self.clock.now

    def end(self) -> None:
        self.term, self.said = 0, None

    @property
    def is_leading(self) -> bool:
        return self.term > 0

    @property
    def told_ago_s(self) -> float:
        return inf if self.said is None else self.clock.now - self.said_at

    def words(self) -> Words | None:
        return self.said if self.said is not None and self.said.term == self.term else None

    @property
    def desired(self) -> Mapping[tuple[str, str], int]:
        return self.said.desired if self.said is not None else {}

    @property
    def explanations(self) -> Mapping[tuple[str, str], tuple[Explanation, ...]]:
        return self.said.explanations if self.said is not None else {}

    @property
    def told_at(self) -> float:
        return self.said.told_at if self.said is not None else 0.0

    @property
    def doubted(self) -> Mapping[str, str]:
        return {}

    def remarks(self, node: str) -> list[tuple[str, str]]:
        return list(self.said.remarks.get(node, ())) if self.said is not None else []

    def rollout(self, workload_uid: str) -> RolloutState | None:
        return None

    def wants(self, namespace: str, name: str) -> int | None:
        return self.desired.get((namespace, name))


class Pair:
    """A member that leads, and one that hears it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.leader = FakeLeader("m1", self.clock)
        self.speaker = Speaker(self.leader, self.clock)
        self.records: dict[str, KeptRecord] = {}
        cache: Any = SimpleNamespace(kept_at=self.records.get)
        self.other = FakeLeader("m2", self.clock)
        self.changed: list[tuple[list[Any], list[str]]] = []
        self.hearsay = Hearsay(
            self.clock,
            lambda *what: self.changed.append((list(what[0]), list(what[1]))),
            self.clock,
        )
        self.voice = Voice(self.other, self.hearsay, cache, self.clock)

    def carry(self) -> list[member_pb2.LeaderSaid]:
        """What the leader has to say reaches the other, as bytes."""
        sent = list(self.speaker.news())
        self.hear(sent)
        return sent

    def hear(self, messages: list[member_pb2.LeaderSaid], member: str = "m1") -> None:
        for message in messages:
            raw = message.SerializeToString()
            self.voice.heard(member, member_pb2.LeaderSaid.FromString(raw))


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_who_does_not_lead_says_the_same_and_from_whom(pair: Pair) -> None:
    pair.leader.say(
        5, desired={WEB: 3}, explanations={WEB: (STUCK,)}, remarks={"n1": [("Suspect", "many")]}
    )
    pair.carry()
    assert pair.voice.explanations == {WEB: (STUCK,)}
    assert pair.voice.wants(*WEB) == 3
    assert pair.voice.remarks("n1") == [("Suspect", "many")] and pair.voice.remarks("n2") == []
    assert pair.voice.doubted == {"n1": "many"}
    assert (pair.voice.member, pair.voice.term) == ("m1", 5)
    assert pair.changed == [([WEB], ["n1"])]
    pair.leader.say()
    pair.carry()
    pair.leader.say(desired={WEB: 4}, remarks={})
    pair.carry()
    pair.hear(list(pair.speaker.whole()))
    assert pair.changed[1:] == [([WEB], ["n1"])], "those who watch hear of what changed alone"


def test_only_what_changed_is_told_and_what_is_over_is_taken_back(pair: Pair) -> None:
    pair.leader.say(
        5,
        desired={WEB: 3, ("a", "b"): 1},
        explanations={WEB: (STUCK,)},
        remarks={"n1": [("Flapping", "often")]},
    )
    pair.carry()
    assert pair.carry() == [], "no tick since"
    pair.leader.say(desired={WEB: 3}, explanations={}, remarks={})
    (sent,) = pair.carry()
    assert not sent.whole and {w.name for w in sent.workloads} == {"web", "b"}
    assert pair.voice.desired == {WEB: 3}
    assert not pair.voice.explanations and not pair.voice.remarks("n1")
    pair.leader.say()
    (sent,) = pair.carry()
    assert not sent.workloads and not sent.nodes and sent.told_at_ms, "it lives, and says no more"


def test_the_age_is_by_the_own_steady_clock_whatever_the_leaders_says(pair: Pair) -> None:
    pair.leader.say(5, desired={WEB: 3})
    pair.clock.now += 2.0
    pair.carry()
    assert pair.voice.told_ago_s == pytest.approx(2.0)
    assert pair.voice.told_at == pytest.approx(pair.clock.now - 2.0), "not two hours ahead"
    pair.clock.now += 40.0
    assert pair.voice.told_ago_s == pytest.approx(42.0)
    # A link that comes back brings the same old words: they are not new for it.
    pair.hear(list(pair.speaker.whole()))
    assert pair.voice.told_ago_s == pytest.approx(42.0)


def test_a_leader_that_is_gone_grows_old_in_plain_sight(pair: Pair) -> None:
    pair.leader.say(5, desired={WEB: 3}, explanations={WEB: (STUCK,)})
    pair.carry()
    index: Any = SimpleNamespace(replica=lambda *_: None)
    explaining = Explaining(index, pair.clock)
    explaining.use(pair.voice)
    assert (explaining.current, explaining.source) == (True, "leader/m1")
    pair.clock.now += SILENT_AFTER_S + 1
    assert (explaining.current, explaining.source) == (False, "leader/m1")
    assert [item["replica"] for item in explaining.unplaced(*WEB)] == ["web-0", "web-2"]
    assert explaining.told_at_ms == int((pair.clock.now - SILENT_AFTER_S - 1) * 1000)


def test_of_two_that_claim_to_lead_the_higher_term_counts(pair: Pair) -> None:
    deposed = Speaker(pair.leader, pair.clock)
    pair.leader.say(5, desired={WEB: 3})
    old = list(deposed.whole())
    newer = FakeLeader("m3", pair.clock)
    newer.say(9, desired={WEB: 4})
    pair.hear(list(Speaker(newer, pair.clock).whole()), "m3")
    pair.hear(old)
    assert (pair.voice.member, pair.voice.wants(*WEB)) == ("m3", 4)
    # The own leader does not know yet that it is deposed, either.
    pair.other.say(7, desired={WEB: 5})
    assert pair.voice.wants(*WEB) == 4
    pair.other.say(11, desired={WEB: 6})
    assert (pair.voice.member, pair.voice.wants(*WEB)) == ("m2", 6)


def test_the_last_words_of_the_own_leader_stay_until_another_speaks(pair: Pair) -> None:
    pair.other.say(7, desired={WEB: 5})
    pair.clock.now += 3.0
    pair.voice.keep_last_words()
    pair.other.end()
    assert (pair.voice.member, pair.voice.wants(*WEB)) == ("m2", 5)
    assert pair.voice.told_ago_s == pytest.approx(3.0)
    pair.leader.say(8, desired={WEB: 2})
    pair.carry()
    assert (pair.voice.member, pair.voice.wants(*WEB)) == ("m1", 2)
    assert pair.voice.led_since == pair.clock.now, "its silences are counted anew"


def test_a_new_term_is_told_whole_and_an_end_is_told(pair: Pair) -> None:
    pair.leader.say(5, desired={WEB: 3}, explanations={WEB: (STUCK,)})
    pair.carry()
    pair.leader.end()
    (bye,) = pair.carry()
    assert bye.term == 0 and pair.voice.wants(*WEB) == 3
    pair.leader.say(6, desired={("a", "b"): 1})
    (sent,) = pair.carry()
    assert sent.whole and pair.voice.desired == {("a", "b"): 1} and not pair.voice.explanations


def test_a_telling_counts_when_all_of_it_has_come(pair: Pair) -> None:
    pair.leader.say(5, desired={("a", f"w{n}"): n for n in range(1_200)})
    sent = list(pair.speaker.news())
    assert len(sent) > 1 and [m.more for m in sent] == [True] * (len(sent) - 1) + [False]
    pair.hear(sent[:-1])
    assert not pair.voice.desired
    pair.hear(sent[-1:])
    assert len(pair.voice.desired) == 1_200
    # The stream breaks in the middle of a telling, and starts whole.
    pair.leader.say(desired={("b", f"w{n}"): n for n in range(1_200)})
    sent = list(pair.speaker.news())
    pair.hear(sent[:1])
    pair.hear(list(pair.speaker.whole()))
    assert pair.voice.desired == pair.leader.desired


def test_changes_that_come_before_the_whole_do_no_harm(pair: Pair) -> None:
    pair.leader.say(5, desired={("a", f"w{n}"): n for n in range(1_200)})
    list(pair.speaker.news())
    pair.leader.say(desired={("a", f"w{n}"): n + 1 for n in range(1_200)})
    first, *rest = list(pair.speaker.news())
    pair.hear([first])  # the follower came in the middle of it
    pair.hear(list(pair.speaker.whole()))
    pair.hear(rest)
    assert pair.voice.desired == pair.leader.desired


def test_many_replicas_are_counted_all_and_named_as_far_as_anybody_looks() -> None:
    many = Explanation(*WEB, "Unschedulable", "none fits", Names("web", range(7, 1_000_007)))
    said = Words(1, 0.0, {WEB: 1_000_007}, {WEB: (many,)}).workload(WEB)
    assert said.ByteSize() < 200
    _, desired, (read,) = workload_of(said)
    assert desired == 1_000_007 and read.replica_count == 1_000_000
    assert read.replicas == tuple(f"web-{n}" for n in range(7, 7 + NAMED_MAX))


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("web-1",),
        ("web-3", "web-4", "web-5", "web-1", "web-9"),
        ("web-n1", "web-n2", "web--1-n2", "web-n3"),
        ("web-01", "web-1", "web-2", "web-3"),
    ],
)
def test_names_arrive_as_they_are(names: tuple[str, ...]) -> None:
    item = replace(STUCK, replicas=names)
    said = Words(1, 0.0, {}, {WEB: (item,)}).workload(WEB)
    assert workload_of(said) == (WEB, None, (item,))


def test_an_explanation_of_another_version_still_has_its_message() -> None:
    item = member_pb2.ExplanationSaid(code="New", message="text", detail_json=b'{"indexes":"a-"}')
    said = member_pb2.WorkloadSaid(namespace="d", name="w", desired=1, explanations=[item])
    assert workload_of(said)[2] == (Explanation("d", "w", "New", "text"),)


def test_clocks_of_a_rollout_go_with_the_phase_that_they_are_of(pair: Pair) -> None:
    recorded = RolloutState(2, 2, Phase.PROVING, proven=1, held_s=10.0, since_ms=77)
    pair.records[keys.rollout("u1")] = KeptRecord(keys.rollout("u1"), recorded.to_dict())
    now = replace(recorded, held_s=17.5, stalled_s=1.0)
    begun = RolloutState(1, 1, Phase.PROGRESSING, stalled_s=4.0, since_ms=99)
    pair.leader.say(
        5, clocks={"u1": Clocks.of(now, recorded=True), "u2": Clocks.of(begun, recorded=False)}
    )
    pair.carry()
    assert pair.voice.rollout("u1") == now
    assert pair.voice.rollout("u2") == begun, "which no record tells of yet"
    assert pair.voice.rollout("u3") is None
    proven = replace(recorded, phase=Phase.PROVEN, since_ms=88)
    pair.records[keys.rollout("u1")] = KeptRecord(keys.rollout("u1"), proven.to_dict())
    assert pair.voice.rollout("u1") == proven, "the record is ahead of what was heard"
    pair.leader.say(clocks={})
    pair.carry()
    assert pair.voice.rollout("u1") is None


def test_clocks_survive_the_wire() -> None:
    state = RolloutState(3, 2, Phase.SOAKING, held_s=1.5, best=4, restarted=1, since_ms=5)
    for recorded in (True, False):
        clocks = Clocks.of(state, recorded=recorded)
        assert clocks_of(Words(1, 0.0, clocks={"u": clocks}).rollout("u")) == clocks
    assert clocks_of(Words(1, 0.0).rollout("u")) is None


def stories(seeds: int) -> Iterator[random.Random]:
    for seed in range(seeds):
        yield random.Random(seed)


def test_however_it_changes_and_breaks_the_other_ends_with_the_same_words() -> None:
    """A story of ticks, tellings, lost links and new terms, from many seeds."""
    for story in stories(40):
        pair, term = Pair(), 1
        for _ in range(60):
            match story.randrange(6):
                case 0:
                    term += 1
                case 1:
                    sent = list(pair.speaker.news())
                    pair.hear(sent[: story.randint(0, len(sent))])
                    pair.hear(list(pair.speaker.whole()))
                case 2:
                    pair.carry()
                case _:
                    pair.clock.now += 1.0
                    chosen = [("ns", f"w{n}") for n in range(9) if story.random() < 0.5]
                    pair.leader.say(
                        term,
                        desired={key: story.randrange(3) for key in chosen},
                        explanations={
                            key: (Explanation(*key, "Held", str(story.randrange(3)), ("r",)),)
                            for key in chosen[::2]
                        },
                        remarks={"n": [("Flapping", "x")]} if story.random() < 0.5 else {},
                    )
        pair.leader.say(term, desired={WEB: 1})
        pair.carry()
        assert pair.voice.desired == pair.leader.desired
        assert pair.voice.explanations == pair.leader.explanations
        assert pair.voice.remarks("n") == pair.leader.remarks("n")
