"""Keeps every connected agent's plan current: composes, signs, and hands it to the session.

Wakes on changes of placements in the mirror. A plan that cannot be composed whole is not sent: the
agent keeps the one that it has, and an event says why.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from orchestrator.cache import Cache, Change
from orchestrator.domain.bucket import Bucket
from orchestrator.events import Recorder
from orchestrator.fact_book import FactBook
from orchestrator.gateway.compose import CannotCompose, Surroundings, compose
from orchestrator.gateway.decision_proofs import DecisionProofs
from orchestrator.gateway.roles import RoleBook
from orchestrator.gateway.sessions import LiveSession, Sessions
from orchestrator.gateway.signed_facts import SignedFacts
from orchestrator.identity.member import MemberCredentials
from orchestrator.store import keys
from orchestrator.whereabouts import Whereabouts
from polder.signing import sign_plan
from polder.v1 import common_pb2, plan_pb2

log = logging.getLogger(__name__)

MAX_PLAN_BYTES = 15 << 20
"""Under the agent's limit for one message."""
UNDER_WAY_MAX = 200
"""Plans that were sent and not answered yet. Boxes answer in less than a second; where they cannot,
or we do not hear them in time, more plans would only make heartbeats late."""
PATIENCE_S = 10.0
_LOOK_S = 0.02


class PlanPublisher:
    """`credentials` gives the member's current key and chain: they are renewed while it runs."""

    def __init__(
        self,
        cache: Cache,
        sessions: Sessions,
        events: Recorder,
        credentials: Callable[[], MemberCredentials],
        whereabouts: Whereabouts,
        pace: Bucket,
        roles: RoleBook,
        proofs: DecisionProofs,
        autonomy_s: float,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pace`: how many plans go out. `autonomy_s`: for so long without an orchestrator sites
        take replicas over. `steady`: seconds of a clock that never jumps."""
        self._cache = cache
        self._sessions = sessions
        self._events = events
        self._credentials = credentials
        self._whereabouts = whereabouts
        self._pace = pace
        self._roles = roles
        self._proofs = proofs
        self._autonomy_s = autonomy_s
        self._steady = steady
        self._facts = SignedFacts(cache, FactBook(cache))
        self._due: dict[str, None] = {}
        self._under_way: dict[LiveSession, float] = {}  # since when
        self._failed: dict[str, str] = {}
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Publishes until cancelled."""
        unsubscribe = self._cache.subscribe(self._on_changes)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._due:
                    await self._room()
                    node = next(iter(self._due))
                    del self._due[node]
                    began = self._steady()
                    self._publish(node)
                    # Heartbeats come first: a plan takes no more than half of the time, and
                    # thousands of agents do not get theirs, work and answer in one moment.
                    now = self._steady()
                    await asyncio.sleep(max(now - began, self._pace.take(now)))
        finally:
            unsubscribe()

    async def _room(self) -> None:
        """Until not too many plans are under way."""
        while len(self._under_way) >= UNDER_WAY_MAX:
            late = self._steady() - PATIENCE_S
            self._under_way = {
                session: since
                for session, since in self._under_way.items()
                if since > late
                and not session.is_closed()
                and session.generation_answered < session.generation_sent
            }
            if len(self._under_way) >= UNDER_WAY_MAX:
                await asyncio.sleep(_LOOK_S)

    def welcome(self, session: LiveSession, generation_in_use: int) -> None:
        """A new session: it gets the plan unless it has that generation already.

        One that is ahead (the store was restored from a backup) would drop it: the leader makes a
        newer generation then, which comes here as a change.
        """
        if self._cache.placement(session.node).generation > generation_in_use:
            self._mark(session.node)

    def _on_changes(self, changes: list[Change]) -> None:
        for change in changes:
            if change.key.startswith(keys.PLACEMENTS) and change.value is not None:
                node = change.key.removeprefix(keys.PLACEMENTS)
                if self._sessions.get(node) is not None:
                    self._mark(node)
            elif self._failed and change.key.startswith((keys.REVISIONS, keys.SPECS)):
                for node in self._failed:
                    self._mark(node)

    def _mark(self, node: str) -> None:
        self._due[node] = None
        self._wake.set()

    def _publish(self, node: str) -> None:
        session = self._sessions.get(node)
        if session is None:
            self._failed.pop(node, None)
            return
        placement = self._cache.placement(node)
        if not placement.generation:
            return  # nothing was ever decided for it
        try:
            session.send_plan(self._signed(session))
            self._under_way[session] = self._steady()
            self._failed.pop(node, None)
        except CannotCompose as error:
            self._tell(node, error.reason, str(error))
        except Exception as error:  # one node's plan must not end everybody's
            log.exception("a plan cannot be made", extra={"node": node})
            self._tell(node, "Internal", repr(error)[:300])

    def _signed(self, session: LiveSession) -> plan_pb2.SignedNodePlan:
        credentials = self._credentials()
        identity = session.identity
        endpoints = self._whereabouts.for_node(identity.node, identity.site)
        around = Surroundings(identity.site, identity.trust_domain, endpoints, self._autonomy_s)
        placement = self._roles.without_forgotten(self._cache.placement(session.node))
        payload = compose(
            placement,
            around,
            self._cache.revision_of,
            partial(self._cache.resource, "Secret"),
            self._facts.demands_at(session.identity.site),
            partial(self._cache.resource, "Config"),
            self._facts.of_node(session.node, session.identity.site),
            self._add_roles,
        )
        if len(payload) > MAX_PLAN_BYTES:
            message = f"the plan takes {len(payload)} bytes; {MAX_PLAN_BYTES} can be sent"
            raise CannotCompose("Oversized", message)
        return plan_pb2.SignedNodePlan(
            node_plan=payload,
            signature=sign_plan(payload, credentials.key),
            certificate_chain=credentials.chain_der,
            generation=placement.generation,
        )

    def _add_roles(self, plan: plan_pb2.NodePlan, node: str) -> None:
        self._roles.add_to(plan, node)
        self._proofs.sign_in(plan)

    def _tell(self, node: str, reason: str, message: str) -> None:
        if self._failed.get(node) == message:
            return
        self._failed[node] = message
        self._events.record(
            "Node",
            "",
            node,
            common_pb2.EVENT_TYPE_WARNING,
            "PlanNotSent",
            f"{reason}: {message}; the node keeps the plan that it has",
            f"gateway/{self._credentials().member_id.member}",
        )
