"""The connection to one node: pinned, its identity proven, and entered. Called by `survey`.

A node's site certificate is signed by nobody. It is fetched first, the channel then accepts that
one alone, and the node proves with its real identity that the certificate is its own. Only then is
anything said to it. See ADR 26.
"""

import os
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import grpc

from edgectl.errors import CallError
from edgectl.failures import named, short
from edgectl.site import clocks
from edgectl.site.access import Access, NotProven
from edgectl.site.sessions import Session, Sessions
from edgectl.site.together import together
from polder.local_access import DEFAULT_PORT, NONCE_BYTES, SERVER_NAME, SESSION_KEY
from polder.v1 import agent_pb2, local_pb2
from polder.v1.local_pb2_grpc import LocalServiceStub

T = TypeVar("T")

CONNECT_S = 4.0
"""For a TCP connection and its TLS handshake: a site is near, but its boxes may be busy."""
ANSWER_S_MAX = 15.0
"""For a node to prove itself and to check us: it starts a program for each."""
NOT_PROVEN = "NotProven"
MAX_MESSAGE_BYTES = 32 << 20
KEEPALIVE_MS = 5_000  # agents take pings every 4 s at most
KEEPALIVE_TIMEOUT_MS = 5_000
READ_S_MAX = 10.0
"""For what is only read out: a node that died while it was asked is not waited for longer."""


class Link(Protocol):
    """One node that let us in. Calls raise CallError. For several threads."""

    node: str
    site: str
    endpoint: str
    by: str
    roles: tuple[str, ...]
    warnings: tuple[str, ...]
    offset_ms: int

    def show(self, namespace: str) -> local_pb2.ShowResponse: ...

    def recall(self, request: local_pb2.RecallRequest) -> local_pb2.RecallResponse: ...

    def change(self, request: local_pb2.ChangeRequest) -> local_pb2.ChangeResponse: ...

    def reach(
        self, requests: Iterable[local_pb2.ReachRequest]
    ) -> Iterator[agent_pb2.RelayRequest]: ...

    def close(self) -> None: ...


Opener = Callable[[Sequence[str]], Link]
"""Opens the link to a node at one of its endpoints. Raises CallError."""


def split(endpoint: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def normal(text: str) -> str:
    """`HOST`, `HOST:PORT`, `[v6]`, `[v6]:PORT` or a bare v6 address, with the port."""
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    return text if ":" in text.rpartition("]")[2] else f"{text}:{DEFAULT_PORT}"


@dataclass(frozen=True, slots=True)
class Shown:
    """What answered at an endpoint. `target`: its address, since a name may lead to several nodes.
    `certificate`: DER; not believed yet."""

    endpoint: str
    target: str
    certificate: bytes


def opener(access: Access, sessions: Sessions, timeout_s: float) -> Opener:
    """`timeout_s` bounds each call."""

    def open_(endpoints: Sequence[str]) -> Link:
        """Private addresses of a box may lead to something else from here: that is passed over."""
        left = list(endpoints)
        while True:
            shown = first_certificate(left)
            try:
                return NodeLink(shown, access, sessions, timeout_s)
            except CallError as error:
                left.remove(shown.endpoint)
                if error.reason != NOT_PROVEN or not left:
                    raise

    return open_


def first_certificate(endpoints: Sequence[str]) -> Shown:
    """Of the endpoint that was the first to show one. A box has addresses that
    lead nowhere from here, so all are tried at once; only one of them is then asked for proof,
    which costs the box a second. Raises CallError."""
    failure = CallError("nobody knows an address of it", code="UNAVAILABLE", reason="NoAddress")
    tasks = {endpoint: partial(certificate_at, endpoint) for endpoint in endpoints}
    for _, found in together(tasks):
        if not isinstance(found, CallError):
            return found
        failure = found
    raise failure


def certificate_at(endpoint: str, timeout_s: float = CONNECT_S) -> Shown:
    """Raises CallError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(split(endpoint), timeout_s) as raw,
            context.wrap_socket(raw, server_hostname=SERVER_NAME) as secured,
        ):
            found = secured.getpeercert(binary_form=True)
            host, port, *more = secured.getpeername()
    except ssl.SSLError as error:
        raise _unavailable(endpoint, "it does not speak TLS as an agent does") from error
    except TimeoutError as error:
        raise _unavailable(endpoint, f"no answer within {timeout_s:g} s") from error
    except OSError as error:
        raise _unavailable(endpoint, (error.strerror or str(error)).lower()) from error
    except (ValueError, OverflowError) as error:  # a node may say anything of its peers
        raise _unavailable(endpoint, "it is no address") from error
    if not found:
        raise _unavailable(endpoint, "it shows no certificate")
    if any(more):  # of a link alone: gRPC takes it as it was written
        return Shown(endpoint, endpoint, found)
    return Shown(endpoint, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", found)


class NodeLink:
    """A `Link` over gRPC. Raises CallError when it cannot be made."""

    def __init__(self, shown: Shown, access: Access, sessions: Sessions, timeout_s: float) -> None:
        self.endpoint = shown.endpoint
        self._certificate = shown.certificate
        self._access = access
        self._sessions = sessions
        self._timeout_s = timeout_s
        self._read_s = min(READ_S_MAX, timeout_s)
        self._channel = _pinned(shown)
        self._stub = LocalServiceStub(self._channel)
        self.offset_ms, self._compared = 0, False
        self.warnings: tuple[str, ...] = ()
        try:
            self._use(sessions.find(shown.certificate) or self._enter())
        except BaseException:
            self._channel.close()
            raise

    def close(self) -> None:
        self._channel.close()

    def show(self, namespace: str) -> local_pb2.ShowResponse:
        """The first one tells what its clock says: from then on the same is added to all times."""
        request = local_pb2.ShowRequest(namespace=namespace)
        answer = self._call(lambda stub: stub.Show, request, self._read_s)
        if not self._compared:
            self._compared = True
            self.offset_ms = clocks.offset(time.time_ns() // 1_000_000, answer.now_ms)
            if wrong := clocks.warning(self.node, self.offset_ms):
                self.warnings = (*self.warnings, wrong)
        answer.node, answer.site = self.node, self.site  # as it proved
        return self._told(answer)

    def recall(self, request: local_pb2.RecallRequest) -> local_pb2.RecallResponse:
        return self._told(self._call(lambda stub: stub.Recall, request, self._read_s))

    def change(self, request: local_pb2.ChangeRequest) -> local_pb2.ChangeResponse:
        """Sent once more when its answer got lost: it carries an id."""
        try:
            return self._call(lambda stub: stub.Change, request, self._timeout_s)
        except CallError as error:
            if error.code != "UNAVAILABLE":
                raise
        return self._call(lambda stub: stub.Change, request, self._timeout_s)

    def reach(self, requests: Iterable[local_pb2.ReachRequest]) -> Iterator[agent_pb2.RelayRequest]:
        """A session that ended meanwhile is not renewed: input may have been taken already."""
        call: Any = self._stub.Reach(iter(requests), metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._failure(error, self._timeout_s) from error
        finally:
            call.cancel()

    def _use(self, session: Session) -> None:
        self.node, self.site = session.node, session.site
        self.by, self.roles = session.by, session.roles
        self.warnings = session.warnings
        self._metadata = ((SESSION_KEY, session.key),)

    def _enter(self) -> Session:
        """Hear who it is, check that, and be let in."""
        nonce = os.urandom(NONCE_BYTES)
        limit_s = min(ANSWER_S_MAX, self._timeout_s)
        began = time.time()
        try:
            answer = self._stub.Introduce(local_pb2.IntroduceRequest(nonce=nonce), timeout=limit_s)
            identity, warning = self._access.check_node(nonce, self._certificate, answer)
            request = self._access.credential(identity, answer.challenge, self._certificate)
            entered = self._stub.Enter(request, timeout=limit_s)
        except grpc.RpcError as error:
            raise self._failure(error, limit_s) from error
        except (NotProven, ValueError) as error:
            text = f"whoever answers at {self.endpoint} is not let near: {error}"
            hint = f"nodes are believed by the word of {self._access.vouches}"
            raise CallError(text, hint, code="UNAUTHENTICATED", reason=NOT_PROVEN) from error
        session = Session(
            node=identity.node,
            site=identity.site,
            by=entered.by,
            roles=tuple(entered.roles),
            warnings=tuple(text for text in (warning, *entered.warnings) if text),
            until=began + entered.expires_in_ms / 1000,
            key=entered.session,
        )
        self._sessions.keep(self._certificate, session)
        return session

    def _call(
        self, method: Callable[[LocalServiceStub], Callable[..., T]], request: Any, limit_s: float
    ) -> T:
        """Enters again when the session is over: they last ten minutes, and end with the agent."""
        try:
            return self._once(method, request, limit_s)
        except CallError as error:
            if error.reason != "UnknownSession":
                raise
        self._use(self._enter())
        return self._once(method, request, limit_s)

    def _once(
        self, method: Callable[[LocalServiceStub], Callable[..., T]], request: Any, limit_s: float
    ) -> T:
        try:
            return method(self._stub)(request, timeout=limit_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._failure(error, limit_s) from error

    def _told(self, answer: T) -> T:
        """With its times by our clock."""
        clocks.shift(answer, self.offset_ms)
        return answer

    def _failure(self, error: grpc.RpcError, timeout_s: float) -> CallError:
        call: Any = error
        found = named(call)
        if found is not None:
            return found
        code, text = call.code().name, call.details() or call.code().name
        if code == "DEADLINE_EXCEEDED":
            return _failed(self.endpoint, f"no answer within {timeout_s:g} s", code)
        if code == "UNIMPLEMENTED":
            return _failed(self.endpoint, "it is no agent, or one that is too old for this", code)
        if code == "CANCELLED":  # not by us: by an agent that stops
            return _failed(self.endpoint, "it stopped", "UNAVAILABLE")
        return _failed(self.endpoint, short(text), code)


def _pinned(shown: Shown) -> grpc.Channel:
    """A channel that takes this one certificate, and no other."""
    credentials = grpc.ssl_channel_credentials(ssl.DER_cert_to_PEM_cert(shown.certificate).encode())
    options: Sequence[tuple[str, Any]] = (
        ("grpc.ssl_target_name_override", SERVER_NAME),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # Both: with the first alone, a half-open connection goes unnoticed for over a minute.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),  # a site's nodes are near, whatever the web needs
    )
    return grpc.secure_channel(shown.target, credentials, options=options)


def _unavailable(endpoint: str, why: str) -> CallError:
    return _failed(endpoint, why, "UNAVAILABLE")


def _failed(endpoint: str, why: str, code: str) -> CallError:
    return CallError(f"{endpoint}: {why}", code=code, unknown=code == "DEADLINE_EXCEEDED")
