"""A world of exclusive replicas: whatever happens, no two of one run at any time.

Used by `rollouts.py` with `--exclusive`. What the nodes of a site settle among themselves is taken
for right here, since it has its own model and simulation: of the stays of a replica at one site one
runs, by a lease that its node gives up when it stops, and loses three seconds after it dies.
Standbys that know of it take it over, at any moment at which they could, by plans of long ago, too.
Nothing but the leader keeps the stays of two sites apart: that is what is looked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from orchestrator.records import AssignmentRecord
from tests.sim.rollouts_agents import Agent, Rec
from tests.sim.rollouts_world import World

LEASE_S = 3.0
LOOK_S = 1.0
TAKEOVER_S = 4.0
HASTE = 0.3
"""The share of looks at which a standby takes over what was only just given up."""

Key = tuple[str, str]


@dataclass(slots=True)
class Lease:
    """Of one replica at one site. `until`: of a holder that is not there any more."""

    node: str
    uid: str
    until: float = float("inf")


class Alone(World):
    """`parts`, by node: what its plan lets it take over. `told_at`: when it got its newest plan."""

    exclusive = True

    def __init__(self, seed: int, verbose: bool = False) -> None:
        self.leases: dict[tuple[str, Key], Lease] = {}
        self.parts: dict[str, dict[Key, AssignmentRecord]] = {}
        self.told_at: dict[str, float] = {}
        self.heard_at: dict[str, float] = {}
        self.ended_at: dict[tuple[str, str], float] = {}
        self.free_since: dict[tuple[str, Key], float] = {}
        self.taken = 0
        super().__init__(seed, verbose)
        self.later(LOOK_S, self._look)

    # --- what agents ask -------------------------------------------------------------------------

    def plan_taken(self, agent: Agent) -> None:
        roles = self.roles.neighbourhood(agent.name).roles
        self.parts[agent.name] = {
            (role.assignment.workload_uid, role.assignment.replica): role.assignment
            for role in roles
            if not role.witness
        }
        self.told_at[agent.name] = self.steady

    def may_start(self, agent: Agent, rec: Rec) -> bool:
        want = rec.want
        if want is None or not want.exclusive:
            return True
        key = (agent.site, (rec.workload_uid, rec.replica))
        if self._is_over(agent, want.record) or not self._may_begin_anew(agent, rec):
            return False
        self._expire(key)
        lease = self.leases.get(key)
        if lease is not None and (lease.node, lease.uid) != (agent.name, rec.uid):
            return False
        if not self._has_majority(agent, want.record):
            return False
        self.leases[key] = Lease(agent.name, rec.uid)
        self._check_alone(rec)
        return True

    def _check_alone(self, rec: Rec) -> None:
        for agent in self.agents.values():
            for other in agent.recs.values():
                same = (other.workload_uid, other.replica) == (rec.workload_uid, rec.replica)
                if same and other is not rec and other.pod is not None and agent.powered:
                    self.broken(f"{rec.replica} starts on {rec.node} and runs on {other.node}")

    def _may_begin_anew(self, agent: Agent, rec: Rec) -> bool:
        """What stopped because its site was cut off starts again by a plan of after that."""
        ended_at = self.ended_at.get((agent.name, rec.uid))
        return ended_at is None or self.told_at.get(agent.name, 0.0) > ended_at

    # --- what a site does by itself --------------------------------------------------------------

    def _look(self) -> None:
        self.later(LOOK_S, self._look)
        for site_key in list(self.leases):
            self._expire(site_key)
        for agent in list(self.agents.values()):
            if agent.powered:
                if agent.connected:
                    self.heard_at[agent.name] = self.steady
                self._stop_isolated(agent)
                self._take_over(agent)

    def _stop_isolated(self, agent: Agent) -> None:
        for rec in list(agent.recs.values()):
            if (
                rec.want is not None
                and rec.want.exclusive
                and self._is_over(agent, rec.want.record)
            ):
                self.ended_at[agent.name, rec.uid] = self.steady
                agent.end(rec, "isolated")

    def _take_over(self, agent: Agent) -> None:
        mine = {(rec.workload_uid, rec.replica) for rec in agent.recs.values()}
        for key, record in list(self.parts.get(agent.name, {}).items()):
            site_key = (agent.site, key)
            if key in mine or site_key in self.leases or not self._has_majority(agent, record):
                continue
            if self._is_over(agent, record) or self._is_wanted_elsewhere(agent, key):
                continue
            free_s = self.steady - self.free_since.setdefault(site_key, self.steady)
            if free_s < TAKEOVER_S and self.dice.random() > HASTE:
                continue
            self._begin(agent, key, record)

    def _begin(self, agent: Agent, key: Key, record: AssignmentRecord) -> None:
        revision = self.mirror.revision_of(record.workload_uid, record.revision)
        if revision is None:
            return
        self.taken += 1
        uid, before = f"s{self.taken:04d}", record.replica_uid
        own = replace(record, replica_uid=uid, epoch=record.epoch + self.taken, replaces="")
        rec = Rec(agent.name, uid, record.namespace, record.replica, record.workload_uid)
        rec.want, rec.takes_over = agent.wants(own, revision), before
        agent.recs[uid] = rec
        self.note(f"{agent.name} takes {record.replica} over as {uid}")
        agent.step(rec)

    def _is_wanted_elsewhere(self, agent: Agent, key: Key) -> bool:
        """Somebody of the site is there and has it, by its plan or by itself."""
        return any(
            (rec.workload_uid, rec.replica) == key and not rec.stop
            for other in self._site(agent)
            if other is not agent
            for rec in other.recs.values()
        )

    # --- looking up ------------------------------------------------------------------------------

    def _expire(self, key: tuple[str, Key]) -> None:
        """A lease ends with its stay, and some time after its node."""
        lease = self.leases.get(key)
        if lease is None:
            return
        agent = self.agents.get(lease.node)
        if agent is not None and agent.powered:
            rec = agent.recs.get(lease.uid)
            gone = rec is None or (rec.pod is None and (rec.stop or self._has_ended(agent, rec)))
            lease.until = self.steady if gone else float("inf")
        elif lease.until == float("inf"):
            lease.until = self.steady + LEASE_S
        if self.steady >= lease.until:
            del self.leases[key]
            self.free_since[key] = self.steady

    def _has_ended(self, agent: Agent, rec: Rec) -> bool:
        return (agent.name, rec.uid) in self.ended_at and not self._may_begin_anew(agent, rec)

    def _site(self, agent: Agent) -> Iterator[Agent]:
        return (a for a in self.agents.values() if a.site == agent.site and a.powered)

    def _has_majority(self, agent: Agent, record: AssignmentRecord) -> bool:
        group = record.group
        assert group is not None
        there = {other.name for other in self._site(agent)}
        return len(there.intersection(group.voters)) >= group.majority or group.forced

    def _is_over(self, agent: Agent, record: AssignmentRecord) -> bool:
        """Its group hears no orchestrator for longer than it may run without."""
        group = record.group
        if group is None or not group.stop_after_s:
            return False
        voters = [other for other in self._site(agent) if other.name in {*group.voters, agent.name}]
        heard_at = max(self.heard_at.get(other.name, 0.0) for other in voters)
        return self.steady - heard_at >= group.stop_after_s
