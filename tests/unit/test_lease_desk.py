"""A desk with many leases: an event costs the replicas that it is about, and no time is missed."""

from collections import deque
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.plan import Assignment, ParsedPlan, Role
from agent.domain.roster import Key
from agent.domain.site.agenda import Agenda
from agent.domain.site.holder import Holder, Requests
from agent.domain.site.lease import LEASE_MAX_S, LeaseDesk
from agent.domain.site.messages import (
    Booted,
    Event,
    Instruction,
    LeaseAnswer,
    LeaseRequest,
    PeerSaid,
    PlanInUse,
    Save,
    Saved,
    Send,
    Tell,
    Tick,
)
from tests.unit.lease_world import group

GROUP = group(7, "ab", "c")
KEYS: list[Key] = [("w", f"r-{n}") for n in range(20)]


class Desks:
    """Of three nodes, with lines and disks that take no time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.desks = {name: LeaseDesk(name, count(1)) for name in "abc"}
        self.words: deque[tuple[str, PeerSaid]] = deque()
        self.told: list[str] = []
        for name in self.desks:
            self.hear(name, Booted(name))
            self.hear(name, PlanInUse(_plan(name)))
        self.now += LEASE_MAX_S + 1

    def want(self, keys: list[Key]) -> None:
        self.act("a", self.desks["a"].want(keys, self.now))

    def hear(self, name: str, event: Event) -> None:
        self.act(name, self.desks[name].handle(event, self.now))
        while self.words:
            to, word = self.words.popleft()
            self.act(to, self.desks[to].handle(word, self.now))

    def act(self, name: str, instructions: list[Instruction]) -> None:
        for item in instructions:
            match item:
                case Send(to, said):
                    self.words.append((to, PeerSaid(name, said)))
                case Save(token):
                    self.act(name, self.desks[name].handle(Saved(token, True), self.now))
                case Tell(reason):
                    self.told.append(reason)

    def run(self, until: float) -> None:
        """By what the desks say is due, and nothing else."""
        for name in self.desks:  # what was said last
            self.hear(name, Tick())
        while self.now < until:
            due = {n: d for n, desk in self.desks.items() if (d := desk.next_due()) is not None}
            self.now = min(max(self.now, min(due.values(), default=until)), until)
            for name in [n for n, at in due.items() if at <= self.now]:
                self.hear(name, Tick())

    def held(self) -> int:
        return sum(self.desks["a"].held(key, self.now) is not None for key in KEYS)


def _plan(node: str) -> ParsedPlan:
    items = [
        Assignment("ns", "w", *key, f"u-{key[1]}", GROUP.number, 1, None, "", group=GROUP)
        for key in KEYS
    ]
    if node == "a":
        assigned = {item.replica_uid: item for item in items}
        return ParsedPlan(1, 0.0, assigned, {}, {}, (), b"")
    roles = {item.key: Role(item, "a") for item in items}
    return ParsedPlan(1, 0.0, {}, {}, {}, (), b"", roles=roles)


def holding() -> Desks:
    site = Desks()
    site.want(KEYS)
    site.run(site.now + 1.5)
    assert site.held() == len(KEYS)
    return site


def test_leases_are_kept_by_waking_up_when_the_desk_says_so() -> None:
    site = holding()
    for _ in range(60):
        site.run(site.now + 1.0)
        assert site.held() == len(KEYS)


def test_an_answer_makes_the_desk_look_at_its_own_replica_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = holding()
    looked: list[Holder] = []
    real = Holder.due

    def due(holder: Holder, now: float) -> Requests:
        looked.append(holder)
        return real(holder, now)

    monkeypatch.setattr(Holder, "due", due)
    answer = LeaseAnswer(0, KEYS[7], GROUP.number, granted=True)
    site.desks["a"].handle(PeerSaid("b", answer), site.now)
    assert not looked, "nothing is due, and nothing of the others changed"
    site.run(site.now + 10.0)
    # Once a second each is due, at its holder; a few times more for what is late.
    assert len(looked) < 2 * 10 * len(KEYS)


def test_what_was_got_at_different_moments_is_renewed_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that it goes to each voter in one message."""
    site = Desks()
    for count_ in range(1, len(KEYS) + 1):
        site.want(KEYS[:count_])
        site.run(site.now + 0.13)
    asked: list[float] = []
    real = LeaseDesk.handle

    def handle(desk: LeaseDesk, event: Event, now: float) -> list[Instruction]:
        if isinstance(event, PeerSaid) and isinstance(event.said, LeaseRequest):
            asked.append(now)
        return real(desk, event, now)

    monkeypatch.setattr(LeaseDesk, "handle", handle)
    site.run(site.now + 1.0)
    asked.clear()
    site.run(site.now + 10.0)
    assert len(asked) == 10 * 2 * len(KEYS)
    assert len(set(asked)) == 10
    assert site.held() == len(KEYS)


def test_all_that_a_liar_granted_is_asked_for_anew_at_once() -> None:
    site = holding()
    desk = site.desks["a"]
    for voter in ("b", "c"):
        desk._lied(KEYS[0], voter, "it granted one twice")
    assert site.held() == 0
    asked = desk.handle(Tick(), site.now)
    anew = {s.said.key for s in asked if isinstance(s, Send) and isinstance(s.said, LeaseRequest)}
    assert anew == set(KEYS)


# ---- the agenda ----

_Key = st.tuples(st.just("w"), st.sampled_from("abcdef"))
_Step = st.tuples(_Key, st.none() | st.integers(0, 30).map(float)) | st.integers(0, 30).map(float)


@given(st.lists(_Step, max_size=300))
def test_an_agenda_forgets_nothing_and_makes_nothing_up(steps: list[object]) -> None:
    agenda, known = Agenda(), dict[Key, float]()
    for step in steps:
        if isinstance(step, tuple):
            key, at = step
            agenda.put(key, at)
            known.pop(key, None)
            if at is not None:
                known[key] = at
        else:
            assert isinstance(step, float)
            due = sorted((at, key) for key, at in known.items() if at <= step)
            assert list(agenda.take(step)) == [key for _, key in due]
            known = {key: at for key, at in known.items() if at > step}
        assert agenda.first() == min(known.values(), default=None)


def test_an_agenda_does_not_grow_with_what_is_put_off() -> None:
    agenda = Agenda()
    for number in range(10_000):
        agenda.put(("w", "r"), float(number))
    assert len(agenda._heap) < 100
    assert agenda.first() == 9_999.0
