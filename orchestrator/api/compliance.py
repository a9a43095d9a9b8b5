"""Compliance: replicas whose site does not meet their policy, since when, and what expires next.

A replica that does not comply runs on until a compliant replacement is ready; with no place for one
it waits for an operator, who finds it here.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.api.thinking import Thinking
from orchestrator.authz import Caller, require
from orchestrator.events import EventRecord, EventRecorder
from orchestrator.refusals import Refused
from orchestrator.scheduling.reasons import NO_POLICY, effective_policy
from orchestrator.scheduling.snapshot import Snapshot
from polder.manifest.identifiers import end_of_day
from polder.manifest.policy import SovereigntySpec
from polder.roles import Level, level_in
from polder.sovereignty import Reason, SiteFacts, evaluate, next_change
from polder.sovereignty.rules_certifications import matching
from polder.v1 import common_pb2, operator_pb2

log = logging.getLogger(__name__)

REPLICAS_MAX = 500
EXPIRIES_MAX = 100
WORKLOADS_NAMED_MAX = 5
REASON = "NonCompliant"
LOOK_EVERY_S = 60.0
SAY_EVERY_S = 3600.0

Names = Mapping[tuple[str, str, str], int]


class Compliance:
    """Serves Compliance."""

    def __init__(self, thinking: Thinking, events: EventRecorder) -> None:
        self._thinking = thinking
        self._events = events

    async def report(
        self, caller: Caller, request: operator_pb2.ComplianceRequest
    ) -> operator_pb2.ComplianceResponse:
        """Raises Refused (Forbidden, Busy)."""
        if request.namespace:
            require(caller, Level.VIEWER, request.namespace, "read workloads")
        snapshot, now = self._thinking.snapshot(), self._thinking.now()
        told = first_told(self._events.list())

        def reads(namespace: str) -> bool:
            wanted = request.namespace in ("", namespace)
            return wanted and level_in(caller.roles, namespace) >= Level.VIEWER

        response = await self._thinking.ask(lambda: judged(snapshot, now, reads, told))
        response.now_ms = int(now * 1000)
        return response

    async def run(self, leads: Callable[[], bool]) -> None:
        """Until cancelled: keeps an event alive for each replica that does not comply.

        Events are kept for a day after they were last seen, and tell since when; what stands for
        longer must be said again.
        """
        said: dict[tuple[str, str], float] = {}
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                if leads():
                    said = await self._say(said)
            except Refused as refused:  # too busy, or not ready: in a minute then
                log.debug("compliance is not looked at now: %s", refused)
            except Exception:  # what cannot be judged must not end the process
                log.exception("compliance cannot be looked at; trying again")

    async def _say(self, said: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
        snapshot, now = self._thinking.snapshot(), self._thinking.now()
        found = await self._thinking.ask(lambda: judged(snapshot, now, lambda _: True, {}))
        still = {}
        for item in found.replicas:
            key = (item.namespace, item.replica)
            still[key] = said.get(key, 0.0)
            if now - still[key] >= SAY_EVERY_S:
                still[key] = now
                text = "; ".join(reason.message for reason in item.reasons)
                message = f"site {item.site} does not meet its policy: {text}"
                warning = common_pb2.EVENT_TYPE_WARNING
                self._events.record(
                    "Replica", *key, warning, REASON, message, f"compliance/{item.node}"
                )
        return still


def first_told(events: Iterable[EventRecord]) -> Names:
    """When each object was first said not to comply, in unix milliseconds."""
    found: dict[tuple[str, str, str], int] = {}
    for event in events:
        if event.reason == REASON:
            before = found.get(event.object, event.first_at_ms)
            found[event.object] = min(before, event.first_at_ms)
    return found


@dataclass(slots=True)
class _Pair:
    """A workload's policy at one site: judged once, however many replicas are there."""

    policy: SovereigntySpec
    facts: SiteFacts
    reasons: tuple[Reason, ...]
    replicas: int = 0
    workload: str = ""
    until: float | None = field(default=None)


def judged(
    snapshot: Snapshot, now: float, reads: Callable[[str], bool], told: Names
) -> operator_pb2.ComplianceResponse:
    """Of every replica that has a node and a policy, and that `reads` admits."""
    policies = {
        item.uid: policy
        for item in snapshot.workloads
        if reads(item.namespace) and (policy := effective_policy(snapshot, item)) != NO_POLICY
    }
    site_of = {node.name: node.site for node in snapshot.nodes}
    replacing = {
        item.replaces: name
        for name, placement in snapshot.placements.items()
        for item in placement.assignments
        if item.replaces
    }
    pairs: dict[tuple[str, str], _Pair] = {}
    response = operator_pb2.ComplianceResponse()
    bad = 0
    for name, placement in sorted(snapshot.placements.items()):
        for item in placement.assignments:
            if item.workload_uid not in policies:
                continue
            policy = policies[item.workload_uid]
            site = site_of.get(name, "")
            pair = pairs.get((item.workload_uid, site))
            if pair is None:
                known = snapshot.sites.get(site)
                pair = _judge(policy, known.facts if known else SiteFacts(site), now)
                pair.workload = f"{item.namespace}/{item.workload}"
                pairs[(item.workload_uid, site)] = pair
            pair.replicas += 1
            if not pair.reasons:
                continue
            bad += 1
            if len(response.replicas) < REPLICAS_MAX:
                response.replicas.add(
                    namespace=item.namespace,
                    workload=item.workload,
                    replica=item.replica,
                    node=name,
                    site=site,
                    reasons=[_wire(reason) for reason in pair.reasons],
                    since_ms=_since_ms(pair.reasons, item.namespace, item.replica, told),
                    replacement=replacing.get(item.replica_uid, ""),
                )
    response.judged = sum(pair.replicas for pair in pairs.values())
    response.compliant = response.judged - bad
    response.replicas_left_out = bad - len(response.replicas)
    _add_expiries(response, pairs.values())
    return response


def _judge(policy: SovereigntySpec, facts: SiteFacts, now: float) -> _Pair:
    reasons = evaluate(policy, facts, now)
    until = next_change(policy, facts, now)
    return _Pair(policy, facts, reasons, until=until)


def _since_ms(reasons: tuple[Reason, ...], namespace: str, replica: str, told: Names) -> int:
    """The first event counts; without one, a certificate tells to the day when it ended."""
    first = told.get(("Replica", namespace, replica), 0)
    if not first and all(reason.code == "CertificateExpired" for reason in reasons):
        return int(min(end_of_day(str(reason.actual)) for reason in reasons) * 1000)
    return first


def _add_expiries(response: operator_pb2.ComplianceResponse, pairs: Iterable[_Pair]) -> None:
    found: defaultdict[tuple[float, str], list[_Pair]] = defaultdict(list)
    for pair in pairs:
        if pair.until is not None and not pair.reasons:
            found[(pair.until, _ending(pair))].append(pair)
    for (at, what), concerned in sorted(found.items())[:EXPIRIES_MAX]:
        without = [pair for pair in concerned if evaluate(pair.policy, pair.facts, at)]
        names = sorted({pair.workload for pair in (without or concerned)})
        response.expiries.add(
            at_ms=int(at * 1000),
            what=what,
            replicas=sum(pair.replicas for pair in concerned),
            replicas_without=sum(pair.replicas for pair in without),
            workloads=names[:WORKLOADS_NAMED_MAX],
        )
    response.expiries_left_out = max(0, len(found) - EXPIRIES_MAX)


def _ending(pair: _Pair) -> str:
    """What ends at the pair's next change."""
    ends = sorted(
        f"{found.scheme}{'/' if found.level else ''}{found.level} of "
        f"{where.partition('.')[0]} "
        f"{pair.facts.site if where.startswith('site') else pair.facts.provider_name}"
        for wanted in pair.policy.certifications
        for where, found in matching(wanted, pair.facts)
        if end_of_day(found.valid_until) == pair.until
    )
    return ", ".join(dict.fromkeys(ends))


def _wire(reason: Reason) -> operator_pb2.PlacementReason:
    return operator_pb2.PlacementReason(
        code=reason.code, message=reason.message, knob=f"sovereignty.{reason.knob}"
    )
