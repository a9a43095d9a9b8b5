"""`edge-agent` and `python -m agent`: prepares the process, then hands over to `agent/main.py`.

What happens here has to happen before asyncio and grpc are imported.
"""

import os
import sys

# OpenSSL costs 5 MB and is not needed: gRPC brings its own TLS, and hashes exist without it.
# asyncio and hashlib are made to work without these modules. A test holds us to it.
_UNUSED = ("ssl", "_ssl", "_hashlib")

_ENVIRONMENT = {
    "GRPC_ENABLE_FORK_SUPPORT": "0",  # its fork handlers wait for threads; we only ever spawn
    "GRPC_VERBOSITY": "NONE",  # the agent logs what matters, structured
}


def main() -> int:
    """Entry point of the console script."""
    for name in _UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from agent.main import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
