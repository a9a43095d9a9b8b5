"""Who wrote what a site decided. Used by `local_changes.py` and `plans.py`; see ADR 27.

What agents bring up must bear the signature of the node that it names, whoever brings it. What was
decided here is signed for the site's nodes, which pass it on to those that no plan reaches.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from orchestrator.identity.member import MemberCredentials
from polder.override_proofs import signed, unproven
from polder.overrides import Override, from_message, to_message
from polder.v1 import plan_pb2

AT_ONCE = 50
UNPROVEN_MAX = 10
"""Of so many in one report the rest is not looked at: each costs a millisecond."""
NOT_LOOKED_AT = "too much of what came with it is not signed"


class DecisionProofs:
    """`credentials`: of this member, as they are now. `clock`: unix seconds."""

    def __init__(
        self, credentials: Callable[[], MemberCredentials], clock: Callable[[], float]
    ) -> None:
        self._credentials = credentials
        self._clock = clock

    async def unproven(self, overrides: Sequence[Override], site: str) -> Mapping[int, str]:
        """Which of them, by their place, were not written by whom they name, and why not."""
        credentials = self._credentials()
        found: dict[int, str] = {}
        for start in range(0, len(overrides), AT_ONCE):
            some = overrides[start : start + AT_ONCE]
            if len(found) > UNPROVEN_MAX:
                found |= {start + place: NOT_LOOKED_AT for place in range(len(some))}
                continue
            wrong = await asyncio.to_thread(
                unproven,
                some,
                site,
                credentials.roots_der,
                self._clock(),
                credentials.member_id.trust_domain,
            )
            found |= {start + place: why for place, why in wrong.items()}
        return found

    def sign_in(self, plan: plan_pb2.NodePlan) -> None:
        """What orchestrators decided, by this one."""
        credentials = self._credentials()
        for message in plan.overrides:
            if not message.node and not message.HasField("proof"):
                proven = signed(
                    from_message(message), plan.site, credentials.key, credentials.chain_der
                )
                message.CopyFrom(to_message(proven))
