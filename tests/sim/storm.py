"""Ten thousand agents and a few members in virtual time: what happens when all of them knock.

    python -m tests.sim storm --agents 10000 --members 3 --seeds 5 [--case NAME] [--rate 300]

What decides is the real code: the agent's policy (`agent/connection_policy.py`), the member's
admission (`orchestrator/domain/admission.py`) and the order of the list
(`orchestrator/domain/endpoints.py`). Modelled are the network, a member's one core (a handshake and
the begin of a session cost time, also of those who gave up meanwhile) and an agent's patience.

    cold       all members were away for five minutes, and are back at once
    crash      all members die at once, and are back after three seconds
    power      all agents start at one moment
    loss       a region's processes die: connections are reset
    partition  a region is cut off: nothing answers, and agents notice one after the other
    rolling    every member drains, is away for ten seconds, and comes back
    two        two of three regions are lost at once

Told of each: seconds until all agents are in, connections per second at the busiest member, and how
often an agent had to try.
"""

import argparse
import heapq
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agent import connection_policy as policy
from orchestrator.domain.admission import Admission, ComeBack
from orchestrator.domain.endpoints import addresses, nearest
from orchestrator.gateway.settings import GatewaySettings
from orchestrator.records import MemberRecord

HANDSHAKE_S = 0.0012
BEGIN_S = 0.0018
"""Of a member's one core: a TLS handshake; then Hello, Welcome and perhaps a plan. Measured on two
shared cores: 1.6 to 2.3 ms together, a third of it in the threads that do TLS."""
ROUND_TRIP_S = 0.02
NOTICED_S = 13.0
"""A heartbeat goes every 5 s, and is missed after 8 s."""
PLACES = ((50.1, 8.7), (52.4, 4.9), (52.2, 21.0), (38.7, -9.1), (59.3, 18.1))
SETTINGS = GatewaySettings("m", "r", "sim")


@dataclass
class Member:
    name: str
    rate: float
    slowness: float = 1.0
    up: bool = True
    answers: bool = True  # down: connections are refused, or nothing answers
    shaking_until: float = 0.0
    beginning_until: float = 0.0
    life: int = 0
    sessions: set["Agent"] = field(default_factory=set)
    dialled: Counter[int] = field(default_factory=Counter)  # by second
    admitted: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.admission = Admission(self.rate, SETTINGS.greeting_max)

    def stop(self, *, answers: bool) -> None:
        self.up, self.answers = False, answers
        self.life += 1

    def start(self, now: float) -> None:
        self.admission = Admission(self.rate, SETTINGS.greeting_max)
        self.up, self.shaking_until, self.beginning_until = True, now, now

    def shake(self, now: float) -> float:
        """When the handshake is done: one after the other, on half a core while sessions begin."""
        share = 2 if self.beginning_until > now else 1
        self.shaking_until = max(now, self.shaking_until) + share * HANDSHAKE_S * self.slowness
        return self.shaking_until

    def begin(self, now: float) -> float:
        """When the session has begun, likewise."""
        share = 2 if self.shaking_until > now else 1
        self.beginning_until = max(now, self.beginning_until) + share * BEGIN_S * self.slowness
        return self.beginning_until


@dataclass(eq=False)
class Agent:
    name: str
    attempts: policy.Attempts
    member: Member | None = None
    since: float = 0.0
    back_at: float = -1.0
    tries: int = 0


@dataclass(frozen=True)
class Outcome:
    """Of one case and seed. `waited_s`: per affected agent, from the event until it was in."""

    case: str
    seed: int
    affected: int
    in_s: tuple[float, ...]
    missing: int
    tries_mean: float
    tries_max: int
    dials_per_s_max: int
    admitted_per_s_max: int

    def at(self, share: float) -> float:
        return self.in_s[min(len(self.in_s) - 1, int(share * len(self.in_s)))]

    def facts(self) -> dict[str, object]:
        return {
            "case": self.case, "seed": self.seed, "agents": self.affected, "missing": self.missing,
            "p50_s": round(self.at(0.5), 1), "p99_s": round(self.at(0.99), 1),
            "last_s": round(self.in_s[-1], 1), "tries_mean": round(self.tries_mean, 2),
            "tries_max": self.tries_max, "dials_per_s_max": self.dials_per_s_max,
            "admitted_per_s_max": self.admitted_per_s_max,
        }  # fmt: skip


class Storm:
    """The world. Events are callables at a time; the real policies answer them."""

    def __init__(
        self, agents: int, members: int, rate: float, seed: int, slowness: float = 1.0
    ) -> None:
        self.dice = random.Random(seed)
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.members = {f"10.0.0.{n}:7443": Member(f"m{n}", rate, slowness) for n in range(members)}
        records = [
            MemberRecord(m.name, f"r{n}", "1", (address,), (), "", PLACES[n % len(PLACES)])
            for n, (address, m) in enumerate(self.members.items())
        ]
        self.agents = []
        for n in range(agents):
            order = nearest(records, region=f"r{n % members}", coordinates=None, salt=f"node-{n}")
            self.agents.append(Agent(f"node-{n}", policy.Attempts(addresses(order))))

    def at(self, when: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, do))

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, do = heapq.heappop(self._queue)
            do()
        self.now = until

    # --- an agent --------------------------------------------------------------------------------

    def dial(self, agent: Agent) -> None:
        agent.tries += 1
        member = self.members[agent.attempts.endpoint]
        patience = agent.attempts.dial_s
        member.dialled[int(self.now)] += 1
        if not member.up:
            if member.answers:
                self.at(self.now + ROUND_TRIP_S, self.fails(agent))
            else:
                self.at(self.now + patience, self.fails(agent, slow=True))
            return
        done = member.shake(self.now + ROUND_TRIP_S)
        if done > self.now + patience:
            self.at(self.now + patience, self.fails(agent, slow=True))
        else:
            limit, life = self.now + patience + agent.attempts.welcome_s, member.life
            self.at(done, lambda: self.ask(agent, member, limit, life))

    def ask(self, agent: Agent, member: Member, limit: float, life: int) -> None:
        if member.life != life:
            self.fails(agent)()
            return
        answer = member.admission.ask(agent.name, self.now, dice=self.dice.random())
        if isinstance(answer, ComeBack):
            self.goodbye(agent, "Overloaded", answer.retry_s, lived_s=-1.0)
            return
        member.admitted[int(self.now + answer.wait_s)] += 1
        begun = member.begin(self.now + answer.wait_s)
        if begun > limit:
            self.at(limit, self.fails(agent, slow=True))
        else:
            self.at(begun, lambda: self.welcome(agent, member, life))

    def welcome(self, agent: Agent, member: Member, life: int) -> None:
        if member.life != life:
            self.fails(agent)()
            return
        agent.member, agent.since, agent.back_at = member, self.now, self.now
        agent.attempts = policy.at(agent.attempts, agent.attempts.endpoint)
        member.sessions.add(agent)

    def fails(self, agent: Agent, *, slow: bool = False) -> Callable[[], None]:
        def failed() -> None:
            dice = self.dice.random()
            wait = policy.after_failure(agent.attempts, now=self.now, dice=dice, slow=slow)
            self.next(agent, wait)

        return failed

    def breaks(self, agent: Agent, member: Member) -> Callable[[], None]:
        def broke() -> None:
            if agent.member is not member:
                return
            lived = self.leave(agent)
            dice = self.dice.random()
            wait = policy.after_session(agent.attempts, lived_s=lived, now=self.now, dice=dice)
            self.next(agent, wait)

        return broke

    def goodbye(self, agent: Agent, reason: str, retry_s: float, *, lived_s: float) -> None:
        wait = policy.after_goodbye(
            agent.attempts, reason=reason, retry_after_s=retry_s, lived_s=lived_s, now=self.now,
            dice=self.dice.random(),
        )  # fmt: skip
        self.next(agent, wait)

    def leave(self, agent: Agent) -> float:
        assert agent.member is not None
        agent.member.sessions.discard(agent)
        agent.member, agent.back_at = None, -1.0
        return self.now - agent.since

    def next(self, agent: Agent, wait: policy.Wait) -> None:
        agent.attempts = wait.attempts
        self.at(self.now + wait.seconds, lambda: self.dial(agent))

    # --- what befalls members --------------------------------------------------------------------

    def settle(self) -> None:
        """Everybody is where it belongs, and has been for an hour."""
        for agent in self.agents:
            agent.member = self.members[agent.attempts.endpoint]
            agent.member.sessions.add(agent)
            agent.since = -3600.0

    def lose(self, member: Member, *, answers: bool) -> None:
        member.stop(answers=answers)
        for agent in sorted(member.sessions, key=lambda one: one.name):
            noticed = self.dice.uniform(0, 0.05 if answers else NOTICED_S)
            self.at(self.now + noticed, self.breaks(agent, member))

    def drain(self, member: Member, grace_s: float = 5.0) -> None:
        """As AgentGateway.turn_away does."""
        leaving = sorted(member.sessions, key=lambda one: one.name)
        spread_s = len(leaving) / member.rate
        over_s = min(grace_s * SETTINGS.drain_share, spread_s)
        elsewhere = any(one.up for one in self.members.values() if one is not member)
        for n, agent in enumerate(leaving):
            retry_s = 0.0 if elsewhere else 0.2 + self.dice.random() * spread_s
            when = self.now + over_s * n / len(leaving)
            self.at(when, lambda agent=agent, retry_s=retry_s: self.told(agent, retry_s))
        self.at(self.now + grace_s, lambda: self.lose(member, answers=True))

    def told(self, agent: Agent, retry_s: float) -> None:
        if agent.member is not None:
            self.goodbye(agent, "Shutdown", retry_s, lived_s=self.leave(agent))

    def forget(self) -> None:
        for agent in self.agents:
            agent.tries = 0
        for member in self.members.values():
            member.dialled.clear()
            member.admitted.clear()


def cold(storm: Storm) -> float:
    for member in storm.members.values():
        member.stop(answers=True)
    for agent in storm.agents:
        storm.at(storm.dice.uniform(0, 2.0), lambda agent=agent: storm.dial(agent))
    storm.run(300.0)
    storm.forget()
    for member in storm.members.values():
        member.start(storm.now)
    return storm.now


def crash(storm: Storm) -> float:
    storm.settle()
    for member in storm.members.values():
        storm.lose(member, answers=True)
        storm.at(3.0, lambda member=member: member.start(storm.now))
    return 0.0


def power(storm: Storm) -> float:
    for agent in storm.agents:
        storm.at(0.0, lambda agent=agent: storm.dial(agent))
    return 0.0


def loss(storm: Storm) -> float:
    storm.settle()
    storm.lose(next(iter(storm.members.values())), answers=True)
    return 0.0


def partition(storm: Storm) -> float:
    storm.settle()
    storm.lose(next(iter(storm.members.values())), answers=False)
    return 0.0


def two(storm: Storm) -> float:
    storm.settle()
    for member in list(storm.members.values())[:2]:
        storm.lose(member, answers=False)
    return 0.0


def rolling(storm: Storm) -> float:
    storm.settle()
    for n, member in enumerate(storm.members.values()):
        storm.at(n * 45.0, lambda member=member: storm.drain(member))
        storm.at(n * 45.0 + 15.0, lambda member=member: member.start(storm.now))
    return (len(storm.members) - 1) * 45.0


CASES: dict[str, Callable[[Storm], float]] = {
    "cold": cold, "crash": crash, "power": power, "loss": loss, "partition": partition, "two": two,
    "rolling": rolling,
}  # fmt: skip


def play(
    case: str, agents: int, members: int, rate: float, seed: int, slowness: float = 1.0
) -> Outcome:
    """Until two minutes after the event. The rolling restart is measured from its last member.

    A tenth of the agents at members that are ten times as slow is the same storm, and soon over.
    """
    storm = Storm(agents, members, rate, seed, slowness)
    started = CASES[case](storm)
    storm.run(started + 120.0)
    affected = [agent for agent in storm.agents if agent.tries]
    inside = sorted(a.back_at - started for a in affected if a.member is not None)
    tries = [agent.tries for agent in affected]
    values = storm.members.values()
    return Outcome(
        case=case,
        seed=seed,
        affected=len(affected),
        in_s=tuple(inside) or (math.inf,),
        missing=sum(1 for agent in storm.agents if agent.member is None),
        tries_mean=sum(tries) / max(1, len(tries)),
        tries_max=max(tries, default=0),
        dials_per_s_max=max(max(m.dialled.values(), default=0) for m in values if m.up),
        admitted_per_s_max=max(max(m.admitted.values(), default=0) for m in values),
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim storm", description=__doc__)
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--rate", type=float, default=SETTINGS.accept_rate)
    parser.add_argument("--case", choices=tuple(CASES), action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    missing = 0
    for case in options.case or CASES:
        for seed in range(options.first, options.first + options.seeds):
            found = play(case, options.agents, options.members, options.rate, seed)
            missing += found.missing
            facts = found.facts()
            text = (
                json.dumps(facts)
                if options.json
                else "  ".join(f"{key} {value}" for key, value in facts.items())
            )
            print(text, flush=True)
    if missing:
        print(f"{missing} agents did not come back", file=sys.stderr)
    return 1 if missing else 0
