"""What a CRI error means: gRPC codes and containerd's or CRI-O's prose -> the port's exceptions.

CRI has hardly any typed errors: both runtimes answer UNKNOWN with a sentence from Go. The sentences
matched here were collected from the runtimes themselves; the integration tests provoke them again.
"""

import re
from collections.abc import Sequence

import grpc

from agent.runtime.port import (
    ContainerFailure,
    ImageFailure,
    NotFound,
    RuntimeFailure,
    RuntimeUnavailable,
    SandboxFailure,
)

MESSAGE_CHARS_MAX = 400

_UNAVAILABLE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.CANCELLED,
)

# Order matters: the first pattern found in the message decides.
_IMAGE_REASONS: Sequence[tuple[str, str]] = (
    (r"no match for platform|no child with platform|no image found in .*for architecture"
     r"|choosing image instance|mismatched image rootfs", "ImagePlatform"),
    (r"unauthori[sz]ed|authentication required|authorization failed|access denied|denied:"
     r"|insufficient_scope|pull access denied|failed to fetch (anonymous|oauth) token"
     r"|40[13] (unauthorized|forbidden)|no basic auth credentials", "ImageAuth"),
    (r"connection refused|no such host|i/o timeout|timeout|network is unreachable|no route to host"
     r"|tls:|x509:|server misbehaving|temporary failure in name resolution|connection reset"
     r"|too many requests|\b429\b|\b50[0234]\b|unexpected eof|server gave http response"
     r"|failed to do request", "ImageRegistry"),
    (r"not found|manifest unknown|name unknown|does not exist|404|invalid reference|parse",
     "ImageNotFound"),
)  # fmt: skip

_SANDBOX_REASONS: Sequence[tuple[str, str]] = (
    (r"cannot allocate .*port|address already in use|port is already allocated", "HostPortInUse"),
    (r"setup network|cni|network plugin|plugin type=", "NetworkSetup"),
)


def prose(error: grpc.aio.AioRpcError) -> str:
    """The runtime's sentence without Go's wrapping, bounded for status and events."""
    return tidy(error.details() or error.code().name)


def tidy(message: str) -> str:
    message = re.sub(r"rpc error: code = \w+ desc = |Internal error occurred: ", "", message)
    message = " ".join(message.split())
    if len(message) > MESSAGE_CHARS_MAX:
        # Go wraps: the cause stands at the end.
        message = (
            message[: MESSAGE_CHARS_MAX // 4] + " ... " + message[-3 * MESSAGE_CHARS_MAX // 4 :]
        )
    return message


def unavailable(error: grpc.aio.AioRpcError) -> RuntimeUnavailable | None:
    """The runtime did not answer, or not in time; None when it did answer with an error."""
    if error.code() not in _UNAVAILABLE:
        return None
    return RuntimeUnavailable("RuntimeUnavailable", f"{error.code().name}: {prose(error)}")


def general(error: grpc.aio.AioRpcError) -> RuntimeFailure:
    """For calls that have no sharper error of their own."""
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return NotFound("NotFound", prose(error))
    return unavailable(error) or RuntimeFailure("RuntimeError", prose(error))


def image(error: grpc.aio.AioRpcError, name: str) -> RuntimeFailure:
    """For pulls. A deadline here is the registry's fault, not the runtime's."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ImageFailure("ImageRegistry", f"{name}: the pull did not finish in time")
    lost = unavailable(error)
    return lost or ImageFailure(image_reason(prose(error)), f"{name}: {prose(error)}")


def image_reason(message: str) -> str:
    return _first_match(_IMAGE_REASONS, message, default="ImageRegistry")


def sandbox(error: grpc.aio.AioRpcError) -> RuntimeFailure:
    lost = unavailable(error)
    if lost is not None:
        return lost
    reason = _first_match(_SANDBOX_REASONS, prose(error), default="SandboxCreate")
    return SandboxFailure(reason, prose(error))


def container(error: grpc.aio.AioRpcError, stage: str) -> RuntimeFailure:
    """stage: ContainerCreate or ContainerStart."""
    lost = unavailable(error)
    return lost or ContainerFailure(stage, explain_start(prose(error)))


# What runc says -> what an operator understands. {0} is the first group.
_START_CAUSES: Sequence[tuple[str, str]] = (
    (r'exec: "?([^":]+)"?: executable file not found', "command {0!r} not found in the image"),
    (r'exec: "?([^":]+)"?: stat [^:]+: no such file', "command {0!r} not found in the image"),
    (r'exec: "?([^":]+)"?: permission denied', "command {0!r} is not executable"),
    (r"exec format error", "the image's program is built for another architecture"),
    (r'chdir to cwd \("([^"]+)"\)', "working directory {0!r} does not exist in the image"),
    (r"no command specified", "neither the image nor the manifest names a command"),
    (r"failed to (?:mkdir|stat) \"?([^\":]+)\"?", "host path {0!r} of a mount cannot be used"),
    (r"unresolvable CDI devices? (\S+)", "CDI device {0} is not known on this node"),
)


def explain_start(message: str) -> str:
    """Put the plain cause first where it is a known one; the runtime's own words follow."""
    for pattern, text in _START_CAUSES:
        found = re.search(pattern, message)
        if found:
            return f"{text.format(*found.groups())} ({message})"
    return message


def _first_match(table: Sequence[tuple[str, str]], message: str, *, default: str) -> str:
    lowered = message.lower()
    return next((reason for pattern, reason in table if re.search(pattern, lowered)), default)
