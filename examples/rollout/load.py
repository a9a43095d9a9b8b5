"""Keeps requests in flight to the ready replicas of a workload, and counts what becomes of them.

    python examples/rollout/load.py web [--in-flight 8] [--seconds 60]

Runs until the time is over or it is interrupted, then prints one JSON object: requests, failed, how
many each version answered, and how long they took. Which replicas are ready it learns as any
client could: from `edgectl get replicas -o json -w`. A request has failed that finds no replica,
is refused, breaks off, takes over two seconds or is not answered with 200; none is repeated.
Standard library only.
"""

import argparse
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import IO

PORT = 8080
TIMEOUT_S = 2.0
PAUSE_S = 0.02  # of each of those that ask, between two requests
ERRORS_MAX = 10


class Replicas:
    """Addresses of the replicas that are ready, by name, as the watch tells them."""

    def __init__(self, workload: str) -> None:
        self._workload = workload
        self._lock = threading.Lock()
        self._addresses: dict[str, str] = {}
        self._turn = 0
        command = ["edgectl", "get", "replicas", "-o", "json", "-w"]
        self._watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._watch.stdout is not None
        threading.Thread(target=self._follow, args=(self._watch.stdout,), daemon=True).start()

    def _follow(self, stream: IO[str]) -> None:
        for line in stream:  # a JSON object for each change
            replica = json.loads(line)
            if replica["spec"]["workload"] != self._workload:
                continue
            status = replica["status"]
            ready = status.get("ready") and status.get("podIp")
            with self._lock:
                self._addresses.pop(replica["metadata"]["name"], None)
                if ready:
                    self._addresses[replica["metadata"]["name"]] = status["podIp"]

    def next(self) -> str:
        """The next one in turn; empty when none is ready."""
        with self._lock:
            self._turn += 1
            addresses = sorted(self._addresses.values())
            return addresses[self._turn % len(addresses)] if addresses else ""

    def close(self) -> None:
        self._watch.terminate()
        self._watch.wait()


class Counts:
    """What became of all requests. Called by every thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.versions: Counter[str] = Counter()
        self.failed = 0
        self.errors: list[str] = []
        self.took_s: list[float] = []

    def answered(self, version: str, took_s: float) -> None:
        with self._lock:
            self.versions[version] += 1
            self.took_s.append(took_s)

    def failure(self, why: str) -> None:
        with self._lock:
            self.failed += 1
            if len(self.errors) < ERRORS_MAX:
                self.errors.append(f"{time.strftime('%H:%M:%S')} {why}")

    def report(self) -> dict[str, object]:
        with self._lock:
            took_s = sorted(self.took_s) or [0.0]
            return {
                "requests": sum(self.versions.values()) + self.failed,
                "failed": self.failed,
                "by_version": dict(sorted(self.versions.items())),
                "p50_ms": round(took_s[len(took_s) // 2] * 1000, 1),
                "p99_ms": round(took_s[len(took_s) * 99 // 100] * 1000, 1),
                "longest_ms": round(took_s[-1] * 1000, 1),
                "errors": self.errors,
            }


def ask(address: str, counts: Counts) -> None:
    """One request over a connection of its own: the answer is the server's version."""
    if not address:
        return counts.failure("no replica is ready")
    began = time.monotonic()
    connection = http.client.HTTPConnection(address, PORT, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        text = response.read().decode(errors="replace").strip()
        if response.status == 200 and text:
            counts.answered(text, time.monotonic() - began)
        else:
            counts.failure(f"{address}: HTTP {response.status} {text[:40]!r}")
    except (OSError, http.client.HTTPException) as error:
        counts.failure(f"{address}: {error!r}")
    finally:
        connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="load on the ready replicas of a workload")
    parser.add_argument("workload")
    parser.add_argument("--in-flight", type=int, default=8, help="requests at once (default: 8)")
    parser.add_argument("--seconds", type=float, default=86_400.0, help="for so long")
    given = parser.parse_args()
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    replicas, counts = Replicas(given.workload), Counts()
    deadline = time.monotonic() + 30.0
    while not replicas.next() and time.monotonic() < deadline and not over.wait(0.05):
        pass  # the count begins when there is a service

    def work() -> None:
        while not over.is_set():
            ask(replicas.next(), counts)
            over.wait(PAUSE_S)

    threads = [threading.Thread(target=work) for _ in range(given.in_flight)]
    for thread in threads:
        thread.start()
    over.wait(given.seconds)
    over.set()
    for thread in threads:
        thread.join()
    replicas.close()
    report = counts.report()
    print(json.dumps(report, indent=2))
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
