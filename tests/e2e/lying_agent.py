"""An agent that breaks its word as a voter: `python -m tests.e2e.lying_agent NODE run ...`.

For test_site_bad.py. It is the real agent but for what a liar would say: it grants every exclusive
replica to whoever asks, and tells each that it does not hear the others, so that they do ask.
Nobody can prevent two holders then; the site has to find it out.
"""

import json
import os
import sys
from dataclasses import replace
from typing import NoReturn

from agent import __main__ as program
from agent import lean
from agent.domain.site.messages import Beat, LeaseAnswer, Said
from agent.site.links import Links

LIES = ("Held", "Promised")
SILENT = ("node-a", "node-b", "node-c")


def lie(said: Said, me: str) -> Said:
    """What it says instead."""
    match said:
        case LeaseAnswer(granted=False, reason=reason) if reason in LIES:
            return replace(said, granted=True, reason="", holder="", remaining_s=0.0)
        case Beat():
            return replace(said, silent=tuple(node for node in SILENT if node != me))
    return said


def main() -> int:
    """All that is said to peers goes through `Links.send`."""
    me = sys.argv.pop(1)
    honest = Links.send

    def send(self: Links, node: str, said: Said) -> None:
        honest(self, node, lie(said, me))

    def start(settings: dict[str, object]) -> NoReturn:
        """Stays this process, where a real one starts itself afresh."""
        os.environ["POLDER_AGENT_SETTINGS"] = json.dumps(settings)
        sys.exit(lean.main())

    Links.send = send  # type: ignore[method-assign]
    lean.start = start
    return program.main()


if __name__ == "__main__":
    sys.exit(main())
