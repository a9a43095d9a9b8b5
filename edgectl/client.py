"""Calls to the operator API: endpoints tried in turn, errors turned into ones that explain.

Imports grpc, so verbs get at it through `Invocation.client` only. A call that writes carries an id,
the same in every try: the orchestrators see to it that it is done once (ADR 18). So only what gives
something new each time (a certificate, an undo) is left to a single try.
"""

import random
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import grpc

from edgectl.config import Connection
from edgectl.connecting import NO_LIFE, Connector
from edgectl.errors import CallError
from edgectl.failures import failure, fell_silent
from edgectl.text import safe
from polder.metadata import AGE_KEY, MEMBER_KEY, REPEATED_KEY, REQUEST_KEY
from polder.v1 import common_pb2, operator_pb2
from polder.v1.operator_pb2_grpc import OperatorServiceStub

T = TypeVar("T")

PAGE_SIZE = 500
SILENCE_S = 3.0  # a call without an answer for so long: does its endpoint live?
PROBE_S = 1.5
ROUNDS_S = 8.0  # endpoints that live, and cannot reach their store, are asked for so long

_LOOK = (
    "it may have been done, or be done a moment from now: edgectl get shows whether; apply and "
    "delete are safe to repeat"
)


def _to_stderr(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Client:
    """`timeout_s` bounds each unary call. Not for several threads, except for open streams."""

    def __init__(
        self,
        connection: Connection,
        endpoints: Sequence[str],
        timeout_s: float = 30.0,
        warn: Callable[[str], None] = _to_stderr,
    ) -> None:
        self._warn = warn
        self._connection = connection
        self._connector = Connector(connection, tuple(endpoints))
        self._tried = len(endpoints)
        self._timeout_s = timeout_s
        self._settled = False
        self._warned = False
        self._looked_around = False
        self._age_ms = 0
        self._member = ""

    def close(self) -> None:
        self._connector.close()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The one that is used first; then in the order in which they are tried."""
        return tuple(self._connector.order)

    @property
    def answered_by(self) -> tuple[str, int]:
        """The member that gave the last answer, and how old that was in milliseconds (0: not)."""
        return self._member, self._age_ms

    # --- unary calls --------------------------------------------------------------------------

    def apply(
        self, documents: Sequence[operator_pb2.Document], *, dry_run: bool = False
    ) -> operator_pb2.ApplyResponse:
        request = operator_pb2.ApplyRequest(documents=documents, dry_run=dry_run)
        return self._unary(lambda stub: stub.Apply, request, writes=True)

    def get(self, ref: common_pb2.ResourceRef) -> operator_pb2.GetResponse:
        return self._unary(lambda stub: stub.Get, operator_pb2.GetRequest(ref=ref))

    def list_all(
        self, kind: str, namespace: str = "", selector: str = ""
    ) -> tuple[list[common_pb2.Resource], int]:
        """All pages, and the server's clock in milliseconds."""
        found: list[common_pb2.Resource] = []
        token = ""
        while True:
            page = self._unary(
                lambda stub: stub.List,
                operator_pb2.ListRequest(
                    kind=kind,
                    namespace=namespace,
                    label_selector=selector,
                    limit=PAGE_SIZE,
                    continue_token=token,
                ),
            )
            found.extend(page.resources)
            if not page.continue_token or page.continue_token == token:
                return found, page.now_ms
            token = page.continue_token

    def delete(
        self, ref: common_pb2.ResourceRef, *, dry_run: bool = False
    ) -> operator_pb2.DeleteResponse:
        request = operator_pb2.DeleteRequest(ref=ref, dry_run=dry_run)
        return self._unary(lambda stub: stub.Delete, request, writes=True)

    def create_join_token(
        self, site: str, node: str, ttl_ms: int
    ) -> operator_pb2.CreateJoinTokenResponse:
        """Tried again like any other: a token that got lost ends unused, in minutes."""
        request = operator_pb2.CreateJoinTokenRequest(site=site, node=node, ttl_ms=ttl_ms)
        return self._unary(lambda stub: stub.CreateJoinToken, request, writes=True)

    def revoke(self, ref: common_pb2.ResourceRef, reason: str) -> operator_pb2.RevokeResponse:
        request = operator_pb2.RevokeRequest(ref=ref, reason=reason)
        return self._unary(lambda stub: stub.Revoke, request, writes=True)

    def issue_operator(
        self, request: operator_pb2.IssueOperatorRequest
    ) -> operator_pb2.IssueOperatorResponse:
        self.settle()
        return self._unary(lambda stub: stub.IssueOperator, request, once=True)

    def whoami(self) -> operator_pb2.WhoAmIResponse:
        return self._unary(lambda stub: stub.WhoAmI, operator_pb2.WhoAmIRequest())

    def why(self, request: operator_pb2.WhyRequest) -> operator_pb2.WhyResponse:
        return self._unary(lambda stub: stub.Why, request)

    def plan(self, request: operator_pb2.PlanRequest) -> operator_pb2.PlanResponse:
        return self._unary(lambda stub: stub.Plan, request)

    def simulate(self, request: operator_pb2.SimulateRequest) -> operator_pb2.SimulateResponse:
        return self._unary(lambda stub: stub.Simulate, request)

    def concentration(
        self, request: operator_pb2.ConcentrationRequest
    ) -> operator_pb2.ConcentrationResponse:
        return self._unary(lambda stub: stub.Concentration, request)

    def compliance(
        self, request: operator_pb2.ComplianceRequest
    ) -> operator_pb2.ComplianceResponse:
        return self._unary(lambda stub: stub.Compliance, request)

    def rollout(self, request: operator_pb2.RolloutRequest) -> operator_pb2.RolloutResponse:
        return self._unary(lambda stub: stub.Rollout, request)

    def undo_rollout(
        self, request: operator_pb2.UndoRolloutRequest
    ) -> operator_pb2.UndoRolloutResponse:
        self.settle()
        return self._unary(lambda stub: stub.UndoRollout, request, once=True)

    def freeze(self, namespace: str, reason: str) -> operator_pb2.FreezeResponse:
        request = operator_pb2.FreezeRequest(namespace=namespace, reason=reason)
        return self._unary(lambda stub: stub.Freeze, request, writes=True)

    def thaw(self, namespace: str) -> operator_pb2.ThawResponse:
        request = operator_pb2.ThawRequest(namespace=namespace)
        return self._unary(lambda stub: stub.Thaw, request, writes=True)

    def guards(self, namespace: str) -> operator_pb2.GuardsResponse:
        request = operator_pb2.GuardsRequest(namespace=namespace)
        return self._unary(lambda stub: stub.Guards, request)

    def approve(self, identifier: str) -> operator_pb2.ApproveResponse:
        request = operator_pb2.ApproveRequest(id=identifier)
        return self._unary(lambda stub: stub.Approve, request, writes=True)

    def fence(self, namespace: str, replica: str, force: bool) -> operator_pb2.FenceResponse:
        request = operator_pb2.FenceRequest(namespace=namespace, replica=replica, force=force)
        return self._unary(lambda stub: stub.Fence, request, writes=force)

    def overrides(self, namespace: str) -> operator_pb2.OverridesResponse:
        request = operator_pb2.OverridesRequest(namespace=namespace)
        return self._unary(lambda stub: stub.Overrides, request)

    def resolve_override(
        self, request: operator_pb2.ResolveOverrideRequest
    ) -> operator_pb2.ResolveOverrideResponse:
        return self._unary(lambda stub: stub.ResolveOverride, request, writes=not request.dry_run)

    def regions(self) -> operator_pb2.RegionsResponse:
        return self._unary(lambda stub: stub.Regions, operator_pb2.RegionsRequest())

    def end_drill(self, region: str) -> operator_pb2.EndDrillResponse:
        request = operator_pb2.EndDrillRequest(region=region)
        return self._unary(lambda stub: stub.EndDrill, request, writes=True)

    def forget_member(self, member: str) -> operator_pb2.ForgetMemberResponse:
        request = operator_pb2.ForgetMemberRequest(member=member)
        return self._unary(lambda stub: stub.ForgetMember, request, writes=True)

    def releases(self) -> operator_pb2.ReleasesResponse:
        return self._unary(lambda stub: stub.Releases, operator_pb2.ReleasesRequest())

    def delete_release(self, version: str) -> operator_pb2.DeleteReleaseResponse:
        request = operator_pb2.DeleteReleaseRequest(version=version)
        return self._unary(lambda stub: stub.DeleteRelease, request, writes=True)

    def upgrade_agents(
        self, request: operator_pb2.UpgradeAgentsRequest
    ) -> operator_pb2.UpgradeAgentsResponse:
        """A beginning is not sent twice: the second would be another upgrade."""
        if request.dry_run or not request.HasField("begin"):
            return self._unary(lambda stub: stub.UpgradeAgents, request, writes=not request.dry_run)
        self.settle()
        return self._unary(lambda stub: stub.UpgradeAgents, request, once=True)

    def agent_upgrades(self) -> operator_pb2.AgentUpgradesResponse:
        return self._unary(lambda stub: stub.AgentUpgrades, operator_pb2.AgentUpgradesRequest())

    def story(self, ref: common_pb2.ResourceRef) -> operator_pb2.StoryResponse:
        return self._unary(lambda stub: stub.Story, operator_pb2.StoryRequest(ref=ref))

    # --- streams ------------------------------------------------------------------------------

    def watch(
        self, request: operator_pb2.WatchRequest, timeout_s: float | None = None
    ) -> Iterator[operator_pb2.WatchResponse]:
        return self._stream(lambda stub: stub.Watch, request, timeout_s)

    def logs(self, request: operator_pb2.LogsRequest) -> Iterator[operator_pb2.LogsResponse]:
        return self._stream(lambda stub: stub.Logs, request, None)

    def events(self, request: operator_pb2.EventsRequest) -> Iterator[operator_pb2.EventsResponse]:
        return self._stream(lambda stub: stub.Events, request, None)

    def drill(self, request: operator_pb2.DrillRequest) -> Iterator[operator_pb2.DrillResponse]:
        return self._stream(lambda stub: stub.Drill, request, None)

    def exec(
        self, requests: Iterator[operator_pb2.ExecRequest]
    ) -> Iterator[operator_pb2.ExecResponse]:
        """A stream of requests cannot be sent twice, so an endpoint that answers is found first."""
        self.settle()
        try:
            yield from self._stub().Exec(requests)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def put_release(
        self, requests: Callable[[], Iterator[operator_pb2.PutReleaseRequest]]
    ) -> operator_pb2.PutReleaseResponse:
        """`requests` gives them from the beginning, for the next endpoint when one is lost."""
        tries = 0
        while True:
            self.settle()
            tries += 1
            try:
                return self._stub().PutRelease(requests())
            except grpc.RpcError as error:
                failed = self._failure(error)
                if failed.code != "UNAVAILABLE" or tries >= self._tried:
                    raise failed from error
                self._next_endpoint()

    def settle(self) -> None:
        """Find an endpoint that answers. Before calls that must not be sent twice."""
        if not self._settled:
            self.whoami()

    # --- the machinery ------------------------------------------------------------------------

    def _unary(
        self, method: Callable[[OperatorServiceStub], Callable[..., T]], request: Any, *,
        once: bool = False, writes: bool = False,
    ) -> T:  # fmt: skip
        """`once`: it must not be sent twice. `writes`: it may, with the id of the first time."""
        try:
            answer = self._anywhere(method, request, once=once, writes=writes)
        except CallError:
            newer = self._newer(method, request)  # also what is not there may only be old
            if newer is None:
                self._warn_if_old()
                raise
            return newer
        newer = self._newer(method, request)
        self._warn_if_old()
        return answer if newer is None else newer

    def _newer(
        self, method: Callable[[OperatorServiceStub], Callable[..., T]], request: Any
    ) -> T | None:
        """What a member says that can read its store, when the one that answered cannot. None: it
        could, or none can. Looked for once in a process. Raises CallError as that member says."""
        if not self._age_ms or self._looked_around or not self._connector.several:
            return None
        self._looked_around = True
        old = self.answered_by
        for _ in range(self._tried - 1):
            self._connector.drop()
            try:
                answer = self._attempt(method, request, self._timeout_s, ())
            except CallError as error:
                if error.code == "UNAVAILABLE" or self._age_ms:
                    continue
                raise
            if not self._age_ms:
                return answer
        self._connector.drop()
        self._member, self._age_ms = old
        return None

    def _anywhere(
        self, method: Callable[[OperatorServiceStub], Callable[..., T]], request: Any, *,
        once: bool, writes: bool,
    ) -> T:  # fmt: skip
        """At the first endpoint that does it."""
        started = time.monotonic()
        names = [(REQUEST_KEY, uuid.uuid4().hex)] if writes and self._connector.several else []
        tries = lives = 0
        unknown = False
        while True:
            left_s = max(0.1, self._timeout_s - (time.monotonic() - started))
            if names and tries:
                names[1:] = [(REPEATED_KEY, "1")]
            try:
                answer = self._attempt(method, request, left_s, names)
            except CallError as error:
                tries += 1
                lives += bool(error.reason)
                unknown = error.unknown = unknown or error.unknown
                if error.code == "UNAVAILABLE" and not once:
                    self._next_endpoint()
                    if self._again(tries, lives, time.monotonic() - started):
                        continue
                if (writes or once) and unknown:
                    error.hints = (*error.hints, _LOOK)
                raise
            else:
                self._settled = True
                return answer

    def _again(self, tries: int, lives: int, passed_s: float) -> bool:
        """Whether to try the next endpoint; after each round, a moment later. All of them once, and
        then until the time is over: who waits is told within ten seconds."""
        if tries < self._tried:
            return True
        if self._tried == 1 or not lives or passed_s >= min(ROUNDS_S, self._timeout_s):
            return False
        if tries % self._tried == 0:
            time.sleep(random.uniform(0.1, 0.5))
        return True

    def _attempt(
        self, method: Callable[[OperatorServiceStub], Callable[..., T]], request: Any,
        left_s: float, metadata: Sequence[tuple[str, str]],
    ) -> T:  # fmt: skip
        """One call at one endpoint. Raises CallError, also when the endpoint falls silent."""
        stub = self._stub()
        rpc: Any = method(stub)
        call: Any = rpc.future(request, timeout=left_s, metadata=metadata or None)
        try:
            while True:
                try:
                    answer: T = call.result(timeout=SILENCE_S if self._connector.several else None)
                    break
                except grpc.FutureTimeoutError:
                    if not self._is_alive(stub):
                        raise fell_silent(self._connector.order[0]) from None
            self._note(call.trailing_metadata())
            return answer
        except grpc.RpcError as error:
            said: Any = error
            self._note(said.trailing_metadata())
            raise self._failure(error) from error
        finally:
            call.cancel()

    def _is_alive(self, stub: OperatorServiceStub) -> bool:
        """Whether the endpoint answers anything at all. A slow answer may take its time."""
        try:
            stub.WhoAmI(operator_pb2.WhoAmIRequest(), timeout=PROBE_S)
        except grpc.RpcError as error:
            said: Any = error
            return said.code() not in NO_LIFE
        return True

    def _stream(
        self,
        method: Callable[[OperatorServiceStub], Callable[..., Iterable[T]]],
        request: Any,
        timeout_s: float | None,
    ) -> Iterator[T]:
        """Goes to the next endpoint as long as nothing has been received."""
        last: CallError | None = None
        for _ in range(self._tried):
            begun = False
            call: Any = method(self._stub())(request, timeout=timeout_s)
            try:
                for message in call:
                    if not begun:
                        self._note(call.initial_metadata())
                        self._warn_if_old()
                    begun = self._settled = True
                    yield message
                return
            except grpc.RpcError as raised:
                last = self._failure(raised)
                if last.code == "UNAVAILABLE":
                    self._next_endpoint()
                if begun or last.code != "UNAVAILABLE":
                    raise last from raised
            finally:
                call.cancel()
        assert last is not None
        raise last

    def _next_endpoint(self) -> None:
        self._settled = False
        if self._connector.several:
            self._connector.drop()

    def _stub(self) -> OperatorServiceStub:
        return OperatorServiceStub(self._connector.channel())

    def _failure(self, error: grpc.RpcError) -> CallError:
        endpoint = self._connector.order[0]
        return failure(error, endpoint, self._connection, self._tried, self._timeout_s)

    def _note(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        """Who answered, and how old that is."""
        said = {key: value for key, value in metadata or () if isinstance(value, str)}
        age = said.get(AGE_KEY, "")
        self._member, self._age_ms = said.get(MEMBER_KEY, ""), int(age) if age.isdigit() else 0

    def _warn_if_old(self) -> None:
        """Once in a process."""
        if not self._age_ms or self._warned:
            return
        self._warned = True
        age_s = max(1, round(self._age_ms / 1000))
        self._warn(f"answers are {age_s} s old: member {safe(self._member)} cannot read its store")
