"""The holder's side of a lease: one for each exclusive replica that this node may hold.

Used by `lease.py`, which carries requests to the voters and their answers back. A proposer asks one
question at a time, and begins anew when it gets no answer:

    ask       Prepare, at every voter of the target; of a holder that moves to a newer group:
              Propose, with the ballot it has
      a majority grants                 -> propose; the holder that moves: done
      a majority could not vote yet     -> seal the groups before it -> open -> ask
      refused                           -> again when the lease ends, or with a higher ballot
      a later group is known            -> that is the target now
    propose   the same ballot at the same voters -> held

A holder renews every second, and every 0.3 s while there is no majority of answers yet. The end of
what it has is counted from when a request was sent, for each voter alone: of those ends, the one
that a majority of the voters reaches.
"""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field

from agent.domain.roster import Electorate, Key
from agent.domain.site.group import STRETCH, Lineage, Opening
from agent.domain.site.messages import (
    LeaseAnswer,
    LeaseRequest,
    Open,
    Prepare,
    Propose,
    Release,
    Seal,
)
from agent.domain.site.renewal import RETRY_S, Renewal
from agent.domain.site.tenure import KILL_S, Tenure
from polder.epochs import LOCAL_BITS, EpochsUsedUp, after

LEASE_S = 3.0
RESTART_S = 15.0
ATTEMPT_S = 1.2  # until it is given up
SPREAD_S = 0.08  # by which the next tries of two nodes differ
FAILS_MAX = 8
USED_UP_S = 60.0
VOTING = ("Promised", "Held", "TooLong", "Isolated")  # refusals of a voter whose group is open

Step = Prepare | Propose | Release | Seal | Open
Requests = list[tuple[str, LeaseRequest]]


@dataclass(slots=True)
class _Round:
    """One question to several voters, until there are answers enough."""

    asked: Mapping[str, Step]
    ballot: int
    group: Electorate
    began_at: float
    again_at: float
    answers: dict[str, LeaseAnswer] = field(default_factory=dict)
    free_at: dict[str, float] = field(default_factory=dict)  # of those with a lease of another

    @property
    def kind(self) -> type[Step]:
        return type(next(iter(self.asked.values())))


@dataclass(frozen=True, slots=True)
class _Sent:
    """`round` None: a renewal, or what nobody waits for."""

    voter: str
    request: LeaseRequest
    at: float
    round: _Round | None


class Holder:
    """`draw` gives the ids of requests; `lied` is told a voter that broke its word, and how.
    `excluded` are voters that do not count."""

    def __init__(
        self,
        node: str,
        key: Key,
        draw: Callable[[], int],
        lied: Callable[[Key, str, str], None],
        excluded: Set[str],
    ) -> None:
        self._node = node
        self._key = key
        self._draw = draw
        self._lied = lied
        self._excluded = excluded
        self.target: Lineage | None = None
        self.member = False
        self.wanted = False
        self.length_s = LEASE_S
        self.tenure: Tenure | None = None
        self.blank_until: dict[str, float] = {}
        """Voters that grant nobody anything before then: they cannot know what runs."""
        self._bid: Tenure | None = None  # proposed, and not granted by a majority yet
        self._opening: Opening | None = None
        self._round: _Round | None = None
        self._sent: dict[int, _Sent] = {}
        self._highest = 0
        self._ballot = 0  # asked with and not proposed: it may be asked with again
        self._next_try = 0.0
        self._fails = 0
        self._renewal = Renewal()

    # ---- what the desk says ----

    def planned(self, lineage: Lineage | None, member: bool, epoch: int) -> None:
        """What the plan in use says; None: it does not name the replica any more."""
        self.member = member
        self.saw(epoch)
        if lineage is not None:
            self._aim(lineage)

    def saw(self, epoch: int) -> None:
        """Somebody used it: what this node uses next is above it."""
        self._highest = max(self._highest, epoch)

    def want(self, wanted: bool, now: float) -> Requests:
        if wanted == self.wanted:
            return []
        self.wanted = wanted
        if wanted:
            self._next_try, self._fails = now, 0
            return self.due(now)
        self._round = self._bid = None
        return []

    def release(self, now: float) -> Requests:
        """Gives back what it has, or may have: that ballot is never used again. A bid that came to
        nothing is not given back: of an earlier start of this agent something may run yet."""
        self.wanted = False
        given = [tenure for tenure in (self.tenure, self._bid) if tenure is not None]
        self.tenure = self._bid = self._round = None
        self._sent.clear()
        return [
            self._send(voter, Release(), tenure.ballot, tenure.lineage.group, now)
            for tenure in given
            for voter in tenure.voters()
        ]

    def released(self, now: float) -> None:
        """Another's lease is over, as this node's own voter heard."""
        if self._round is None:
            self._next_try = min(self._next_try, now)

    def until(self, now: float) -> float | None:
        """When the lease that is held ends; None: none is."""
        until = self.tenure.until(self._excluded) if self.tenure is not None else 0.0
        return until if until > now else None

    def doubt(self) -> None:
        """What it has is void, and is not given back: something runs by it yet."""
        self.tenure = self._round = None

    def for_restart(self, now: float) -> Requests:
        """What is held is renewed for so long that the agent may be away for a moment."""
        self.length_s = RESTART_S
        self._renewal.at_once(now)
        return self.due(now)

    def bounded(self, ballot: int, now: float) -> Requests:
        """Whatever runs ends by what that ballot was granted: no voter need keep to what it granted
        for longer before. Not once this ballot itself was asked for longer."""
        tenure = self.tenure
        if tenure is None or (tenure.ballot, self.length_s) != (ballot, LEASE_S):
            return []
        tenure.bounded = True
        self._renewal.at_once(now)
        return self.due(now)

    # ---- time ----

    def next_due(self) -> float | None:
        times = []
        if self.tenure is not None:
            times.append(self.tenure.until(self._excluded))
            if self.wanted:
                times.append(self._renewal.due_at)
        if self._round is not None:
            times.append(min(self._round.again_at, self._round.began_at + ATTEMPT_S))
        elif self._aims():
            times.append(self._next_try)
        return min(times, default=None)

    def due(self, now: float) -> Requests:
        """What is to be asked now."""
        if self.tenure is not None and self.until(now) is None:
            self.tenure = self._round = None
            self._next_try = now
        requests: Requests = []
        if self.tenure is not None and self.wanted and now >= self._renewal.due_at:
            requests += self._renew(self.tenure, now)
        if self._round is not None:
            requests += self._continue(self._round, now)
        if self._round is None and self._aims() and now >= self._next_try:
            requests += self._ask(now)
        return requests

    def _aims(self) -> bool:
        """Whether it should get something that it has not."""
        target = self.target
        return (
            self.wanted
            and self.member
            and target is not None
            and self._node in target.group.voters
            and (self.tenure is None or self.tenure.lineage.number < target.number)
        )

    def _aim(self, lineage: Lineage) -> bool:
        """Only ever at a later group: an older plan changes nothing."""
        if self.target is not None and lineage.number <= self.target.number:
            return False
        self.target, self._opening, self._fails = lineage, None, 0
        self._next_try = 0.0
        if self._bid is None:
            self._round = None
        return True

    def _renew(self, tenure: Tenure, now: float) -> Requests:
        voters = self._renewal.lacking(tenure.lineage.group.voters, now)
        step = self._word(tenure)
        return [self._send(v, step, tenure.ballot, tenure.lineage.group, now) for v in voters]

    def _word(self, tenure: Tenure) -> Propose:
        return Propose(self.length_s, tenure.bounded)

    def _continue(self, asking: _Round, now: float) -> Requests:
        """Asks those again who are silent, and those whose lease of another should be over."""
        if now >= asking.began_at + ATTEMPT_S:
            return self._judge(asking, now, final=True)
        if now < asking.again_at:
            return []
        asking.again_at = now + RETRY_S
        over = [v for v in asking.answers if 0 < asking.free_at.get(v, 0.0) <= now]
        for voter in over:
            del asking.answers[voter], asking.free_at[voter]
        requests = self._judge(asking, now, final=False)
        if self._round is asking:
            requests += self._put(asking, asking.asked.keys() - asking.answers.keys(), now)
        return requests

    # ---- questions ----

    def _ask(self, now: float) -> Requests:
        assert self.target is not None
        group = self.target.group
        if self.tenure is not None:
            return self._begin(self._asked(self._word(self.tenure)), self.tenure.ballot, now)
        try:
            self._ballot = self._next_ballot(group)
        except EpochsUsedUp:
            self._next_try = now + USED_UP_S
            return []
        return self._begin(self._asked(Prepare()), self._ballot, now)

    def _asked(self, step: Step) -> dict[str, Step]:
        """The voters of the target. Those of older groups, too, while they may have to be sealed:
        they answer that they are elsewhere, and whether it is held there."""
        opening = self._open_up()
        return dict.fromkeys((*opening.lineage.group.voters, *opening.older_voters()), step)

    def _next_ballot(self, group: Electorate) -> int:
        """No two voters of a group ever use the same one. Raises EpochsUsedUp."""
        size, own = len(group.voters), group.voters.index(self._node)
        low = max(self._highest, group.number)
        if self._ballot >= low and self._ballot > group.number and self._ballot % size == own:
            return self._ballot
        first = after(low)
        ballot = first + (own - first) % size
        if ballot >> LOCAL_BITS != low >> LOCAL_BITS:
            raise EpochsUsedUp
        return ballot

    def _propose(self, now: float) -> Requests:
        assert self.target is not None
        self._bid, self._ballot = Tenure(self._ballot, self.target), 0
        self.saw(self._bid.ballot)
        step = self._word(self._bid)
        return self._begin(dict.fromkeys(self.target.group.voters, step), self._bid.ballot, now)

    def _begin(self, asked: Mapping[str, Step], ballot: int, now: float) -> Requests:
        assert self.target is not None
        self._round = _Round(asked, ballot, self.target.group, now, now + RETRY_S)
        return self._put(self._round, asked, now)

    def _put(self, asking: _Round, voters: Iterable[str], now: float) -> Requests:
        return [
            self._send(voter, asking.asked[voter], asking.ballot, asking.group, now, asking)
            for voter in sorted(voters)
        ]

    def _send(
        self,
        voter: str,
        step: Step,
        ballot: int,
        group: Electorate,
        now: float,
        asking: _Round | None = None,
    ) -> tuple[str, LeaseRequest]:
        for old in [i for i, sent in self._sent.items() if sent.at < now - LEASE_S]:
            del self._sent[old]  # too late to count
        request = LeaseRequest(self._draw(), self._key, group.number, ballot, step)
        self._sent[request.id] = _Sent(voter, request, now, asking)
        return voter, request

    def _fail(self, now: float, wait_s: float) -> None:
        """Another try later; not at the same moment as others that failed with it."""
        self._round = None
        self._fails = min(self._fails + 1, FAILS_MAX)
        order = sorted((*self.target.group.voters, self._node)) if self.target else [self._node]
        own = order.index(self._node)
        dice = (own * 7 + self._highest * 13 + self._fails * 5) % 11 / 11
        self._next_try = now + wait_s + SPREAD_S * (own + 1 + self._fails * dice)

    # ---- answers ----

    def answered(self, voter: str, answer: LeaseAnswer, now: float) -> Requests:
        """Each request is answered once; what is late, doubled or another's is not counted."""
        sent = self._sent.get(answer.id)
        if sent is None or sent.voter != voter or voter in self._excluded:
            return []
        del self._sent[answer.id]
        self.saw(max(answer.promised, answer.accepted))
        requests: Requests = []
        if answer.reason == "Sealed" and self._follow(answer):
            requests += self.due(now)
        if isinstance(sent.request.step, Propose):
            requests += self._proposed(sent, answer, sent.request.step.length_s, now)
        if sent.round is not None and sent.round is self._round:
            self._note(sent.round, voter, answer, now)
            requests += self._judge(sent.round, now, final=False)
        return requests

    def _note(self, asking: _Round, voter: str, answer: LeaseAnswer, now: float) -> None:
        asking.answers[voter] = answer
        if answer.remaining_s > 0 and not answer.holder:
            self.blank_until.setdefault(voter, now + answer.remaining_s * STRETCH)
        else:
            self.blank_until.pop(voter, None)
        if answer.remaining_s > 0 and answer.holder != self._node:
            asking.free_at[voter] = now + answer.remaining_s * STRETCH
            asking.again_at = min(asking.again_at, asking.free_at[voter])
        if asking.kind is not Seal:
            self._open_up().note(voter, answer, now)
        elif answer.granted:
            self._open_up().sealed_by(voter, answer, now)

    def _follow(self, answer: LeaseAnswer) -> bool:
        group = Electorate(answer.next, answer.next_voters)
        return self._aim(Lineage(group, answer.next_before))

    def _proposed(self, sent: _Sent, answer: LeaseAnswer, length_s: float, now: float) -> Requests:
        tenures = (self.tenure, self._bid)
        tenure = next((t for t in tenures if t and t.ballot == sent.request.ballot), None)
        if tenure is None:
            return []
        own = tenure.lineage.group
        group = (
            own if own.number == sent.request.group or self.target is None else self.target.group
        )
        if answer.granted:
            tenure.granted(group, sent.voter, sent.at, length_s, now)
            if group == own:
                self._renewal.granted(sent.voter, sent.at, own.majority)
        elif tenure is self.tenure and group == own:
            if tenure.binds(sent.voter, sent.at, now):
                self._check_word(tenure, sent.voter, answer)
            until = self.until(now)
            if answer.reason == "NotOpen" and until is not None:
                return [self._let_in(tenure, sent.voter, until, now)]
        return []

    def _let_in(
        self, tenure: Tenure, voter: str, until: float, now: float
    ) -> tuple[str, LeaseRequest]:
        """A voter that was away when the group was opened."""
        lineage = tenure.lineage
        step = Open(
            lineage.group.voters,
            tenure.ballot,
            (until + KILL_S - now) * STRETCH,
            self._node,
            lineage.before,
        )
        return self._send(voter, step, tenure.ballot, lineage.group, now)

    def _check_word(self, tenure: Tenure, voter: str, answer: LeaseAnswer) -> None:
        """Who granted a lease that runs yet must not have promised or granted another since."""
        group = tenure.lineage.group
        owner = group.voters[answer.promised % len(group.voters)]
        if answer.reason == "Promised" and owner != self._node and answer.promised > tenure.ballot:
            self._lied(self._key, voter, f"promised it to {owner} while this node has its lease")
        elif answer.reason == "Held" and answer.holder not in ("", self._node):
            self._lied(self._key, voter, f"granted it to {answer.holder} as well as to this node")

    def _judge(self, asking: _Round, now: float, final: bool) -> Requests:
        """What the answers so far lead to. `final`: no more are waited for."""
        kind = asking.kind
        if kind is Seal:
            return self._judge_seal(asking, now, final)
        if kind is Open:
            return self._judge_open(asking, now, final)
        if self._bid is not None:
            return self._judge_bid(self._bid, asking, now, final)
        return self._judge_ask(asking, now, final)

    def _judge_ask(self, asking: _Round, now: float, final: bool) -> Requests:
        group, opening = asking.group, self._open_up()
        answers = {v: a for v, a in asking.answers.items() if v in group.voters}
        granted = [v for v, a in answers.items() if a.granted]
        shut = [v for v, a in answers.items() if a.reason == "NotOpen"]
        voting = [v for v, a in answers.items() if a.granted or a.reason in VOTING]
        silent = 0 if final else len(group.voters) - len(answers)
        patient = not final and now < asking.began_at + RETRY_S
        if len(granted) >= group.majority and self._node in granted:
            self._round = None
            if self.tenure is None:
                return self._propose(now)
            assert self.target is not None
            self.tenure.lineage = self.target
            self._renewal.begin(asking.began_at, granted)
            return []
        own = self._node in granted or (self._node not in answers and not final)
        if own and len(granted) + silent >= group.majority and (patient or not shut):
            return []
        if patient and len(voting) < group.majority <= len(voting) + silent:
            return []
        if len(voting) >= group.majority:
            held = [at - now for v, at in asking.free_at.items() if v in group.voters]
            self._fail(now, _free_in(held, group))
            opens = opening.opens(shut, now)
            return [self._send(v, opens[v], 0, group, now) for v in shut]
        if patient and len(asking.answers) < len(asking.asked):
            return []
        if len(voting) + len(shut) < group.majority:
            if final:
                self._fail(now, RETRY_S)
            return []
        if asking.free_at:  # it is held in an older group, and nobody is to disturb that
            self._fail(now, max(asking.free_at.values()) - now)
            return []
        return self._seal(opening, now)

    def _open_up(self) -> Opening:
        assert self.target is not None
        if self._opening is None:
            self._opening = Opening(self.target)
        return self._opening

    def _seal(self, opening: Opening, now: float) -> Requests:
        voters = opening.lineage.group.voters
        return self._begin(opening.seals() or opening.opens(voters, now), 0, now)

    def _judge_seal(self, asking: _Round, now: float, final: bool) -> Requests:
        opening = self._open_up()
        seals = opening.seals()
        if not seals:
            return self._seal(opening, now)
        new = {voter: step for voter, step in seals.items() if voter not in asking.asked}
        if final:
            self._fail(now, RETRY_S)
            return []
        asking.asked = {**asking.asked, **new}
        return self._put(asking, new, now)

    def _judge_open(self, asking: _Round, now: float, final: bool) -> Requests:
        opened = [v for v, a in asking.answers.items() if a.granted]
        if len(opened) >= asking.group.majority:
            self._round, self._next_try = None, now
            return self._ask(now)
        if final or len(asking.answers) == len(asking.asked):
            self._fail(now, RETRY_S)
        return []

    def _judge_bid(self, bid: Tenure, asking: _Round, now: float, final: bool) -> Requests:
        granted = [v for v, a in asking.answers.items() if a.granted]
        silent = 0 if final else len(asking.group.voters) - len(asking.answers)
        if bid.until(self._excluded) > now:
            self.tenure, self._bid, self._round, self._fails = bid, None, None, 0
            self._renewal.begin(asking.began_at, granted)
            return []
        if len(granted) + silent >= asking.group.majority:
            return []
        self._bid = None
        self._fail(now, 0.0)
        return []


def _free_in(held: list[float], group: Electorate) -> float:
    """When a majority could grant it; 0: it is not held by so many."""
    lacking = group.majority - (len(group.voters) - len(held))
    return max(sorted(held)[lacking - 1], 0.0) if lacking > 0 else 0.0
