"""`python -m bench NAME [options] --json`: run one benchmark and print one JSON object.

Works with any Python: it makes the virtual environment if there is none, and goes on inside it.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSIDE = "POLDER_BENCH_INSIDE"
BENCHMARKS = ("cli", "deploy", "fleet", "footprint", "mesh", "schedule", "store", "takeover")


def main() -> int:
    if not os.environ.get(INSIDE):
        _enter_environment()
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHMARKS:
        names = ", ".join(BENCHMARKS)
        print(f"usage: python -m bench NAME [--json] [options]; NAME is one of {names}")
        return 2
    import importlib

    module = importlib.import_module(f"bench.{sys.argv[1]}")
    code: int = module.main(sys.argv[2:])
    return code


def _enter_environment() -> None:
    python = ROOT / ".venv" / "bin" / "python"
    subprocess.run(
        [str(ROOT / "tools" / "bootstrap.sh"), "--system"], check=True, stdout=sys.stderr
    )
    os.chdir(ROOT)
    os.execve(python, [str(python), "-m", "bench", *sys.argv[1:]], {**os.environ, INSIDE: "1"})


if __name__ == "__main__":
    sys.exit(main())
