"""The voter's side of a lease: one for each exclusive replica that this node votes on.

Used by `lease.py`, which saves `body()` before an answer goes out whenever it is not what was saved
last. Everything is in there but when the lease ends: after a restart it counts from then for its
whole length again, as long as it may be by any clock.

A voter is in one group at most, the newest that was opened to it, and `sealed` names one that
follows: nothing below it is voted on any more.

    asked       granted when
    Prepare     no lease of another runs, and the ballot is above all promised and accepted. So a
                rival cannot disturb a holder: what is refused promises nothing
    Propose     the ballot is not below what was accepted, and no other lease runs. The same ballot
                renews. A promise to another does not count: who was promised it and did not get it
                must not keep this voter from the holder for ever
    Release     always: that lease is over
    Seal        nothing later is known
    Open        nothing later is known, and a plan of this node named the replica or a group did:
                who has forgotten a replica must not take up what its voters have left behind

One node's new tenure may follow its old one at once, since the same agent starts and stops both.
What was granted to the old one for longer, as for a restart, is kept until its holder says that the
switch ends all of it sooner (`bounded`). That counts once for each ballot: said again, or late, it
would take back what that ballot was granted since.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.domain.roster import Electorate
from agent.domain.site.group import Lineage, lineage_body, lineage_from
from agent.domain.site.messages import LeaseAnswer, LeaseRequest, Open, Prepare, Propose, Seal

LEASE_MAX_S = 20.0  # no voter grants more


@dataclass(frozen=True, slots=True)
class Lease:
    """What was granted last. `ballot` 0: nobody's, but one may run that is not known. `length_s`:
    for how long it counts from a restart of this voter. `bounded`: nothing runs any more by what
    was granted before this ballot, or nobody can say so of it."""

    ballot: int
    holder: str
    length_s: float
    until: float
    bounded: bool = False

    def granted(self, ballot: int, holder: str, step: Propose, now: float) -> "Lease":
        """What it is after that."""
        end = now + step.length_s
        if step.bounded and not (self.bounded and self.ballot == ballot):
            return Lease(ballot, holder, step.length_s, end, bounded=True)
        until = max(self.until, end)
        return Lease(
            ballot,
            holder,
            step.length_s if until == end else max(step.length_s, self.length_s),
            until,
            bounded=self.bounded and self.ballot == ballot,
        )


NONE = Lease(0, "", 0.0, 0.0)


class Voter:
    """`told` is what this node's plan in use says of the replica: None when it does not name it."""

    def __init__(self) -> None:
        self.told: Lineage | None = None
        self.lineage: Lineage | None = None
        self.sealed: Lineage | None = None
        self.promised = 0
        self.accepted = 0
        self.lease = NONE

    # ---- what is kept ----

    def body(self) -> dict[str, Any]:
        return {
            "lineage": lineage_body(self.lineage),
            "sealed": lineage_body(self.sealed),
            "promised": self.promised,
            "accepted": self.accepted,
            "lease": [self.lease.ballot, self.lease.holder, self.lease.length_s],
            "bounded": self.lease.bounded,
        }

    @staticmethod
    def kept(body: Mapping[str, Any], now: float) -> "Voter":
        """Raises KeyError, TypeError or ValueError when it is not what `body` made."""
        voter = Voter()
        voter.lineage = lineage_from(body["lineage"])
        voter.sealed = lineage_from(body["sealed"])
        voter.promised, voter.accepted = int(body["promised"]), int(body["accepted"])
        ballot, holder, length_s = body["lease"]
        bounded = bool(body.get("bounded", False))  # a version before this one did not say it
        until = now + float(length_s)
        voter.lease = Lease(int(ballot), str(holder), float(length_s), until, bounded)
        return voter

    def forgot(self, now: float, until: float) -> None:
        """What was granted is lost, with the disk: a lease may run until then."""
        self.lease = Lease(0, "", until - now, until)

    @property
    def newest(self) -> Lineage | None:
        """What it votes in, or what follows that."""
        return self.sealed or self.lineage

    # ---- what is asked ----

    def handle(self, sender: str, request: LeaseRequest, now: float) -> LeaseAnswer:
        step = request.step
        if isinstance(step, Seal):
            return self._seal(request, step, now)
        if isinstance(step, Open):
            return self._open(request, step, now)
        if isinstance(step, Prepare | Propose):
            refusal = self._closed(request, now)
            if refusal is not None:
                return refusal
            if isinstance(step, Prepare):
                return self._prepare(sender, request, now)
            return self._propose(sender, request, step, now)
        if (self.lease.ballot, self.lease.holder) == (request.ballot, sender):
            self.lease = replace(self.lease, until=min(self.lease.until, now))
        return self._answer(request, now)

    def _closed(self, request: LeaseRequest, now: float) -> LeaseAnswer | None:
        later = self._later(request.group)
        if later is not None:
            return self._answer(request, now, "Sealed", later)
        if self.lineage is not None and self.lineage.number == request.group:
            return None
        if self.newest is None and self.told is None:
            return self._answer(request, now, "UnknownReplica")
        return self._answer(request, now, "NotOpen", self.lineage)

    def _later(self, number: int) -> Lineage | None:
        """A later group than that, if one is known. What the plan says does not end the group that
        is voted in: that is for a majority to do."""
        if self.newest is not None and self.newest.number > number:
            return self.newest
        voting = self.lineage is not None and self.lineage.number == number
        if not voting and self.told is not None and self.told.number > number:
            return self.told
        return None

    def _prepare(self, sender: str, request: LeaseRequest, now: float) -> LeaseAnswer:
        if self.lease.until > now and self.lease.holder != sender:
            return self._answer(request, now, "Held")
        low = max(self.accepted, request.group)
        if request.ballot < self.promised or request.ballot <= low:
            return self._answer(request, now, "Promised")
        self.promised = request.ballot
        return self._answer(request, now)

    def _propose(
        self, sender: str, request: LeaseRequest, step: Propose, now: float
    ) -> LeaseAnswer:
        lease, ballot = self.lease, request.ballot
        if step.length_s > LEASE_MAX_S:
            return self._answer(request, now, "TooLong")
        if lease.until > now and lease.holder != sender:
            return self._answer(request, now, "Held")
        if ballot < self.accepted:
            return self._answer(request, now, "Promised")
        self.promised, self.accepted = max(self.promised, ballot), ballot
        self.lease = lease.granted(ballot, sender, step, now)
        return self._answer(request, now)

    def _seal(self, request: LeaseRequest, step: Seal, now: float) -> LeaseAnswer:
        later = self._later(step.next)
        if later is not None:
            return self._answer(request, now, "Sealed", later)
        older = self.lineage
        if older is not None and older.number == step.next:
            return self._answer(request, now)
        if self.sealed is None or self.sealed.number < step.next:
            self.sealed = Lineage(Electorate(step.next, step.voters), step.before)
        return self._answer(request, now, "", older)

    def _open(self, request: LeaseRequest, step: Open, now: float) -> LeaseAnswer:
        later = self._later(request.group)
        if later is not None:
            return self._answer(request, now, "Sealed", later)
        if self.newest is None and self.told is None:
            return self._answer(request, now, "UnknownReplica")
        if self.lineage is not None and self.lineage.number == request.group:
            return self._answer(request, now)
        self.lineage = Lineage(Electorate(request.group, step.voters), step.before)
        self.sealed = None
        self.lease = self._inherited(step, now)
        self.promised = self.accepted = step.floor
        return self._answer(request, now)

    def _inherited(self, step: Open, now: float) -> Lease:
        """What may still run of older groups: as the opener says, and as was granted here."""
        until = max(now + step.wait_s, self.lease.until)
        same = (self.lease.ballot, self.lease.holder) == (step.floor, step.holder)
        alone = same or self.lease.until <= now
        if step.holder and alone:
            return Lease(step.floor, step.holder, until - now, until, bounded=True)
        return Lease(0, "", until - now, until) if until > now else NONE

    def _answer(
        self, request: LeaseRequest, now: float, reason: str = "", group: Lineage | None = None
    ) -> LeaseAnswer:
        runs = self.lease.until > now
        return LeaseAnswer(
            id=request.id,
            key=request.key,
            group=request.group,
            granted=not reason,
            reason=reason,
            promised=self.promised,
            accepted=self.lease.ballot if runs else self.accepted,
            holder=self.lease.holder if runs else "",
            remaining_s=self.lease.until - now if runs else 0.0,
            next=group.number if group is not None else 0,
            next_voters=group.group.voters if group is not None else (),
            next_before=group.before if group is not None else (),
        )
