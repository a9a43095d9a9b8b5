"""Puts together what is known of each shared replica, for `takeover.py` to judge. Part of
`machine.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.domain.plan import Assignment, ParsedPlan
from agent.domain.roster import Group, Key
from agent.domain.site.claims import Heard
from agent.domain.site.messages import Claim, RunsHere, Stay
from agent.domain.site.stays import Stays
from agent.domain.site.takeover import Case, Own
from agent.domain.view import Phase, ReplicaView

SERVING = (Phase.RUNNING, Phase.ORPHANED)


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

    def present(self, uid: str) -> bool:
        view = self.views.get(uid)
        return view is not None and view.present


def _shown(views: Iterable[ReplicaView]) -> set[tuple[str, bool, int]]:
    return {(view.uid, view.present, view.epoch) for view in views}


@dataclass(slots=True)
class _Parts:
    group: Group | None = None
    own: list[Own] = field(default_factory=list)
    stopped: list[Stay] = field(default_factory=list)
    primary: str = ""
    last: Assignment | None = None


def cases(
    node: str, plan: ParsedPlan, stays: Stays, theirs: Mapping[Key, list[Heard]], here: Here
) -> list[Case]:
    """Of every replica that is not exclusive and that this node shares, or decided on."""
    parts: dict[Key, _Parts] = {}
    _of_plan(node, plan, stays, here, parts)
    for stay in stays.all():
        if stay.uid not in plan.assignments and not is_exclusive(plan, stay.key):
            part = parts.setdefault(stay.key, _Parts())
            if stay.stop:
                part.stopped.append(stay)
            else:
                told = stays.saved_epoch(stay.uid)
                part.own.append(_own(stay.uid, stay.epoch, told, here, stay.takes_over))
    for view in here.views.values():
        named = view.uid in plan.assignments or view.uid in plan.stops or stays.get(view.uid)
        key = (view.workload_uid, view.replica)
        if view.present and not named and key in parts:
            own = _own(view.uid, view.epoch, view.epoch, here, view.takes_over)
            parts[key].own.append(own)
    return [_case(key, part, theirs.get(key, [])) for key, part in parts.items()]


def _of_plan(
    node: str, plan: ParsedPlan, stays: Stays, here: Here, parts: dict[Key, _Parts]
) -> None:
    for role in plan.roles.values():
        group = role.assignment.group
        if group is not None and not group.exclusive:
            parts[role.assignment.key] = _Parts(group, primary=role.primary, last=role.assignment)
    for assigned in plan.assignments.values():
        stay, group = stays.get(assigned.replica_uid), assigned.group
        if (group is None and stay is None) or (group is not None and group.exclusive):
            continue
        part = parts.setdefault(assigned.key, _Parts())
        if part.last is None or assigned.epoch > part.last.epoch:
            part.group, part.primary, part.last = group, node, assigned
        if stay is not None and stay.stop:
            part.stopped.append(stay)
            continue
        epoch = max(assigned.epoch, stay.epoch if stay is not None else 0)
        told = max(assigned.epoch, stays.saved_epoch(assigned.replica_uid) or 0)
        part.own.append(_own(assigned.replica_uid, epoch, told, here, planned=True))


def is_exclusive(plan: ParsedPlan, key: Key) -> bool:
    """Whether a lease decides who has it."""
    role = plan.roles.get(key)
    found = [a for a in plan.assignments.values() if a.key == key]
    found += [role.assignment] if role is not None else []
    return any(a.group is not None and a.group.exclusive for a in found)


def _own(
    uid: str,
    epoch: int,
    told: int | None,
    here: Here,
    takes_over: str = "",
    *,
    planned: bool = False,
) -> Own:
    return Own(uid, epoch, planned, here.present(uid), here.ready.get(uid), takes_over, told)


def _case(key: Key, part: _Parts, theirs: Iterable[Heard]) -> Case:
    last = part.last
    return Case(
        key=key,
        group=part.group,
        own=tuple(part.own),
        stopped=tuple(part.stopped),
        theirs=tuple(theirs),
        primary=part.primary,
        last_uid=last.replica_uid if last is not None else "",
        last_epoch=last.epoch if last is not None else 0,
        startable=last is not None and last.template is not None and not last.run_once,
    )


def claims_of(found: Iterable[Case], now: float) -> list[Claim]:
    """What this node says that it has: what it may run, with the epoch that is saved."""
    claims = []
    for case in found:
        for own in case.own:
            if own.told_epoch is not None:
                ready_for_s = now - own.ready_since if own.ready_since is not None else 0.0
                ready = own.ready_since is not None
                claims.append(Claim(case.key, own.uid, own.told_epoch, ready, ready_for_s))
    return claims
