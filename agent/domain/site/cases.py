"""All that is known of each shared replica, put together for a judgement.

Part of `machine.py`; `takeover.py` and `exclusive.py` judge.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from agent.domain.plan import Assignment, ParsedPlan
from agent.domain.roster import Group, Key
from agent.domain.site.case import Case, Own
from agent.domain.site.claims import Heard
from agent.domain.site.messages import Ability, Claim, RunsHere, Stay
from agent.domain.site.stays import Stays
from agent.domain.view import Phase, ReplicaView

SERVING = (Phase.RUNNING, Phase.ORPHANED)
OWN_HINDRANCES = ("NoSwitch", "NotMember", "Isolated", "NoVoters")


@dataclass(slots=True)
class Here:
    """What runs on this node, as the runtime said last. `ready`: uid -> since when, by `now`."""

    views: Mapping[str, ReplicaView] = field(default_factory=dict)
    ready: Mapping[str, float] = field(default_factory=dict)
    settled: bool = False

    def saw(self, event: RunsHere, now: float) -> bool:
        """Whether it matters to the site: most of what changes in a view does not."""
        before = (_shown(self.views.values()), self.ready, self.settled)
        ready = {}
        for view in event.views:
            if not view.ready or view.phase not in SERVING:
                continue
            steady = now if event.steady is None else event.steady
            told = view.ready_since + now - steady if view.ready_since else now
            ready[view.uid] = self.ready.get(view.uid, min(told, now))
        self.views = {view.uid: view for view in event.views}
        self.ready, self.settled = ready, event.settled
        return before != (_shown(event.views), ready, event.settled)

    def uids(self) -> set[str]:
        """Of all stays of which something is here."""
        return {uid for uid, view in self.views.items() if view.present}

    def present(self, uid: str) -> bool:
        view = self.views.get(uid)
        return view is not None and view.present

    def runs(self, uid: str) -> bool:
        """A process of it does. After a loss of power the runtime remembers what does not."""
        view = self.views.get(uid)
        return view is not None and _runs(view)


def _runs(view: ReplicaView) -> bool:
    return any(container.state == "running" for container in view.containers)


def _shown(views: Iterable[ReplicaView]) -> set[tuple[str, bool, bool, int]]:
    return {(view.uid, view.present, _runs(view), view.epoch) for view in views}


@dataclass(slots=True)
class _Parts:
    group: Group | None = None
    own: list[Own] = field(default_factory=list)
    stopped: list[Stay] = field(default_factory=list)
    primary: str = ""
    last: Assignment | None = None
    leaving: bool = False


def cases(
    node: str,
    plan: ParsedPlan,
    stays: Stays,
    theirs: Mapping[Key, list[Heard]],
    here: Here,
    operated: Collection[Key] = (),
) -> list[Case]:
    """Of every replica that this node shares or decided on, or that operators did: `operated`."""
    parts: dict[Key, _Parts] = {}
    _of_plan(node, plan, stays, here, parts, operated)
    for stay in stays.all():
        if stay.uid not in plan.assignments:
            part = parts.setdefault(stay.key, _Parts())
            if stay.stop:
                part.stopped.append(stay)
            else:
                part.own.append(_own(stay, stays.saved_epoch(stay.uid), here))
    for view in here.views.values():
        key = (view.workload_uid, view.replica)
        if not view.present or (key not in parts and key not in operated):
            continue
        part = parts.setdefault(key, _Parts())
        decided = stays.get(view.uid)
        if view.uid in plan.stops or (decided is not None and decided.stop):
            part.leaving = True
        elif decided is None and view.uid not in plan.assignments:
            orphan = Stay(key, view.uid, view.epoch, view.takes_over)
            part.own.append(_own(orphan, view.epoch, here))
    return [
        _case(node, key, part, theirs.get(key, []), plan.stops.keys())
        for key, part in parts.items()
    ]


def _of_plan(
    node: str,
    plan: ParsedPlan,
    stays: Stays,
    here: Here,
    parts: dict[Key, _Parts],
    operated: Collection[Key],
) -> None:
    for role in plan.roles.values():
        group = role.assignment.group
        if group is not None:
            parts[role.assignment.key] = _Parts(group, primary=role.primary, last=role.assignment)
    for assigned in plan.assignments.values():
        stay, group = stays.get(assigned.replica_uid), assigned.group
        if group is None and stay is None and assigned.key not in operated:
            continue
        part = parts.setdefault(assigned.key, _Parts())
        if part.last is None or assigned.epoch > part.last.epoch:
            part.group, part.primary, part.last = group, node, assigned
        if stay is not None and stay.stop:
            part.stopped.append(stay)
            continue
        saved = stays.saved_epoch(assigned.replica_uid)
        if stay is None or not stay.leased:
            epoch = max(assigned.epoch, stay.epoch if stay is not None else 0)
            stay = Stay(assigned.key, assigned.replica_uid, epoch)
            saved = max(assigned.epoch, saved or 0)
        part.own.append(_own(stay, saved, here, planned=True))


def _own(stay: Stay, told: int | None, here: Here, *, planned: bool = False) -> Own:
    uid = stay.uid
    return Own(
        uid=uid,
        epoch=stay.epoch,
        planned=planned,
        present=here.present(uid),
        ready_since=here.ready.get(uid),
        takes_over=stay.takes_over,
        told_epoch=told,
        leased=stay.leased,
        runs=here.runs(uid),
    )


def _case(
    node: str, key: Key, part: _Parts, theirs: Iterable[Heard], barred: Collection[str]
) -> Case:
    last = part.last
    return Case(
        node=node,
        key=key,
        group=part.group,
        own=tuple(part.own),
        stopped=tuple(part.stopped),
        theirs=tuple(theirs),
        primary=part.primary,
        last_uid=last.replica_uid if last is not None else "",
        last_epoch=last.epoch if last is not None else 0,
        startable=last is not None and last.template is not None and not last.run_once,
        leaving=part.leaving,
        barred=barred,
    )


def claims_of(
    found: Iterable[Case], now: float, granted_by: Callable[[Key, int], tuple[str, ...]]
) -> list[Claim]:
    """What this node says that it has: what it may run, with the epoch that is saved. `granted_by`:
    who granted it that ballot."""
    claims = []
    for case in found:
        for own in case.own:
            if own.told_epoch is not None:
                ready_for_s = now - own.ready_since if own.ready_since is not None else 0.0
                ready = own.ready_since is not None
                epoch, voters = own.told_epoch, granted_by(case.key, own.told_epoch)
                claims.append(Claim(case.key, own.uid, epoch, ready, ready_for_s, voters))
    return claims


def own_abilities(
    plan: ParsedPlan, lease: Callable[[Key], str], hindrance: Callable[[Key], str | None]
) -> Iterator[Ability]:
    """Of what the plan assigns here: standbys need not wait for who cannot hold it, and who has it
    now makes room when an operator moves it back. `lease`: why this node could not hold it."""
    for key in sorted({a.key for a in plan.assignments.values()} - plan.roles.keys()):
        reason = lease(key)
        if reason in OWN_HINDRANCES:
            yield Ability(key, False, reason)
        elif hindrance(key) == "":
            yield Ability(key, True)


def voters_of(case: Case) -> tuple[str, ...]:
    return case.group.voters if case.group is not None else ()


def may_be_strange(claim: Claim, plan: ParsedPlan) -> bool:
    """Whether a node that goes by an older plan may run it as well, and share no group with us."""
    assigned = plan.assignments.get(claim.uid)
    return assigned is None or bool(assigned.replaces)


def is_exclusive(assignment: Assignment) -> bool:
    return assignment.group is not None and assignment.group.exclusive


def runnable(plan: ParsedPlan, key: Key) -> bool:
    """Whether the plan says what a stay of this replica would run."""
    role = plan.roles.get(key)
    return (role is not None and role.assignment.template is not None) or any(
        a.key == key for a in plan.assignments.values()
    )
