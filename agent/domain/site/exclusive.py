"""Replicas of which at most one runs: what this node does by its leases. Part of `machine.py`.

`lease.py` asks and votes; here it is decided when this node wants a lease, and what runs by it. The
dead-man's switch is armed with the lease's end before anything is said to run. Of each exclusive
replica that this node may hold:

    situation   when                                              does                  then
    ASKING      the plan assigns it here and no live peer claims  wants the lease;      HOLDING,
                it with a greater epoch; or it is our turn to     what is assigned      STANDBY
                take it over, or an operator moved it here; or    waits
                nothing is known of it yet since the agent began
                anew
    HOLDING     the lease is held                                 a stay whose epoch    STOPPING
                                                                  is the ballot; arms
                                                                  the switch anew for
                                                                  each renewal
    STOPPING    the lease was not renewed in time, the plan       Stay with a cause;    STANDBY,
                stops it or no longer lets this node hold it,     keeps the lease as    ASKING
                the site was alone for too long, the switch is    long as it can be
                gone, or an operator stopped or moved it; and     had; then gives it
                something of it is left                           back and disarms
    STANDBY,    as in takeover.py, but that nobody's word is      waits                 ASKING
    QUEUING...  doubted: the voters know better

One stay is one tenure: a stay that stopped does not start again. Only where nobody else can have
held the replica meanwhile does the next lease carry on the same stay, with a risen epoch: when the
agent or the box began anew.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agent.domain.plan import STOPPED_LOCALLY
from agent.domain.roster import Key
from agent.domain.site import operators
from agent.domain.site.agenda import Agenda
from agent.domain.site.case import Case, Memory, Own, Scene, Standing, Verdict
from agent.domain.site.identifying import stay_uid
from agent.domain.site.lease import Held, LeaseDesk
from agent.domain.site.messages import (
    Arm,
    Armed,
    Booted,
    Disarm,
    Event,
    Instruction,
    LeaseAnswer,
    PeerSaid,
    Stay,
    SwitchChanged,
    Tell,
)
from agent.domain.site.stays import Stays
from agent.domain.site.takeover import (
    QUEUE_S,
    able,
    before,
    is_turn,
    predecessor,
)
from polder import epochs

SWITCH_PATIENCE_S = 3.0  # it is started again at once when it dies
BARE_S = 5.0  # for a lease for what runs without one: it was not exclusive until now
# What ends a tenure. Without enough voters it is asked for all the same: one may come.
ENDS = {
    "NotMember": "the plan lets other nodes hold it",
    "Isolated": "its site has heard no orchestrator for as long as it may run alone",
}
WAITING = "it waits for its lease"
VACANT_S = 10.0  # for who asks for its lease in vain, before others ask as well


@dataclass(slots=True)
class Outcome:
    """Of one look at all of them. `wanted` goes on to LeaseDesk.want, `idle` to its release."""

    wanted: set[Key] = field(default_factory=set)
    idle: list[Key] = field(default_factory=list)
    verdicts: dict[Key, Verdict] = field(default_factory=dict)


@dataclass(slots=True)
class _Watched:
    """What the switch was told of a stay."""

    key: Key
    epoch: int
    until: float


class Exclusives:
    """What this node holds, and what the switch was told of it."""

    def __init__(self, node: str, tokens: Iterator[int]) -> None:
        self.desk = LeaseDesk(node, tokens)
        self._memories: dict[Key, Memory] = {}
        self._armed: dict[str, _Watched] = {}
        self._inherited: dict[str, float] = {}  # what it has yet by an earlier agent's word
        self._held: dict[Key, Held | None] = {}  # as it was looked at last
        self._ends = Agenda()  # of what runs by a lease: when to look, unless it is renewed first
        self._obstacles: dict[Key, str] = {}  # of those asked for, as it was looked at last
        self._tenures: set[str] = set()  # stays whose lease was held since the agent began
        self._used: dict[Key, int] = {}  # the ballot by which a stay of it ran last
        self._isolated: set[Key] = set()  # its stopAfter was over when it was looked at last
        self._left: set[Key] = set()  # something of it was here
        self._bare_since: dict[str, float] = {}
        self._switch_lost_at: float | None = 0.0  # None: it is there
        self._switch_seen = False

    def handle(self, event: Event, now: float) -> tuple[list[Instruction], bool]:
        """What the desk asks for, and whether all is to be looked at anew."""
        match event:
            case Booted():
                self._switch_lost_at = now
            case SwitchChanged():
                self._switch_changed(event, now)
            case _:
                pass
        out = self.desk.handle(event, now)
        if isinstance(event, Armed):
            out += self._bound(event.uid, now)
        if isinstance(event, PeerSaid):
            if not isinstance(event.said, LeaseAnswer):
                return out, False
            return out, self._moved(event.said.key, now)
        first = self._ends.first()
        return out, self.moved(now) or (first is not None and first <= now)

    def next_due(self) -> float | None:
        """When to call `handle(Tick(), now)` at the latest."""
        due = (self.desk.next_due(), self._ends.first())
        return min((at for at in due if at is not None), default=None)

    def _switch_changed(self, event: SwitchChanged, now: float) -> None:
        """A new switch may know of no deadline: everything is armed again."""
        if event.alive:
            for armed in self._armed.values():
                armed.until = 0.0
            if not self._switch_seen:
                self._inherited, self._switch_seen = dict(event.deadlines), True
            self._switch_lost_at = None
        elif self._switch_lost_at is None:
            self._switch_lost_at = now

    def __contains__(self, key: Key) -> bool:
        """Whether it was exclusive when it was looked at last."""
        return key in self._held

    def moved(self, now: float) -> bool:
        """Whether anything is held by another ballot than when it was looked at last."""
        moved = [key for key in self._held if self._moved(key, now)]
        return bool(moved)

    def _moved(self, key: Key, now: float) -> bool:
        """Whether it is held by another ballot, or not any more, or may be held again. A renewal is
        no such thing."""
        if key not in self._held:
            return False
        was, held = self._held[key], self.desk.held(key, now)
        self._held[key] = held
        if (self.desk.hindrance(key, now) == "Isolated") != (key in self._isolated):
            return True
        if key in self._obstacles and self.desk.obstacle(key, now) != self._obstacles[key]:
            return True
        return (was is None) != (held is None) or (
            was is not None and held is not None and was.epoch != held.epoch
        )

    def hindrance(self, key: Key, now: float) -> str:
        """Why this node could not hold it; empty: it could."""
        return "NoSwitch" if self._switch_lost_at is not None else self.desk.hindrance(key, now)

    # ---- the switch ----

    def arm(self, stays: Stays, present: set[str], now: float) -> list[Instruction]:
        """Arm what may run by a lease, before it is said to, and what still stops while its lease
        lasts; disarm what is gone."""
        running = {stay.uid: stay for stay in stays.in_force() if stay.leased and not stay.stop}
        for uid, stay in running.items():
            armed = self._armed.setdefault(uid, _Watched(stay.key, stay.epoch, 0.0))
            armed.epoch = stay.epoch
        out: list[Instruction] = []
        for uid in list(self._armed):
            decided = stays.get(uid)
            free = decided is not None and not decided.leased  # it is exclusive no more
            if free or (uid not in running and uid not in present):
                del self._armed[uid]
                self._inherited.pop(uid, None)
                out.append(Disarm(uid))
        return out + self._arm(self._armed, now)

    def arm_again(self, event: Event, now: float) -> list[Instruction]:
        """After what may have renewed a lease: the answer of a voter, or our own vote, which may
        have waited for the disk."""
        match event:
            case PeerSaid(_, LeaseAnswer(_, key)):
                return self._arm([uid for uid, a in self._armed.items() if a.key == key], now)
            case PeerSaid():
                return []
            case _:
                return self._arm(self._armed, now)

    def _arm(self, uids: Iterable[str], now: float) -> list[Instruction]:
        out: list[Instruction] = []
        for uid in uids:
            armed = self._armed[uid]
            held = self.desk.held(armed.key, now)
            if held is not None and held.epoch == armed.epoch and held.until != armed.until:
                armed.until = held.until
                if armed.key in self._ends:
                    self._ends.put(armed.key, held.stop_at)
                out.append(Arm(uid, held.until, tell=uid in self._inherited))
        return out

    def _bound(self, uid: str, now: float) -> list[Instruction]:
        """The switch ends that stay by this agent's word now. An earlier one may have asked for its
        lease to be renewed for a restart: voters need not keep to that, if nothing else of the
        replica may run for so long."""
        self._inherited.pop(uid, None)
        ours = self._armed.get(uid)
        held = self.desk.held(ours.key, now) if ours is not None else None
        if ours is None or held is None or held.epoch != ours.epoch:
            return []
        for other, until in self._inherited.items():
            known = self._armed.get(other)
            if until > held.until and (known is None or known.key == ours.key):
                return []
        return self.desk.bounded(ours.key, held.epoch, now)

    # ---- deciding ----

    def look(self, cases: Iterable[Case], scene: Scene) -> Outcome:
        """At all exclusive replicas."""
        outcome = Outcome()
        self._ends = Agenda()
        held = {}
        for case in cases:
            held[case.key] = self.desk.held(case.key, scene.now)
            memory = self._memories.setdefault(case.key, Memory())
            verdict = outcome.verdicts[case.key] = Verdict(Standing.STANDBY)
            wanted = self._one(case, held[case.key], scene, memory, verdict)
            if wanted:
                outcome.wanted.add(case.key)
            if scene.settled:
                self._note_left(case, outcome, used=wanted or bool(verdict.changed))
        self._held = held
        self._obstacles = {key: self.desk.obstacle(key, scene.now) for key in outcome.wanted}
        self._isolated = {k for k in held if self.desk.hindrance(k, scene.now) == "Isolated"}
        self._memories = {key: self._memories[key] for key in held}
        # What no plan names any more may come back before its lease is over.
        self._used = {
            key: ballot
            for key, ballot in self._used.items()
            if key in held or self.desk.held(key, scene.now) is not None
        }
        self._left &= held.keys()
        return outcome

    def _note_left(self, case: Case, outcome: Outcome, *, used: bool) -> None:
        """Once nothing of it is here any more, and it is not wanted, the next one may have it."""
        if case.leaving or any(own.present for own in case.own):
            self._left.add(case.key)
        elif not used and (case.key in self._left or outcome.verdicts[case.key].surplus):
            self._left.discard(case.key)
            outcome.idle.append(case.key)

    def _one(
        self, case: Case, held: Held | None, scene: Scene, memory: Memory, verdict: Verdict
    ) -> bool:
        """Whether the lease is wanted, or wanted further."""
        tenure = next((own for own in case.own if own.leased), None)
        runs = ""
        if tenure is not None:
            wanted, text = self._in_tenure(tenure, case, held, scene, verdict)
            if held is not None and tenure.told_epoch == held.epoch:
                runs = tenure.uid
        elif case.leaving:
            verdict.standing, text = Standing.STOPPING, "another stay of it still stops here"
            wanted = held is not None and all(stay.stop != "LeaseLost" for stay in case.stopped)
        else:
            wanted, text = self._without(case, held, scene, memory, verdict)
        stopped = {stay.uid for stay in verdict.changed if stay.stop}
        for own in case.own:
            if own.uid != runs and own.uid not in stopped:
                self._hold_back(own, case, text, scene, verdict)
        return wanted

    def _in_tenure(
        self, own: Own, case: Case, held: Held | None, scene: Scene, verdict: Verdict
    ) -> tuple[bool, str]:
        """(the lease is wanted further, why nothing else of it runs)"""
        ends = self._end_of(own, case, held, scene)
        if ends is not None:
            cause, message = ends
            verdict.standing = Standing.STOPPING
            stop = Stay(case.key, own.uid, own.epoch, own.takes_over, cause, message, leased=True)
            verdict.changed.append(stop)
            text = f"it stops here: {message}"
            wanted = cause in (STOPPED_LOCALLY, "Moved")  # by an operator
            verdict.tells.append(Tell(cause, text, case.key, warning=not wanted))
            return held is not None and cause != "LeaseLost", text
        if held is None:  # the agent or the box began anew
            verdict.standing = Standing.ASKING
            return True, WAITING
        verdict.standing = Standing.HOLDING
        self._tenures.add(own.uid)
        self._used[case.key] = held.epoch
        if held.epoch != own.epoch:
            risen = Stay(case.key, own.uid, held.epoch, own.takes_over, leased=True)
            verdict.changed.append(risen)
        self._ends.put(case.key, held.stop_at)
        if self._switch_lost_at is not None:
            verdict.attend(self._switch_lost_at + SWITCH_PATIENCE_S)
        return True, WAITING

    def _end_of(
        self, own: Own, case: Case, held: Held | None, scene: Scene
    ) -> tuple[str, str] | None:
        """(cause, message)"""
        now, lost_at = scene.now, self._switch_lost_at
        if why := operators.why_stopped(case, scene):
            return STOPPED_LOCALLY, why
        if held is None and own.uid in self._tenures:
            return "LeaseLost", "its lease ended"
        if held is not None and now >= held.stop_at:
            return "LeaseLost", "its lease could not be renewed"
        if held is None or held.epoch != own.epoch:
            later = max((c for c in case.theirs), key=lambda c: c.rank, default=None)
            if later is not None and later.epoch > own.epoch:
                shown = epochs.shown(later.epoch)
                return "Superseded", f"{later.node} has held it with epoch {shown} since"
        if lost_at is not None and now >= lost_at + SWITCH_PATIENCE_S:
            return "NoSwitch", "the switch that would stop it in time does not run"
        hindrance = self.desk.hindrance(case.key, now)
        if hindrance in ENDS:
            return hindrance, ENDS[hindrance]
        why = operators.moved_away(case, scene) if held is not None else ""
        return ("Moved", why) if why else None

    def _without(
        self, case: Case, held: Held | None, scene: Scene, memory: Memory, verdict: Verdict
    ) -> tuple[bool, str]:
        """No stay of it has a lease, and nothing of an earlier one is left. As `_in_tenure`."""
        planned = max((o for o in case.own if o.planned), key=lambda o: o.epoch, default=None)
        if why := operators.why_stopped(case, scene):
            verdict.standing, verdict.surplus = Standing.STOPPED, held is not None
            memory.forget_times()
            return False, why
        if self._switch_lost_at is not None:
            verdict.standing, verdict.surplus = Standing.UNABLE, held is not None
            return False, "NoSwitch: nothing would stop it in time"
        used = held is not None and self._used.get(case.key) == held.epoch
        if held is not None and not used and case.startable and scene.now < held.stop_at:
            self._enter(case, planned, held, scene, verdict)
            memory.forget_times()
            return True, WAITING
        verdict.surplus = held is not None
        if used:  # it came back after its stay had stopped: it is given back, and asked for anew
            return False, WAITING
        frozen = scene.decided.frozen() is not None  # then it is left to who had it, also silent
        newer = planned is None or any(
            (frozen or scene.peers.hears(c.node, scene.now))
            and c.rank > (planned.epoch, scene.node)
            for c in case.theirs
        )
        if operators.moved_here(case, scene):
            return self._asks(case, scene, memory, verdict), WAITING
        if not newer and not operators.reserved(case, scene, memory, verdict):
            hindrance = self.desk.hindrance(case.key, scene.now)
            able_to = hindrance not in ENDS
            verdict.standing = Standing.ASKING if able_to else Standing.UNABLE
            why = ENDS.get(hindrance) or self.desk.obstacle(case.key, scene.now)
            return able_to, f"{WAITING}: {why}" if why else WAITING
        turn = is_turn(case, scene, memory, verdict, doubts=False)
        if not turn and not self._in_vain(case, scene, memory, verdict):
            return False, "another node has it"
        return self._asks(case, scene, memory, verdict), WAITING

    def _asks(self, case: Case, scene: Scene, memory: Memory, verdict: Verdict) -> bool:
        """It is this node's turn, if it can."""
        asks = able(case, scene, memory, verdict) in ("", "NoVoters")
        verdict.standing = Standing.ASKING if asks else Standing.UNABLE
        return asks

    def _in_vain(self, case: Case, scene: Scene, memory: Memory, verdict: Verdict) -> bool:
        """Whether somebody who is heard has claimed it for long enough and holds it by nobody's
        word, as far as this node's voter knows: it may not reach the voters that this one does.
        One that claims it no more was told to stop, and is not followed."""
        claims = [c for c in case.theirs if scene.peers.hears(c.node, scene.now)]
        able_to = case.group is not None and scene.node in case.group.members and case.startable
        if (
            not able_to
            or operators.left_alone(case, scene, memory, verdict)
            or not scene.settled
            or not claims
            or any(c.ready_since is not None for c in claims)
        ):
            memory.vacant_since = None
            return False
        free_at = self.desk.free_at(case.key, scene.now)
        if free_at > scene.now:
            memory.vacant_since = None
            verdict.attend(free_at)
            return False
        if memory.vacant_since is None:
            memory.vacant_since = scene.now
        newest = max(claims, key=lambda claim: claim.rank)
        assert case.group is not None
        patience_s = VACANT_S + QUEUE_S * len(before(case.group, newest.node, case.key, scene))
        until = memory.vacant_since + patience_s
        if scene.now < until:
            verdict.attend(until)
        return scene.now >= until

    def _enter(
        self, case: Case, planned: Own | None, held: Held, scene: Scene, verdict: Verdict
    ) -> None:
        """A tenure begins."""
        verdict.standing = Standing.HOLDING
        self._ends.put(case.key, held.stop_at)
        uid, takes_over = stay_uid(case.key, case.node, held.epoch), predecessor(case)
        why = operators.moved_here(case, scene) or "its lease was free" + _had_by(case)
        if planned is not None and all(c.epoch <= planned.epoch for c in case.theirs):
            uid, takes_over, why = planned.uid, "", ""
        self._tenures.add(uid)
        self._used[case.key] = held.epoch
        stay = Stay(case.key, uid, held.epoch, takes_over, message=why, leased=True)
        verdict.changed.append(stay)

    def _hold_back(self, own: Own, case: Case, text: str, scene: Scene, verdict: Verdict) -> None:
        """It waits. If it runs and had no lease, it was not exclusive until now: then it has a
        moment to get one. If it runs and had one, the switch sees to its end."""
        if why := operators.why_stopped(case, scene):
            verdict.waits.append(operators.held_back(case, own, why))
            return
        waits = True
        if own.present and not own.leased and scene.settled:
            end = self._bare_since.setdefault(own.uid, scene.now) + BARE_S
            waits = scene.now < end
            if waits:
                verdict.attend(end)
        else:
            self._bare_since.pop(own.uid, None)
        verdict.waits.append(
            Stay(
                case.key,
                own.uid,
                own.epoch,
                own.takes_over,
                "WaitingForLease",
                text,
                waits=waits,
                leased=own.leased,
            )
        )


def _had_by(case: Case) -> str:
    """For people: who had it last, of other nodes."""
    newest = max(case.theirs, key=lambda claim: claim.rank, default=None)
    holder = newest.node if newest is not None else case.primary
    return f", {holder} had it" if holder not in ("", case.node) else ""
