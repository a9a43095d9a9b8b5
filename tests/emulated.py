"""What tests may ask of programs that are emulated, as `python -m tests.arm` runs them.

They do the same and need longer for it; their memory is mostly the emulator's.
"""

import os

VARIABLE = "POLDER_EMULATED"
"""In the environment of tests that run under an emulator."""
EMULATED = bool(os.environ.get(VARIABLE))
_TIMES = 6.0
_AT_MOST_S = 300.0


def patience(seconds: float) -> float:
    """How long a test waits for what must come within that on a machine of its own."""
    return max(seconds, min(seconds * _TIMES, _AT_MOST_S)) if EMULATED else seconds
