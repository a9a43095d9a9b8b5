"""Whether this node could take over what its plan gives it a role in: room, images, secrets, ports.

Called by `agent/site/loop.py` after every plan and whenever anything of it changed. Without
effects: what the box has and which images are here comes as arguments. The site's machine adds what
only it knows (the switch, the voters) and tells the peers; whoever is unable is passed over.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.domain import compose
from agent.domain.given import Unresolved, given_by
from agent.domain.plan import Assignment, ParsedPlan, Role
from agent.domain.roster import Key
from agent.domain.site.messages import Ability
from agent.domain.sovereign import Standing
from agent.inventory import Amounts
from polder.manifest import PodTemplate
from polder.manifest.pod import ResourceRequest


@dataclass(frozen=True, slots=True)
class Judged:
    """`message` for operators; empty when it is able."""

    ability: Ability
    message: str = ""


@dataclass(slots=True)
class Taken:
    """What is in use on the node, by what is assigned to it."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    devices: dict[str, int] = field(default_factory=dict)
    ports: set[tuple[int, str]] = field(default_factory=set)

    def add(self, template: PodTemplate) -> None:
        request = request_of(template)
        self.cpu_millis += request.cpu_millis
        self.memory_bytes += request.memory_bytes
        self.disk_bytes += request.disk_bytes
        for name, count in request.devices.items():
            self.devices[name] = self.devices.get(name, 0) + count
        self.ports |= {(port.host_port, port.protocol) for port in template.host_ports()}


class Judge:
    """Keeps only what judging a policy again would cost."""

    def __init__(self, settings: compose.Settings) -> None:
        self._settings = settings
        self._standings: dict[Key, Standing] = {}

    def judge(
        self,
        plan: ParsedPlan,
        allocatable: Amounts,
        image_trouble: Callable[[str], str],
        now: float,
    ) -> list[Judged]:
        """Of every role of the effective plan that is not only a vote. `now`: unix seconds.

        Replicas of one primary are judged as if all of them came at once, as they do when it dies.
        """
        running = {assignment.key for assignment in plan.assignments.values()}
        base = [a.template for a in plan.assignments.values() if a.template is not None]
        taken: dict[str, Taken] = {}
        judged = []
        for key, role in sorted(plan.roles.items()):
            template = role.assignment.template
            if template is None and not role.assignment.error:
                continue
            if key in running:
                judged.append(Judged(Ability(key, True)))
                continue
            if role.primary not in taken:
                taken[role.primary] = _sum_of(base)
            trouble = self._trouble(plan, role, allocatable, taken[role.primary], now)
            if trouble is None and template is not None:
                trouble = _missing(template, image_trouble)
            if trouble is None and template is not None:
                taken[role.primary].add(template)
            judged.append(_judged(key, trouble))
        self._standings = {key: s for key, s in self._standings.items() if key in plan.roles}
        return judged

    def due_s(self, now: float) -> float | None:
        """In how many seconds a policy must be judged anew; None: not by itself."""
        due = [standing.due_s(now) for standing in self._standings.values()]
        return min((seconds for seconds in due if seconds is not None), default=None)

    def _trouble(
        self, plan: ParsedPlan, role: Role, allocatable: Amounts, taken: Taken, now: float
    ) -> tuple[str, str] | None:
        """(reason, message)"""
        wanted = role.assignment
        if wanted.template is None:
            return ("BadTemplate", wanted.error)
        against = self._standing(wanted).judge(wanted, now)
        if against:
            return ("SovereigntyViolation", against)
        try:
            compose.check(self._settings, wanted, wanted.template, given_by(plan))
        except Unresolved as missing:
            return (missing.reason, missing.message)
        return _room(wanted.template, allocatable, taken) or _ports(wanted.template, taken)

    def _standing(self, wanted: Assignment) -> Standing:
        return self._standings.setdefault(wanted.key, Standing())


def deaf(judged: Judged, trouble: str) -> Judged:
    """Of a node that peers cannot speak to, and that would take their silence for their death."""
    return Judged(Ability(judged.ability.key, False, "SitePortUnavailable"), trouble)


def _judged(key: Key, trouble: tuple[str, str] | None) -> Judged:
    if trouble is None:
        return Judged(Ability(key, True))
    return Judged(Ability(key, False, trouble[0]), trouble[1])


def _sum_of(templates: Iterable[PodTemplate]) -> Taken:
    taken = Taken()
    for template in templates:
        taken.add(template)
    return taken


def request_of(template: PodTemplate) -> Amounts:
    """The sum over the containers, which run side by side; or what an init container asks that
    runs before, if that is more. As the orchestrator counts it."""
    together = [container.resources for container in template.containers]
    alone = [[container.resources] for container in template.init_containers]
    each = [_total(requests) for requests in (together, *alone)]
    return Amounts(
        cpu_millis=max(one.cpu_millis for one in each),
        memory_bytes=max(one.memory_bytes for one in each),
        disk_bytes=max(one.disk_bytes for one in each),
        devices={
            name: max(one.devices.get(name, 0) for one in each)
            for name in {name for one in each for name in one.devices}
        },
    )


def _total(requests: list[ResourceRequest]) -> Amounts:
    devices: dict[str, int] = {}
    for request in requests:
        for name, count in request.devices.items():
            devices[name] = devices.get(name, 0) + count
    return Amounts(
        sum(request.cpu for request in requests),
        sum(request.memory for request in requests),
        sum(request.disk for request in requests),
        devices,
    )


def _room(template: PodTemplate, allocatable: Amounts, taken: Taken) -> tuple[str, str] | None:
    request = request_of(template)
    rows = [
        ("mCPU", request.cpu_millis, allocatable.cpu_millis - taken.cpu_millis),
        ("bytes of memory", request.memory_bytes, allocatable.memory_bytes - taken.memory_bytes),
        ("bytes of disk", request.disk_bytes, allocatable.disk_bytes - taken.disk_bytes),
    ]
    for name, count in sorted(request.devices.items()):
        rows.append((name, count, allocatable.devices.get(name, 0) - taken.devices.get(name, 0)))
    for what, wanted, free in rows:
        if wanted > max(0, free):
            return ("NoRoom", f"it needs {wanted} {what}; {max(0, free)} would be free")
    return None


def _ports(template: PodTemplate, taken: Taken) -> tuple[str, str] | None:
    for port in template.host_ports():
        if (port.host_port, port.protocol) in taken.ports:
            return ("HostPortInUse", f"host port {port.host_port} is another replica's")
    return None


def _missing(template: PodTemplate, trouble: Callable[[str], str]) -> tuple[str, str] | None:
    for container in (*template.init_containers, *template.containers):
        why = trouble(container.image)
        if why:
            return ("ImageMissing", f"{container.image}: {why}")
    return None
