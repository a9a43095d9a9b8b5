"""What tests may ask of programs that are emulated, as `python -m tests.arm` runs them.

They do the same and need longer for it; their memory is mostly the emulator's.
"""

import os

VARIABLE = "POLDER_EMULATED"
"""In the environment of tests that run under an emulator."""
EMULATED = bool(os.environ.get(VARIABLE))
PATIENCE = 6.0 if EMULATED else 1.0
"""How many times as long as on a machine of its own a test waits for what must come."""
