"""Who has each shared replica, as far as this node knows: for operators who ask it. Pure.

Part of `machine.py`; nothing is decided by it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.domain.roster import Key
from agent.domain.site.case import Case
from agent.domain.site.lease import LeaseDesk
from agent.domain.site.peers import Peers


@dataclass(frozen=True, slots=True)
class Known:
    """`holder` empty: it knows of none. `lease_left_s`: of an exclusive one that is held here; None
    when it is not."""

    holder: str = ""
    epoch: int = 0
    ready: bool = False
    lease_left_s: float | None = None


def known(
    node: str, cases: Iterable[Case], peers: Peers, desk: LeaseDesk, now: float
) -> Mapping[Key, Known]:
    """Of those that claim it the one with the greatest epoch; whoever is silent only if nobody else
    claims it: such a claim says who had it last."""
    found = {}
    for case in cases:
        claims = [(True, (o.epoch, node), o.ready_since) for o in case.own if o.present]
        claims += [(peers.hears(c.node, now), c.rank, c.ready_since) for c in case.theirs]
        _, (epoch, holder), ready_since = max(
            claims, key=lambda claim: claim[:2], default=(False, (0, ""), None)
        )
        held = desk.held(case.key, now) if case.exclusive else None
        left_s = held.until - now if held is not None else None
        found[case.key] = Known(holder, epoch, ready_since is not None, left_s)
    return found
