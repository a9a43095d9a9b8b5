"""The site's state machine: what peers, plans and the runtime say in, what is to be done out.

`agent/site/loop.py` owns one SiteMachine and does for it what `supervisor.py` does for the
Reconciler; `tests/sim/site.py` runs it in virtual time. It composes, and leaves every decision to a
part of its own:

    part            decides
    peers.py        who is heard, who is missed
    claims.py       what runs where, as peers say; what they are told
    takeover.py     replicas that run at least once: who takes over, which of two stays
    exclusive.py    exclusive replicas: when to ask for a lease, what runs by it; with lease.py
    operating.py    what operators decided at the site, with overrides.py; operators.py: what that
                    changes
    stays.py        what of all that stands on the disk
    isolation.py    for how long no orchestrator was heard

    event                   does
    Booted                  remembers; nothing is decided before the first plan
    PlanInUse               drops what the plan took over, or stops; judges; Decide
    PeerOpened              Beat and Claims to that peer
    PeerSaid, PeerClosed    judges if that changed anything
    RunsHere, AbleTo        judge if that changed anything
    Saved                   what waited for the disk takes effect; a failed write takes it back
    Armed                   voters are told, if that is sooner than they keep to
    OperatorDecided         refused, or saved; when that is done it is in force, and peers are told
    Tick                    Beat, a second after the last; judges if a time has come
    Stopping                Goodbye "Restarting" to the peers; leases are renewed for longer

Judging: each shared replica gets a verdict; what it changes is saved, what is saved or is a stop
goes into the next Decide, and peers hear of it by Claims. An idle site says a Beat a second per
peer and judges nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count

from agent.domain.plan import STOPPED_LOCALLY, ParsedPlan
from agent.domain.roster import Key
from agent.domain.site.case import Case, Scene, Standing, Verdict
from agent.domain.site.cases import (
    Here,
    cases,
    claims_of,
    is_exclusive,
    may_be_strange,
    own_abilities,
    runnable,
    voters_of,
)
from agent.domain.site.claims import OurClaims, TheirClaims
from agent.domain.site.exclusive import Exclusives
from agent.domain.site.isolation import Isolation
from agent.domain.site.known import Known, known
from agent.domain.site.messages import (
    Ability,
    AbleTo,
    Beat,
    Booted,
    Claims,
    Condition,
    Decide,
    Event,
    Goodbye,
    Instruction,
    OrchestratorHeard,
    PeerClosed,
    PeerOpened,
    PeerSaid,
    PlanInUse,
    Refusal,
    RunsHere,
    Saved,
    Send,
    Stay,
    Stopping,
    SwitchChanged,
    Tell,
)
from agent.domain.site.operating import Operating
from agent.domain.site.peers import RESTART_PATIENCE_MAX_S, Peers
from agent.domain.site.refusing import based, refusal
from agent.domain.site.stays import NAME, Stays
from agent.domain.site.takeover import Takeovers
from polder.epochs import shown
from polder.overrides import Override

BEAT_S = 1.0
EARLY_S = 0.5  # by which it may go with other words, here or from there: all are awake then
AWAY_S = 0.7  # a beat that is later than this says that the process did not listen
RETRY_SAVE_S = 5.0
LOOKS_MAX = 3
SHOWN_MAX = 5


class SiteMachine:
    """One node's part in its site. `now`: seconds of CLOCK_BOOTTIME."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._plan: ParsedPlan | None = None
        self._peers = Peers()
        self._theirs = TheirClaims()
        self._ours = OurClaims()
        self._takeovers = Takeovers()
        self._stays = Stays()
        self._here = Here()
        self._isolation = Isolation()
        self._able: dict[Key, Ability] = {}
        self._tokens: Iterator[int] = count(1)
        self._exclusives = Exclusives(node, self._tokens)
        self._operating = Operating(node, self._tokens, self._peers)
        self._standings: dict[Key, Standing] = {}
        self._unclaimed: frozenset[Key] = frozenset()
        self._waits: list[Stay] = []
        self._decided: tuple[Stay, ...] | None = None
        self._missed: frozenset[str] = frozenset()
        self._silent: tuple[str, ...] = ()
        self._complaints: tuple[str, ...] = ()
        self._over = False  # the promised time without an orchestrator
        self._voteless: tuple[str, ...] = ()  # replicas that nobody could take over
        self._began_at = self._last_at = 0.0
        self._beat_at: float | None = None
        self._judge_at: float | None = None
        self._save_after = 0.0
        self._stale = False

    # ---- what the rest of the agent reads ----

    def next_due(self) -> float | None:
        """When to send a Tick at the latest; None: nothing waits for time to pass."""
        due = (
            self._beat_at,
            self._judge_at,
            self._peers.next_due(self._last_at),
            self._operating.decisions.next_due(),
            self._exclusives.next_due(),
        )
        return min((at for at in due if at is not None), default=None)

    def standings(self) -> Mapping[Key, Standing]:
        """What this node makes of each replica that it shares."""
        return self._standings

    def heard(self, now: float) -> dict[str, bool]:
        """Of every peer, whether something came from it just now."""
        return {name: self._peers.hears(name, now) for name in sorted(self._peers.names)}

    def known(self, now: float) -> Mapping[Key, Known]:
        """Who has each replica that it shares."""
        theirs, peers, desk = self._theirs.by_key(), self._peers, self._exclusives.desk
        found = cases(self._node, self._plan, self._stays, theirs, self._here) if self._plan else ()
        return known(self._node, found, peers, desk, now)

    def overrides(self) -> tuple[Override, ...]:
        """What operators decided at the site; what was taken back lately, too."""
        return self._operating.decisions.all()

    def draft(self, wanted: Override, now: float) -> Override | Refusal:
        """As an operator's change would be written down now, or why it would not be made."""
        return self._operating.draft(wanted, now, self._look)

    def abilities(self) -> tuple[Ability, ...]:
        """Of every role, whether this node could take it over now: what only the machine knows is
        laid over AbleTo."""
        if self._plan is None:
            return ()
        found = []
        for key, role in self._plan.roles.items():
            reason = self._hindrance(key)
            if role.assignment.template is not None and reason is not None:
                found.append(Ability(key, not reason, reason))
        return tuple(found)

    def _hindrance(self, key: Key) -> str | None:
        """Why it could not take the replica over; empty: it could; None: not yet known."""
        plan = self._plan
        if plan is None:
            return None
        if self._over:
            return "AutonomyOver"
        if self._operating.frozen:
            return "Frozen"
        if self._last_at < self._save_after:
            return "NotWritable"
        role = plan.roles.get(key)
        if role is None:
            return self._exclusive_hindrance(key)  # its own, which it may run again
        if role.primary != self._node and role.primary not in plan.site.peers:
            return "PeerUnknown"
        told = self._able.get(key)
        reason = None if told is None else "" if told.able else told.reason or "Unable"
        return self._exclusive_hindrance(key) or reason

    def _exclusive_hindrance(self, key: Key) -> str:
        if key not in self._exclusives:
            return ""
        return self._exclusives.hindrance(key, self._last_at)

    # ---- events ----

    def handle(self, event: Event, now: float) -> list[Instruction]:
        out: list[Instruction] = []
        self._listen_again(event, now)
        self._hear(event, now, out)
        self._watch_peers(now, out)
        self._watch_autonomy(now, out)
        self._hear_leases(event, now, out)
        decided, news = self._operating.handle(event, now, self._look)
        out += decided
        self._stale |= news
        if self._plan is not None:
            self._stale |= self._judge_at is not None and now >= self._judge_at
            judges = self._stale
            for _ in range(LOOKS_MAX):  # what is decided may let a lease begin or end at once
                if self._stale:
                    self._judge(now, out)
            if judges:
                out += self._exclusives.arm(self._stays, self._here.uids(), now)
                self._decide(out)
                self._tell_claims(now, out)
            else:
                out += self._exclusives.arm_again(event, now)
            self._beat(event, now, out)
        return out

    def _hear_leases(self, event: Event, now: float, out: list[Instruction]) -> None:
        self._exclusives.desk.alone_since = self._isolation.alone_since(now)
        asked, changed = self._exclusives.handle(event, now)
        out += asked
        if isinstance(event, Stopping):
            out += self._exclusives.desk.restarting(now)
        self._stale |= changed or isinstance(event, SwitchChanged)

    def _listen_again(self, event: Event, now: float) -> None:
        """Whether this process was stopped, or the box slept, since it handled something last."""
        if isinstance(event, Booted):
            self._began_at = self._last_at = now
        due = self._beat_at
        if due is not None and now - due > AWAY_S:
            self._peers.was_away(self._last_at, now)
        self._last_at = now

    def _hear(self, event: Event, now: float, out: list[Instruction]) -> None:
        match event:
            case Booted(_, kept, same_boot, isolated_s):
                known = self._stays.read(kept.get(NAME, {}))
                self._peers.began(known, same_boot=same_boot)
                self._isolation.began(isolated_s, now)
            case PlanInUse(plan):
                self._use(plan, now, out)
            case PeerOpened(node, instance):
                if self._peers.opened(node, instance, now):
                    self._theirs.began_anew(node)
                self._ours.forget(node)
                out.append(Send(node, self._our_beat(now)))
                self._stale = True
            case PeerClosed(node):
                self._peers.closed(node)
            case PeerSaid(node, said):
                self._said(node, said, now)
            case RunsHere():
                self._stale |= self._here.saw(event, now)
            case AbleTo(abilities):
                able = {ability.key: ability for ability in abilities}
                self._stale |= able != self._able
                self._able = able
            case OrchestratorHeard():
                self._isolation.heard(now)
            case Saved(token, ok):
                self._saved(token, now, out, ok=ok)
            case Stopping():
                bye = Goodbye("Restarting", RESTART_PATIENCE_MAX_S)
                out += [Send(node, bye) for node in self._peers.open()]
            case _:
                pass

    def _said(self, node: str, said: object, now: float) -> None:
        self._peers.heard(node, now)
        match said:
            case Beat(silent, isolated_s, _):
                self._stale |= self._peers.beat(node, silent, isolated_s)
            case Claims() if node in self._peers.names:
                self._stale |= self._theirs.said(node, said, now)
            case Goodbye("Restarting", patience_s):
                self._peers.restarting(node, patience_s, now)
            case _:
                pass

    def _use(self, plan: ParsedPlan, now: float, out: list[Instruction]) -> None:
        self._plan = plan
        self._peers.roster(plan.site.peers, now)
        self._theirs.keep(plan.site.peers)
        self._silent = self._peers.silent(now)
        self._missed = self._peers.missed_all(now)
        self._stale = True
        self._decided = None  # every plan is followed by a Decide
        if plan.site.complaints != self._complaints:
            self._complaints = plan.site.complaints
            out += [Tell("RosterFaulty", text, warning=True) for text in self._complaints]

    def _saved(self, token: int, now: float, out: list[Instruction], *, ok: bool) -> None:
        before = {stay.uid: stay for stay in self._stays.in_force()}
        if not self._stays.saved(token, ok=ok):
            return
        self._stale = True
        if not ok:
            self._save_after = now + RETRY_SAVE_S
            text = "what this node would take over cannot be written down: it takes nothing over"
            out.append(Tell("NotWritable", text, warning=True))
            return
        for stay in self._stays.in_force():
            if stay.takes_over and not stay.stop and stay.uid not in before:
                text = f"it runs here now, with epoch {shown(stay.epoch)}: {stay.message}"
                out.append(Tell("TakenOver", text, stay.key, warning=True))

    # ---- time ----

    def _watch_peers(self, now: float, out: list[Instruction]) -> None:
        missed, silent = self._peers.missed_all(now), self._peers.silent(now)
        for node in sorted(missed - self._missed):
            out.append(Tell("PeerSilent", f"{node} is not heard any more", warning=True))
        for node in sorted(self._missed - missed):
            if self._peers.hears(node, now):
                self._ours.forget(node)  # what was said meanwhile may not have come to it
                out += self._operating.tell([node])
                out.append(Tell("PeerHeard", f"{node} is heard again"))
        self._stale |= missed != self._missed or silent != self._silent
        if silent != self._silent:
            self._beat_at = now  # others wait for our word
        self._missed, self._silent = missed, silent

    def _watch_autonomy(self, now: float, out: list[Instruction]) -> None:
        plan = self._plan
        if plan is None:
            return
        over = bool(plan.site.peers) and self._isolation.for_s(now) > plan.site.autonomy_s
        if over == self._over:
            return
        self._over, self._stale = over, True
        days = plan.site.autonomy_s / 86_400
        text = f"no orchestrator was heard for more than {days:g} days: it takes nothing over"
        out.append(Condition("AutonomyOver", text if over else ""))
        told = text if over else "an orchestrator is heard again"
        out.append(Tell("AutonomyOver" if over else "AutonomyBack", told, warning=over))

    def _watch_voters(self, leased: list[Case], now: float, out: list[Instruction]) -> None:
        """That nobody could take over is said before it is needed."""
        voteless = tuple(
            sorted(
                case.key[1]
                for case in leased
                if self._exclusives.desk.hindrance(case.key, now) == "NoVoters"
            )
        )
        if voteless == self._voteless:
            return
        self._voteless = voteless
        more = f" and {len(voteless) - SHOWN_MAX} more" if len(voteless) > SHOWN_MAX else ""
        text = f"too few voters are heard to take over {', '.join(voteless[:SHOWN_MAX])}{more}"
        out.append(Condition("NoVoters", text if voteless else ""))

    def _our_beat(self, now: float) -> Beat:
        generation = self._plan.generation if self._plan is not None else 0
        return Beat(self._peers.silent(now), self._isolation.told_s(now), generation)

    def _beat(self, event: Event, now: float, out: list[Instruction]) -> None:
        speaking = isinstance(event, PeerSaid) or any(isinstance(one, Send) for one in out)
        if not self._peers.names:
            self._beat_at = None
        elif self._beat_at is None or now >= self._beat_at - speaking * EARLY_S:
            beat = self._our_beat(now)
            out += [Send(node, beat) for node in self._peers.open()]
            self._beat_at = now + BEAT_S

    # ---- judging ----

    def _judge(self, now: float, out: list[Instruction]) -> None:
        assert self._plan is not None
        self._stale, self._judge_at = False, None
        self._tidy(self._plan)
        theirs = self._theirs.by_key()
        scene = self._scene(now)
        operated = self._operating.decisions.subjects()
        found = cases(self._node, self._plan, self._stays, theirs, self._here, operated)
        leased = [case for case in found if case.exclusive]
        outcome = self._exclusives.look(leased, scene)
        verdicts = dict(outcome.verdicts)
        others = [case for case in found if not case.exclusive]
        self._takeovers.keep(case.key for case in others)
        for case in others:
            verdicts[case.key] = self._takeovers.judge(case, scene)
        self._take_up(verdicts)
        for verdict in verdicts.values():
            out += verdict.tells
        for key in outcome.idle:
            out += self._exclusives.desk.release(key, now)
        out += self._exclusives.desk.want(outcome.wanted, now)
        self._stale |= self._exclusives.moved(now)
        self._unclaimed = frozenset(
            case.key for case in leased if case.key not in outcome.wanted and not case.leaving
        )
        self._watch_voters(leased, now, out)
        if now >= self._save_after:
            save = self._stays.save(next(self._tokens))
            out += [save] if save is not None else []
        else:
            self._attend(self._save_after)

    def _scene(self, now: float) -> Scene:
        return Scene(
            node=self._node,
            now=now,
            began_at=self._began_at,
            settled=self._here.settled,
            peers=self._peers,
            theirs=self._theirs,
            able=self._hindrance,
            decided=self._operating.decisions,
        )

    def _look(self, wanted: Override, now: float) -> Refusal | Override:
        """At what an operator wants, also of a replica that this node shares with nobody."""
        if self._plan is None:
            return Refusal("NoPlan", "this node has no plan yet")
        theirs, key = self._theirs.by_key(), wanted.subject
        found = cases(self._node, self._plan, self._stays, theirs, self._here, [key])
        case = next((case for case in found if case.key == key), None)
        views = self._here.views.values()
        refused = refusal(wanted, case, self._plan, self._scene(now), views)
        return refused or based(wanted, self._plan, case)

    def _take_up(self, verdicts: Mapping[Key, Verdict]) -> None:
        self._standings = {key: verdict.standing for key, verdict in verdicts.items()}
        self._waits = [stay for verdict in verdicts.values() for stay in verdict.waits]
        for verdict in verdicts.values():
            for stay in verdict.changed:
                self._stays.put(stay)
            self._attend(verdict.due)
        self._stays.heard(self._peers.known)

    def _attend(self, at: float | None) -> None:
        if at is not None and (self._judge_at is None or at < self._judge_at):
            self._judge_at = at

    def _tidy(self, plan: ParsedPlan) -> None:
        """Drop what the plan has taken over, has stopped, or of which nothing can run any more."""
        for stay in self._stays.all():
            assigned = plan.assignments.get(stay.uid)
            idle = self._here.settled and not self._here.present(stay.uid)
            if assigned is not None:
                newer = assigned.epoch > stay.epoch
                same = assigned.epoch == stay.epoch and not stay.stop
                # A lease's epoch is its ballot, whatever the plan says.
                done = (newer or same) and (bool(stay.stop) or not stay.leased)
                # What an operator stopped nobody else has had since: it may run again as it was.
                done |= idle and stay.stop == STOPPED_LOCALLY
            elif stay.uid in plan.stops:
                done = True
            else:
                done = idle and (bool(stay.stop) or not runnable(plan, stay.key))
            if done:
                self._stays.drop(stay.uid)
            elif stay.leased and assigned is not None and not is_exclusive(assigned):
                self._stays.put(replace(stay, leased=False))

    def _decide(self, out: list[Instruction]) -> None:
        stays = (*self._stays.in_force(), *self._waits)
        by_uid = {stay.uid: stay for stay in stays}  # one that waits counts, not as it is saved
        decided = tuple(by_uid[uid] for uid in sorted(by_uid))
        if decided != self._decided:
            self._decided = decided
            out.append(Decide(decided))

    def _tell_claims(self, now: float, out: list[Instruction]) -> None:
        """To each peer what concerns it. Before the runtime was seen there is nothing to say."""
        if self._plan is None or not self._here.settled:
            return
        found = cases(self._node, self._plan, self._stays, {}, self._here)
        claimed = claims_of(found, now, self._exclusives.desk.granted_by)
        claims = [claim for claim in claimed if claim.key not in self._unclaimed]
        shared = {case.key: voters_of(case) for case in found}
        rivals = self._theirs.claimants()  # they may go by another plan than ours
        own = own_abilities(self._plan, self._exclusive_hindrance, self._hindrance)
        abilities = (*self.abilities(), *own)
        for node in self._peers.open():
            news = self._ours.news_for(
                node,
                [
                    claim
                    for claim in claims
                    if not (voters := shared[claim.key])
                    or node in voters
                    or (node, claim.key) in rivals
                    or may_be_strange(claim, self._plan)
                ],
                [a for a in abilities if node in shared.get(a.key, ())],
            )
            if news is not None:
                out.append(Send(node, news))
