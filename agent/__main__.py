"""`edge-agent` and `python -m agent`: hands over to `agent/main.py`."""

import os
import sys


def main() -> int:
    """Entry point of the console script."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what matters is said in our own words
    from agent.main import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
