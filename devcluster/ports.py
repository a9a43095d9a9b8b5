"""Free TCP ports for listeners that tests and the quickstart start."""

import random
import socket
from collections import deque
from pathlib import Path

_LOWEST = 10_240
_SERVED = range(18_080, 18_100)  # by the quickstart, examples and tests, always the same
_TRIES = 200
_MARKS_MAX = 32  # open files; what was drawn before that has its listener
_given: set[int] = set()
_marks: deque[socket.socket] = deque()
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago. Prefer port 0 where the program allows it.

    It was given to nobody before whose listener may still come: of a dozen drawn for one test, two
    would be the same in one of 340 runs, and four processes run tests side by side.

    Below the range from which the kernel takes the local ports of outgoing connections: a listener
    that is restarted must find its port again. From that range, anybody's connection may hold it
    meanwhile; even its own client's, which can connect to itself while it knocks. Raises OSError.
    """
    highest = int(_EPHEMERAL.read_text().split()[0]) - 1 if _EPHEMERAL.exists() else 32_767
    for _ in range(_TRIES):
        port = random.randint(min(_LOWEST, highest), highest)
        if port in _SERVED or port in _given:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            try:
                listener.bind((host, port))
            except OSError:
                continue
        if _mark(port):
            _given.add(port)
            return port
    raise OSError(f"no free port found below {highest} on {host}")


def _mark(port: int) -> bool:
    """For other processes, until this one ends or has drawn many more: a name without a file, in
    the network namespace of the port. False: it is another's."""
    mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        mark.bind(f"\0polder-port-{port}")
    except OSError:
        mark.close()
        return False
    _marks.append(mark)
    if len(_marks) > _MARKS_MAX:
        _marks.popleft().close()
    return True
