"""Rollout and UndoRollout: how far a workload's newest template has come, and the way to another.

An undo is an edit: it writes an earlier template into the spec, compared on what was read, and the
leader then rolls it out like any other.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

import grpc

from orchestrator.api.apply import Applier
from orchestrator.api.catalog import Catalog
from orchestrator.api.reading import checked_ref, describe_ref, missing
from orchestrator.api.rollout_view import (
    Stay,
    gravest,
    revisions_of,
    seen_state,
    state_of,
    status_of,
    troubles_of,
)
from orchestrator.authz import Caller, may_read, require_write
from orchestrator.domain.freezes import freeze_of, freezes_in
from orchestrator.domain.liveness import Liveness
from orchestrator.domain.rollout_state import Phase, RolloutState, Standing
from orchestrator.records import StoredResource, TemplateRevision
from orchestrator.refusals import Refused, conflict, forbidden, invalid, not_found
from orchestrator.scheduling.decisions import Explanation
from orchestrator.store import keys
from polder.manifest import API_VERSION, WorkloadSpec
from polder.v1 import common_pb2, operator_pb2

_ATTEMPTS = 5
_LOOKED_BACK_MAX = 200
"""Revision numbers below the newest that are looked for; what is older is in use, or gone."""


class Follows(Protocol):
    """What is known of the leader, here or elsewhere: `orchestrator.mesh.voice.Voice`."""

    def rollout(self, workload_uid: str) -> RolloutState | None:
        """As it last said; None: it said nothing of it."""
        ...

    def wants(self, namespace: str, name: str) -> int | None: ...

    @property
    def explanations(self) -> Mapping[tuple[str, str], tuple[Explanation, ...]]: ...


class Rollouts:
    """Serves Rollout and UndoRollout."""

    def __init__(self, catalog: Catalog, applier: Applier, leader: Follows) -> None:
        self._catalog = catalog
        self._cache = catalog.cache
        self._applier = applier
        self._leader = leader

    def rollout(
        self, caller: Caller, request: operator_pb2.RolloutRequest, now_ms: int
    ) -> operator_pb2.RolloutResponse:
        """Raises Refused (NotFound, Forbidden, NoRollout)."""
        workload = self._workload(caller, request.ref)
        state = self._state(workload)
        stays = self._stays(workload)
        stored = self._stored(workload, state, stays)
        used = Counter(stay.revision for stay in stays)
        wants = self._leader.wants(workload.namespace, workload.name)
        status = status_of(workload, state, stays, wants)
        if not status.settled:
            status.message = self._waits_for(workload, state, stays) or status.message
        response = operator_pb2.RolloutResponse(
            status=status,
            revisions=revisions_of(stored.values(), state, used),
            now_ms=now_ms,
        )
        if request.revision:
            chosen = _chosen(workload, stored, request.revision)
            response.template_json = chosen.template_json
        return response

    async def undo(
        self, caller: Caller, request: operator_pb2.UndoRolloutRequest
    ) -> operator_pb2.UndoRolloutResponse:
        """Raises Refused (NotFound, Forbidden, NoRollout, Unchanged, Conflict, BeingDeleted and
        what apply raises)."""
        for attempt in range(_ATTEMPTS):
            workload = self._workload(caller, request.ref)
            require_write(caller, *workload.ref)
            if request.expected_revision not in (0, workload.store_revision):
                by = workload.changed_by or "somebody"
                raise conflict(
                    f"{workload.name} is at revision {workload.store_revision}, changed by {by}",
                    "look at it again, and retry",
                )
            try:
                return await self._undo(caller, request, workload)
            except Refused as error:
                if error.reason != "Conflict" or request.expected_revision:
                    raise
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    async def _undo(
        self, caller: Caller, request: operator_pb2.UndoRolloutRequest, workload: StoredResource
    ) -> operator_pb2.UndoRolloutResponse:
        state = self._state(workload)
        stored = self._stored(workload, state, self._stays(workload))
        number = request.to_revision or _default_target(workload, state, stored)
        chosen = _chosen(workload, stored, number)
        newest = stored.get(workload.template_revision)
        if newest is not None and newest.digest == chosen.digest:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                "Unchanged",
                f"the template of revision {number} is what {workload.name} has already",
                f"edgectl rollout history workload/{workload.name} shows the others",
            )
        applied = await self._applier.apply(
            caller,
            operator_pb2.ApplyRequest(
                documents=[_document(workload, chosen)], dry_run=request.dry_run
            ),
        )
        (result,) = applied.results
        return operator_pb2.UndoRolloutResponse(
            resource=result.resource,
            from_revision=workload.template_revision,
            to_revision=number,
            warnings=[*result.warnings, *_warnings(workload, state, number)],
        )

    # --- what is known ---------------------------------------------------------------------------

    def _workload(self, caller: Caller, named: common_pb2.ResourceRef) -> StoredResource:
        ref = checked_ref(named)
        if ref.kind != "Workload":
            raise invalid(f"a {ref.kind} has no rollout", "name a workload", "BadKind")
        if not may_read(caller, ref.kind, ref.namespace, ref.name):
            raise forbidden(f"{caller} may not read {describe_ref(ref)}")
        found = self._cache.resource(ref.kind, ref.namespace, ref.name)
        if found is None:
            raise missing(ref)
        if found.spec.get("run") == "once":
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                "NoRollout",
                f"{describe_ref(ref)} runs once: what it started keeps its template",
                "only workloads that run always are rolled out",
            )
        return found

    def _state(self, workload: StoredResource) -> RolloutState:
        """The leader's word, if it was heard; its record otherwise."""
        live = self._leader.rollout(workload.uid)
        return seen_state(
            workload, live or state_of(self._cache.kept_at(keys.rollout(workload.uid)))
        )

    def _waits_for(self, workload: StoredResource, state: RolloutState, stays: list[Stay]) -> str:
        """Of a rollout under way: who froze it, or what the leader's last plan says of the
        workload and the agents of what does not start."""
        freeze = freeze_of(freezes_in(self._cache.kept(keys.FREEZES)), workload.namespace)
        if freeze is not None:
            return f"{freeze}; it goes on after {freeze.thaw}"
        if state.message or state.phase not in (Phase.PROGRESSING, Phase.ROLLING_BACK):
            return ""
        found = self._leader.explanations.get((workload.namespace, workload.name), ())
        said = (gravest(found), troubles_of(state, stays))
        return "; ".join(text for text in said if text)

    def _stays(self, workload: StoredResource) -> list[Stay]:
        placed = self._catalog.index.workload(workload.namespace, workload.name).placed
        found = []
        for item in placed.values():
            seen = self._catalog.fleet.get(item.node)
            live = self._catalog.node_liveness(item.node).state is Liveness.LIVE
            said = seen.replicas.get(item.assignment.replica_uid) if seen is not None else None
            found.append(Stay(item.assignment.replica, item.assignment.revision, live, said))
        return found

    def _stored(
        self, workload: StoredResource, state: RolloutState, stays: list[Stay]
    ) -> dict[int, TemplateRevision]:
        newest = workload.template_revision
        numbers = {*range(max(1, newest - _LOOKED_BACK_MAX), newest + 1), *state.needed}
        numbers |= {past.number for past in state.history} | {stay.revision for stay in stays}
        found = ((n, self._cache.revision_of(workload.uid, n)) for n in sorted(numbers))
        return {number: item for number, item in found if item is not None}


def _chosen(
    workload: StoredResource, stored: dict[int, TemplateRevision], number: int
) -> TemplateRevision:
    found = stored.get(number)
    if found is None:
        known = ", ".join(str(n) for n in sorted(stored, reverse=True)[:10])
        raise not_found(
            f"workload {workload.name} has no revision {number}", f"there are: {known or 'none'}"
        )
    return found


def _default_target(
    workload: StoredResource, state: RolloutState, stored: dict[int, TemplateRevision]
) -> int:
    """The last proven one that is another template, or else the one before."""
    newest = stored.get(workload.template_revision)
    others = {
        number: item
        for number, item in stored.items()
        if number < workload.template_revision and (newest is None or item.digest != newest.digest)
    }
    proven = [
        past.number
        for past in state.history
        if past.standing is Standing.PROVEN and past.number in others
    ]
    if state.proven in proven:
        return state.proven
    if not others:
        raise Refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            "NoEarlierRevision",
            f"workload {workload.name} has no earlier revision to return to",
            f"edgectl rollout history workload/{workload.name} shows what there is",
        )
    return max(proven or others)


def _document(workload: StoredResource, chosen: TemplateRevision) -> operator_pb2.Document:
    body = {
        "apiVersion": API_VERSION,
        "kind": workload.kind,
        "metadata": {
            "name": workload.name,
            "namespace": workload.namespace,
            "labels": workload.labels,
            "annotations": workload.annotations,
        },
        "spec": {**workload.spec, "template": chosen.template},
    }
    return operator_pb2.Document(
        json=json.dumps(body).encode(), expected_revision=workload.store_revision
    )


def _warnings(workload: StoredResource, state: RolloutState, number: int) -> list[str]:
    found = []
    past = state.past(number)
    if past is not None and past.standing is Standing.FAILED:
        found.append(f"revision {number} failed before: {past.cause}")
    spec = workload.decoded
    if isinstance(spec, WorkloadSpec) and spec.update.paused:
        hint = f"edgectl rollout resume workload/{workload.name}"
        found.append(f"the rollout is paused: nothing changes before {hint}")
    return found
