"""`make test` runs the tests in two processes at once, since most of them wait for something.

    first     whole programs, containers, network namespaces, one after the other; then simulations
              and models. What they say is shown as it comes
    second    everything else: shown when it has ended

The exit code is that of the first run that failed. Arguments go on to all.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence

MACHINE = "not long and (machine or containerd or netns)"
REST = "not long and not (machine or containerd or netns)"
THOUGHT = ("tests/sim", "tests/models")  # they only calculate
NOTHING_TO_DO = 5  # pytest's word for it


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    command = [sys.executable, "-m", "pytest", *arguments]
    elsewhere = [f"--ignore={folder}" for folder in THOUGHT]
    with tempfile.TemporaryFile() as said:
        second = subprocess.Popen(
            [*command, *elsewhere, "-m", REST], stdout=said, stderr=subprocess.STDOUT
        )
        try:
            first = [[*elsewhere, "-m", MACHINE], THOUGHT]
            codes = [subprocess.run([*command, *part], check=False).returncode for part in first]
            codes.append(second.wait())
        except BaseException:
            second.terminate()
            second.wait()
            raise
        said.seek(0)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    failed = [code for code in codes if code not in (0, NOTHING_TO_DO)]
    return failed[0] if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
