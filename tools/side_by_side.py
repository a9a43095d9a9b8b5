"""`make test` runs the tests in four processes at once, since most of them wait for something.

    first           whole programs, containers, network namespaces, one after the other. What they
                    say is shown as it comes
    second, third   the other integration tests, every other file each
    fourth          everything else, which only calculates: unit tests, simulations, models, chart

What the others said is shown when they have ended. The exit code is that of the first run that
failed. Arguments go on to all.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

MACHINE = ["-m", "not long and (machine or containerd or netns)"]
REST = ["-m", "not long and not (machine or containerd or netns)"]
INTEGRATION = Path("tests/integration")
THINKING = [f"--ignore={INTEGRATION}", *REST]
NOTHING_TO_DO = 5  # pytest's word for it


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    command = [sys.executable, "-m", "pytest", *arguments]
    files = sorted(map(str, INTEGRATION.rglob("test_*.py")))
    running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    try:
        for part in ([*files[::2], *REST], [*files[1::2], *REST], THINKING):
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
    for _, output in running:
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    failed = [code for code in codes if code not in (0, NOTHING_TO_DO)]
    return failed[0] if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
