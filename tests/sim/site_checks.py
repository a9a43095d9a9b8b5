"""What must hold at a site at every moment of true time, whatever its boxes believe.

Of an exclusive replica:

- there is never a process of it while one of another stay of it runs, on whichever node;
- what it writes to a register that all share is never below what was written there before, and
  no two stays write the same number;
- no process of it begins that the dead-man's switch was not told of.

Of any replica:

- it does not begin where it is known for a while that operators stopped it, and is not taken over
  where it is known that they froze the site.

Of one that is not:

- no stay yields to another but to one that is ready and stands above it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from agent.domain.instructions import Operation, StartContainer, StopContainer
from agent.domain.plan import ParsedPlan
from agent.domain.roster import Key
from agent.domain.site.messages import Stay
from agent.domain.view import ReplicaView
from polder import epochs
from polder.overrides import SITE
from tests.sim.site_box import Process
from tests.sim.site_operators import Heeded
from tests.sim.site_world import Violation, World

# How old a winner's readiness may be that a yielding stay rests on: a claim and a beat are under
# way for that long on a bad day.
BELIEVED_S = 10.0
UNDER_WAY_S = 5.0  # what was asked of a runtime before


@dataclass(slots=True)
class Written:
    """The register's last entry for one replica."""

    epoch: int
    node: str
    uid: str


@dataclass(slots=True)
class Seen:
    """One stay as its node last showed it, and when it was last ready."""

    epoch: int
    ready: bool
    ready_at: float


class Checks:
    """One for the whole site. `exclusive`: those replicas of which there is at most one."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.exclusive: set[Key] = set()
        self.running: dict[Key, dict[str, Process]] = {}
        self.register: dict[Key, Written] = {}
        self.stays: dict[Key, dict[tuple[str, str], Seen]] = {}
        self.begun: dict[Key, int] = {}
        self.armed: Callable[[str, str], bool] = lambda node, uid: True
        self.heeded = Heeded()
        self._taken: set[tuple[str, str]] = set()
        self._stopped: set[str] = set()  # by the orchestrator's word, whatever stands above them
        self._epochs: dict[tuple[str, str], tuple[Key, int]] = {}

    # ---- processes ----

    def began(self, process: Process) -> None:
        key, world = process.key, self.world
        world.tell(f"{process.node} runs {process.uid} of {key[1]}")
        self.begun[key] = self.begun.get(key, 0) + 1
        if (known_s := self.heeded.for_s(process.node, key, world.now)) > UNDER_WAY_S:
            raise Violation(
                f"{process.uid} begins on {process.node}, which knows for {known_s:.1f} s that "
                f"{key[1]} is stopped"
            )
        others = self.running.setdefault(key, {})
        if key in self.exclusive:
            for other in others.values():
                if (other.node, other.uid) != (process.node, process.uid):
                    self.both(key, process, other)
            if not self.armed(process.node, process.uid):
                raise Violation(f"{process.uid} begins on {process.node}, and is not armed")
        others[process.container] = process
        known = self._epochs.get((process.node, process.uid))
        if known is not None:
            self._write(process.node, process.uid, key, known[1])

    def ended(self, process: Process) -> None:
        self.world.tell(f"{process.node} runs {process.uid} of {process.key[1]} no more")
        self.running.get(process.key, {}).pop(process.container, None)

    def both(self, key: Key, process: Process, other: Process) -> None:
        raise Violation(
            f"two of {key[1]}: {other.uid} on {other.node} runs, "
            f"{process.uid} on {process.node} begins"
        )

    def fell(self, text: str) -> None:
        raise Violation(text)

    def told(self, node: str, reason: str, message: str) -> None:
        """An event for operators."""
        if reason in ("VoterLied", "HeldTwice", "LeaseDoubted"):
            raise Violation(f"{node} tells {reason}, and nobody lied: {message}")

    def _write(self, node: str, uid: str, key: Key, epoch: int) -> None:
        if key not in self.exclusive:
            return
        last = self.register.get(key)
        if last is not None and (last.node, last.uid) != (node, uid) and epoch <= last.epoch:
            self.fell(
                f"{uid} on {node} writes {epochs.shown(epoch)} of {key[1]} after "
                f"{last.uid} on {last.node} wrote {epochs.shown(last.epoch)}"
            )
            return
        if last is not None and epoch < last.epoch:
            self.fell(f"the epoch of {uid} on {node} fell to {epochs.shown(epoch)}")
            return
        self.register[key] = Written(epoch, node, uid)

    # ---- what an agent has in mind ----

    def effective(self, node: str, plan: ParsedPlan) -> None:
        """What its supervisor is given: a running stay learns its epoch from it."""
        for uid, assignment in plan.assignments.items():
            key, epoch = assignment.key, assignment.epoch
            if uid in plan.held or self._epochs.get((node, uid)) == (key, epoch):
                continue
            self._epochs[node, uid] = (key, epoch)
            runs = self.running.get(key, {}).values()
            if any((other.node, other.uid) == (node, uid) for other in runs):
                self._write(node, uid, key, epoch)

    def planned(self, plan: ParsedPlan) -> None:
        """What the orchestrator says."""
        self._stopped |= plan.stops.keys()

    def decided(self, node: str, before: tuple[Stay, ...], after: tuple[Stay, ...]) -> None:
        self._freeze_is_kept(node, after)
        known = set(before)
        for stay in after:
            if stay not in known:
                seen = self.stays.get(stay.key, {}).get((node, stay.uid))
                if seen is not None:
                    seen.epoch = max(seen.epoch, stay.epoch)
                how = f"stop {stay.stop}" if stay.stop else "run"
                self.world.tell(
                    f"{node} decides: {how} {stay.uid} of {stay.key[1]} "
                    f"with {epochs.shown(stay.epoch)} {stay.message}"
                )
        for stay in before:
            if stay.uid not in {s.uid for s in after}:
                self.world.tell(
                    f"{node} decides: nothing about {stay.uid} of {stay.key[1]} any more"
                )

    def _freeze_is_kept(self, node: str, after: tuple[Stay, ...]) -> None:
        for stay in after:
            if stay.stop or not stay.takes_over or (node, stay.uid) in self._taken:
                continue
            self._taken.add((node, stay.uid))
            if (known_s := self.heeded.for_s(node, SITE, self.world.now)) > UNDER_WAY_S:
                raise Violation(
                    f"{node} takes {stay.key[1]} over, and knows for {known_s:.1f} s that the "
                    "site is frozen"
                )

    def views(self, node: str, views: tuple[ReplicaView, ...]) -> None:
        """What its supervisor shows."""
        for view in views:
            stays = self.stays.setdefault((view.workload_uid, view.replica), {})
            seen = stays.setdefault((node, view.uid), Seen(view.epoch, False, float("-inf")))
            if seen.ready or view.ready:
                seen.ready_at = self.world.now
            seen.epoch, seen.ready = max(seen.epoch, view.epoch), view.ready

    def forgot(self, node: str) -> None:
        """Its disk is lost, and with it to what epochs it raised what it runs."""
        for stays in self.stays.values():
            for (name, _), seen in stays.items():
                if name == node:
                    seen.epoch = 0

    def ordered(self, node: str, operation: Operation) -> None:
        """What its supervisor asks of the runtime."""
        if isinstance(operation, StopContainer) and operation.cause == "Superseded":
            self._yields(node, operation.uid)
        elif isinstance(operation, StartContainer):
            pass

    def _yields(self, node: str, uid: str) -> None:
        key = next((k for k, stays in self.stays.items() if (node, uid) in stays), None)
        if key is None or key in self.exclusive or uid in self._stopped:
            return
        stays = self.stays[key]
        own = stays[node, uid]
        for (other, _), seen in stays.items():
            if seen is own or (seen.epoch, other) <= (own.epoch, node):
                continue
            if seen.ready or seen.ready_at >= self.world.now - BELIEVED_S:
                return
        raise Violation(f"{uid} of {key[1]} on {node} yields, and no ready one stands above it")
