"""What runs where of the replicas that nodes share: what peers claim, and what we tell them.

Part of `machine.py`. A peer's claims stand until it sends others, also while it is silent: they say
who had the replica last, and with which epoch. A new process of its agent has to say again what is
ready.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agent.domain.roster import Key
from agent.domain.site.messages import Ability, Claim, Claims
from polder.succession import Contender


@dataclass(frozen=True, slots=True)
class Heard:
    """What a peer claimed. `ready_since` by our own clock; None: it is not ready."""

    node: str
    key: Key
    uid: str
    epoch: int
    ready_since: float | None

    @property
    def rank(self) -> tuple[int, str]:
        return (self.epoch, self.node)

    def contender(self, now: float) -> Contender:
        since = self.ready_since
        ready_for_s = 0.0 if since is None else max(0.0, now - since)
        return Contender(self.node, self.uid, self.epoch, since is not None, ready_for_s)


class TheirClaims:
    """By peer, as it said last."""

    def __init__(self) -> None:
        self._claims: dict[str, tuple[Heard, ...]] = {}
        self._abilities: dict[str, Mapping[Key, Ability]] = {}

    def said(self, node: str, said: Claims, now: float) -> bool:
        """Whether it says anything new."""
        heard = tuple(
            Heard(node, c.key, c.uid, c.epoch, now - c.ready_for_s if c.ready else None)
            for c in said.claims
        )
        abilities = {ability.key: ability for ability in said.abilities}
        was = self._claims.get(node, ())
        same = _timeless(heard) == _timeless(was) and abilities == self._abilities.get(node, {})
        self._claims[node], self._abilities[node] = heard, abilities
        return not same

    def began_anew(self, node: str) -> None:
        """Its process is another one: what it claimed may not be ready any more."""
        self._claims[node] = tuple(replace(c, ready_since=None) for c in self._claims.get(node, ()))

    def keep(self, nodes: Iterable[str]) -> None:
        """Forget those that are in the roster no more."""
        for node in (self._claims.keys() | self._abilities.keys()) - set(nodes):
            self._claims.pop(node, None)
            self._abilities.pop(node, None)

    def by_key(self) -> dict[Key, list[Heard]]:
        found: dict[Key, list[Heard]] = {}
        for claims in self._claims.values():
            for claim in claims:
                found.setdefault(claim.key, []).append(claim)
        return found

    def spoke(self, node: str) -> bool:
        """Whether it said what it has, be that nothing."""
        return node in self._claims

    def claimants(self) -> set[tuple[str, Key]]:
        """Who claims what."""
        return {(claim.node, claim.key) for claims in self._claims.values() for claim in claims}

    def ability(self, node: str, key: Key) -> Ability | None:
        """None: it said nothing of it."""
        return self._abilities.get(node, {}).get(key)


def _timeless(claims: Iterable[Heard]) -> list[tuple[Key, str, int, bool]]:
    return [(c.key, c.uid, c.epoch, c.ready_since is not None) for c in claims]


class OurClaims:
    """What each peer was told last, so that it is told again only when that changed."""

    def __init__(self) -> None:
        self._told: dict[str, object] = {}

    def forget(self, node: str) -> None:
        """A stream opened anew: its other end knows nothing."""
        self._told.pop(node, None)

    def news_for(
        self, node: str, claims: Iterable[Claim], abilities: Iterable[Ability]
    ) -> Claims | None:
        """What to send; None: it knows."""
        said = Claims(tuple(claims), tuple(abilities))
        timeless = ([replace(c, ready_for_s=0.0) for c in said.claims], said.abilities)
        if self._told.get(node) == timeless:
            return None
        self._told[node] = timeless
        return said
