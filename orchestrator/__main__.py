"""`python -m orchestrator`, and the console script `edge-orchestrator`."""

import sys

from orchestrator.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
