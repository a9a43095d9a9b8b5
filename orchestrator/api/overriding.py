"""Overrides and ResolveOverride: what operators decided at sites, seen and settled from here.

They only read and write the records; plans bring to the site what is written, and the leader goes
by it in its next tick (`orchestrator/domain/overrides_step.py`). Any member answers.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from orchestrator.authz import Caller, require
from orchestrator.cache import Cache
from orchestrator.catching_up import catch_up
from orchestrator.domain.overrides import LocalOverride, overrides_in
from orchestrator.events import Recorder
from orchestrator.refusals import conflict, invalid, not_found
from orchestrator.store import keys
from orchestrator.store.port import Compare, CompareTarget, Put, Store
from polder.overrides import REASON_MAX, to_message
from polder.roles import Level, level_in
from polder.v1 import common_pb2, operator_pb2

LISTED_MAX = 1_000
_ATTEMPTS = 8
_WARNED_MAX = 5
_HINT = "edgectl override list shows them"


@dataclass(frozen=True, slots=True)
class Overriding:
    """Serves both RPCs, and warns those who write into what a site decided."""

    store: Store
    cache: Cache
    events: Recorder
    clock: Callable[[], float]

    def overrides(
        self, caller: Caller, request: operator_pb2.OverridesRequest
    ) -> operator_pb2.OverridesResponse:
        """What stands. Raises Refused."""
        wanted = request.namespace
        if wanted:
            require(caller, Level.VIEWER, wanted, "read its overrides")
        found = [item for item in self._standing() if _is_seen(caller, item, wanted)]
        names = self._names() if found else {}
        return operator_pb2.OverridesResponse(
            overrides=[_info(item, names) for item in found[:LISTED_MAX]],
            left_out=max(0, len(found) - LISTED_MAX),
            now_ms=int(self.clock() * 1000),
        )

    async def resolve(
        self, caller: Caller, request: operator_pb2.ResolveOverrideRequest
    ) -> operator_pb2.ResolveOverrideResponse:
        """Raises Refused (Forbidden, NotFound, InvalidArgument, Conflict) and StoreError."""
        verb = "drop" if request.drop else "accept"
        level = Level.OPERATOR if request.replica else Level.ADMIN
        require(caller, level, request.namespace, f"{verb} what a site decided")
        if len(request.reason) > REASON_MAX:
            raise invalid(f"a reason has at most {REASON_MAX} characters")
        for _ in range(_ATTEMPTS):
            before = self._meant(request)
            after = self._dropped(caller, before, request) if request.drop else _accepted(before)
            text = _follows(before, drop=request.drop)
            response = operator_pb2.ResolveOverrideResponse(
                message=text, override=_info(after, self._names())
            )
            if request.dry_run:
                return response
            compare = Compare(before.key, CompareTarget.MOD_REVISION, before.store_revision)
            result = await self.store.txn([compare], [Put(after.key, after.record().to_bytes())])
            await catch_up(self.cache, result.revision)
            if result.committed:
                self._record(caller, before, request)
                return response
        raise conflict("the override kept changing", "see edgectl override list, and try again")

    def warn(self, results: Iterable[operator_pb2.ApplyResult]) -> None:
        """Adds a warning to each workload of which a site decided something: it is still so."""
        every = self._standing()
        for result in results if every else ():
            if result.outcome == operator_pb2.APPLY_OUTCOME_UNCHANGED:
                continue
            uid = result.resource.metadata.uid
            mine = [item for item in every if uid and item.decision.workload_uid == uid]
            for item in mine[:_WARNED_MAX]:
                name = item.decision.replica
                text = f"{name} is {item}; that goes on until `edgectl override drop {name}`"
                result.warnings.append(text)

    # --- finding ---------------------------------------------------------------------------------

    def _standing(self) -> list[LocalOverride]:
        found = overrides_in(self.cache.kept(keys.OVERRIDES))
        return [item for item in found if item.decision.stands]

    def _meant(self, request: operator_pb2.ResolveOverrideRequest) -> LocalOverride:
        """The one that the request names. Raises Refused."""
        if not (request.replica or request.site):
            raise invalid("name a replica, or a site")
        found = [
            item
            for item in self._standing()
            if (item.decision.namespace, item.decision.replica)
            == (request.namespace, request.replica)
            and request.site in ("", item.site)
            and request.field in ("", item.decision.field)
        ]
        what = f"{request.namespace}/{request.replica}" if request.replica else request.site
        if not found:
            raise not_found(f"operators of no site decided anything of {what} that stands", _HINT)
        if len(found) > 1:
            which = ", ".join(f"{item.decision.field} at {item.site}" for item in found)
            raise invalid(f"more than one thing was decided of {what}: {which}", "say which")
        return found[0]

    # --- writing ---------------------------------------------------------------------------------

    def _dropped(
        self,
        caller: Caller,
        before: LocalOverride,
        request: operator_pb2.ResolveOverrideRequest,
    ) -> LocalOverride:
        return before.taken_back(caller.source, request.reason, int(self.clock() * 1000))

    def _record(
        self,
        caller: Caller,
        override: LocalOverride,
        request: operator_pb2.ResolveOverrideRequest,
    ) -> None:
        decision = override.decision
        verb = "taken back" if request.drop else "stands"
        message = f"{override}: {verb}"
        if decision.conflict:
            message += f", although {decision.conflict}" if not request.drop else ""
        if request.reason:
            message += f", because: {request.reason}"
        reason = "LocalOverrideDropped" if request.drop else "LocalOverrideAccepted"
        kind, name = ("Replica", decision.replica) if decision.replica else ("Site", override.site)
        normal = common_pb2.EVENT_TYPE_NORMAL
        self.events.record(kind, decision.namespace, name, normal, reason, message, caller.source)

    def _names(self) -> dict[str, str]:
        """Of all workloads, by uid."""
        return {owner.uid: owner.name for owner in self.cache.resources("Workload")}


def _info(override: LocalOverride, names: Mapping[str, str]) -> operator_pb2.OverrideInfo:
    return operator_pb2.OverrideInfo(
        override=to_message(replace(override.decision, proof=None)),
        site=override.site,
        workload=names.get(override.decision.workload_uid, ""),
        heard_ms=override.heard_ms,
        accepted=override.accepted,
    )


def _is_seen(caller: Caller, item: LocalOverride, namespace: str) -> bool:
    """Those of a whole site concern everybody, as its record does."""
    own = item.decision.namespace
    return level_in(caller.roles, own) >= Level.VIEWER and namespace in ("", own)


def _accepted(before: LocalOverride) -> LocalOverride:
    """Raises Refused when nothing contradicts it."""
    against = before.decision.conflict
    if not against:
        raise invalid(f"nothing contradicts it: {before}", "it stands; drop takes it back")
    return replace(before.contradicted(""), accepted=against)


def _follows(override: LocalOverride, *, drop: bool) -> str:
    decision = override.decision
    what = f"{decision.namespace}/{decision.replica}" if decision.replica else override.site
    if drop:
        return f"{what}: taken back ({override}); site {override.site} obeys once it gets its plan"
    return f"{what}: stands ({override}), although {decision.conflict}"
