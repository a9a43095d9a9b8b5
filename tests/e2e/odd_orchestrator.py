"""An orchestrator that is not as it should be: `odd_orchestrator.py OFFSET VERSION serve ...`

Its clock is OFFSET seconds off, and it says that it is VERSION (empty: what is installed). What it
issues and decides goes by that clock; to verify others' certificates, gRPC asks the machine.
"""

import functools
import sys
import time

import orchestrator.version


def main() -> int:
    offset_s, version = float(sys.argv[1]), sys.argv[2]
    if version:
        orchestrator.version.running_version = lambda: version
    from orchestrator import main as program  # after its version was changed

    program.Orchestrator = functools.partial(
        program.Orchestrator, clock=lambda: time.time() + offset_s
    )
    return program.main(sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
