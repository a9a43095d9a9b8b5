"""What operators' decisions change about one replica. Part of `machine.py`.

    decision   what follows here
    stopped    its stays stop gracefully, of an exclusive one the lease is given back; nobody starts
               it or takes it over. What the plan assigns here stays visible as stopped.
    placedOn   the node takes it over although the holder lives. Not exclusive: a new stay with a
               higher epoch, and the old one yields when that is ready. Exclusive: the holder stops
               once it hears that the node is able, and the node has the first turn to ask.
    frozen     nothing is taken over, and of two neither yields. What runs runs on, leases are
               renewed, and what lost its lease stops.

A decision only ever changes who wants to run something: what is exclusive still needs its lease.
"""

from collections.abc import Sequence

from agent.domain.plan import STOPPED_LOCALLY
from agent.domain.site.case import Case, Memory, Own, Scene, Verdict
from agent.domain.site.messages import Stay, Tell
from polder.overrides import PLACED_ON, Override
from polder.succession import Contender, decided_in

RESERVED_S = 20.0  # for the node to which an operator moved it, before others ask as well


def told(override: Override, what: str) -> str:
    """For people: who did it, where and why."""
    why = f": {override.reason}" if override.reason else ""
    return f"{override.by or 'an operator'} {what} at {override.node or 'the orchestrator'}{why}"


def why_stopped(case: Case, scene: Scene) -> str:
    """Empty: nobody stopped it."""
    found = scene.decided.stopped(case.key)
    return told(found, "stopped it") if found is not None else ""


def stop_here(case: Case, why: str, memory: Memory, verdict: Verdict) -> None:
    """All stays of it that are here. Of one that the plan assigns nothing is saved: the decision
    is, and when it is taken back the same stay runs again."""
    for own in case.own:
        if own.planned:
            verdict.waits.append(held_back(case, own, why))
        else:
            stop = Stay(case.key, own.uid, own.epoch, own.takes_over, STOPPED_LOCALLY, why)
            verdict.changed.append(stop)
        memory.begun.discard(own.uid)
    if memory.told_stopped != why:
        memory.told_stopped = why
        if any(own.present for own in case.own):
            verdict.tells.append(Tell(STOPPED_LOCALLY, f"it stops here: {why}", case.key))


def held_back(case: Case, own: Own, why: str) -> Stay:
    """It stops if it runs, does not start, and stays visible."""
    return Stay(
        case.key, own.uid, own.epoch, own.takes_over, STOPPED_LOCALLY, why, leased=own.leased
    )


def epochs_of(case: Case) -> list[int]:
    """Every epoch of the replica that is known here."""
    here = [own.epoch for own in case.own] + [stay.epoch for stay in case.stopped]
    return [case.last_epoch, *here, *(claim.epoch for claim in case.theirs)]


def target(case: Case, scene: Scene) -> str:
    """The node that is to take it over by an operator's word; empty: none."""
    return scene.decided.target(case.key, epochs_of(case))


def heard_able(node: str, case: Case, scene: Scene) -> bool:
    """Whether that peer is there, and says that it could take it over."""
    ability = scene.theirs.ability(node, case.key)
    return ability is not None and ability.able and scene.peers.hears(node, scene.now)


def moved_away(case: Case, scene: Scene) -> str:
    """Why a holder here makes room for the node to which it was moved; empty: it does not. Nobody
    stops for one that cannot take it over."""
    node = target(case, scene)
    if node in ("", scene.node) or not heard_able(node, case, scene):
        return ""
    found = scene.decided.get(case.key, PLACED_ON)
    return told(found, f"moved it to {node}") if found is not None else ""


def moved_here(case: Case, scene: Scene) -> str:
    """Why this node is the one to take it over, whoever holds it; empty: it is not."""
    found, group = scene.decided.get(case.key, PLACED_ON), case.group
    member = group is not None and scene.node in group.members
    if found is None or not member or not case.startable or not scene.settled:
        return ""
    return told(found, "moved it here") if target(case, scene) == scene.node else ""


def placed(case: Case, contenders: Sequence[Contender], scene: Scene) -> list[Contender]:
    """Of several stays those from which the keeper is taken: where an operator moved it, unless an
    orchestrator decided another one later. While it is not ready there, nobody outbids it."""
    node = scene.decided.placed(case.key)
    found = [c for c in contenders if c.node == node]
    decided = max((decided_in(c.epoch) for c in contenders if c.ready), default=0)
    return [c for c in found if decided_in(c.epoch) >= decided]


def left_alone(case: Case, scene: Scene, memory: Memory, verdict: Verdict) -> bool:
    """Whether this node does not take it over by itself, whatever it hears of its holder."""
    return scene.decided.frozen() is not None or reserved(case, scene, memory, verdict)


def reserved(case: Case, scene: Scene, memory: Memory, verdict: Verdict) -> bool:
    """Whether it is left to another node, to which an operator moved it."""
    node = target(case, scene)
    if node in ("", scene.node) or not heard_able(node, case, scene):
        memory.reserved_since = None
        return False
    if memory.reserved_since is None:
        memory.reserved_since = scene.now
    until = memory.reserved_since + RESERVED_S
    if scene.now < until:
        verdict.attend(until)
    return scene.now < until
