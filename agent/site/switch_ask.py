"""One question to the dead-man's switch, from a command that ends at once.

The doctor asks whether it answers; the package asks before it stops the switch for good whether a
deadline lies ahead. The agent itself speaks by `switch_client.py`.
"""

import socket
import time
from pathlib import Path

ANSWER_S = 1.0
PAUSE_S = 0.5
LIST_BYTES = 65_536


def deadlines(state_dir: Path) -> dict[str, float]:
    """What is armed, with its deadline in seconds of CLOCK_BOOTTIME. Raises OSError: no answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.settimeout(ANSWER_S)
        ours.bind("")  # an abstract name: the switch has a /tmp of its own
        ours.connect(str(state_dir / "site" / "switch.sock"))
        ours.send(b"1 list")
        words = ours.recv(LIST_BYTES).decode(errors="replace").split()
    if words[:2] != ["1", "ok"]:
        raise OSError(f"the switch said {' '.join(words)[:80]!r}")
    pairs = (word.rpartition("=") for word in words[4:])
    return {uid: int(deadline) / 1e9 for uid, _, deadline in pairs}


def wait_until_idle(state_dir: Path, patience_s: float) -> bool:
    """Until no deadline lies ahead, or no switch is there that could have one. False: still one.

    Raises PermissionError: whether one is there is not for this user to know.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            ahead = max(deadlines(state_dir).values(), default=0.0)
        except PermissionError:
            raise
        except OSError:
            return True
        if ahead <= time.clock_gettime(time.CLOCK_BOOTTIME):
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(PAUSE_S)
