"""What this node decided on its own, and what of it stands on the disk. Part of `machine.py`.

A stay is saved before it starts and before its epoch rises: after a crash the node must know what
it promised to others. A stop needs no promise, and is not waited for.
"""

from collections.abc import Mapping
from typing import Any

from agent.domain.site.messages import Save, Stay

NAME = "stays"


class Stays:
    """By replica uid: as they are to be, and as they are saved."""

    def __init__(self) -> None:
        self._wanted: dict[str, Stay] = {}
        self._saved: dict[str, Stay] = {}
        self._known: frozenset[str] = frozenset()
        self._written: tuple[Mapping[str, Stay], frozenset[str]] = ({}, frozenset())
        self._asked: dict[int, Mapping[str, Stay]] = {}

    def read(self, body: Mapping[str, Any]) -> frozenset[str]:
        """From what was kept. Returns the peers that were heard before. What cannot be read was
        written by another version: it is left out."""
        for item in body.get("stays", ()):
            try:
                key, uid, epoch, takes_over, stop, message, leased = item
                stay = Stay(
                    (str(key[0]), str(key[1])),
                    str(uid),
                    int(epoch),
                    str(takes_over),
                    str(stop),
                    str(message),
                    leased=bool(leased),
                )
            except (TypeError, ValueError, IndexError):
                continue
            self._saved[stay.uid] = stay
        self._wanted = dict(self._saved)
        self._known = frozenset(str(name) for name in body.get("heard", ()))
        self._written = (dict(self._saved), self._known)
        return self._known

    def get(self, uid: str) -> Stay | None:
        return self._wanted.get(uid)

    def all(self) -> list[Stay]:
        """As they are to be."""
        return list(self._wanted.values())

    def put(self, stay: Stay) -> None:
        self._wanted[stay.uid] = stay

    def drop(self, uid: str) -> None:
        self._wanted.pop(uid, None)

    def saved_epoch(self, uid: str) -> int | None:
        """As it stands on the disk; None: it is not there yet, or as one that stopped."""
        stay = self._saved.get(uid)
        return stay.epoch if stay is not None and not stay.stop else None

    def heard(self, known: frozenset[str]) -> None:
        """Peers that were ever heard, to be kept with them."""
        self._known = known

    def in_force(self) -> list[Stay]:
        """What may be done: stops at once, all else once it is saved."""
        found = (s if s.stop else self._saved.get(s.uid) for s in self._wanted.values())
        return [stay for stay in found if stay is not None]

    def save(self, token: int) -> Save | None:
        """What is to be written; None: it was asked for already."""
        now = (self._wanted, self._known)
        if now == self._written:
            return None
        self._written = (dict(self._wanted), self._known)
        self._asked[token] = dict(self._wanted)
        stays = [
            [list(s.key), s.uid, s.epoch, s.takes_over, s.stop, s.message, s.leased]
            for s in self.all()
        ]
        return Save(token, NAME, {"stays": stays, "heard": sorted(self._known)})

    def saved(self, token: int, *, ok: bool) -> bool:
        """Whether something now stands that did not. A failed write takes back what waits for it,
        but no stop, and brings nothing back."""
        asked = self._asked.pop(token, None)
        if asked is None:
            return False
        if ok:
            self._asked = {t: stays for t, stays in self._asked.items() if t > token}
            changed = asked != self._saved
            self._saved = dict(asked)
            return changed
        self._wanted = {
            uid: stay if stay.stop else self._saved[uid]
            for uid, stay in self._wanted.items()
            if stay.stop or uid in self._saved
        }
        self._written = ({}, frozenset())  # what the disk holds now is not known
        return True
