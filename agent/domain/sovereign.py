"""Whether a replica's policy admits this node's site, by the facts in the signed plan alone.

Called by `reconcile.py` before a first start and while a replica runs. What the box says of itself
is never asked: policy and facts are the orchestrator's, under its signature. `polder.sovereignty`
is imported only when a plan has a policy: most boxes never load it.
"""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.domain.plan import Assignment

if TYPE_CHECKING:
    from polder.manifest.policy import SovereigntySpec
    from polder.sovereignty import SiteFacts

RECHECK_S = 3600.0
"""A box's clock may be put right: what expires is looked at once an hour at least."""

_SHOWN = 5  # reasons in a message; the orchestrator has them all


@dataclass(slots=True)
class Standing:
    """What was found of one replica, kept until its plan changes or a fact expires.

    `against` is empty when the site is admitted. `until`: unix seconds, None: for ever.
    """

    against: str = ""
    until: float | None = None
    _asked: tuple[bytes, bytes] = (b"", b"")
    _parsed: "tuple[SovereigntySpec, SiteFacts] | None" = field(default=None, repr=False)
    _at: float = 0.0

    def judge(self, assignment: Assignment, now: float) -> str:
        """Why the site is not admitted at `now` (unix seconds); empty when it is."""
        asked = (assignment.policy_json, assignment.facts_json)
        if asked != self._asked:
            self._asked, self._parsed, self.until = asked, None, None
            self.against = self._read() if assignment.policy_json else ""
            self._at = float("inf")  # not judged yet
        if self._parsed is not None and not self._still_holds(now):
            self._at = now
            self.against, self.until = _evaluate(*self._parsed, now)
        return self.against

    def due_s(self, now: float) -> float | None:
        """In how many seconds to judge again; None: nothing changes by itself."""
        return None if self.until is None else min(RECHECK_S, max(0.0, self.until - now))

    def _still_holds(self, now: float) -> bool:
        return self._at <= now and (self.until is None or now < self.until)

    def _read(self) -> str:
        """Why policy and facts cannot be read, which admits nothing; empty when they can."""
        from polder.manifest import InvalidManifest
        from polder.sovereignty import facts_from_json, policy_from_json

        policy, facts = self._asked
        try:
            self._parsed = (
                policy_from_json(json.loads(policy)),
                facts_from_json(json.loads(facts)),
            )
        except (InvalidManifest, ValueError, RecursionError) as error:
            return f"the plan's policy or facts admit no place or cannot be read: {error}"
        return ""


def _evaluate(
    policy: "SovereigntySpec", facts: "SiteFacts", now: float
) -> tuple[str, float | None]:
    from polder.sovereignty import evaluate, next_change

    reasons = evaluate(policy, facts, now)
    shown = "; ".join(reason.message for reason in reasons[:_SHOWN])
    more = len(reasons) - _SHOWN
    text = f"{shown}; and {more} more" if more > 0 else shown
    return text, next_change(policy, facts, now)
