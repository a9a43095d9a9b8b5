"""How a failed call says what is wrong: reasons, a hint, and fields, in trailing metadata.

The operator API and the gateway attach it; edgectl and the agent read it.
"""

from collections.abc import Iterable, Sequence

from polder.v1 import common_pb2

DETAIL_KEY = "polder-error-bin"
MAX_DETAIL_BYTES = 6144  # HTTP/2 metadata is limited to 8 KiB as a whole


def detail(
    reason: str, hint: str = "", violations: Iterable[tuple[int, str, str]] = ()
) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata. Violations are (document, path, message); the rest is cut."""
    message = common_pb2.ErrorDetail(reason=reason, hint=hint)
    for document, path, text in violations:
        added = message.violations.add(document=document, path=path[:300], message=text[:500])
        if message.ByteSize() > MAX_DETAIL_BYTES:
            message.violations.remove(added)
            break
    return ((DETAIL_KEY, message.SerializeToString()),)


def parse_detail(
    metadata: Sequence[tuple[str, str | bytes]] | None,
) -> common_pb2.ErrorDetail | None:
    """The detail in a failed call's trailing metadata, if there is one that can be read."""
    for key, value in metadata or ():
        if key == DETAIL_KEY and isinstance(value, bytes):
            try:
                return common_pb2.ErrorDetail.FromString(value)
            except Exception:  # protobuf raises DecodeError by backend
                return None
    return None
