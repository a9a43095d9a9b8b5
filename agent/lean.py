"""The long-running process, started afresh without what only the command line needed.

`agent/main.py` reads flags and settings and then replaces itself (execve: same pid, so systemd and
supervisors notice nothing). Measured, that saves 2 of the 40 MB that the agent may take: the
argument parser, the TOML reader, `site` with its import hooks, and the allocator's extra arenas,
which can only be chosen before a process starts.
"""

import contextlib
import ctypes
import json
import os
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NoReturn

# OpenSSL costs 5 MB and is not needed: gRPC brings its own TLS, and hashes exist without it. Nor
# are archives that shutil could make. asyncio, hashlib and shutil are made to work without these
# modules. A test holds us to it.
_UNUSED = ("ssl", "_ssl", "_hashlib", "bz2", "_bz2", "lzma", "_lzma")
# protobuf imports its messages in pure Python, too, with 15 modules that only they use.
_IN_PYTHON = "google.protobuf.internal.python_message"

PR_SET_TIMERSLACK = 29
TIMER_SLACK_NS = 400_000_000

_ENVIRONMENT = {
    "GRPC_ENABLE_FORK_SUPPORT": "0",  # its fork handlers wait for threads; we only ever spawn
    "GRPC_VERBOSITY": "NONE",  # the agent logs what matters, structured
    # Reads and writes by the one thread that grpc.aio has for them, not by gRPC's newer pool: its
    # four threads look for work a dozen times after every message. A release of gRPC that knows
    # these names no more does as it would without them.
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
    "MALLOC_ARENA_MAX": "1",  # most of the work is in one thread
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


@contextlib.contextmanager
def patient_threads() -> Iterator[None]:
    """Threads that are started within get the kernel's leave to wake later: gRPC's look for work
    that is not there up to a dozen times a second each. What there is wakes them at once; its own
    timers, keepalive and deadlines, are late by as much at the most."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(TIMER_SLACK_NS))
    try:
        yield
    finally:
        libc.prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(0))  # what it was when the process began


def start(settings: dict[str, object]) -> NoReturn:
    """Become `main(settings)`. The command line stays visible in `ps`. Raises OSError."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *(p for p in sys.path if p and p != root)]
    code = f"import sys; sys.path[:] = {paths!r}; from agent.lean import main; sys.exit(main())"
    environment = {**_ENVIRONMENT, **os.environ, "POLDER_AGENT_SETTINGS": json.dumps(settings)}
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-S", "-P", "-c", code, *sys.argv[1:]]
    os.execve(sys.executable, command, environment)  # noqa: S606 - our own interpreter


def _leave_out() -> None:
    """What would be imported and is never used: 7 MB. Before anything that imports it."""
    for name in _UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]
    sys.modules["typing_extensions"] = typing  # gRPC takes one name from it, which is in both
    from google.protobuf.internal import api_implementation

    if api_implementation.Type() == "upb":  # the one in C is there
        sys.modules[_IN_PYTHON] = ModuleType(_IN_PYTHON)


def main() -> int:
    """The agent itself. Returns the exit code."""
    _leave_out()
    settings = json.loads(os.environ.pop("POLDER_AGENT_SETTINGS"))
    with contextlib.suppress(OSError):  # only the name that `top` shows
        Path("/proc/self/comm").write_text("edge-agent")
    import asyncio
    import logging

    from agent import log as logs
    from agent import service
    from agent.config import from_plain
    from agent.identity_store import IdentityFailure
    from agent.notify import Locked
    from agent.state_form import LaterState

    config = from_plain(settings["config"])
    logs.set_up(config.log_level, config.log_format)
    log = logging.getLogger(__name__)
    try:
        asyncio.run(service.run(config, settings["runtime"], settings["profile"]))
    except (Locked, LaterState, IdentityFailure, OSError) as error:
        log.error("the agent cannot run", extra={"error": str(error)})
        return 1
    except Exception:
        log.exception("the agent failed")
        return 1
    return 0
