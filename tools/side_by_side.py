"""`make test` runs the tests in three processes at once, since most of them wait for something.

    first     whole programs, containers, network namespaces, one after the other. What they say is
              shown as it comes
    second    the other integration tests
    third     everything else, which only calculates: unit tests, simulations, models, the chart

What the second and the third said is shown when they have ended. The exit code is that of the first
run that failed. Arguments go on to all.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

MACHINE = ["-m", "not long and (machine or containerd or netns)"]
REST = "not long and not (machine or containerd or netns)"
WAITING = ["tests/integration", "-m", REST]
THINKING = ["--ignore=tests/integration", "-m", REST]
NOTHING_TO_DO = 5  # pytest's word for it


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    command = [sys.executable, "-m", "pytest", *arguments]
    running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    try:
        for part in (WAITING, THINKING):
            said = tempfile.TemporaryFile()  # noqa: SIM115 - ends with this process
            run = subprocess.Popen([*command, *part], stdout=said, stderr=subprocess.STDOUT)
            running.append((run, said))
        codes = [subprocess.run([*command, *MACHINE], check=False).returncode]
        codes += [process.wait() for process, _ in running]
    except BaseException:
        for process, _ in running:
            process.terminate()
            process.wait()
        raise
    for _, said in running:
        said.seek(0)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    failed = [code for code in codes if code not in (0, NOTHING_TO_DO)]
    return failed[0] if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
