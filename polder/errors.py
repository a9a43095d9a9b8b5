"""How a failed call says what is wrong: reasons, a hint, and fields, in trailing metadata.

The operator API and the gateway attach it; edgectl and the agent read it.
"""

from collections.abc import Iterable, Sequence

from polder.v1 import common_pb2

DETAIL_KEY = "polder-error-bin"
# HTTP/2 metadata is limited to 8 KiB as a whole: base64 adds a third to this, and the status
# message travels beside it.
MAX_DETAIL_BYTES = 4096
MAX_REASON, MAX_HINT, MAX_PATH, MAX_MESSAGE = 100, 500, 300, 500


def detail(
    reason: str, hint: str = "", violations: Iterable[tuple[int, str, str]] = ()
) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata. Violations are (document, path, message); what is too long is cut."""
    message = common_pb2.ErrorDetail(reason=_cut(reason, MAX_REASON), hint=_cut(hint, MAX_HINT))
    for document, path, text in violations:
        message.violations.add(
            document=document, path=_cut(path, MAX_PATH), message=_cut(text, MAX_MESSAGE)
        )
        if message.ByteSize() > MAX_DETAIL_BYTES:
            del message.violations[-1]
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


def _cut(text: str, limit: int) -> str:
    """Bounded, and such that protobuf takes it: a lone surrogate would make it raise."""
    return text[:limit].encode("utf-8", "backslashreplace").decode()
