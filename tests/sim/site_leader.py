"""A model of the orchestrator, as far as a site notices it: plans that come late, or not at all.

It decides at rising revisions, places replicas with their groups, moves them, changes who votes,
adopts what the site did, deletes. Who has which role is computed by the real code, and every plan
goes through the agent's own acceptance; old ones are sent again at times. It knows only what
reaches it.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from agent.domain.plan import Accepted, Refused, consider
from agent.domain.roster import Key
from agent.domain.view import ReplicaView
from orchestrator.domain.adoption import Case, Verdict, judge, raised
from orchestrator.domain.roles import peers_of, roles_of
from orchestrator.records import AssignmentRecord, ElectorateRecord, GroupRecord, NodePlacement
from orchestrator.scheduling.groups import BEFORE_MAX
from polder import epochs
from polder.identity import NodeId
from polder.overrides import FROZEN, PLACED_ON, Override, Register, newer, to_message
from polder.overrides import SITE as ANYWHERE
from polder.succession import Contender
from polder.v1 import plan_pb2
from tests.sim.site_node import Node
from tests.sim.site_world import Violation, World

TICK_S = 1.0
HEARTBEAT_S = 5.0
DOMAIN, SITE = "sim", "s"
_PROBE = {"exec": {"command": ["check"]}, "period": "2s", "failureThreshold": 3}


def template(grace: str, *, probed: bool) -> bytes:
    probes = {"readinessProbe": _PROBE} if probed else {}
    container = {"name": "app", "image": "app:1", **probes}
    return json.dumps({"containers": [container], "stopGrace": grace}).encode()


@dataclass(slots=True)
class Replica:
    """What an operator wants."""

    key: Key
    exclusive: bool
    on_return: str
    stop_after_s: float
    template: bytes
    deleted: bool = False


@dataclass(slots=True)
class Report:
    """What a node last said. `local`: uid -> the stay that it takes over."""

    views: tuple[ReplicaView, ...]
    local: dict[str, str] = field(default_factory=dict)
    at: float = 0.0


def key_of(item: AssignmentRecord) -> Key:
    return (item.workload_uid, item.replica)


class Leader:
    """`reachable`: nodes whose uplink works, if the orchestrator runs at all."""

    def __init__(self, world: World, nodes: Iterable[Node]) -> None:
        self.world = world
        self._dice = world.own_dice("leader")
        self.nodes = {node.name: node for node in nodes}
        self.reachable = set(self.nodes)
        self.present = True
        self.revision = 100
        self.replicas: dict[Key, Replica] = {}
        self.placements: dict[str, dict[str, AssignmentRecord]] = {n: {} for n in self.nodes}
        self.stops: dict[str, dict[str, tuple[Key, str]]] = {name: {} for name in self.nodes}
        self.reports: dict[str, Report] = {}
        self.groups: dict[Key, list[GroupRecord]] = {}
        self._plans: dict[str, list[bytes]] = {name: [] for name in self.nodes}
        self._content: dict[str, bytes] = {}
        self.overrides: dict[Register, Override] = {}
        self._uids = 0
        self._changes, self._composed = 0, -1
        self._blank: set[str] = set()  # joined again, and know nothing
        world.after(0.0, self._tick)
        for name in self.nodes:
            world.after(self._dice.between(0, HEARTBEAT_S), self._heartbeat, name)

    # ---- decisions ----

    def decide(self) -> int:
        """The revision at which something is decided."""
        self.revision += 1
        return self.revision

    def place(self, replica: Replica, members: tuple[str, ...], witnesses: tuple[str, ...]) -> None:
        self.replicas[replica.key] = replica
        number = epochs.decided_at(self.decide())
        group = GroupRecord(
            number, members, witnesses, replica.exclusive, replica.on_return, replica.stop_after_s
        )
        self.groups[replica.key] = [group]
        self._put(members[0], self._stay(replica.key, number, group))

    def _stay(
        self, key: Key, epoch: int, group: GroupRecord, uid: str = "", replaces: str = ""
    ) -> AssignmentRecord:
        if not uid:
            self._uids += 1
            uid = f"u{self._uids}"
        return AssignmentRecord(
            "d", key[1].rpartition("-")[0], key[0], key[1], uid, epoch, 1,
            standbys=group.members[1:], replaces=replaces, group=group,
        )  # fmt: skip

    def _put(self, node: str, item: AssignmentRecord) -> None:
        self._changes += 1
        self.stops[node].pop(item.replica_uid, None)
        self.placements[node][item.replica_uid] = item

    def stays(self, key: Key) -> list[tuple[str, AssignmentRecord]]:
        """Where it is assigned; the one that counts comes last."""
        found = [
            (node, item)
            for node, items in self.placements.items()
            for item in items.values()
            if key_of(item) == key
        ]
        return sorted(found, key=lambda pair: pair[1].epoch)

    def _group(self, item: AssignmentRecord) -> GroupRecord:
        assert item.group is not None
        return item.group

    def move(self, key: Key, target: str) -> None:
        """To another node: a new stay, and a stop for the old one at once if there may be but one.
        A group that does not have the target is followed by one that has."""
        stays = self.stays(key)
        if not stays or self._frozen():
            return
        node, item = stays[-1]
        group, exclusive = self._group(item), self.replicas[key].exclusive
        if node == target or (
            exclusive and not (node in self._heard() and self._can_change(group))
        ):
            return
        self.world.tell(f"leader moves {key[1]} from {node} to {target}")
        epoch = epochs.decided_at(self.decide())
        if target in group.members:
            group = _first(group, target)
        else:
            members = (target, *(m for m in group.members if m != node))
            group = self._after(key, group, epoch, members, group.witnesses)
        replaces = "" if exclusive else item.replica_uid
        if exclusive:
            self._stop(node, item.replica_uid, key, "Moved")
        self._put(target, self._stay(key, epoch, group, replaces=replaces))

    def _can_change(self, group: GroupRecord) -> bool:
        """Whether it can be sealed, as far as is known."""
        return len(self._heard() & set(group.voters)) >= group.majority

    def _after(
        self,
        key: Key,
        group: GroupRecord,
        number: int,
        members: tuple[str, ...],
        witnesses: tuple[str, ...],
    ) -> GroupRecord:
        """As `orchestrator/scheduling/groups.py` makes it."""
        witnesses = tuple(w for w in witnesses if w not in members)
        former = (*group.before, ElectorateRecord(group.number, group.voters))
        fresh = replace(
            group,
            number=number,
            members=members,
            witnesses=witnesses,
            before=former[-BEFORE_MAX:] if group.exclusive else (),
        )
        self.world.tell(f"leader: {epochs.shown(number)} of {key[1]} is {members} + {witnesses}")
        self.groups[key].append(fresh)
        return fresh

    def _stop(self, node: str, uid: str, key: Key, cause: str) -> None:
        self._changes += 1
        self.placements[node].pop(uid, None)
        self.stops[node][uid] = (key, cause)
        self.world.tell(f"leader stops {uid} on {node}: {cause}")

    def regroup(self, key: Key, members: tuple[str, ...], witnesses: tuple[str, ...]) -> None:
        """Others vote from now on. The holder stays if it may."""
        stays = self.stays(key)
        if not stays:
            return
        node, item = stays[-1]
        group = self._group(item)
        members = (node, *(m for m in members if m != node))
        same = set(group.voters) == {*members, *witnesses}
        if same or (group.exclusive and not self._can_change(group)):
            return
        number = epochs.decided_at(self.decide())
        fresh = self._after(key, group, number, members, witnesses)
        self._put(node, replace(item, group=fresh, standbys=members[1:]))

    def joins_again(self, name: str) -> None:
        """Its disk is lost. It gets no plan before all groups that it votes in have other numbers:
        what it promised in those is not known to anybody who is sure to be asked."""
        self._blank.add(name)

    def _renumber(self, name: str) -> bool:
        """Whether all of them have."""
        stale = [
            key
            for key, groups in self.groups.items()
            if self.replicas[key].exclusive and name in groups[-1].voters and self.stays(key)
        ]
        if not all(self._can_change(self.groups[key][-1]) for key in stale):
            return False
        for key in stale:
            node, item = self.stays(key)[-1]
            group = self._group(item)
            number = epochs.decided_at(self.decide())
            fresh = self._after(key, group, number, group.members, group.witnesses)
            self._put(node, replace(item, group=fresh))
        self._blank.discard(name)
        return True

    def delete(self, key: Key) -> None:
        self.replicas[key].deleted = True
        self.world.tell(f"leader deletes {key[1]}")

    # ---- what it hears ----

    def _heard(self) -> set[str]:
        return {name for name in self.reachable if self.present and name in self.reports}

    def _heartbeat(self, name: str) -> None:
        if self.present and name in self.reachable and self.nodes[name].listening():
            self.world.after(self._dice.between(0.01, 0.2), self.nodes[name].hear_orchestrator)
        self.world.after(HEARTBEAT_S, self._heartbeat, name)

    def _hear(self) -> None:
        for name in self.nodes:
            agent = self.nodes[name].agent
            if name not in self.reachable or agent is None or agent.frozen:
                self.reports.pop(name, None)
            elif name in self._blank:
                self.reports[name] = Report((), {}, self.nodes[name].now())
            elif agent.settled:
                if name not in self.reports:
                    self.nodes[name].hear_orchestrator()  # a session is open
                local = {s.uid: s.takes_over for s in agent.stays if s.takes_over and not s.stop}
                self.reports[name] = Report(agent.views, local, self.nodes[name].now())
                self._merge(agent.machine.overrides())

    def _merge(self, told: Iterable[Override]) -> None:
        """What operators of the site decided, by the rule that all go by."""
        for override in newer(told, self.overrides):
            self.overrides[override.register] = override
            self._changes += 1

    def _take_back(self) -> None:
        """What was moved is where it was to be: that is a record now, and no override any more."""
        for override in list(self.overrides.values()):
            stays = self.stays(override.subject) if override.field == PLACED_ON else []
            if not stays or stays[-1][0] != override.value:
                continue
            if override.stands and stays[-1][1].epoch > override.base_epoch:
                done = replace(override, value="", stamp=override.stamp + 1, node="", id="")
                self._merge([done])

    def asked(self, key: Key) -> str:
        """The node to which operators moved it."""
        found = self.overrides.get((*key, PLACED_ON))
        return found.value if found is not None else ""

    def _frozen(self) -> bool:
        found = self.overrides.get((*ANYWHERE, FROZEN))
        return found is not None and found.stands

    def _views(self, key: Key) -> Iterator[tuple[str, ReplicaView]]:
        for name in sorted(self._heard()):
            for view in self.reports[name].views:
                if (view.workload_uid, view.replica) == key:
                    yield name, view

    # ---- a turn ----

    def _tick(self) -> None:
        self.world.after(TICK_S, self._tick)
        if not self.present:
            self.reports.clear()
            return
        self._hear()
        for key, replica in self.replicas.items():
            if replica.deleted:
                self._remove(key)
            else:
                self._adopt(key, replica)
                self._retire(key, replica)
        self._forget_stops()
        self._take_back()
        for name in sorted(self._blank & self._heard()):
            self._renumber(name)
        for name in self.nodes:
            if self._composed != self._changes:
                self._compose(name)
            if name in self.reachable and name not in self._blank:
                self._offer(name)
        self._composed = self._changes

    def _remove(self, key: Key) -> None:
        for node, item in self.stays(key):
            self._stop(node, item.replica_uid, key, "WorkloadDeleted")
        for node, view in self._views(key):
            if view.uid not in self.stops[node]:
                self._stop(node, view.uid, key, "WorkloadDeleted")

    def _adopt(self, key: Key, replica: Replica) -> None:
        """What the site did stands, as `orchestrator/domain/adoption.py` has it."""
        stays = self.stays(key)
        if not stays:
            return
        local = [
            (view.epoch, name, view)
            for name, view in self._views(key)
            if view.uid in self.reports[name].local
            and view.uid not in self.placements[name]
            and view.uid not in self.stops[name]
        ]
        for _, name, view in sorted(local, key=lambda n: n[:2], reverse=True)[:1]:
            node, item = self.stays(key)[-1]
            match judge(self._case(key, node, item, name, view)):
                case Verdict.ADOPT:
                    for other, old in stays:
                        self._stop(other, old.replica_uid, key, "TakenOver")
                    self._take(key, item, name, view, "")
                case Verdict.ADOPT_BESIDE:
                    self._take(key, item, name, view, item.replica_uid)
                case Verdict.KEEP:
                    epoch = raised(self.decide(), item.epoch, view.epoch)
                    self._put(node, replace(item, epoch=epoch))
                    self._stop(name, view.uid, key, "TakenOver")
                case Verdict.WAIT:
                    pass

    def _take(
        self, key: Key, item: AssignmentRecord, name: str, view: ReplicaView, replaces: str
    ) -> None:
        self.decide()
        self.world.tell(f"leader adopts {view.uid} of {key[1]} on {name}")
        group = self._group(item)
        self._put(name, self._stay(key, view.epoch, _first(group, name), view.uid, replaces))

    def _case(
        self, key: Key, node: str, item: AssignmentRecord, other: str, local: ReplicaView
    ) -> Case:
        there = [v for n, v in self._views(key) if n == node and v.uid == item.replica_uid]
        return Case(
            node=node,
            record=item,
            epoch=max([item.epoch, *(v.epoch for v in there)]),
            heard=node in self._heard(),
            serves=any(v.ready for v in there),
            ready_for_s=max((self._ready_for_s(node, v) for v in there), default=0.0),
            local=Contender(
                other, local.uid, local.epoch, local.ready, self._ready_for_s(other, local)
            ),
            same_site=True,
            asked=self.asked(key),
        )

    def _ready_for_s(self, node: str, view: ReplicaView) -> float:
        return self.reports[node].at - view.ready_since if view.ready_since else 0.0

    def _retire(self, key: Key, replica: Replica) -> None:
        """What is not what counts ends once that is ready, assigned or not."""
        stays = self.stays(key)
        if not stays:
            return
        name, newest = stays[-1]
        counts = [v for n, v in self._views(key) if n == name and v.uid == newest.replica_uid]
        if any(view.ready for view in counts):
            for node, item in stays[:-1]:
                self._stop(node, item.replica_uid, key, "Moved")
            for node, view in self._views(key):
                known = view.uid in self.placements[node] or view.uid in self.stops[node]
                if not known and view.epoch <= max(newest.epoch, counts[0].epoch):
                    self._stop(node, view.uid, key, "NotNeeded")

    def _forget_stops(self) -> None:
        for node in sorted(self._heard()):
            agent = self.nodes[node].agent
            if agent is not None and agent.plan is not None:
                for uid in agent.reconciler.gone():
                    if uid in agent.plan.stops and uid in self.stops[node]:
                        del self.stops[node][uid]
                        self._changes += 1

    # ---- plans ----

    def _compose(self, name: str) -> None:
        every = [NodePlacement(n, 1, tuple(i.values())) for n, i in self.placements.items()]
        message = plan_pb2.NodePlan(
            node=name,
            site=SITE,
            trust_domain=DOMAIN,
            issued_at_ms=1_795_305_600_000,
            endpoints=["127.0.0.1:7443"],
            autonomy_ms=7 * 86_400_000,
        )
        for item in self.placements[name].values():
            message.assignments.append(self._assignment(item, whole=True))
        for role in roles_of(name, every):
            told = self._assignment(role.assignment, whole=not role.witness)
            message.standby_roles.add(primary=role.primary, assignment=told)
        for uid, (key, cause) in self.stops[name].items():
            message.stops.add(namespace="d", replica=key[1], replica_uid=uid, cause=cause)
        for peer in peers_of(name, every):
            message.roster.add(node=peer, endpoints=[f"{peer}:7445"], certificate=peer.encode())
        told_keys = {ANYWHERE, *(key_of(i) for i in self.placements[name].values())}
        told_keys |= {key_of(role.assignment) for role in roles_of(name, every)}
        for _, override in sorted(self.overrides.items()):
            if override.subject in told_keys:
                message.overrides.append(to_message(override))
        message.assignment_count = len(message.assignments)
        message.stop_count = len(message.stops)
        message.standby_role_count = len(message.standby_roles)
        content = message.SerializeToString(deterministic=True)
        if content != self._content.get(name):
            self._content[name] = content
            message.generation = self.decide()
            self._plans[name].append(message.SerializeToString())

    def _assignment(self, item: AssignmentRecord, *, whole: bool) -> plan_pb2.Assignment:
        group = self._group(item)
        return plan_pb2.Assignment(
            namespace=item.namespace,
            workload=item.workload,
            workload_uid=item.workload_uid,
            replica=item.replica,
            replica_uid=item.replica_uid,
            epoch=item.epoch,
            revision=item.revision,
            template_json=self.replicas[key_of(item)].template if whole else b"",
            standbys=item.standbys,
            replaces=item.replaces,
            group=plan_pb2.FailoverGroup(
                number=group.number,
                members=group.members,
                witnesses=group.witnesses,
                exclusive=group.exclusive,
                on_return=group.on_return,
                stop_after_ms=int(group.stop_after_s * 1000),
                before=[
                    plan_pb2.Electorate(number=former.number, voters=former.voters)
                    for former in group.before
                ],
            ),
        )

    def _offer(self, name: str) -> None:
        node, plans = self.nodes[name], self._plans[name]
        if not plans or not node.listening():
            return
        if node.plan is None or node.plan.payload != plans[-1]:
            self.world.after(self._dice.between(0.01, 0.6), self._deliver, name, plans[-1])
        elif len(plans) > 1 and self._dice.random() < 0.02:
            self._deliver(name, self._dice.choice(plans))

    def _deliver(self, name: str, payload: bytes) -> None:
        node = self.nodes[name]
        if name not in self.reachable or not node.listening() or name in self._blank:
            return
        node.hear_orchestrator()
        answer = consider(node.plan, NodeId(DOMAIN, SITE, name), payload)
        if isinstance(answer, Accepted):
            self.world.tell(f"{name} accepts plan {answer.plan.generation}")
            node.accept(answer.plan)
        elif isinstance(answer, Refused) and answer.reason != "Stale":
            raise Violation(f"{name} refuses a plan: {answer.message}")


def _first(group: GroupRecord, node: str) -> GroupRecord:
    """The same voters; another is the primary."""
    return replace(group, members=(node, *(m for m in group.members if m != node)))
