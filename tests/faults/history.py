"""What clients asked, when, and what they were told. Pure values, kept as JSON lines."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of one client. Times are seconds of one monotonic clock.

    kind: apply, delete or get. outcome: of apply created, configured or unchanged; of delete
    deleted or absent; of get found or absent; of each unknown, which may have taken effect at any
    time after `called`, or never. What was refused for certain is not in a history.
    age_s: how old the answer said to be; 0: it claimed to be current.
    """

    client: int
    key: str
    kind: str
    called: float
    returned: float
    outcome: str
    value: str = ""
    uid: str = ""
    generation: int = 0
    age_s: float = 0.0
    member: str = ""

    @property
    def begins(self) -> float:
        """An answer that admits its age may be of any moment since then."""
        return self.called - self.age_s

    def __str__(self) -> str:
        what = f"{self.kind} {self.key}" + (f"={self.value}" if self.kind == "apply" else "")
        told = self.outcome
        if self.generation:
            told += f" value={self.value} uid={self.uid[:8]} generation={self.generation}"
        if self.age_s:
            told += f" ({self.age_s:.2f} s old)"
        end = f"{self.returned:.3f}" if self.returned < NEVER else "never"
        return f"client {self.client} [{self.called:.3f} {end}] {what} -> {told} @{self.member}"


def dump(operations: Iterable[Operation]) -> str:
    return "".join(json.dumps(asdict(one)) + "\n" for one in operations)


def load(text: str) -> list[Operation]:
    """What `dump` gave."""
    found: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    return [Operation(**one) for one in found]
