"""`python -m tests.arm`: the agent's tests on an emulated Debian of arm64, on the package itself.

Takes a quarter of an hour to an hour, most of it since qemu translates what it runs. Exit code 0:
all passed; 1: some did not; 2: this machine cannot.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from devcluster import preflight
from devcluster.debian_root import Root
from devcluster.emulation import agent_package, arm64_programs, debian
from tests.arm import box
from tests.arm.suite import agent_tests
from tests.emulated import VARIABLE

SOURCES = Path(__file__).resolve().parents[2]
TIMEOUT_S = 900  # of one test, of which most take a tenth of a second natively


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.arm", description=__doc__)
    parser.add_argument("files", nargs="*", help="test files; default: all of the agent's")
    parser.add_argument("--list", action="store_true", help="name the files, and run nothing")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="as pytest's")
    options = parser.parse_args()
    files = options.files or agent_tests(SOURCES)
    if options.list:
        sys.stdout.write("".join(f"{file}\n" for file in files))
        return 0
    lacking = preflight.missing_emulation()
    if lacking:
        _say(preflight.reason(lacking))
        return 2
    with tempfile.TemporaryDirectory(prefix="polder-arm-") as temporary, arm64_programs():
        folder = Path(temporary)
        try:
            return _run(folder, files, ["-k", options.k] if options.k else [])
        except subprocess.CalledProcessError as error:
            _say(f"cannot be made: {error}")
            return 2


def _run(folder: Path, files: list[str], more: list[str]) -> int:
    _say("a Debian of arm64, the agent's package for it, and what runs tests")
    lower = debian("arm64", folder)
    package = agent_package(folder)
    wheels = box.fetch_tools(folder / "wheels")
    with Root(str(lower), shared=(Path("/sys"),)) as root:  # cgroups, for the switch
        box.furnish(root, SOURCES, package, wheels)
        version = root.run("edge-agent", "version").stdout.strip()
        machine = root.run("uname", "-m").stdout.strip()
        _say(f"{package.name} installed by dpkg on {machine}: {version}; {len(files)} test files")
        command = [
            "env",
            "-C",
            box.SOURCES,
            box.PYTHON,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
        ]
        command += [f"--timeout={TIMEOUT_S}", "--durations=10", *more, *files]
        environment = {
            VARIABLE: "yes",
            "HYPOTHESIS_PROFILE": "emulated",
            "PYTHONPATH": box.WHEELS,
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/root",
        }
        return min(1, root.follow(*command, environment=environment))


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
