"""What a desk knows of one replica, and under what name it keeps that. Part of `lease.py`."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.domain.roster import Group, Key
from agent.domain.site.holder import Holder
from agent.domain.site.messages import LeaseAnswer
from agent.domain.site.voter import Voter

NAME = "lease"  # what the desk saves has names that are this, or begin with this and a dot


@dataclass(slots=True)
class Waiting:
    """Answers that go out when a save is done."""

    token: int
    answers: list[tuple[str, LeaseAnswer]]


@dataclass(slots=True)
class Record:
    """What is known of one replica. `saved`: what the disk was last asked to hold, None when that
    is not known. `overdue`: the generation of the plan in use when its stopAfter was over."""

    voter: Voter
    holder: Holder
    saved: Mapping[str, Any] | None = None
    waiting: deque[Waiting] = field(default_factory=deque)
    group: Group | None = None
    overdue: int | None = None
    unnamed_since: float | None = None

    def body(self, key: Key) -> dict[str, Any]:
        return {"key": list(key), "overdue": self.overdue, **self.voter.body()}


def name_of(key: Key) -> str:
    workload_uid, replica = key
    return f"{NAME}.{workload_uid}.{replica}"
