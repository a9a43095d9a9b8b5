"""Which peers are heard, and what they say of others. Part of `machine.py`.

A peer is heard while anything came from it within the last 2.4 s: two beats may get lost, the third
must not. For those that nobody should miss yet there is patience:

    peer                                       is missed after
    heard                                      2.4 s without a word
    said Goodbye "Restarting"                  what it asked for, 15 s at most
    not heard since this box booted            6 s: boxes that share a power line boot together
    not heard since this agent began anew      2.4 s
    never heard in any life of this agent      30 s: its plan may not have come to it yet

Time in which this process did not listen (it was stopped, the box slept) is not counted as anyone's
silence; once in a row, as a box that is always late must not wait for ever.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

SILENT_AFTER_S = 2.4
RESTART_PATIENCE_MAX_S = 15.0
BOOT_PATIENCE_S = 6.0
NEW_PATIENCE_S = 30.0
CATCH_UP_S = 1.0  # to hear what came in while this process did not listen


@dataclass(slots=True)
class Peer:
    """`since`: when it was first in the roster. `heard_at` None: not heard since we began."""

    since: float
    missed_at: float
    heard_at: float | None = None
    excused: bool = False  # its silence was ours, and it was not heard since
    open: bool = False
    instance: str = ""
    restarting_until: float = 0.0
    silent: frozenset[str] = frozenset()
    alone: bool = False


class Peers:
    """Liveness of the roster. `now`: seconds of a clock that never jumps."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}
        self._known: set[str] = set()  # heard in some life of this agent
        self._same_boot = False

    # ---- what happens ----

    def began(self, known: Iterable[str], *, same_boot: bool) -> None:
        """`known`: whom this agent heard before it began anew."""
        self._known = set(known)
        self._same_boot = same_boot

    def roster(self, names: Collection[str], now: float) -> None:
        """Whom the plan in use names."""
        for name in self._peers.keys() - set(names):
            del self._peers[name]
        for name in names:
            if name not in self._peers:
                self._peers[name] = Peer(now, now + self._patience_s(name))

    def _patience_s(self, name: str) -> float:
        if name not in self._known:
            return NEW_PATIENCE_S
        return SILENT_AFTER_S if self._same_boot else BOOT_PATIENCE_S

    def opened(self, name: str, instance: str, now: float) -> bool:
        """Whether its agent is another process than the one that spoke before."""
        peer = self._peers.get(name)
        if peer is None:
            return False
        anew = peer.instance not in ("", instance)
        peer.open, peer.instance, peer.restarting_until = True, instance, 0.0
        self.heard(name, now)
        return anew

    def closed(self, name: str) -> None:
        peer = self._peers.get(name)
        if peer is not None:
            peer.open = False

    def heard(self, name: str, now: float) -> None:
        peer = self._peers.get(name)
        if peer is not None:
            peer.heard_at, peer.excused = now, False
            self._known.add(name)

    def beat(self, name: str, silent: Iterable[str], isolated_s: float = 0.0) -> bool:
        """Whether it says something new: about others, or that it hears no orchestrator."""
        peer = self._peers.get(name)
        if peer is None:
            return False
        was = (peer.silent, peer.alone)
        peer.silent, peer.alone = frozenset(silent), isolated_s > 0
        return was != (peer.silent, peer.alone)

    def restarting(self, name: str, patience_s: float, now: float) -> None:
        peer = self._peers.get(name)
        if peer is not None:
            peer.restarting_until = now + min(patience_s, RESTART_PATIENCE_MAX_S)

    def was_away(self, since: float, now: float) -> None:
        """This process did not listen from `since` until `now`."""
        heard_at = now + CATCH_UP_S - SILENT_AFTER_S
        for peer in self._peers.values():
            if peer.excused:
                continue
            peer.excused = True
            if peer.heard_at is not None and since - peer.heard_at < SILENT_AFTER_S:
                peer.heard_at = max(peer.heard_at, heard_at)
            elif peer.heard_at is None:
                peer.missed_at += now - since

    # ---- what follows ----

    @property
    def names(self) -> Collection[str]:
        return self._peers.keys()

    @property
    def known(self) -> frozenset[str]:
        """Of the roster, whom this agent ever heard: to be remembered."""
        return frozenset(self._known & self._peers.keys())

    def open(self) -> list[str]:
        """Those with a stream."""
        return [name for name, peer in self._peers.items() if peer.open]

    def hears(self, name: str, now: float) -> bool:
        """Something came from it just now."""
        peer = self._peers.get(name)
        return (
            peer is not None and peer.heard_at is not None and now - peer.heard_at < SILENT_AFTER_S
        )

    def missed(self, name: str, now: float) -> bool:
        """It is silent, and nothing excuses that. A node that the roster does not name cannot be
        heard, so that its silence says nothing."""
        peer = self._peers.get(name)
        if peer is None or self.hears(name, now) or now < peer.restarting_until:
            return False
        return peer.heard_at is not None or now >= peer.missed_at

    def silent(self, now: float) -> tuple[str, ...]:
        """For our beat: whom we do not hear, but for those that said they restart."""
        return tuple(
            sorted(
                name
                for name, peer in self._peers.items()
                if not self.hears(name, now) and now >= peer.restarting_until
            )
        )

    def missed_all(self, now: float) -> frozenset[str]:
        return frozenset(name for name in self._peers if self.missed(name, now))

    def witnesses_of(self, name: str, among: Iterable[str], now: float) -> list[str]:
        """Peers that are heard, and hear the named one."""
        return [
            other
            for other in among
            if other != name and self.hears(other, now) and name not in self._peers[other].silent
        ]

    def alone(self, name: str) -> bool:
        """Whether it said last that it hears no orchestrator."""
        peer = self._peers.get(name)
        return peer is not None and peer.alone

    def next_due(self, now: float) -> float | None:
        """When the next one will be missed, if nothing comes from it."""
        due = []
        for peer in self._peers.values():
            at = peer.missed_at if peer.heard_at is None else peer.heard_at + SILENT_AFTER_S
            due.append(max(at, peer.restarting_until))
        return min((at for at in due if at > now), default=None)
