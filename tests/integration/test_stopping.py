"""A member that is told to stop ends in a stated time, also when a part of it does not."""

import subprocess
import sys
import time
from pathlib import Path

from tests.integration.members_rig import MemberProcess, wait_until

_STUCK = """
import asyncio, sys
from orchestrator import main
from orchestrator.background import Background

async def never(self):
    await asyncio.Event().wait()

Background.stop = never
main.STOP_S = 0.5
sys.exit(main.main(["serve", "--config", sys.argv[1]]))
"""


def test_a_member_that_cannot_stop_says_why_and_ends(tmp_path: Path) -> None:
    member = MemberProcess("a", tmp_path, {"shutdown_grace": "100ms"})
    command = [sys.executable, "-c", _STUCK, str(member.configure())]
    with member.log.open("wb") as output, subprocess.Popen(command, stderr=output) as running:
        wait_until(lambda: member.status("/readyz") == 200, "it serves", 40.0)
        told_at = time.monotonic()
        running.terminate()
        assert running.wait(30.0) == 1
    assert time.monotonic() - told_at >= 0.6
    assert "the stop took too long" in member.said
    assert "never:7 > Event.wait" in member.said
