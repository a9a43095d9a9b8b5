"""At most one holder of an exclusive replica: the desk where its leases are asked for and voted on.

`machine.py` composes it and `tests/sim/site.py` drives it. It takes the same events and gives the
same instructions (Send, Save, Tell and Condition alone), and is asked who holds what. The protocol
is PaxosLease (Trencseni, Gazso, Reinhardt, 2012) with durable ballots and groups that change: see
ADR 22.

Why no two nodes hold a replica at one time:

1. Within a group. A voter has one lease at most, until it ends by its own clock or is given back.
   Who holds it counts from before it asked, for less time by its own clock than the voter counts by
   any clock within the drift bound, and gives it back only when nothing runs. So at each moment of
   a tenure a majority of voters grants it to nobody else, and two majorities share a voter.
2. Through a voter's restart. A ballot, a grant and a seal are on its disk before they are answered;
   a renewal is not, and so a lease that was granted counts anew from the start, for all its length.
   A disk that lost everything grants nothing for as long as a lease may last.
3. From group M to a later N. N's voters vote once one was opened to them, which is said only after
   a majority of M's voters is sealed. One of those had granted M's lease and tells when it ends, or
   grants it no more. Voters of N grant nothing until then, but to that same lease. This holds for
   each group that the plan names before N, and for those before them since the first of these had
   a holder, who was let in only when theirs were over.
4. An older plan. A voter never votes in a group below the one that it is in or sealed for, and with
   no memory of a replica in none that its plan does not name, or below that.
5. A holder that forgot. The end that the switch was armed with stands; the node asks anew, with a
   higher ballot, which its own voter has on disk first, so that nothing said earlier is about it.
   Until the switch has an earlier end, voters keep to what they granted for longer.

Ballots rise from holder to holder: no voter accepts one that is below what it accepted before, and
a group's number is below its own ballots and above those decided before it.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from agent.domain.plan import ParsedPlan
from agent.domain.roster import Electorate, Group, Key
from agent.domain.site.agenda import Agenda
from agent.domain.site.group import lineage_of
from agent.domain.site.holder import LEASE_S, RESTART_S, Holder, Requests
from agent.domain.site.lease_record import (
    NAME,
    STOP_S,
    Blank,
    Held,
    Record,
    Waiting,
    name_of,
    not_writable,
    refused,
)
from agent.domain.site.messages import (
    Beat,
    Booted,
    Claims,
    Condition,
    Event,
    Instruction,
    LeaseAnswer,
    LeaseRequest,
    PeerOpened,
    PeerSaid,
    PlanInUse,
    Prepare,
    Propose,
    Release,
    Save,
    Saved,
    Send,
    Tell,
)
from agent.domain.site.silence import Silence, Vigil
from agent.domain.site.trust import Finding, Trust, who_lied
from agent.domain.site.voter import LEASE_MAX_S, Voter
from polder.epochs import LOCAL_MAX, shown

__all__ = ["LEASE_MAX_S", "LEASE_S", "RESTART_S", "STOP_S", "Held", "LeaseDesk"]

REPLICAS_MAX = 10_000
WAITING_MAX = 1_000  # answers for one replica that wait for the disk
RETRY_SAVE_S = 1.0


class LeaseDesk:
    """The leases of one node, as a voter and as a holder. All times are boottime seconds.

    `alone_since` is the machine's to set: since when this node has heard no orchestrator (it may
    lie before the boot), None while it hears one. For `stopAfter`.
    """

    def __init__(self, node: str, tokens: Iterator[int]) -> None:
        """`tokens`: for Save, shared with whoever else saves, so that no two are the same."""
        self.alone_since: float | None = None
        self._trust = Trust()
        self._node = node
        self._tokens = tokens
        self._records: dict[Key, Record] = {}
        self._wanted: frozenset[Key] = frozenset()
        self._silence = Silence(node)
        self._generation = 0
        self._blank = Blank()
        self._start = 0  # counts this desk's starts: no two of them use one id
        self._start_token: int | None = None
        self._started = False
        self._save_again_at: float | None = None
        self._agenda = Agenda()  # of holders
        self._stirred: dict[Key, None] = {}  # of which something else may be wanted now
        self._vigil = Vigil()
        self._saving: dict[int, Key] = {}
        self._drawn = 0
        self._out: list[Instruction] = []
        self._inbox: deque[tuple[str, LeaseRequest | LeaseAnswer]] = deque()

    # ---- what the machine says and asks ----

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Takes every event of the machine; those that do not concern leases change nothing.
        After it, and after `want`, ask `held` again: it may have changed."""
        match event:
            case Booted():
                self._booted(event, now)
            case PlanInUse():
                self._planned(event.plan, now)
            case PeerOpened():
                self._silence.heard(event.node, now)
            case PeerSaid(node, said):
                self._silence.heard(node, now)
                if isinstance(said, LeaseRequest | LeaseAnswer):
                    self._inbox.append((node, said))
                elif isinstance(said, Beat):
                    self._silence.beat(node, said, now)
                elif isinstance(said, Claims):
                    for claim in said.claims:
                        self._rival(claim.key, node, claim.epoch, claim.granted_by, now)
            case Saved():
                self._saved(event, now)
        return self._settle(now)

    def want(self, keys: Collection[Key], now: float) -> list[Instruction]:
        """All the replicas that this node should hold now, of those that it is a member of. It
        tries, and goes on trying and renewing, until a later call leaves one out. One that is held
        and left out is not renewed any more, and not given back either: see `release`."""
        wanted = frozenset(keys)
        self._stirred.update(dict.fromkeys(sorted(wanted ^ self._wanted)))
        self._wanted = wanted
        return self._settle(now)

    def release(self, key: Key, now: float) -> list[Instruction]:
        """Nothing of it runs here any more, or ever did: the next one may have it at once."""
        self._wanted -= {key}
        record = self._records.get(key)
        if record is not None:
            self._carry(record.holder.release(now))
            self._stirred[key] = None
        return self._settle(now)

    def restarting(self, now: float) -> list[Instruction]:
        """The agent is about to stop and come back: every lease is renewed for RESTART_S. Done when
        `held(...).until` says so, or a second later."""
        for record in self._records.values():
            self._carry(record.holder.for_restart(now))
        self._stir_all()
        return self._settle(now)

    def bounded(self, key: Key, epoch: int, now: float) -> list[Instruction]:
        """Whatever of it runs here, the switch ends it when the lease of that epoch ends, which is
        held: what voters granted for longer, before this agent began, they need not keep."""
        self._carry(self._records[key].holder.bounded(epoch, now))
        self._stirred[key] = None
        return self._settle(now)

    def held(self, key: Key, now: float) -> Held | None:
        """None: it must not run here. Also None after the lease ended while nobody looked."""
        record = self._records.get(key)
        until = record.holder.until(now) if record is not None else None
        if record is None or record.holder.tenure is None or until is None:
            return None
        return Held(record.holder.tenure.ballot, until)

    def hindrance(self, key: Key, now: float) -> str:
        """Why this node could not hold it, or go on holding it: "" or a CamelCase reason.

        "NoVoters": without its present holder no majority of voters would be heard. "Isolated":
        the site heard no orchestrator for longer than the replica's stopAfter, so a holder stops
        it now (gracefully) and releases it. "NotMember": the plan does not let this node hold it.
        """
        record = self._records.get(key)
        target = record.holder.target if record is not None else None
        if record is None or target is None or record.group is None or not record.holder.member:
            return "NotMember"
        if record.overdue is not None:
            return "Isolated"
        holder = record.voter.lease.holder or record.group.members[0]
        live = self._live(target.group, now)
        if holder != self._node:
            live.discard(holder)
        return "" if len(live) >= target.group.majority else "NoVoters"

    def _live(self, group: Electorate, now: float) -> set[str]:
        """The voters that are heard, and believed."""
        heard = {v for v in group.voters if v == self._node or self._silence.hears(v, now)}
        return heard - self._trust.excluded

    def granted_by(self, key: Key, ballot: int) -> tuple[str, ...]:
        """Who granted this node that ballot, as far as it knows; for its claim."""
        record = self._records.get(key)
        tenure = record.holder.tenure if record is not None else None
        return tenure.granters() if tenure is not None and tenure.ballot == ballot else ()

    def obstacle(self, key: Key, now: float) -> str:
        """What keeps this node from getting the lease that it asks for, for people; empty: nothing
        that lasts, as far as is known."""
        record = self._records.get(key)
        target = record.holder.target if record is not None else None
        if record is None or target is None or record.holder.tenure is not None:
            return ""
        return record.obstacle(target.group, self._live(target.group, now), now)

    def free_at(self, key: Key, now: float) -> float:
        """When no lease of another runs any more as far as this node's own voter knows."""
        record = self._records.get(key)
        lease = record.voter.lease if record is not None else None
        return lease.until if lease is not None and lease.holder != self._node else now

    def next_due(self) -> float | None:
        """When `handle(Tick(), now)` is to be called at the latest."""
        times = [self._save_again_at] if self._save_again_at is not None else []
        dues = (self._agenda.first() if self._started else None, self._vigil.next_due())
        return min((*times, *(due for due in dues if due is not None)), default=None)

    # ---- events ----

    def _booted(self, event: Booted, now: float) -> None:
        kept = event.kept.get(NAME)
        broken = []
        for name, body in event.kept.items():
            if not name.startswith(f"{NAME}."):
                continue
            try:
                self._restore(body, now)
            except (KeyError, TypeError, ValueError):
                broken.append(name)
        try:
            self._start = int(kept["starts"]) + 1 if kept else 1
            self._trust.read(kept.get("excluded", {}) if kept else {})
        except (AttributeError, KeyError, TypeError, ValueError):
            broken.append(NAME)
        self._blank.begin(kept, lost=bool(broken) or event.damaged, now=now)
        if self._blank.gone and not self._blank.new:
            for record in self._records.values():
                record.voter.forgot(now, self._blank.until)
        if broken:
            names = ", ".join(sorted(broken)[:5])
            self._tell("LeasesForgotten", f"what was kept of leases cannot be read: {names}")
        if self._trust.excluded:
            self._out.append(Condition("VotersExcluded", self._trust.text()))
        self._save_start()

    def _restore(self, body: Mapping[str, Any], now: float) -> None:
        workload_uid, replica = body["key"]
        record = self._new((str(workload_uid), str(replica)), Voter.kept(body, now))
        record.overdue = int(body["overdue"]) if body["overdue"] is not None else None
        record.holder.saw(max(record.voter.promised, record.voter.accepted))
        record.saved = dict(body)

    def _save_start(self) -> None:
        self._start_token = next(self._tokens)
        self._save_again_at = None
        self._out.append(Save(self._start_token, NAME, self._body()))

    def _remember(self, now: float) -> None:
        """What was forgotten is over. Should this save get lost, the next start waits once more."""
        if self._started and self._blank.is_over(now):
            self._out.append(Save(next(self._tokens), NAME, self._body()))

    def _planned(self, plan: ParsedPlan, now: float) -> None:
        named: dict[Key, tuple[Group, int]] = {}
        stays = [*plan.assignments.values(), *(role.assignment for role in plan.roles.values())]
        for stay in stays:
            known = named.get(stay.key)
            if stay.group is None or not stay.group.exclusive:
                continue
            if known is None or known[0].number <= stay.group.number:
                named[stay.key] = (stay.group, max(stay.epoch, known[1] if known else 0))
        for key in named.keys() - self._records.keys():
            self._new(key, self._blank.voter(now))
        self._generation = plan.generation
        if self._trust.keep(plan.site.peers):
            self._trusted()
        for key, role in plan.roles.items():
            record, item = self._records.get(key), role.assignment
            if record is not None:
                granted_by = record.may_have_granted(item)
                self._rival(key, role.primary, item.epoch, granted_by, now)
        for key, record in list(self._records.items()):
            group, epoch = named.get(key, (None, 0))
            self._name(record, group, epoch, now)
            if group is None and record.idle(now):
                del self._records[key]
                self._agenda.put(key, None)
                self._out.append(Save(next(self._tokens), name_of(key), {}))
        self._vigil.keep([key for key, (group, _) in named.items() if group.stop_after_s], now)
        self._stir_all()

    def _name(self, record: Record, group: Group | None, epoch: int, now: float) -> None:
        lineage = lineage_of(group) if group is not None else None
        record.group, record.voter.told = group, lineage
        member = group is not None and self._node in group.members
        record.holder.planned(lineage, member, epoch)
        if group is not None:
            self._blank.excuse(record.voter, group)
            record.unnamed_since = None
            if record.overdue is not None and self._generation > record.overdue:
                record.overdue = None  # the orchestrator was heard since, and leaves it here
        elif record.unnamed_since is None:
            record.unnamed_since = now

    def _saved(self, event: Saved, now: float) -> None:
        if event.token == self._start_token:
            self._started = event.ok
            self._save_again_at = None if event.ok else now + RETRY_SAVE_S
            self._stir_all()
            return
        key = self._saving.pop(event.token, None)
        record = self._records.get(key) if key is not None else None
        done = next((w for w in record.waiting if w.token == event.token), None) if record else None
        if record is None or done is None:
            return
        record.waiting.remove(done)
        if not event.ok:
            record.saved = None
        for to, answer in done.answers:
            self._reply(to, answer if event.ok else not_writable(answer))

    def _rival(
        self, key: Key, node: str, epoch: int, granted_by: Collection[str], now: float
    ) -> None:
        """Another that had it by a later ballot. If this node has it, somebody granted it twice."""
        held = self.held(key, now)
        local = epoch & LOCAL_MAX  # what a leader decided is no ballot
        if held is None or not local or epoch <= held.epoch:
            return
        holder = self._records[key].holder
        assert holder.tenure is not None
        ours = holder.tenure.locked(now) - {self._node}
        text = f"{node} has it, too, as {shown(epoch)}: this node's lease of it is void"
        self._tell("HeldTwice", text, key)
        for voter in who_lied(node, ours, granted_by):
            self._lied(key, voter, f"granted {key[1]} to {node} as well")
        holder.doubt()
        self._stirred[key] = None

    # ---- requests and answers ----

    def _settle(self, now: float) -> list[Instruction]:
        """Until nothing is left that this node says to itself. Looks at those replicas alone of
        which something changed or is due: a renewal is said to be granted by each voter each
        second, of each replica."""
        if self._save_again_at is not None and now >= self._save_again_at:
            self._save_start()
        self._remember(now)
        self._silence.alone(self.alone_since, now)
        self._look_for_overdue(now)
        if self._started:
            self._stirred.update(dict.fromkeys(self._agenda.take(now)))
        while self._inbox or (self._started and self._stirred):
            if self._started:
                stirred, self._stirred = self._stirred, {}
                for key in stirred:
                    self._stir(key, now)
            if not self._inbox:
                continue
            sender, said = self._inbox.popleft()
            if isinstance(said, LeaseRequest):
                self._vote(sender, said, now)
            elif said.key in self._records:
                record = self._records[said.key]
                self._carry(record.holder.answered(sender, said, now))
                self._agenda.put(said.key, record.holder.next_due())
        out, self._out = self._out, []
        return out

    def _stir(self, key: Key, now: float) -> None:
        record = self._records.get(key)
        if record is None:
            return
        wanted = key in self._wanted and record.overdue is None
        self._carry(record.holder.want(wanted, now))
        self._carry(record.holder.due(now))
        self._agenda.put(key, record.holder.next_due())

    def _stir_all(self) -> None:
        self._stirred.update(dict.fromkeys(self._records))

    def _carry(self, requests: Requests) -> None:
        for voter, request in requests:
            if voter == self._node:
                self._inbox.append((self._node, request))
            else:
                self._out.append(Send(voter, request))

    def _reply(self, to: str, answer: LeaseAnswer) -> None:
        if to == self._node:
            self._inbox.append((to, answer))
        else:
            self._out.append(Send(to, answer))

    def _vote(self, sender: str, request: LeaseRequest, now: float) -> None:
        record = self._records.get(request.key)
        if record is None:
            if len(self._records) >= REPLICAS_MAX:
                self._reply(sender, refused(request, "TooMany"))
                return
            record = self._new(request.key, self._blank.voter(now))
            record.unnamed_since = now
        if record.overdue is not None and isinstance(request.step, Prepare | Propose):
            self._reply(sender, refused(request, "Isolated"))
            return
        answer = record.voter.handle(sender, request, now)
        self._keep(request.key, record, sender, answer)
        if isinstance(request.step, Release) and sender != self._node:
            record.holder.released(now)
            self._stirred[request.key] = None

    def _keep(self, key: Key, record: Record, sender: str, answer: LeaseAnswer) -> None:
        """Answers once the disk has what the answer rests on."""
        body = record.body(key)
        if body != record.saved:
            record.saved = body
            record.waiting.append(Waiting(next(self._tokens), []))
            self._saving[record.waiting[-1].token] = key
            self._out.append(Save(record.waiting[-1].token, name_of(key), body))
        if not record.waiting:
            self._reply(sender, answer)
        elif len(record.waiting[-1].answers) >= WAITING_MAX:
            self._reply(sender, not_writable(answer))
        else:
            record.waiting[-1].answers.append((sender, answer))

    # ---- the rest ----

    def _look_for_overdue(self, now: float) -> None:
        for key in self._vigil.due(in_touch=self.alone_since is None, now=now):
            record = self._records[key]
            assert record.group is not None
            self._check_overdue(key, record, record.group, now)
            self._vigil.changes(self._silence.changes_at(record.group, record.overdue is not None))

    def _check_overdue(self, key: Key, record: Record, group: Group, now: float) -> None:
        before = record.overdue
        if before is None and self._silence.isolated_s(group, now) >= group.stop_after_s:
            record.overdue = self._generation
            self._tell("StopAfter", f"no orchestrator was heard for {group.stop_after_s:g} s", key)
        elif before is not None and self._silence.confirmed(group, now):
            record.overdue = None
        if record.overdue != before:
            self._stirred[key] = None
            record.saved = record.body(key)
            self._out.append(Save(next(self._tokens), name_of(key), record.saved))

    def _new(self, key: Key, voter: Voter) -> Record:
        holder = Holder(self._node, key, self._draw, self._lied, self._trust.excluded)
        record = Record(voter, holder)
        record.saved = record.body(key)
        self._records[key] = record
        return record

    def _draw(self) -> int:
        self._drawn += 1
        return (self._start << 32) + self._drawn

    def _lied(self, key: Key, voter: str, how: str) -> None:
        holder = self._records[key].holder
        assert holder.tenure is not None
        match self._trust.lied(voter, how, holder.tenure.lineage.group):
            case Finding.LIED:
                text = f"{voter} does not count as a voter any more: it {how}"
                self._tell("VoterLied", text, key)
            case Finding.DOUBTED:
                for record in self._records.values():
                    record.holder.doubt()
                text = f"{voter} {how}: so many cannot all lie. What this node holds is void"
                self._tell("LeaseDoubted", text, key)
            case Finding.KNOWN:
                return
        self._trusted()
        self._stir_all()

    def _trusted(self) -> None:
        """Whom this node believes changed."""
        self._out.append(Condition("VotersExcluded", self._trust.text()))
        self._out.append(Save(next(self._tokens), NAME, self._body()))

    def _body(self) -> dict[str, Any]:
        excluded = self._trust.body()
        return {"starts": self._start, **self._blank.body(), "excluded": excluded}

    def _tell(self, reason: str, message: str, key: Key | None = None) -> None:
        self._out.append(Tell(reason, message, key, warning=True))
