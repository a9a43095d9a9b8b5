"""Who of the site hears whom: peers, and an orchestrator. Part of `lease.py`.

A replica with `stopAfter` stops once nobody of its group has heard an orchestrator for so long: it
may be started elsewhere then. It starts again only when its group is sure that it was left here: by
a newer plan, or because somebody of it has heard an orchestrator for a while with no new plan.
"""

from collections.abc import Collection

from agent.domain.roster import Group, Key
from agent.domain.site.messages import Beat

SILENT_S = 2.4
LOOK_S = 1.0  # how often it is asked whether stopAfter is over
CONFIRM_S = 15.0  # an orchestrator sends a newer plan within a second of being heard


class Silence:
    """All times are boottime seconds."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._heard: dict[str, float] = {}
        self._alone_since: dict[str, float] = {}
        self._in_touch_since: dict[str, float] = {}

    def heard(self, node: str, now: float) -> None:
        if not self.hears(node, now):  # what it heard meanwhile is not known
            self._in_touch_since.pop(node, None)
        self._heard[node] = now

    def hears(self, node: str, now: float) -> bool:
        return now - self._heard.get(node, -SILENT_S) < SILENT_S

    def beat(self, node: str, beat: Beat, now: float) -> None:
        self._say(node, now - beat.isolated_s if beat.isolated_s else None, now)

    def alone(self, since: float | None, now: float) -> None:
        """Of this node itself."""
        self._say(self._node, since, now)

    def _say(self, node: str, since: float | None, now: float) -> None:
        if since is None:
            self._in_touch_since.setdefault(node, now)
            self._alone_since.pop(node, None)
        else:
            self._alone_since[node] = since
            self._in_touch_since.pop(node, None)

    def isolated_s(self, group: Group, now: float) -> float:
        """For how long nobody of the group that is heard has heard an orchestrator."""
        return min(
            max(now - self._alone_since.get(node, now), 0.0) for node in self._live(group, now)
        )

    def confirmed(self, group: Group, now: float) -> bool:
        """Somebody has heard one for long enough."""
        return any(
            now - self._in_touch_since.get(node, now) >= CONFIRM_S
            for node in self._live(group, now)
        )

    def changes_at(self, group: Group, overdue: bool) -> float:
        """No sooner than that `isolated_s` comes to stopAfter, or `confirmed` to be true."""
        if overdue:
            return min(self._in_touch_since.values(), default=float("inf")) + CONFIRM_S
        own = self._alone_since.get(self._node)
        return own + group.stop_after_s if own is not None else float("inf")

    def _live(self, group: Group, now: float) -> list[str]:
        return [self._node, *(n for n in group.voters if n != self._node and self.hears(n, now))]


class Vigil:
    """Which replicas have a `stopAfter`, and when to ask about them again: once in LOOK_S at most,
    and at once when this node hears an orchestrator again, or none any more."""

    def __init__(self) -> None:
        self._keys: tuple[Key, ...] = ()
        self._in_touch = True
        self._look_at = self._changes_at = 0.0

    def keep(self, keys: Collection[Key], now: float) -> None:
        """Over these from now on, beginning with a look."""
        self._keys, self._look_at = tuple(keys), now

    def due(self, *, in_touch: bool, now: float) -> tuple[Key, ...]:
        """Those to be looked at now; `changes` is to be said of each."""
        if in_touch != self._in_touch:
            self._in_touch, self._look_at = in_touch, now
        if now < self._look_at:
            return ()
        self._look_at, self._changes_at = now + LOOK_S, float("inf")
        return self._keys

    def changes(self, at: float) -> None:
        """No sooner than that another answer may come of one of them."""
        self._changes_at = min(self._changes_at, at)

    def next_due(self) -> float | None:
        return max(self._changes_at, self._look_at) if self._keys else None
