"""Calls to the operator API: endpoints tried in turn, errors turned into ones that explain.

Imports grpc, so verbs get at it through `Invocation.client` only.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import grpc

from edgectl.config import Connection
from edgectl.errors import CallError, CliError
from polder.errors import parse_detail
from polder.v1 import common_pb2, operator_pb2
from polder.v1.operator_pb2_grpc import OperatorServiceStub

T = TypeVar("T")

PAGE_SIZE = 500
MAX_MESSAGE_BYTES = 32 << 20
CONNECT_TIMEOUT_MS = 4000  # how long a silent endpoint keeps us from trying the next
KEEPALIVE_MS = 30_000  # a watch notices a half-open connection within this and the next line
KEEPALIVE_TIMEOUT_MS = 10_000
_LOOPBACK = ("127.", "localhost:", "[::1]:")


class Client:
    """`timeout_s` bounds each unary call. Not for several threads, except for open streams."""

    def __init__(
        self, connection: Connection, endpoints: Sequence[str], timeout_s: float = 30.0
    ) -> None:
        self._connection = connection
        self._endpoints = tuple(endpoints)
        self._timeout_s = timeout_s
        self._at = 0
        self._channel: grpc.Channel | None = None
        self._stub: OperatorServiceStub | None = None
        self._settled = False

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = self._stub = None

    # --- unary calls --------------------------------------------------------------------------

    def apply(
        self, documents: Sequence[operator_pb2.Document], *, dry_run: bool = False
    ) -> operator_pb2.ApplyResponse:
        request = operator_pb2.ApplyRequest(documents=documents, dry_run=dry_run)
        return self._unary(lambda stub: stub.Apply, request)

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
        return self._unary(lambda stub: stub.Delete, request)

    def create_join_token(
        self, site: str, node: str, ttl_ms: int
    ) -> operator_pb2.CreateJoinTokenResponse:
        self.settle()
        request = operator_pb2.CreateJoinTokenRequest(site=site, node=node, ttl_ms=ttl_ms)
        return self._unary(lambda stub: stub.CreateJoinToken, request, attempts=1)

    def revoke(self, ref: common_pb2.ResourceRef, reason: str) -> operator_pb2.RevokeResponse:
        request = operator_pb2.RevokeRequest(ref=ref, reason=reason)
        return self._unary(lambda stub: stub.Revoke, request)

    def issue_operator(
        self, request: operator_pb2.IssueOperatorRequest
    ) -> operator_pb2.IssueOperatorResponse:
        self.settle()
        return self._unary(lambda stub: stub.IssueOperator, request, attempts=1)

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
        return self._unary(lambda stub: stub.UndoRollout, request, attempts=1)

    def freeze(self, namespace: str, reason: str) -> operator_pb2.FreezeResponse:
        request = operator_pb2.FreezeRequest(namespace=namespace, reason=reason)
        return self._unary(lambda stub: stub.Freeze, request)

    def thaw(self, namespace: str) -> operator_pb2.ThawResponse:
        return self._unary(lambda stub: stub.Thaw, operator_pb2.ThawRequest(namespace=namespace))

    def guards(self, namespace: str) -> operator_pb2.GuardsResponse:
        request = operator_pb2.GuardsRequest(namespace=namespace)
        return self._unary(lambda stub: stub.Guards, request)

    def approve(self, identifier: str) -> operator_pb2.ApproveResponse:
        return self._unary(lambda stub: stub.Approve, operator_pb2.ApproveRequest(id=identifier))

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

    def exec(
        self, requests: Iterator[operator_pb2.ExecRequest]
    ) -> Iterator[operator_pb2.ExecResponse]:
        """A stream of requests cannot be sent twice, so an endpoint that answers is found first."""
        self.settle()
        try:
            yield from self._connected().Exec(requests)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def settle(self) -> None:
        """Find an endpoint that answers. Before calls that must not be sent twice."""
        if not self._settled:
            self.whoami()

    # --- the machinery ------------------------------------------------------------------------

    def _unary(
        self, method: Callable[[OperatorServiceStub], Callable[..., T]], request: Any,
        attempts: int = 0,
    ) -> T:  # fmt: skip
        error: CallError | None = None
        for _ in range(attempts or len(self._endpoints)):
            try:
                answer = method(self._connected())(request, timeout=self._timeout_s)
            except grpc.RpcError as raised:
                error = self._failure(raised)
                if error.code != "UNAVAILABLE":
                    raise error from raised
                self._next_endpoint()
            else:
                self._settled = True
                return answer
        assert error is not None
        raise error

    def _stream(
        self,
        method: Callable[[OperatorServiceStub], Callable[..., Iterable[T]]],
        request: Any,
        timeout_s: float | None,
    ) -> Iterator[T]:
        """Goes to the next endpoint as long as nothing has been received."""
        last: CallError | None = None
        for _ in self._endpoints:
            begun = False
            call: Any = method(self._connected())(request, timeout=timeout_s)
            try:
                for message in call:
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
        if len(self._endpoints) > 1:
            self.close()
            self._at = (self._at + 1) % len(self._endpoints)

    def _connected(self) -> OperatorServiceStub:
        if self._stub is None:
            endpoint = self._endpoints[self._at]
            self._channel = grpc.secure_channel(
                endpoint, self._credentials(), options=self._options(endpoint)
            )
            self._stub = OperatorServiceStub(self._channel)
        return self._stub

    def _credentials(self) -> grpc.ChannelCredentials:
        connection = self._connection
        for name, pem in (
            ("certificate authority", connection.ca_pem),
            ("client certificate", connection.certificate_pem),
            ("client key", connection.key_pem),
        ):
            if b"-----BEGIN" not in pem:
                raise CliError(f"context {connection.context!r}: the {name} is not PEM")
        return grpc.ssl_channel_credentials(
            connection.ca_pem, connection.key_pem, connection.certificate_pem
        )

    def _options(self, endpoint: str) -> list[tuple[str, Any]]:
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ]
        if self._connection.server_name:
            options.append(("grpc.ssl_target_name_override", self._connection.server_name))
        if endpoint.startswith(_LOOPBACK):
            options.append(("grpc.enable_http_proxy", 0))
        return options

    def _failure(self, error: grpc.RpcError) -> CallError:
        """The error in an operator's words."""
        call: Any = error  # what a blocking call raises is also a grpc.Call
        code: str = call.code().name
        text: str = call.details() or code
        detail = parse_detail(call.trailing_metadata())
        endpoint = self._endpoints[self._at]
        if detail is not None:
            violations = [(v.document, v.path, v.message) for v in detail.violations]
            return CallError(
                text, detail.hint, code=code, reason=detail.reason, violations=violations
            )
        if code == "UNAVAILABLE":
            return CallError(
                f"cannot reach the orchestrator at {endpoint}: {_short(text)}",
                *self._connection_hints(text),
                code=code,
            )
        if code == "DEADLINE_EXCEEDED":
            return CallError(
                f"the orchestrator at {endpoint} did not answer within {self._timeout_s:g} s",
                "--request-timeout TIME waits longer",
                code=code,
            )
        if code == "UNIMPLEMENTED":
            return CallError(
                f"the orchestrator at {endpoint} does not know this call",
                "it is older than this edgectl: see edgectl version",
                code=code,
            )
        return CallError(text, code=code)

    def _connection_hints(self, text: str) -> list[str]:
        from edgectl.certificates import client_problem

        problem = client_problem(self._connection.certificate_pem)
        if problem:
            return [problem]
        context = f"context {self._connection.context!r}"
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return [f"whoever answers there is not certified by the CA of {context}"]
        if "Hostname Verification" in text or "not match" in text:
            return [f"its certificate is for another name: check serverName in {context}"]
        if "Socket closed" in text or "reset" in text or "handshake" in text.lower():
            return [
                "it stopped, it is not an orchestrator's port, or it does not accept the client "
                f"certificate of {context}"
            ]
        others = len(self._endpoints) - 1
        return [f"{others + 1} endpoints were tried"] if others else ["does it run?"]


def _short(text: str) -> str:
    """gRPC wraps the cause in several layers; the innermost says what happened."""
    for word in ("Connection refused", "No route to host", "Network is unreachable"):
        if word.lower() in text.lower():
            return word.lower()
    for word in ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed"):
        if word in text:
            return "its certificate is not accepted"
    if "Socket closed" in text or "Connection reset" in text:
        return "it closed the connection"
    if "DNS resolution failed" in text or "Domain name not found" in text:
        return "the name cannot be resolved"
    if "Timeout" in text or "timed out" in text.lower() or "FD Shutdown" in text:
        return "it does not answer"
    return text[:300]
