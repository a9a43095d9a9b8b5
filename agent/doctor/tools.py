"""Programs that the doctor asks, if they are there."""

import subprocess

TOOL_S = 5.0


def run_tool(*command: str) -> str:
    """What a program says; empty when it is not there, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=TOOL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")
