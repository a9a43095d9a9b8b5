"""An orchestrator that is not as it should be: `odd_orchestrator.py OFFSET VERSION serve ...`

Its clock is OFFSET seconds off, and it says that it is VERSION (empty: what is installed). Only its
own decisions go by that clock: TLS inside gRPC goes by the machine's.
"""

import sys
import time


def main() -> int:
    offset_s, version = float(sys.argv[1]), sys.argv[2]
    true_time = time.time
    time.time = lambda: true_time() + offset_s
    import orchestrator.version

    if version:
        orchestrator.version.running_version = lambda: version
    from orchestrator.main import main as run

    return run(sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
