"""Replicas of which at least one runs: who takes over, which of two stays. Part of `machine.py`.

For each shared replica that is not exclusive this node is in one of these situations. They are
derived anew whenever anything changed; only the marked times are remembered.

    situation   when                                              does                  then
    RUNNING     a stay of it is here and may run; no live peer    it runs               (stays)
                has a ready one with a greater (epoch, node)
    LISTENING   its stay is here and nothing of it runs, for      waits                 RUNNING,
                2.5 s after the start                                                   STANDBY
    DEFERRING   the same, and a live peer claims more and is      waits, 10 s at most   RUNNING,
                not ready yet                                                           STANDBY
    STANDBY     no stay of it is here that may run; a live node   nothing               WAITING,
                claims it, or its holder is heard and does not    (forgets the times)   DOUBTING
                say that it cannot
    WAITING     nobody claims it, and of a peer nobody knows yet  nothing               DOUBTING
                whether it is there
    DOUBTING    its holder is missed, but a peer hears it; for    nothing               QUEUING,
                10 s at most since it was missed (*)                                    STANDBY
    QUEUING     members before this one could take it over; for   nothing               TAKING,
                5 s each since nobody doubts any more (*)                               STANDBY
    UNABLE      it is this node's turn, and it cannot             tells why             TAKING
    TAKING      it is this node's turn, or an operator moved it   a new stay with an    RUNNING
                here                                              epoch above all known
    STOPPED     an operator stopped it                            its stays here stop   RUNNING,
                                                                                        STANDBY

Of stays that are ready on several nodes at once, the keeper (`polder/succession.py`) raises its
epoch above all others; the others stop when they see that. So nobody stops before the one that
stays has said so. It raises it once against each: two nodes that see different keepers do not
outbid each other for ever. Where the keeper is wanted "older", it also raises it against one that
is not ready yet, and need not become so.

Where an operator moved it is the keeper as well, of those decided at the latest revision; and while
the site is frozen nobody yields that runs (`operators.py`).

A stay that stopped for another is never started again: the plan may already say that it must stop.
If its node has to run the replica once more, that is a new stay.
"""

from collections.abc import Iterable, Mapping, Sequence

from agent.domain.roster import Group, Key
from agent.domain.site import operators
from agent.domain.site.case import Case, Memory, Own, Scene, Standing, Verdict
from agent.domain.site.claims import Heard
from agent.domain.site.identifying import stay_uid
from agent.domain.site.messages import Stay, Tell
from polder import epochs
from polder.succession import Contender, decided_in, keeper

LISTEN_S = 2.5
DEFER_S = 10.0
DOUBT_S = 10.0
QUEUE_S = 5.0
UNCLAIMED_S = 15.0
# A claim that is not ready, of a node that says one of these, will not become so.
HOPELESS = frozenset({"ImageMissing", "SecretMissing", "SovereigntyViolation"})


class Takeovers:
    """One judge for all replicas; remembers little of each."""

    def __init__(self) -> None:
        self._memories: dict[Key, Memory] = {}

    def keep(self, keys: Iterable[Key]) -> None:
        """Forget all other replicas."""
        for key in self._memories.keys() - set(keys):
            del self._memories[key]

    def judge(self, case: Case, scene: Scene) -> Verdict:
        """What is to be done about one replica."""
        memory = self._memories.setdefault(case.key, Memory())
        verdict = Verdict(Standing.RUNNING)
        if why := operators.why_stopped(case, scene):
            verdict.standing = Standing.STOPPED
            memory.forget_times()
            operators.stop_here(case, why, memory, verdict)
            return verdict
        memory.told_stopped = ""
        left = [own for own in case.own if not _resolved(own, case, scene, memory, verdict)]
        if left:
            memory.forget_times()
            for own in left:
                _begin(own, case, scene, memory, verdict)
        else:
            _stand_by(case, scene, memory, verdict)
        return verdict


# ---- stays that are here ----


def _live(case: Case, scene: Scene) -> list[Heard]:
    return [claim for claim in case.theirs if scene.peers.hears(claim.node, scene.now)]


def _greater(own: Own, case: Case, scene: Scene) -> list[Contender]:
    """Stays that are newer than this one, ready or not. What two assignments of one plan are to
    each other is the plan's business."""
    rank = (own.epoch, scene.node)
    greater = [c.contender(scene.now) for c in _live(case, scene) if c.rank > rank]
    return greater + [
        other.contender(scene.node, scene.now)
        for other in case.own
        if other.epoch > own.epoch and not (own.planned and other.planned)
    ]


def _resolved(own: Own, case: Case, scene: Scene, memory: Memory, verdict: Verdict) -> bool:
    """Whether it stops for another. Or it raises its epoch, so that the others do."""
    if own.runs and scene.decided.frozen() is not None:
        return False
    greater = _greater(own, case, scene)
    ready = [other for other in greater if other.ready]
    if _is_keeper(own, case, scene):
        on_return = case.group.on_return if case.group is not None else "older"
        rivals = ready if on_return == "newer" else greater
        rivals = [r for r in rivals if decided_in(r.epoch) <= decided_in(own.epoch)]
        if {r.uid for r in rivals} - memory.raised:
            raised = _raised(own, case, rivals, memory, verdict)
            if raised:
                return False
    if not ready:
        return False
    winner = max(ready, key=lambda c: c.rank)
    text = f"{winner.node} runs it with epoch {epochs.shown(winner.epoch)}"
    verdict.changed.append(Stay(case.key, own.uid, own.epoch, own.takes_over, "Superseded", text))
    if own.present:
        verdict.tells.append(Tell("Superseded", f"it stops here: {text}", case.key))
    return True


def _is_keeper(own: Own, case: Case, scene: Scene) -> bool:
    contenders = [c.contender(scene.now) for c in _live(case, scene)]
    contenders += [o.contender(scene.node, scene.now) for o in case.own]
    on_return = case.group.on_return if case.group is not None else "older"
    best = keeper(operators.placed(case, contenders, scene) or contenders, on_return)
    return best is not None and (best.node, best.uid) == (scene.node, own.uid)


def _raised(
    own: Own, case: Case, rivals: Sequence[Contender], memory: Memory, verdict: Verdict
) -> bool:
    memory.raised |= {rival.uid for rival in rivals}
    try:
        epoch = epochs.after(own.epoch, *(rival.epoch for rival in rivals))
    except epochs.EpochsUsedUp:
        return False
    verdict.changed.append(Stay(case.key, own.uid, epoch, own.takes_over))
    others = ", ".join(sorted({rival.node for rival in rivals}))
    text = f"it runs on {others} too and stays here, with epoch {epochs.shown(epoch)}"
    verdict.tells.append(Tell("StaysHere", text, case.key))
    return True


def _begin(own: Own, case: Case, scene: Scene, memory: Memory, verdict: Verdict) -> None:
    """Whether it may start, when nothing of it runs yet."""
    if own.runs or own.uid in memory.begun or not _shared(case, scene):
        memory.begun.add(own.uid)
        return
    heard_all_at = scene.began_at + LISTEN_S
    waiting = ""
    if not scene.settled or scene.now < heard_all_at:
        verdict.standing = Standing.LISTENING
        waiting = "it waits whether another node of the site says that it runs there"
        if scene.now < heard_all_at:
            verdict.attend(heard_all_at)
    elif scene.now < heard_all_at + DEFER_S:
        greater = _greater(own, case, scene)
        if greater:
            verdict.standing = Standing.DEFERRING
            waiting = f"{greater[0].node} is about to run it"
            verdict.attend(heard_all_at + DEFER_S)
    if waiting:
        verdict.waits.append(
            Stay(case.key, own.uid, own.epoch, own.takes_over, "Listening", waiting, waits=True)
        )
    else:
        memory.begun.add(own.uid)


def _shared(case: Case, scene: Scene) -> bool:
    """Whether a peer may have it."""
    return case.group is not None and any(m in scene.peers.names for m in case.group.members)


# ---- stays that are elsewhere ----


def _stand_by(case: Case, scene: Scene, memory: Memory, verdict: Verdict) -> None:
    """Nothing of it may run here: is it to be taken over?"""
    moved = operators.moved_here(case, scene)
    if not moved and not is_turn(case, scene, memory, verdict, doubts=True):
        return
    verdict.standing = Standing.UNABLE
    why = able(case, scene, memory, verdict)
    if why == "":
        _take(case, scene, memory, verdict, moved)


def is_turn(case: Case, scene: Scene, memory: Memory, verdict: Verdict, *, doubts: bool) -> bool:
    """Whether this node is the one to take it over now. `doubts`: whether to believe others that
    hear the holder more than ourselves for a while."""
    group, verdict.standing = case.group, Standing.STANDBY
    if group is None or scene.node not in group.members or not case.startable:
        return False
    if not scene.settled:
        return False  # it may run here, as an orphan
    if operators.left_alone(case, scene, memory, verdict):
        memory.forget_times()
        return False
    holder = _holder(case, scene)
    if _claimed(case, scene):
        memory.forget_times()
        return False
    gone = holder == "" or _gone(holder, case.key, scene)
    if not gone and not _knows_nothing(holder, case, scene, memory, verdict):
        memory.missed_since = memory.free_since = None
        memory.told_unable = ""
        return False
    others = [m for m in group.members if m != scene.node]
    if not holder and any(_unknown(m, scene) for m in others):
        verdict.standing = Standing.WAITING
        return False
    if memory.missed_since is None:
        memory.missed_since = scene.now
    if gone and doubts and _doubted(holder, group, scene, memory, verdict):
        return False
    if memory.free_since is None:
        memory.free_since = scene.now
    first = before(group, holder, case.key, scene)
    turn_at = memory.free_since + QUEUE_S * len(first)
    if scene.now < turn_at:
        verdict.standing = Standing.QUEUING
        verdict.attend(turn_at)
        return False
    return True


def able(case: Case, scene: Scene, memory: Memory, verdict: Verdict) -> str | None:
    """As `scene.able`; operators hear why not, once each time."""
    why = scene.able(case.key)
    if why and memory.told_unable != why:
        memory.told_unable = why
        text = f"it is this node's turn to take it over, and it cannot: {why}"
        verdict.tells.append(Tell("StandbyUnable", text, case.key, warning=True))
    return why


def _claimed(case: Case, scene: Scene) -> bool:
    """A node that is not missed has it, or starts it."""
    for claim in case.theirs:
        if scene.peers.missed(claim.node, scene.now):
            continue
        ability = scene.theirs.ability(claim.node, case.key)
        hopeless = ability is not None and not ability.able and ability.reason in HOPELESS
        if claim.ready_since is not None or not hopeless:
            return True
    return False


def _holder(case: Case, scene: Scene) -> str:
    """Who had it last, as far as is known; empty: nobody says. Asked when nobody claims it who
    is not missed."""
    gone = [claim for claim in case.theirs if scene.peers.missed(claim.node, scene.now)]
    newest = max(gone, key=lambda claim: claim.rank, default=None)
    if newest is not None and newest.epoch >= case.last_epoch:
        return newest.node
    return case.primary if case.primary != scene.node else ""


def _gone(holder: str, key: Key, scene: Scene) -> bool:
    """Whether nothing is to be expected of it. One that is heard may say so itself."""
    ability = scene.theirs.ability(holder, key)
    unable = ability is not None and not ability.able
    return unable or scene.peers.missed(holder, scene.now)


def _knows_nothing(holder: str, case: Case, scene: Scene, memory: Memory, verdict: Verdict) -> bool:
    """Whether the plan names a holder that is heard and has not got that plan, nor will get it
    soon: it never claimed the replica, and hears no orchestrator. One that claimed it and does so
    no more was told to stop, perhaps for good."""
    if case.theirs or not scene.peers.alone(holder) or not scene.theirs.spoke(holder):
        memory.unclaimed_since = None
        return False
    if memory.unclaimed_since is None:
        memory.unclaimed_since = scene.now
    until = memory.unclaimed_since + UNCLAIMED_S
    if scene.now < until:
        verdict.attend(until)
    return scene.now >= until


def _unknown(name: str, scene: Scene) -> bool:
    peers = scene.peers
    return (
        name in peers.names
        and not peers.hears(name, scene.now)
        and not peers.missed(name, scene.now)
    )


def _doubted(holder: str, group: Group, scene: Scene, memory: Memory, verdict: Verdict) -> bool:
    """Whether somebody hears the holder, and we do not believe ourselves yet."""
    assert memory.missed_since is not None
    until = memory.missed_since + DOUBT_S
    among = [v for v in group.voters if v in scene.peers.names]
    if scene.now >= until or not scene.peers.witnesses_of(holder, among, scene.now):
        return False
    verdict.standing = Standing.DOUBTING
    verdict.attend(until)
    memory.free_since = None
    return True


def before(group: Group, holder: str, key: Key, scene: Scene) -> list[str]:
    """Members whose turn comes first, and that may use it."""
    found = []
    for name in group.members[: group.members.index(scene.node)]:
        ability = scene.theirs.ability(name, key)
        unable = ability is not None and not ability.able
        there = name in scene.peers.names and not scene.peers.missed(name, scene.now)
        if name != holder and there and not unable:
            found.append(name)
    return found


def _take(case: Case, scene: Scene, memory: Memory, verdict: Verdict, moved: str) -> None:
    """`moved`: an operator wants it here, and why."""
    known = [*operators.epochs_of(case), scene.decided.base_epoch(case.key)]
    try:
        epoch, uid = _next(case, known)
    except epochs.EpochsUsedUp as used_up:
        if memory.told_unable != "EpochsUsedUp":
            memory.told_unable = "EpochsUsedUp"
            verdict.tells.append(Tell("StandbyUnable", str(used_up), case.key, warning=True))
        return
    verdict.standing = Standing.TAKING
    memory.begun.add(uid)
    holder = _holder(case, scene)
    why = moved or (f"{holder} is silent" if holder else "no node of the site has it")
    verdict.changed.append(Stay(case.key, uid, epoch, predecessor(case), message=why))


def _next(case: Case, known: Iterable[int]) -> tuple[int, str]:
    """(epoch, uid) of a new stay; raises EpochsUsedUp. What the plan has stopped is of the past."""
    epoch = epochs.after(*known)
    while stay_uid(case.key, case.node, epoch) in case.barred:
        epoch = epochs.after(epoch)
    return epoch, stay_uid(case.key, case.node, epoch)


def predecessor(case: Case) -> str:
    """The uid of the stay that is taken over."""
    newest: Mapping[str, int] = {case.last_uid: case.last_epoch} | {
        claim.uid: claim.epoch for claim in case.theirs
    }
    return max(newest, key=lambda uid: newest[uid])
