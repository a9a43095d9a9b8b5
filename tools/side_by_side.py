"""`make test` runs the tests in two processes at once, since most of them wait for something.

    machine    whole programs, containers, network namespaces: one after the other, what they say
               is shown as it comes
    rest       everything else: shown when it has ended

The exit code is that of the first of the two that failed. Arguments go on to both.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence

MACHINE = "not long and (machine or containerd or netns)"
REST = "not long and not (machine or containerd or netns)"
NOTHING_TO_DO = 5  # pytest's word for it


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    command = [sys.executable, "-m", "pytest", *arguments, "-m"]
    with tempfile.TemporaryFile() as said:
        rest = subprocess.Popen([*command, REST], stdout=said, stderr=subprocess.STDOUT)
        try:
            machine = subprocess.run([*command, MACHINE], check=False).returncode
            codes = [machine, rest.wait()]
        except BaseException:
            rest.terminate()
            rest.wait()
            raise
        said.seek(0)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    failed = [code for code in codes if code not in (0, NOTHING_TO_DO)]
    return failed[0] if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
