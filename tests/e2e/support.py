"""What the end-to-end tests share: waiting for conditions, and running edgectl as a user does."""

import http.client
import json
import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

from devcluster.boxes import EDGECTL, Boxes

T = TypeVar("T")


def eventually(check: Callable[[], T], what: str, timeout_s: float = 30.0) -> T:
    """The first truthy value of `check`; fails with `what` and the last value at the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < deadline, f"not in {timeout_s:.0f} s: {what}; last: {value!r}"
        time.sleep(0.05)


def edgectl(
    polder: Boxes, *arguments: str, stdin: bytes = b"", timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Runs it and checks nothing: tests look at code, stdout and stderr. Never a traceback."""
    done = subprocess.run(
        [EDGECTL, *arguments],
        input=stdin,
        capture_output=True,
        env=polder.environment(),
        timeout=timeout_s,
        check=False,
    )
    shown = subprocess.CompletedProcess(
        done.args,
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
    )
    assert "Traceback" not in shown.stderr, shown.stderr
    return shown


def get(polder: Boxes, what: str, *more: str) -> dict[str, Any]:
    """One resource as JSON, as `edgectl get TYPE/NAME -o json` shows it."""
    done = edgectl(polder, "get", what, "-o", "json", *more)
    assert done.returncode == 0, done.stderr
    body: dict[str, Any] = json.loads(done.stdout)
    return body


def replica(polder: Boxes, name: str) -> dict[str, Any]:
    """A replica's status; empty while there is none."""
    done = edgectl(polder, "get", f"replica/{name}", "-o", "json")
    if done.returncode != 0:
        return {}
    status: dict[str, Any] = json.loads(done.stdout).get("status", {})
    return status


def ready(polder: Boxes, name: str) -> bool:
    return bool(replica(polder, name).get("ready"))


def http_get(port: int, path: str = "/") -> tuple[int, str]:
    """(0, reason) when nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except OSError as error:
        return 0, str(error)
    finally:
        connection.close()


def container_ids(polder: Boxes, node: str) -> dict[str, str]:
    """Running containers of a node, as its containerd knows them: id -> task state."""
    containerd = polder.agents[node].containerd
    assert containerd is not None
    rows = [line.split() for line in containerd.ctr("tasks", "ls").splitlines()[1:]]
    return {row[0]: row[1] for row in rows}
