"""Operator roles and what each may do.

They stand in the certificate, so that an agent that is cut off can check them alone. Used by the
operator API, by identity when it issues, and by edgectl.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from polder.manifest.names import LABEL
from polder.manifest.text import shown


class Level(IntEnum):
    """Each level may do what the ones below may."""

    NONE = 0
    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Role:
    """`namespace` is empty for admin, who may do everything everywhere."""

    level: Level
    namespace: str = ""

    def __str__(self) -> str:
        name = self.level.name.lower()
        return f"{name}:{self.namespace}" if self.namespace else name


def parse_role(text: str) -> Role:
    """`admin`, `operator:NS` or `viewer:NS`. Raises ValueError."""
    if text == "admin":
        return Role(Level.ADMIN)
    word, _, namespace = text.partition(":")
    levels = {"operator": Level.OPERATOR, "viewer": Level.VIEWER}
    if word not in levels or not LABEL.fullmatch(namespace):
        raise ValueError(
            f"{shown(text)} is not a role: admin, operator:NAMESPACE or viewer:NAMESPACE"
        )
    return Role(levels[word], namespace)


def level_in(roles: Iterable[Role], namespace: str) -> Level:
    """The highest level in a namespace; for cluster-wide matters pass an empty namespace.

    Whoever holds a role anywhere is a viewer of what belongs to no namespace (nodes, sites): an
    operator cannot understand a placement without them.
    """
    best = Level.NONE
    for role in roles:
        if role.level is Level.ADMIN:
            return Level.ADMIN
        if not namespace:
            best = max(best, min(role.level, Level.VIEWER))
        elif role.namespace == namespace:
            best = max(best, role.level)
    return best
