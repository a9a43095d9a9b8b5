"""How a local operator's call is refused: a word for programs and a hint for people.

Raised anywhere below `agent/local/server.py`, which turns it into a gRPC status with
`polder.errors.detail` in the trailing metadata, as orchestrators do.
"""

import grpc

Code = grpc.StatusCode


class Refused(Exception):
    """`reason` is CamelCase and stable; `hint` says what the caller can do next."""

    def __init__(self, code: Code, reason: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.hint = hint


def unauthenticated(reason: str, message: str, hint: str = "") -> Refused:
    return Refused(Code.UNAUTHENTICATED, reason, message, hint)


def not_allowed(message: str, hint: str = "") -> Refused:
    return Refused(Code.PERMISSION_DENIED, "NotAllowed", message, hint)


def invalid(message: str, hint: str = "") -> Refused:
    return Refused(Code.INVALID_ARGUMENT, "InvalidArgument", message, hint)


def not_found(reason: str, message: str, hint: str = "") -> Refused:
    return Refused(Code.NOT_FOUND, reason, message, hint)


def not_now(reason: str, message: str, hint: str = "") -> Refused:
    """It is a matter of the node's state, not of the call."""
    return Refused(Code.FAILED_PRECONDITION, reason, message, hint)


def exhausted(reason: str, message: str, hint: str = "") -> Refused:
    return Refused(Code.RESOURCE_EXHAUSTED, reason, message, hint)


def unavailable(reason: str, message: str, hint: str = "") -> Refused:
    return Refused(Code.UNAVAILABLE, reason, message, hint)
