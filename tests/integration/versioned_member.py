"""`edge-orchestrator` that says it is of another version: for tests of upgrades.

Run as `python -m tests.integration.versioned_member VERSION SETTLE_S ARGUMENT...`; VERSION `-`: its
own. SETTLE_S is how long all must have a version before older ones stay out.
"""

import sys

from orchestrator import members, version


def main() -> int:
    said, settle_s, *arguments = sys.argv[1:]
    if said != "-":
        version.running_version = lambda: said
    members.SETTLE_S = float(settle_s)
    # Only now: these modules take the names above when they are imported.
    from orchestrator.main import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
