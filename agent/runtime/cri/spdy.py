"""The part of SPDY/3.1 that CRI's exec streaming needs, without I/O.

Used by exec.py. Every CRI runtime serves exec over SPDY/3.1 (kubelet's own protocol). WebSocket
would be the modern way, but its subprotocol v4.channel.k8s.io cannot say that stdin ended, and
containerd before 2.0 knows no later one: `edgectl exec -i -- cat < file` would hang for ever. SPDY
closes each stream on its own, with the FIN flag.

Framing: https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/. Header blocks are
compressed without SPDY's preset dictionary, which every zlib decoder accepts; those that come back
are skipped, since the servers' replies carry no headers. There is no flow-control window in the
servers' implementation (moby/spdystream): TCP's own back-pressure bounds both sides.
"""

import struct
import zlib
from dataclasses import dataclass

HEADER_BYTES = 8
FIN = 0x01
_VERSION = 3

SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY = 1, 2, 3, 4, 6, 7


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's first eight bytes. `kind` is 0 for data; then `stream` is set."""

    kind: int
    stream: int
    flags: int
    size: int

    @property
    def fin(self) -> bool:
        return bool(self.flags & FIN)


def decode_header(data: bytes) -> Frame:
    """Eight bytes -> Frame; `size` bytes of payload follow. Raises ValueError for no SPDY/3."""
    first, second = struct.unpack(">II", data)
    flags, size = second >> 24, second & 0xFFFFFF
    if not first & 0x80000000:
        return Frame(0, first, flags, size)
    if first >> 16 & 0x7FFF != _VERSION:
        raise ValueError(f"not a SPDY/3 frame: {data.hex()}")
    return Frame(first & 0xFFFF, 0, flags, size)


def stream_of(payload: bytes) -> int:
    """The stream that a RST_STREAM or SYN_REPLY payload is about."""
    return int.from_bytes(payload[:4], "big") & 0x7FFFFFFF


def data(stream: int, payload: bytes, *, fin: bool = False) -> bytes:
    return struct.pack(">II", stream, (FIN if fin else 0) << 24 | len(payload)) + payload


def ping(payload: bytes) -> bytes:
    """The answer to a PING is the same PING."""
    return _control(PING, payload)


def goaway() -> bytes:
    return _control(GOAWAY, struct.pack(">II", 0, 0))


class StreamOpener:
    """Makes SYN_STREAM frames: odd ids, one compression context for the whole connection."""

    def __init__(self) -> None:
        self._compressor = zlib.compressobj()
        self._next_id = 1

    def open(self, headers: dict[str, str]) -> tuple[int, bytes]:
        """(stream id, frame)"""
        stream, self._next_id = self._next_id, self._next_id + 2
        block = struct.pack(">I", len(headers))
        for name, value in headers.items():
            for text in (name.lower().encode(), value.encode()):
                block += struct.pack(">I", len(text)) + text
        packed = self._compressor.compress(block) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        return stream, _control(SYN_STREAM, struct.pack(">IIBB", stream, 0, 0, 0) + packed)


def _control(kind: int, payload: bytes, flags: int = 0) -> bytes:
    first = 0x80000000 | _VERSION << 16 | kind
    return struct.pack(">II", first, flags << 24 | len(payload)) + payload
