"""What etcd's and gRPC's errors mean: for the Store's caller, and for who decides on a next try.

Called by the client and the watch. etcd's sentences are those of its `rpctypes` package; they are
part of its protocol, since its codes alone do not tell a full store from a busy one.
"""

import grpc

from orchestrator.store.port import (
    Compacted,
    LeaseNotFound,
    LimitExceeded,
    NothingWritten,
    StoreError,
    StoreFull,
    StoreUnavailable,
    StoreUnusable,
)

_MESSAGE_CHARS_MAX = 300

# The member refused before it proposed anything: nothing was written, and nothing will be.
_REFUSED = (
    "etcdserver: no leader",
    "etcdserver: too many requests",
    "etcdserver: not capable",
    "etcdserver: not leader",
    "etcdserver: rpc not supported for learner",
    "raft proposal dropped",
)
# gRPC never had a connection for this call.
_UNSENT = ("failed to connect to all addresses", "empty address list", "DNS resolution failed")
# The cluster's trouble and not this member's: another one would say the same.
_OF_THE_CLUSTER = ("etcdserver: leader changed", "etcdserver: too many requests")
_TEMPORARY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.ABORTED,
)
_IDENTITY = (
    "CERTIFICATE_VERIFY_FAILED",
    "handshake failed (TSI_PROTOCOL_FAILURE)",
    "TLSV1_ALERT_",
    "TLSV13_ALERT_",
    "SSLV3_ALERT_",
    "Hostname Verification",
    "Unwrap failed",  # TLS 1.3: the refusal of our certificate comes as the first data
)
COMPACTED = "etcdserver: mvcc: required revision has been compacted"


class CertificateRefused(NothingWritten):
    """Every endpoint refused our certificate, or showed one that we do not accept."""


class Broken(Exception):
    """A stream of etcd's ended or fell silent; another one may go on where it stopped."""


def message(error: grpc.RpcError) -> str:
    """etcd's or gRPC's sentence, on one line and bounded."""
    text = " ".join(str(_details(error) or _code(error).name).split())
    return text if len(text) <= _MESSAGE_CHARS_MAX else text[: _MESSAGE_CHARS_MAX - 3] + "..."


def _details(error: grpc.RpcError) -> str:
    return (error.details() or "") if isinstance(error, grpc.aio.AioRpcError) else str(error)


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code() if isinstance(error, grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN


def nothing_was_done(error: grpc.RpcError) -> bool:
    """Whether it is certain that etcd did not act on the call, and will not."""
    details = _details(error)
    return details.startswith(_REFUSED) or any(words in details for words in _UNSENT)


def is_temporary(error: grpc.RpcError) -> bool:
    """Whether the same call may well succeed later, or at another member."""
    return _code(error) in _TEMPORARY or _details(error).startswith(_REFUSED)


def is_the_members(error: grpc.RpcError) -> bool:
    """Whether the member, or the way to it, is at fault: the next endpoint may do better."""
    return is_temporary(error) and not _details(error).startswith(_OF_THE_CLUSTER)


def is_identity(error: grpc.RpcError) -> bool:
    """Whether one side refused the other's certificate."""
    details = _details(error)
    return any(words in details for words in _IDENTITY)


def translate(error: grpc.RpcError, doing: str, where: str) -> StoreError:
    """The port's error. `doing` names the call, `where` the endpoint that answered."""
    code, details = _code(error), _details(error)
    text = f"{doing} at etcd {where}: {message(error)}"
    if "database space exceeded" in details:
        return StoreFull(f"{text}; compact and defragment it or raise its quota, then disarm")
    if code is grpc.StatusCode.NOT_FOUND and "lease" in details:
        return LeaseNotFound(text)
    if details == COMPACTED:
        return Compacted(0)
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE):
        return LimitExceeded(text)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in details:
        return LimitExceeded(text)
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return StoreUnusable(f"{text}; grant the certificate's user readwrite on the prefix")
    if code in (grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNIMPLEMENTED):
        return StoreUnusable(text)
    if nothing_was_done(error):
        return NothingWritten(f"{text}; nothing was written")
    return StoreUnavailable(f"{text}; whether a write was made is unknown")
