"""`edgectl logs`: what a container writes, bytes as they are; several replicas get prefixes."""

import queue
import sys
import threading
import time
from collections.abc import Iterator

from edgectl import replicas
from edgectl.durations import since_seconds
from edgectl.errors import CallError, CliError, UsageError
from edgectl.following import follow
from edgectl.invocation import Invocation
from edgectl.resources import Item
from edgectl.text import safe
from polder.v1 import agent_pb2, operator_pb2

MAX_REPLICAS = 50
MAX_LINE_BYTES = 64 * 1024
_QUEUE_CHUNKS = 256
_Chunk = tuple[str, bytes | CliError | None]


def run(invocation: Invocation) -> int:
    options = invocation.options
    if options.tail < -1:
        raise UsageError("--tail: expected a number of lines, or -1 for all")
    if options.all_replicas:
        own = replicas.chosen(invocation, options.target)
        if len(own) > MAX_REPLICAS:
            raise CliError(f"{options.target} has {len(own)} replicas; at most {MAX_REPLICAS}")
        return _many(invocation, own)
    hint = "" if options.target.startswith("replica") else "--all-replicas shows all of them"
    replica = replicas.single(invocation, options.target, hint)
    request = _request(invocation, replica)
    several = len(invocation.reader.endpoints) > 1
    pieces = (
        follow(invocation.reader, request, _say_broken)
        if options.follow and several
        else (response.data for response in invocation.reader.logs(request))
    )
    for data in pieces:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    return 0


def _say_broken(error: CallError) -> None:
    print(f"warning: {safe(error.message)}; connecting again", file=sys.stderr, flush=True)


def _stream(invocation: Invocation, replica: Item) -> Iterator[bytes]:
    for response in invocation.reader.logs(_request(invocation, replica)):
        yield response.data


def _request(invocation: Invocation, replica: Item) -> operator_pb2.LogsRequest:
    options = invocation.options
    since_ms = 0
    if options.since:  # counted from the server's clock, not from this machine's
        since_ms = replica.now_ms - round(since_seconds(options.since, time.time()) * 1000)
    return operator_pb2.LogsRequest(
        namespace=replica.namespace,
        replica=replica.name,
        options=agent_pb2.LogOptions(
            container=replicas.container_of(replica, options.container),
            follow=options.follow,
            tail_lines=options.tail,
            since_ms=max(0, since_ms),
            previous=options.previous,
            timestamps=options.timestamps,
        ),
    )


def _many(invocation: Invocation, own: list[Item]) -> int:
    """A thread per replica; whole lines are printed by this one, so that they do not mix."""
    invocation.reader.settle()
    chunks: queue.Queue[_Chunk] = queue.Queue(_QUEUE_CHUNKS)
    for replica in own:
        threading.Thread(target=_pump, args=(invocation, replica, chunks), daemon=True).start()
    width = max(len(replica.name) for replica in own)
    partial: dict[str, bytes] = {}
    running, failed = len(own), 0
    while running:
        name, data = chunks.get()
        prefix = f"[{name}]".ljust(width + 2).encode() + b" "
        if isinstance(data, bytes):
            _print_lines(prefix, name, data, partial)
            continue
        running -= 1
        if rest := partial.pop(name, b""):
            sys.stdout.buffer.write(prefix + rest + b"\n")
        if isinstance(data, CliError):
            failed += 1
            print(f"error: replica/{name}: {data.message}", file=sys.stderr)
        sys.stdout.buffer.flush()
    if failed:
        raise CliError(f"the logs of {failed} of {len(own)} replicas could not be read")
    return 0


def _print_lines(prefix: bytes, name: str, data: bytes, partial: dict[str, bytes]) -> None:
    *lines, rest = (partial.get(name, b"") + data).split(b"\n")
    if len(rest) > MAX_LINE_BYTES:
        lines, rest = [*lines, rest], b""
    partial[name] = rest
    if lines:
        sys.stdout.buffer.write(b"".join(prefix + line + b"\n" for line in lines))
        sys.stdout.buffer.flush()


def _pump(invocation: Invocation, replica: Item, chunks: "queue.Queue[_Chunk]") -> None:
    try:
        for data in _stream(invocation, replica):
            chunks.put((replica.name, data))
    except CliError as error:
        chunks.put((replica.name, error))
    except Exception as error:
        chunks.put((replica.name, CliError(f"{type(error).__name__}: {error}")))
    else:
        chunks.put((replica.name, None))
