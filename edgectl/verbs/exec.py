"""`edgectl exec [-it]`: a command in a container; its exit code becomes ours."""

import os
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

from edgectl import replicas, terminal
from edgectl.errors import CliError, UsageError
from edgectl.invocation import Invocation
from polder.v1 import agent_pb2, operator_pb2

CHUNK_BYTES = 32 * 1024
MAX_PENDING_CHUNKS = 64  # what a container that does not read may leave with us


def run(invocation: Invocation) -> int:
    options = invocation.options
    if not options.command:
        raise UsageError("name a command after --, as in edgectl exec replica/hello-0 -- date")
    use_terminal = options.tty
    if use_terminal and options.stdin and not sys.stdin.isatty():
        print("warning: standard input is no terminal; going on without one", file=sys.stderr)
        use_terminal = False
    replica = replicas.single(invocation, options.target)
    start = operator_pb2.ExecStart(
        namespace=replica.namespace,
        replica=replica.name,
        options=agent_pb2.ExecOptions(
            container=replicas.container_of(replica, options.container),
            command=options.command,
            stdin=options.stdin,
            tty=use_terminal,
            size=_size() if use_terminal else None,
        ),
    )
    invocation.reader.settle()
    requests = Requests(start)
    with ExitStack() as stack:
        if use_terminal and sys.stdin.isatty() and options.stdin:
            stack.enter_context(terminal.RawTerminal(lambda: requests.resize(_size())))
        if options.stdin:
            threading.Thread(target=_read_stdin, args=(requests,), daemon=True).start()
        stack.callback(requests.end)
        return _receive(invocation, requests)


def _receive(invocation: Invocation, requests: "Requests") -> int:
    for response in invocation.reader.exec(iter(requests)):
        which = response.WhichOneof("message")
        if which == "stdout":
            _write(1, response.stdout)
        elif which == "stderr":
            _write(2, response.stderr)
        elif which == "exit_code":
            return response.exit_code & 0xFF if response.exit_code >= 0 else 255
    raise CliError("the connection ended before the command did; it may still run")


def _write(descriptor: int, data: bytes) -> None:
    """All of it, also to a pipe that takes it in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_stdin(requests: "Requests") -> None:
    while True:
        try:
            data = os.read(0, CHUNK_BYTES)
        except OSError:
            data = b""
        if not data:
            requests.close_stdin()
            return
        if not requests.stdin(data):
            return


def _size() -> agent_pb2.TerminalSize:
    columns, rows = terminal.size()
    return agent_pb2.TerminalSize(columns=columns, rows=rows)


class Requests:
    """The stream to the server, fed by the stdin thread and by the resize signal.

    The queue itself must not block, because a signal handler puts into it; a semaphore bounds what
    the stdin thread may put.
    """

    def __init__(self, start: operator_pb2.ExecStart) -> None:
        self._queue: queue.SimpleQueue[operator_pb2.ExecRequest | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(MAX_PENDING_CHUNKS)
        self._ended = False
        self._queue.put(operator_pb2.ExecRequest(start=start))

    def stdin(self, data: bytes) -> bool:
        """Blocks while the container does not read. False once the command has ended."""
        self._room.acquire()
        if not self._ended:
            self._queue.put(operator_pb2.ExecRequest(stdin=data))
        return not self._ended

    def close_stdin(self) -> None:
        self._queue.put(operator_pb2.ExecRequest(close_stdin=True))

    def resize(self, size: agent_pb2.TerminalSize) -> None:
        self._queue.put(operator_pb2.ExecRequest(resize=size))

    def end(self) -> None:
        self._ended = True
        self._room.release()
        self._queue.put(None)

    def __iter__(self) -> Iterator[operator_pb2.ExecRequest]:
        while (request := self._queue.get()) is not None:
            if request.WhichOneof("message") == "stdin":
                self._room.release()
            yield request
