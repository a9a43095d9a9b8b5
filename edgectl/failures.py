"""gRPC's errors in an operator's words. Used by `client.py`, and by `site/link.py`."""

from typing import Any

import grpc

from edgectl.config import Connection
from edgectl.errors import CallError
from polder.errors import parse_detail

_UNSENT = ("failed to connect to all addresses", "DNS resolution failed", "empty address list")


def failure(
    error: grpc.RpcError, endpoint: str, connection: Connection, tried: int, timeout_s: float
) -> CallError:
    """`tried`: how many endpoints there are."""
    call: Any = error  # what a blocking call raises is also a grpc.Call
    said = named(call)
    if said is not None:
        return said
    code: str = call.code().name
    text: str = call.details() or code
    if code == "UNAVAILABLE":
        return CallError(
            f"cannot reach the orchestrator at {endpoint}: {short(text)}",
            *_connection_hints(text, connection, tried),
            code=code,
            unknown=not any(words in text for words in _UNSENT),
        )
    if code == "DEADLINE_EXCEEDED":
        return CallError(
            f"the orchestrator at {endpoint} did not answer within {timeout_s:g} s",
            "--request-timeout TIME waits longer",
            code=code,
            unknown=True,
        )
    if code == "CANCELLED":  # not by us: by a server that stops just when the call reaches it
        words = f"the orchestrator at {endpoint} stopped"
        return CallError(words, code="UNAVAILABLE", unknown=True)
    if code == "UNIMPLEMENTED":
        return CallError(
            f"the orchestrator at {endpoint} does not know this call",
            "it is older than this edgectl (see edgectl version), or this is its port for joining",
            code=code,
        )
    return CallError(text, code=code, unknown=code in ("INTERNAL", "UNKNOWN"))


def named(call: Any) -> CallError | None:
    """What the server itself says is wrong; None: it is not the server that says so."""
    detail = parse_detail(call.trailing_metadata())
    if detail is None:
        return None
    code: str = call.code().name
    violations = [(v.document, v.path, v.message) for v in detail.violations]
    unknown = detail.reason == "OutcomeUnknown" or code == "INTERNAL"
    return CallError(
        call.details() or code,
        detail.hint,
        code=code,
        reason=detail.reason,
        violations=violations,
        unknown=unknown,
    )


def fell_silent(endpoint: str) -> CallError:
    """It took the call, and answers not even a question for its name."""
    return CallError(
        f"the orchestrator at {endpoint} has fallen silent; whether it did what was asked is "
        "unknown",
        code="UNAVAILABLE",
        unknown=True,
    )


def _connection_hints(text: str, connection: Connection, tried: int) -> list[str]:
    from edgectl.certificates import client_problem

    problem = client_problem(connection.certificate_pem)
    if problem:
        return [problem]
    context = f"context {connection.context!r}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return [f"whoever answers there is not certified by the CA of {context}"]
    if "Hostname Verification" in text or "not match" in text:
        return [f"its certificate is for another name: check serverName in {context}"]
    if "Socket closed" in text or "reset" in text or "handshake" in text.lower():
        return [
            "it stopped, it is not an orchestrator's port, or it does not accept the client "
            f"certificate of {context}"
        ]
    return [f"{tried} endpoints were tried"] if tried > 1 else ["does it run?"]


def short(text: str) -> str:
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
