"""Three updates and a bad one, under load, with edgectl as an operator uses it.

    python examples/rollout/run.py [--keep]

Needs a running quickstart (`make quickstart`) and its EDGECTL_CONFIG. Prints what it does, what
edgectl says, and at the end what the client counted. Exit code 0: nothing failed, the bad update
was rolled back and version 4 serves. See README.md. Standard library only.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROLLOUT_S = 180
SETTLE_S = 2.0


def edgectl(*words: str, check: bool = True) -> int:
    """Shows the command and what it says; its exit code."""
    print("\n$ edgectl " + " ".join(words), flush=True)
    code = subprocess.run(["edgectl", *words], check=False).returncode
    if check and code != 0:
        raise SystemExit(f"edgectl {words[0]} failed with exit code {code}")
    return code


def states() -> list[str]:
    """What is known of every revision, the newest first: such as Proven."""
    command = ["edgectl", "rollout", "history", "workload/web", "-o", "json"]
    shown = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [revision["state"] for revision in json.loads(shown)["revisions"]]


def update(version: str) -> int:
    """Apply one version and follow its rollout to the end; the exit code says how it ended."""
    edgectl("apply", "-f", str(HERE / f"web-{version}.yaml"))
    return edgectl("rollout", "status", "workload/web", "--timeout", f"{ROLLOUT_S}s", check=False)


def story() -> list[str]:
    """The rollouts under load; returns what is not as it should be."""
    wrong = []
    for version in ("2", "3", "4"):
        if update(version) != 0:
            wrong.append(f"the update to version {version} did not come to a good end")
    if update("bad") == 0:
        wrong.append("edgectl says that the bad update came to a good end")
    edgectl("rollout", "history", "workload/web")
    edgectl("get", "workloads,replicas")
    newest, before = states()[:2]
    if (newest, before) != ("Failed", "Proven"):
        wrong.append(f"the bad revision is {newest}, the one before it {before}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description="three updates and a bad one, under load")
    parser.add_argument("--keep", action="store_true", help="leave the workload running")
    given = parser.parse_args()
    update("1")
    edgectl("wait", "workload/web", "--for=ready", "--timeout", "60s")
    command = [sys.executable, str(HERE / "load.py"), "web"]
    load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(SETTLE_S)  # some requests before the first update, and after the last
        wrong = story()
        time.sleep(SETTLE_S)
    finally:
        load.send_signal(signal.SIGINT)
        counted, _ = load.communicate(timeout=60)
    if not given.keep:
        edgectl("delete", "workload/web", "--timeout", "60s")
    report = json.loads(counted)
    print("\nWhat the client counted:")
    print(json.dumps(report, indent=2))
    if report["failed"]:
        wrong.append(f"{report['failed']} of {report['requests']} requests failed")
    for version in ("1", "2", "3", "4"):
        if not report["by_version"].get(version):
            wrong.append(f"version {version} answered nothing")
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
