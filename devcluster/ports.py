"""Free TCP ports for listeners that tests and the quickstart start."""

import random
import socket
from pathlib import Path

_LOWEST = 10_240
_SERVED = range(18_080, 18_100)  # by the quickstart, examples and tests, always the same
_TRIES = 200
_given: set[int] = set()
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago and was not given to this process before: of a dozen
    drawn for one test, two would be the same in one of 340 runs. Prefer port 0 where the program
    allows it.

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
        _given.add(port)
        return port
    raise OSError(f"no free port found below {highest} on {host}")
