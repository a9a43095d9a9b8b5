"""How a call is refused: one exception, with a word for programs and a hint for people.

Raised anywhere below a handler (identity, operator API, gateway); the front door (`rpc.py`) turns
it into a gRPC status with `polder.errors.detail` in the trailing metadata.
"""

from collections.abc import Sequence

import grpc

from orchestrator.store.port import NothingWritten, StoreError, StoreFull

FieldViolation = tuple[int, str, str]
"""(document, path, message)."""


class Refused(Exception):
    """`reason` is CamelCase and stable; `hint` says what the caller can do next."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        hint: str = "",
        violations: Sequence[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.hint = hint
        self.violations = tuple(violations)


def unauthenticated(reason: str, message: str, hint: str = "") -> Refused:
    return Refused(grpc.StatusCode.UNAUTHENTICATED, reason, message, hint)


def forbidden(message: str, hint: str = "") -> Refused:
    return Refused(grpc.StatusCode.PERMISSION_DENIED, "Forbidden", message, hint)


def not_found(message: str, hint: str = "") -> Refused:
    return Refused(grpc.StatusCode.NOT_FOUND, "NotFound", message, hint)


def invalid(message: str, hint: str = "", reason: str = "InvalidArgument") -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, reason, message, hint)


def conflict(message: str, hint: str = "") -> Refused:
    return Refused(grpc.StatusCode.ABORTED, "Conflict", message, hint)


def in_use(message: str, hint: str = "") -> Refused:
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, "InUse", message, hint)


def unavailable(reason: str, message: str, hint: str = "") -> Refused:
    return Refused(grpc.StatusCode.UNAVAILABLE, reason, message, hint)


def exhausted(reason: str, message: str, hint: str = "") -> Refused:
    return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, message, hint)


def from_store(error: StoreError) -> Refused:
    """What a caller learns of a failing store: nothing of its insides, but whether to try again."""
    if isinstance(error, StoreFull):
        return exhausted(
            "StoreFull",
            "the store is full: nothing was written",
            "reads still work. On etcd: etcdctl compact, then defrag, then alarm disarm, or raise "
            "--quota-backend-bytes; on SQLite: make room on the orchestrator's file system",
        )
    if isinstance(error, NothingWritten):
        return not_writable("the store cannot be reached")
    return outcome_unknown()


def not_writable(why: str) -> Refused:
    """A write that was never sent, or certainly refused."""
    return unavailable(
        "StoreUnavailable",
        f"{why}: nothing was written",
        "try again, or another member: edgectl goes through its endpoints by itself",
    )


def outcome_unknown() -> Refused:
    """A write that was sent, and asked for again, without an answer."""
    return unavailable(
        "OutcomeUnknown",
        "the store did not answer; whether the write was made is unknown",
        "edgectl get of the resource shows whether it stands; the same command is safe to repeat",
    )
