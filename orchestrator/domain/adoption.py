"""What becomes of a replica that a site's own nodes took over: the rule. Pure.

A site heals itself with and without an orchestrator; the leader writes down what it did, and moves
nothing back. `adoption_step.py` asks for every such stay that an agent reports, in every tick, and
writes what is answered.

The holder is whom the record names; the local stay is what its site runs instead of it, or beside
it. The first line that fits decides:

    the holder's epoch is not lower than the local stay's     WAIT: see scheduling/strays.py
    it is exclusive, and the local stay's node a member       ADOPT: it has the lease of a majority
    it is exclusive                                           WAIT
    the local stay's node may not have it                     KEEP if the holder serves, else WAIT
    the holder serves, and the local stay does not            WAIT: it may yet come to that
    both serve, and operators of the site moved it to one     ADOPT or KEEP that one
    both serve, one of them not for SETTLE_S yet              WAIT: their site decides first
    both serve                                                as `polder/succession.py` says, which
                                                              the site goes by, too: ADOPT or KEEP
    the local stay serves                                     ADOPT
    the holder's node is heard                                WAIT: one of the two will serve
    nobody hears the holder's node                            ADOPT_BESIDE

WAIT writes nothing, and is asked again. ADOPT moves the record; the holder's node is told to stop
what it may have of it. ADOPT_BESIDE moves it as a replacement that starts: the old stay stops when
the new one is ready. KEEP raises the holder's epoch, and stops the local stay.
"""

from dataclasses import dataclass
from enum import Enum

from orchestrator.domain.restored import is_credible
from orchestrator.records import AssignmentRecord
from polder import epochs
from polder.succession import Contender, keeper

SETTLE_S = 10.0
"""So long two that serve are left to their site: its nodes see each other more often than we do."""


class Verdict(Enum):
    WAIT = "Wait"
    ADOPT = "Adopt"
    ADOPT_BESIDE = "AdoptBeside"
    KEEP = "Keep"


@dataclass(frozen=True, slots=True)
class Case:
    """`epoch`: the higher one of the record's and of what its agent says of it. `heard`: whether
    the holder's node is live; `serves` and `ready_for_s` are its agent's word, and nothing while it
    is not heard. `same_site`: the local stay's node is at the holder's site. `asked`: the
    node to which operators of the site moved it; empty: they did not."""

    node: str
    record: AssignmentRecord
    epoch: int
    heard: bool
    serves: bool
    ready_for_s: float
    local: Contender
    same_site: bool
    asked: str = ""


def judge(case: Case) -> Verdict:
    """See the table above."""
    group, local = case.record.group, case.local
    member = group is not None and local.node in group.members
    if local.epoch <= case.epoch or not is_credible(local.epoch, epochs.revision_of(case.epoch)):
        return Verdict.WAIT
    if group is not None and group.exclusive:
        return Verdict.ADOPT if member else Verdict.WAIT
    if not (member or case.same_site):
        return Verdict.KEEP if case.serves else Verdict.WAIT
    if case.serves:
        return _of_two(case, member=member)
    if local.ready:
        return Verdict.ADOPT
    return Verdict.WAIT if case.heard else Verdict.ADOPT_BESIDE


def _of_two(case: Case, *, member: bool) -> Verdict:
    """The holder serves."""
    if not member:  # it was, by a plan of before
        return Verdict.KEEP
    if case.local.ready and case.asked in (case.node, case.local.node):
        return Verdict.ADOPT if case.asked == case.local.node else Verdict.KEEP
    if not case.local.ready or min(case.ready_for_s, case.local.ready_for_s) < SETTLE_S:
        return Verdict.WAIT
    group = case.record.group
    holder = Contender(case.node, case.record.replica_uid, case.epoch, True, case.ready_for_s)
    stays = keeper((holder, case.local), group.on_return if group is not None else "")
    return Verdict.KEEP if stays is holder else Verdict.ADOPT


def raised(revision: int, *heard: int) -> int:
    """An epoch for who stays, above all that was heard. `revision`: of the Store, now."""
    return max(epochs.decided_at(revision), max(heard) + 1)
