"""Freeze, Thaw, Guards and Approve: the operator's hands on the guard rails.

They only write records; the leader sees them in the mirror and acts on them in its next tick
(`orchestrator/scheduling/guards_step.py`). Any member answers.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from orchestrator.api.reading import missing
from orchestrator.authz import Caller, require
from orchestrator.cache import Cache
from orchestrator.catching_up import catch_up
from orchestrator.domain.freezes import REASON_MAX, Freeze, freeze_of, freezes_in, read
from orchestrator.domain.holds import Hold, HoldKind, Scope, holds_in
from orchestrator.events import Recorder
from orchestrator.records import KeptRecord
from orchestrator.refusals import conflict, invalid, not_found
from orchestrator.store import keys
from orchestrator.store.port import Compare, CompareTarget, Delete, Op, Put, Store
from polder.roles import Level, level_in
from polder.v1 import common_pb2, operator_pb2

_ATTEMPTS = 8
_NORMAL, _WARNING = common_pb2.EVENT_TYPE_NORMAL, common_pb2.EVENT_TYPE_WARNING


@dataclass(frozen=True, slots=True)
class Guards:
    """Serves the four RPCs, and warns those who write into something frozen."""

    store: Store
    cache: Cache
    events: Recorder
    clock: Callable[[], float]

    # --- freezes ---------------------------------------------------------------------------------

    async def freeze(
        self, caller: Caller, request: operator_pb2.FreezeRequest
    ) -> operator_pb2.FreezeResponse:
        """Freezing what is frozen keeps the older freeze. Raises Refused and StoreError."""
        namespace = request.namespace
        require(caller, Level.OPERATOR if namespace else Level.ADMIN, namespace, "freeze it")
        if namespace and self.cache.resource("Namespace", "", namespace) is None:
            raise missing(common_pb2.ResourceRef(kind="Namespace", name=namespace))
        if len(request.reason) > REASON_MAX:
            raise invalid(f"a reason has at most {REASON_MAX} characters")
        for _ in range(_ATTEMPTS):
            stands = self.cache.kept_at(keys.freeze(namespace))
            if stands is not None:
                return operator_pb2.FreezeResponse(freeze=_freeze_info(read(stands)))
            wanted = Freeze(namespace, caller.source, request.reason, int(self.clock() * 1000))
            if await self._commit(wanted.record(), Put(keys.freeze(namespace), _bytes(wanted))):
                self._record(caller, namespace, _WARNING, "Frozen", str(wanted))
                return operator_pb2.FreezeResponse(freeze=_freeze_info(wanted))
        raise conflict("the freeze kept changing", "try again")

    async def thaw(
        self, caller: Caller, request: operator_pb2.ThawRequest
    ) -> operator_pb2.ThawResponse:
        """Raises Refused and StoreError."""
        namespace = request.namespace
        require(caller, Level.OPERATOR if namespace else Level.ADMIN, namespace, "thaw it")
        for _ in range(_ATTEMPTS):
            stands = self.cache.kept_at(keys.freeze(namespace))
            if stands is None:
                return operator_pb2.ThawResponse(thawed=False)
            if await self._commit(stands, Delete(stands.key)):
                self._record(caller, namespace, _NORMAL, "Thawed", "automation goes on")
                return operator_pb2.ThawResponse(thawed=True)
        raise conflict("the freeze kept changing", "try again")

    def warnings(self, written: common_pb2.Resource) -> list[str]:
        """For whoever writes into what is frozen now."""
        about = written.metadata
        namespace = about.name if written.kind == "Namespace" else about.namespace
        freeze = self.frozen(namespace)
        if freeze is None:
            return []
        return [f"{freeze}: nothing changes until `{freeze.thaw}`"]

    def frozen(self, namespace: str) -> Freeze | None:
        """What freezes a namespace now; empty: what belongs to none."""
        return freeze_of(freezes_in(self.cache.kept(keys.FREEZES)), namespace)

    def warn(self, results: Iterable[operator_pb2.ApplyResult]) -> None:
        """Adds a warning to each document that will have to wait."""
        for result in results:
            if result.outcome != operator_pb2.APPLY_OUTCOME_UNCHANGED:
                result.warnings.extend(self.warnings(result.resource))

    # --- holds -----------------------------------------------------------------------------------

    def guards(
        self, caller: Caller, request: operator_pb2.GuardsRequest
    ) -> operator_pb2.GuardsResponse:
        """What holds automation back now. Raises Refused."""
        wanted = request.namespace
        if wanted:
            require(caller, Level.VIEWER, wanted, "read its guards")
        response = operator_pb2.GuardsResponse(now_ms=int(self.clock() * 1000))
        for freeze in sorted(
            freezes_in(self.cache.kept(keys.FREEZES)).values(), key=lambda f: f.namespace
        ):
            seen = level_in(caller.roles, freeze.namespace) >= Level.VIEWER
            if (seen and wanted in ("", freeze.namespace)) or not freeze.namespace:
                response.freezes.append(_freeze_info(freeze))
        for hold in sorted(holds_in(self.cache.kept(keys.HOLDS)).values(), key=lambda h: h.id):
            if hold.kind is HoldKind.SILENCE:
                if not hold.approved:
                    response.silences.append(_silence_info(hold))
            elif self._concerns(caller, hold, wanted):
                response.holds.append(self._hold_info(caller, hold))
        return response

    async def approve(
        self, caller: Caller, request: operator_pb2.ApproveRequest
    ) -> operator_pb2.ApproveResponse:
        """Raises Refused (NotFound, Forbidden, Conflict) and StoreError."""
        for _ in range(_ATTEMPTS):
            hold = holds_in(self.cache.kept(keys.HOLDS)).get(request.id)
            if hold is None:
                hint = "edgectl guards shows what waits; what no longer applies has gone by itself"
                raise not_found(f"nothing waits under the id {request.id!r}", hint)
            own = hold.name if hold.scope is Scope.NAMESPACE else ""
            level = Level.OPERATOR if own else Level.ADMIN
            require(caller, level, own, f"approve {hold.id}")
            approved = hold.by(caller.source, self.clock())
            put = Put(hold.key, approved.record().to_bytes())
            if await self._commit(hold.record(), put):
                message = f"{hold.message}: approved by {caller.source}"
                self._record(caller, own, _WARNING, "Approved", message)
                return operator_pb2.ApproveResponse(message=_follows(hold))
        raise conflict("what waits kept changing", "see edgectl guards, and try again")

    def _concerns(self, caller: Caller, hold: Hold, namespace: str) -> bool:
        """Whether the caller may see it; and whether it is about `namespace`, unless empty."""
        if hold.kind is not HoldKind.STOPS:
            return True
        mine = [n for n in hold.namespaces if level_in(caller.roles, n) >= Level.VIEWER]
        return bool(mine) and (not namespace or namespace in mine)

    def _hold_info(self, caller: Caller, hold: Hold) -> operator_pb2.HoldInfo:
        return operator_pb2.HoldInfo(
            id=hold.id,
            scope=hold.scope.value,
            name=hold.name,
            message=hold.message,
            stops=hold.stops,
            replicas=hold.replicas,
            workloads=[
                workload
                for workload in hold.workloads
                if level_in(caller.roles, workload.partition("/")[0]) >= Level.VIEWER
            ],
            since_ms=hold.since_ms,
            approved_by=hold.approved_by,
            approved_at_ms=hold.approved_at_ms,
        )

    # --- writing ---------------------------------------------------------------------------------

    async def _commit(self, before: KeptRecord, op: Op) -> bool:
        """Whether the record was still as the mirror showed it. The mirror is then not behind."""
        compare = Compare(before.key, CompareTarget.MOD_REVISION, before.store_revision)
        result = await self.store.txn([compare], [op])
        await catch_up(self.cache, result.revision)
        return result.committed

    def _record(
        self, caller: Caller, namespace: str, severity: int, reason: str, message: str
    ) -> None:
        kind, name = ("Namespace", namespace) if namespace else ("Installation", "everything")
        self.events.record(kind, "", name, severity, reason, message, caller.source)


def _bytes(freeze: Freeze) -> bytes:
    return freeze.record().to_bytes()


def _freeze_info(freeze: Freeze) -> operator_pb2.FreezeInfo:
    return operator_pb2.FreezeInfo(
        namespace=freeze.namespace, by=freeze.by, reason=freeze.reason, since_ms=freeze.since_ms
    )


def _silence_info(hold: Hold) -> operator_pb2.SilenceInfo:
    return operator_pb2.SilenceInfo(
        scope=hold.scope.value,
        name=hold.name,
        nodes=hold.nodes,
        silent=hold.silent,
        since_ms=hold.since_ms,
        until_ms=hold.until_ms,
        id=hold.id,
    )


def _follows(hold: Hold) -> str:
    """What happens now."""
    if hold.kind is HoldKind.SILENCE:
        where = f"{hold.scope} {hold.name}" if hold.name else hold.scope.value
        return f"replicas leave the silent nodes of {where}, where there is another place"
    if hold.kind is HoldKind.STORE:
        return "what the store says now is taken for the truth"
    return f"{hold.stops} replicas stop; the approval is valid for an hour, for this change alone"
