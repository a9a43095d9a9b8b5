"""`python -m tests.faults`: runs with seeded faults, each checked. Exit code 1: a history that
cannot have happened so; its seed and run replay the draw, its file has the calls."""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.cluster import Cluster
from tests.faults.history import dump
from tests.faults.member import DEFECTS
from tests.faults.running import Run, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=50, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="of the draws")
    parser.add_argument("--first", type=int, default=0, help="the number of the first run")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", metavar="DIR", help="where logs and histories of failures stay")
    parser.add_argument("--defect", choices=sorted(DEFECTS), help="must be found")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="polder-faults-") as temporary:
        folder = Path(options.keep or temporary)
        return _runs(options, folder)


def _runs(options: argparse.Namespace, folder: Path) -> int:
    began = time.monotonic()
    done: list[Run] = []
    with Cluster(folder, options.defect or "-") as cluster:
        _say(f"three etcd and three orchestrators after {time.monotonic() - began:.1f} s")
        for number in range(options.first, options.first + options.runs):
            result = run(cluster, options.seed, number)
            done.append(result)
            _tell(result)
            if result.violations:
                file = (Path(options.keep) if options.keep else Path.cwd()) / (
                    f"faults-{options.seed}-{number}.jsonl"
                )
                file.write_text(dump(result.history))
                _say(f"the history is in {file}; replay: --seed {options.seed} --first {number}")
                break
    if options.json:
        sys.stdout.write(json.dumps(_summary(done, time.monotonic() - began)) + "\n")
    return int(any(result.violations for result in done))


def _tell(result: Run) -> None:
    faults = "; ".join(map(str, result.faults))
    _say(
        f"run {result.number}: {len(result.history)} calls, {result.count('unknown')} unknown, "
        f"{result.refused} refused, {result.old} old, longest without a write "
        f"{result.gap_s:.1f} s, took {result.took_s:.1f} s: {faults}"
    )
    for violation in result.violations:
        _say(str(violation))


def _summary(done: list[Run], took_s: float) -> dict[str, object]:
    return {
        "runs": len(done),
        "violations": sum(len(result.violations) for result in done),
        "calls": sum(len(result.history) for result in done),
        "unknown": sum(result.count("unknown") for result in done),
        "refused": sum(result.refused for result in done),
        "old_reads": sum(result.old for result in done),
        "longest_without_write_s": round(max((r.gap_s for r in done), default=0.0), 2),
        "seconds": round(took_s, 1),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
