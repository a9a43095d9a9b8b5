"""At most one holder of an exclusive replica: the desk where its leases are asked for and voted on.

`machine.py` composes it, `tests/sim/site.py` drives it. It handles the same events and gives the
same instructions as the machine (only Send, Save and Tell), and is asked who holds what.

Interface first; see ADR 0022.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from agent.domain.roster import Key
from agent.domain.site.messages import Event, Instruction

LEASE_S = 3.0
RENEW_S = 1.0
LEASE_MAX_S = 20.0  # no voter grants more
RESTART_S = 15.0  # what a holder asks for before its agent restarts
DRIFT = 0.01  # how far a clock may go wrong in a second
KILL_S = 0.2  # what the switch needs to end a replica
STOP_S = 1.0  # before the end a holder that is not renewed begins to stop gracefully
NAME = "lease"  # what the desk saves has names that are this, or begin with this and a dot


@dataclass(frozen=True, slots=True)
class Held:
    """This node holds the replica. `epoch`: the ballot, new for each tenure and rising.

    `until`: nothing of it may run any more; what the switch is armed with. `stop_at`: unless
    renewed by then, a graceful stop begins.
    """

    epoch: int
    until: float

    @property
    def stop_at(self) -> float:
        return self.until - STOP_S


class LeaseDesk:
    """The leases of one node, as a voter and as a holder. All times are boottime seconds.

    `alone_since` is the machine's to set: since when this node has heard no orchestrator (it may
    lie before the boot), None while it hears one. For `stopAfter`.
    """

    alone_since: float | None

    def __init__(self, node: str, tokens: Iterator[int]) -> None:
        """`tokens`: for Save, shared with whoever else saves, so that no two are the same."""
        ...

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Takes every event of the machine; those that do not concern leases change nothing.
        After it, and after `want`, ask `held` again: it may have changed."""
        ...

    def want(self, keys: Collection[Key], now: float) -> list[Instruction]:
        """All the replicas that this node should hold now, of those that it is a member of. It
        tries, and goes on trying and renewing, until a later call leaves one out. One that is held
        and left out is not renewed any more, and not given back either: see `release`."""
        ...

    def release(self, key: Key, now: float) -> list[Instruction]:
        """Nothing of it runs here any more, or ever did: the next one may have it at once."""
        ...

    def restarting(self, now: float) -> list[Instruction]:
        """The agent is about to stop and come back: every lease is renewed for RESTART_S. Done when
        `held(...).until` says so, or a second later."""
        ...

    def held(self, key: Key, now: float) -> Held | None:
        """None: it must not run here. Also None after the lease ended while nobody looked."""
        ...

    def hindrance(self, key: Key, now: float) -> str:
        """Why this node could not hold it, or go on holding it: "" or a CamelCase reason.

        "NoVoters": without its present holder no majority of voters would be heard. "Isolated":
        the site heard no orchestrator for longer than the replica's stopAfter, so a holder stops
        it now (gracefully) and releases it. "NotMember": the plan does not let this node hold it.
        """
        ...

    def next_due(self) -> float | None:
        """When `handle(Tick(), now)` is to be called at the latest."""
        ...
