"""OperatorService: each RPC in one line or two. The work is in the modules beside this one.

The front door (rpc.py) has admitted the caller before any of these runs, and turns `Refused` and
StoreError into statuses after.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

from grpc import aio

from orchestrator.api.access import Access
from orchestrator.api.agent_upgrades import AgentUpgrades
from orchestrator.api.apply import Applier
from orchestrator.api.deletion import Deleter
from orchestrator.api.drilling import Drilling
from orchestrator.api.event_stream import stream_events
from orchestrator.api.fencing import Fencing
from orchestrator.api.guards import Guards
from orchestrator.api.insight import Insight
from orchestrator.api.overriding import Overriding
from orchestrator.api.reading import Reading
from orchestrator.api.regions import Regions
from orchestrator.api.relaying import Relaying
from orchestrator.api.releases import ReleaseDesk
from orchestrator.api.rollouts import Rollouts
from orchestrator.api.watching import WatchHub
from orchestrator.authz import caller_of
from orchestrator.cache import Cache
from orchestrator.events import EventRecorder
from polder.v1 import operator_pb2, operator_pb2_grpc

Context: TypeAlias = "aio.ServicerContext[Any, Any]"  # generic in its stubs only


class OperatorService(operator_pb2_grpc.OperatorServiceServicer):
    """What edgectl talks to."""

    def __init__(
        self,
        applier: Applier,
        reading: Reading,
        deleter: Deleter,
        hub: WatchHub,
        relaying: Relaying,
        access: Access,
        insight: Insight,
        events: EventRecorder,
        cache: Cache,
        clock: Callable[[], float],
        guards: Guards,
        rollouts: Rollouts,
        regions: Regions,
        drilling: Drilling,
        fencing: Fencing,
        overriding: Overriding,
        releases: ReleaseDesk,
        agent_upgrades: AgentUpgrades,
    ) -> None:
        self._applier = applier
        self._reading = reading
        self._deleter = deleter
        self._hub = hub
        self._relaying = relaying
        self._access = access
        self._insight = insight
        self._events = events
        self._cache = cache
        self._clock = clock
        self._guards = guards
        self._rollouts = rollouts
        self._regions = regions
        self._drilling = drilling
        self._fencing = fencing
        self._overriding = overriding
        self._releases = releases
        self._agent_upgrades = agent_upgrades

    async def Apply(  # noqa: N802
        self, request: operator_pb2.ApplyRequest, context: Context
    ) -> operator_pb2.ApplyResponse:
        response = await self._applier.apply(caller_of(context), request)
        self._guards.warn(response.results)
        self._overriding.warn(response.results)
        return response

    async def Get(  # noqa: N802
        self, request: operator_pb2.GetRequest, context: Context
    ) -> operator_pb2.GetResponse:
        return self._reading.get(caller_of(context), request)

    async def List(  # noqa: N802
        self, request: operator_pb2.ListRequest, context: Context
    ) -> operator_pb2.ListResponse:
        return self._reading.list(caller_of(context), request)

    def Watch(  # noqa: N802
        self, request: operator_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[operator_pb2.WatchResponse]:
        return self._hub.watch(caller_of(context), request)

    async def Delete(  # noqa: N802
        self, request: operator_pb2.DeleteRequest, context: Context
    ) -> operator_pb2.DeleteResponse:
        response = await self._deleter.delete(caller_of(context), request)
        response.warnings.extend(self._guards.warnings(response.resource))
        return response

    def Logs(  # noqa: N802
        self, request: operator_pb2.LogsRequest, context: Context
    ) -> AsyncIterator[operator_pb2.LogsResponse]:
        return self._relaying.logs(caller_of(context), request)

    def Exec(  # noqa: N802
        self, request_iterator: AsyncIterator[operator_pb2.ExecRequest], context: Context
    ) -> AsyncIterator[operator_pb2.ExecResponse]:
        return self._relaying.exec(caller_of(context), request_iterator)

    def Events(  # noqa: N802
        self, request: operator_pb2.EventsRequest, context: Context
    ) -> AsyncIterator[operator_pb2.EventsResponse]:
        return stream_events(
            self._events,
            self._hub.losing,
            self._cache,
            self._clock,
            caller_of(context),
            request,
        )

    async def CreateJoinToken(  # noqa: N802
        self, request: operator_pb2.CreateJoinTokenRequest, context: Context
    ) -> operator_pb2.CreateJoinTokenResponse:
        return await self._access.create_join_token(caller_of(context), request)

    async def Revoke(  # noqa: N802
        self, request: operator_pb2.RevokeRequest, context: Context
    ) -> operator_pb2.RevokeResponse:
        return await self._access.revoke(caller_of(context), request)

    async def IssueOperator(  # noqa: N802
        self, request: operator_pb2.IssueOperatorRequest, context: Context
    ) -> operator_pb2.IssueOperatorResponse:
        return await self._access.issue_operator(caller_of(context), request)

    async def WhoAmI(  # noqa: N802
        self, request: operator_pb2.WhoAmIRequest, context: Context
    ) -> operator_pb2.WhoAmIResponse:
        return self._access.who_am_i(caller_of(context))

    async def Why(  # noqa: N802
        self, request: operator_pb2.WhyRequest, context: Context
    ) -> operator_pb2.WhyResponse:
        return await self._insight.why.why(caller_of(context), request)

    async def Plan(  # noqa: N802
        self, request: operator_pb2.PlanRequest, context: Context
    ) -> operator_pb2.PlanResponse:
        response = await self._insight.plan.plan(caller_of(context), request)
        self._guards.warn(response.results)
        return response

    async def Simulate(  # noqa: N802
        self, request: operator_pb2.SimulateRequest, context: Context
    ) -> operator_pb2.SimulateResponse:
        return await self._insight.simulate.simulate(caller_of(context), request)

    async def Concentration(  # noqa: N802
        self, request: operator_pb2.ConcentrationRequest, context: Context
    ) -> operator_pb2.ConcentrationResponse:
        return await self._insight.concentration.shares(caller_of(context), request)

    async def Compliance(  # noqa: N802
        self, request: operator_pb2.ComplianceRequest, context: Context
    ) -> operator_pb2.ComplianceResponse:
        return await self._insight.compliance.report(caller_of(context), request)

    async def Rollout(  # noqa: N802
        self, request: operator_pb2.RolloutRequest, context: Context
    ) -> operator_pb2.RolloutResponse:
        now_ms = int(self._clock() * 1000)
        return self._rollouts.rollout(caller_of(context), request, now_ms)

    async def UndoRollout(  # noqa: N802
        self, request: operator_pb2.UndoRolloutRequest, context: Context
    ) -> operator_pb2.UndoRolloutResponse:
        response = await self._rollouts.undo(caller_of(context), request)
        response.warnings.extend(self._guards.warnings(response.resource))
        return response

    async def Freeze(  # noqa: N802
        self, request: operator_pb2.FreezeRequest, context: Context
    ) -> operator_pb2.FreezeResponse:
        return await self._guards.freeze(caller_of(context), request)

    async def Thaw(  # noqa: N802
        self, request: operator_pb2.ThawRequest, context: Context
    ) -> operator_pb2.ThawResponse:
        return await self._guards.thaw(caller_of(context), request)

    async def Guards(  # noqa: N802
        self, request: operator_pb2.GuardsRequest, context: Context
    ) -> operator_pb2.GuardsResponse:
        return self._guards.guards(caller_of(context), request)

    async def Approve(  # noqa: N802
        self, request: operator_pb2.ApproveRequest, context: Context
    ) -> operator_pb2.ApproveResponse:
        return await self._guards.approve(caller_of(context), request)

    async def Fence(  # noqa: N802
        self, request: operator_pb2.FenceRequest, context: Context
    ) -> operator_pb2.FenceResponse:
        return await self._fencing.fence(caller_of(context), request)

    async def Overrides(  # noqa: N802
        self, request: operator_pb2.OverridesRequest, context: Context
    ) -> operator_pb2.OverridesResponse:
        return self._overriding.overrides(caller_of(context), request)

    async def ResolveOverride(  # noqa: N802
        self, request: operator_pb2.ResolveOverrideRequest, context: Context
    ) -> operator_pb2.ResolveOverrideResponse:
        return await self._overriding.resolve(caller_of(context), request)

    async def Story(  # noqa: N802
        self, request: operator_pb2.StoryRequest, context: Context
    ) -> operator_pb2.StoryResponse:
        return self._insight.story.story(caller_of(context), request)

    async def Regions(  # noqa: N802
        self, request: operator_pb2.RegionsRequest, context: Context
    ) -> operator_pb2.RegionsResponse:
        return await self._regions.regions()

    def Drill(  # noqa: N802
        self, request: operator_pb2.DrillRequest, context: Context
    ) -> AsyncIterator[operator_pb2.DrillResponse]:
        return self._drilling.drill(caller_of(context), request)

    async def EndDrill(  # noqa: N802
        self, request: operator_pb2.EndDrillRequest, context: Context
    ) -> operator_pb2.EndDrillResponse:
        return await self._drilling.end(caller_of(context), request)

    async def ForgetMember(  # noqa: N802
        self, request: operator_pb2.ForgetMemberRequest, context: Context
    ) -> operator_pb2.ForgetMemberResponse:
        return await self._regions.forget(caller_of(context), request)

    async def PutRelease(  # noqa: N802
        self, request_iterator: AsyncIterator[operator_pb2.PutReleaseRequest], context: Context
    ) -> operator_pb2.PutReleaseResponse:
        return await self._releases.put(caller_of(context), request_iterator)

    async def Releases(  # noqa: N802
        self, request: operator_pb2.ReleasesRequest, context: Context
    ) -> operator_pb2.ReleasesResponse:
        return self._releases.releases()

    async def DeleteRelease(  # noqa: N802
        self, request: operator_pb2.DeleteReleaseRequest, context: Context
    ) -> operator_pb2.DeleteReleaseResponse:
        return await self._releases.delete(caller_of(context), request)

    async def UpgradeAgents(  # noqa: N802
        self, request: operator_pb2.UpgradeAgentsRequest, context: Context
    ) -> operator_pb2.UpgradeAgentsResponse:
        return await self._agent_upgrades.upgrade(caller_of(context), request)

    async def AgentUpgrades(  # noqa: N802
        self, request: operator_pb2.AgentUpgradesRequest, context: Context
    ) -> operator_pb2.AgentUpgradesResponse:
        return await self._agent_upgrades.upgrades()
