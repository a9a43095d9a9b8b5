"""The desk of leases alone, in the place of a site's machine: every member always wants to hold.

That is harsher than the machine is, which lets the others wait while the holder is heard: here all
of them ask the voters all the time. What the machine adds is kept to the least that runs a holder:
arm, start, stop gracefully at its time, give back when nothing is left.
"""

from collections.abc import Iterator
from itertools import count

from agent.domain.plan import ParsedPlan
from agent.domain.roster import Key
from agent.domain.site.identifying import stay_uid
from agent.domain.site.lease import STOP_S, LeaseDesk
from agent.domain.site.messages import (
    Arm,
    Beat,
    Decide,
    Disarm,
    Event,
    Instruction,
    PeerClosed,
    PeerOpened,
    PlanInUse,
    RunsHere,
    Send,
    Stay,
    Stopping,
    SwitchChanged,
)
from polder.overrides import Override

BEAT_S = 1.0


class DeskMachine:
    """As `Machine` in site_node.py."""

    def __init__(self, node: str) -> None:
        self._node = node
        tokens: Iterator[int] = count(1)
        self._desk = LeaseDesk(node, tokens)
        self._desk.alone_since = None
        self._plan: ParsedPlan | None = None
        self._open: set[str] = set()
        self._present: dict[Key, set[str]] = {}
        self._settled = False
        self._switch = False
        self._stays: dict[Key, Stay] = {}
        self._armed: dict[str, float] = {}
        self._owners: dict[str, Key] = {}  # of what is armed
        self._decided: tuple[Stay, ...] | None = None
        self._beat_at = self._last = 0.0

    def handle(self, event: Event, now: float) -> list[Instruction]:
        self._last = now
        out = self._desk.handle(event, now)
        match event:
            case PlanInUse(plan):
                self._plan, self._decided = plan, None
            case PeerOpened(node):
                self._open.add(node)
            case PeerClosed(node):
                self._open.discard(node)
            case RunsHere(views, settled):
                self._settled, self._present = settled, {}
                for view in views:
                    if view.present:
                        key = (view.workload_uid, view.replica)
                        self._present.setdefault(key, set()).add(view.uid)
            case SwitchChanged(alive):
                self._switch = alive
            case Stopping():
                out += self._desk.restarting(now)
        if now >= self._beat_at:
            self._beat_at = now + BEAT_S
            out += [Send(peer, Beat()) for peer in sorted(self._open)]
        return out + self._look(now)

    def next_due(self) -> float | None:
        ends = [until - STOP_S for until in self._armed.values()]
        dues = [self._desk.next_due(), self._beat_at, *(e for e in ends if e > self._last)]
        return min(due for due in dues if due is not None)

    def overrides(self) -> tuple[Override, ...]:
        """Nobody decides anything here."""
        return ()

    def _keys(self, plan: ParsedPlan) -> dict[Key, str]:
        """What this node may hold, with the uid that the plan gives it."""
        assigned = {a.key: a for a in sorted(plan.assignments.values(), key=lambda a: a.epoch)}
        roles = {key: role.assignment for key, role in plan.roles.items()}
        return {
            key: item.replica_uid if key in assigned else ""
            for key, item in (roles | assigned).items()
            if item.group is not None and item.group.exclusive and self._node in item.group.members
        }

    def _look(self, now: float) -> list[Instruction]:
        if self._plan is None:
            return []
        keys = self._keys(self._plan)
        out = self._desk.want(keys, now) if self._settled else []
        stays: list[Stay] = []
        for key in sorted(keys.keys() | self._present.keys() | self._stays.keys()):
            found, more = self._one(key, keys.get(key, ""), self._plan, now)
            stays += found
            out += more
        decided = tuple(sorted(stays, key=lambda s: s.uid))
        if decided != self._decided:
            self._decided = decided
            out.append(Decide(decided))
        return out

    def _one(
        self, key: Key, planned: str, plan: ParsedPlan, now: float
    ) -> tuple[list[Stay], list[Instruction]]:
        held, out = self._desk.held(key, now), list[Instruction]()
        present = self._present.get(key, set())
        runs = self._stays.get(key)
        if runs is not None and (held is None or now >= held.stop_at or runs.uid in plan.stops):
            if runs.uid in present:
                return [*self._stopped(key, present | {planned}, runs.epoch)], out
            del self._stays[key]
            runs = None
            out += self._desk.release(key, now)
            held = self._desk.held(key, now)
        out += [Disarm(uid) for uid in self._gone(key, present, runs)]
        if held is None or not self._settled or not self._switch or now >= held.stop_at:
            return [*self._stopped(key, present | {planned}, 0)], out
        uid = runs.uid if runs is not None else self._uid(key, planned, plan, held.epoch, present)
        if not uid:
            return [*self._stopped(key, present | {planned}, 0)], out
        self._stays[key] = Stay(key, uid, held.epoch, leased=True)
        if self._armed.get(uid) != held.until:
            self._armed[uid], self._owners[uid] = held.until, key
            out.append(Arm(uid, held.until))
        return [self._stays[key], *self._stopped(key, (present | {planned}) - {uid}, 0)], out

    def _uid(self, key: Key, planned: str, plan: ParsedPlan, epoch: int, present: set[str]) -> str:
        """What runs already, or else the plan's, or one of our own; empty: wait until what was
        there before is gone."""
        if present:
            known = sorted(uid for uid in present if uid not in plan.stops)
            return known[0] if len(present) == 1 and known else ""
        return planned or stay_uid(key, self._node, epoch)

    def _stopped(self, key: Key, uids: set[str], epoch: int) -> Iterator[Stay]:
        for uid in sorted(uids - {""}):
            yield Stay(key, uid, epoch, stop="NoLease", message="no lease", leased=True)

    def _gone(self, key: Key, present: set[str], runs: Stay | None) -> list[str]:
        """Armed, and nothing is left of it."""
        keep = present | ({runs.uid} if runs is not None else set())
        gone = [uid for uid, owner in self._owners.items() if owner == key and uid not in keep]
        for uid in gone:
            del self._owners[uid]
            self._armed.pop(uid, None)
        return gone
