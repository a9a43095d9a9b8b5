"""`logs -f` that survives the loss of the member it reads through. Called by the verb logs.

Lines are asked for with their times. After a break the next endpoint is asked from the time of the
last line on; what was shown already is counted and left out, so that no line comes twice or is
lost, as long as the box still has it.
"""

import random
import re
import time
from collections.abc import Callable, Iterator

from edgectl.errors import CallError
from edgectl.reader import LogSource
from polder.v1 import operator_pb2

GIVE_UP_S = 60.0
_PAUSE_S_MAX = 3.0
_LINE_BYTES_MAX = 1 << 20  # longer ones are shown in parts
_TIME = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


def follow(
    source: LogSource,
    request: operator_pb2.LogsRequest,
    on_break: Callable[[CallError], None] = lambda _: None,
) -> Iterator[bytes]:
    """What `source.logs` gives, in whole lines. Raises CallError when it cannot go on."""
    shows_times = request.options.timestamps
    asked = operator_pb2.LogsRequest()
    asked.CopyFrom(request)
    asked.options.timestamps = True
    seen = Seen()
    failing_since = 0.0
    while True:
        try:
            for line in _lines(source, asked):
                failing_since = 0.0
                if seen.is_new(line):
                    yield line if shows_times else line.partition(b" ")[2]
            return
        except CallError as error:
            now = time.monotonic()
            if not failing_since:
                failing_since = now
                if error.transient and seen.last:
                    on_break(error)
            if not error.transient or not seen.last or now - failing_since > GIVE_UP_S:
                raise
        time.sleep(random.uniform(0.1, min(_PAUSE_S_MAX, 0.5 + now - failing_since)))
        asked.options.since_ms, asked.options.tail_lines = seen.resume(), -1


class Seen:
    """The time of the last line, and how many lines were of it: one moment may have several."""

    def __init__(self) -> None:
        self.last = b""
        self._count = 0
        self._skip = 0
        self._resumed = False

    def is_new(self, line: bytes) -> bool:
        """Whether a line was not shown. Its time comes first; one without is always new."""
        found = _TIME.match(line)
        if found is None:
            return True
        moment = found[1] + b"." + (found[2] or b"").ljust(9, b"0") + found[3]
        if moment == self.last:
            if self._skip:
                self._skip -= 1
                return False
            self._count += 1
            return True
        if moment < self.last and self._resumed:
            return False
        self.last, self._count, self._skip, self._resumed = moment, 1, 0, False
        return True

    def resume(self) -> int:
        """From when to ask, in unix milliseconds: others of the last line's time may follow."""
        from datetime import datetime

        self._skip, self._resumed = self._count, True
        whole, rest = self.last[:19], self.last[29:]
        seconds = datetime.fromisoformat((whole + rest).decode()).timestamp()
        return int(seconds) * 1000 + int(self.last[20:23])


def _lines(source: LogSource, request: operator_pb2.LogsRequest) -> Iterator[bytes]:
    rest = b""
    for response in source.logs(request):
        *lines, rest = (rest + response.data).split(b"\n")
        for line in lines:
            yield line + b"\n"
        if len(rest) > _LINE_BYTES_MAX:
            yield rest
            rest = b""
    if rest:
        yield rest
