"""`edgectl drain`: marks nodes and waits until what can move has moved, saying what remains."""

import time
from collections.abc import Iterator

from edgectl import targets
from edgectl.columns import status_words
from edgectl.durations import option_seconds
from edgectl.errors import CallError, CliError
from edgectl.invocation import Invocation
from edgectl.progress import Progress
from edgectl.resources import Item, reference
from edgectl.verbs.nodes import mark

POLL_S = 1.0


def run(invocation: Invocation) -> int:
    options = invocation.options
    timeout_s = option_seconds(options.timeout, "--timeout")
    names = [targets.node_name(word) for word in options.nodes]
    for name in names:
        mark(invocation, name, unschedulable=True, draining=True)
        print(f"node/{name} {'draining (dry run)' if options.dry_run else 'draining'}", flush=True)
    drain = _Drain(invocation)
    if options.dry_run:
        for name in names:
            for replica, why in drain.remaining(name):
                print(f"  {replica.label} would move: {why}")
        return 0
    if options.wait == "true":
        deadline = time.monotonic() + timeout_s
        with Progress() as progress:
            for name in names:
                drain.wait(name, deadline, options.timeout, progress)
    return 0


class _Drain:
    def __init__(self, invocation: Invocation) -> None:
        self._client = invocation.client
        self._workloads: dict[tuple[str, str], Item | None] = {}

    def wait(self, name: str, deadline: float, timeout: str, progress: Progress) -> None:
        """Raises CliError at the deadline, with what remains."""
        while True:
            try:
                left = list(self.remaining(name))
            except CallError as error:
                if not error.transient or time.monotonic() >= deadline:
                    raise
                progress.show(f"node/{name}: {error.message}; trying again")
                time.sleep(POLL_S)
                continue
            if not left:
                progress.result(f"node/{name} drained")
                return
            shown = [f"{replica.label}: {why}" for replica, why in left]
            if time.monotonic() >= deadline:
                raise CliError(
                    f"node/{name} still has {len(left)} replica(s) after {timeout}",
                    *shown[:20],
                    f"it goes on draining; edgectl uncordon {name} stops that",
                )
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            progress.show(f"node/{name}: {len(left)} left; {shown[0]}{more}")
            time.sleep(max(0.0, min(POLL_S, deadline - time.monotonic())))

    def remaining(self, node: str) -> Iterator[tuple[Item, str]]:
        """The node's replicas that have to move, and why each is still there."""
        self._workloads.clear()
        resources, now_ms = self._client.list_all("Replica")
        for resource in resources:
            replica = Item(resource, now_ms)
            if replica.spec.get("node") != node:
                continue
            workload = self._workload(replica)
            if workload is None or workload.spec.get("perNode") is None:
                yield replica, _why(replica, workload)

    def _workload(self, replica: Item) -> Item | None:
        key = (replica.namespace, str(replica.spec.get("workload")))
        if key not in self._workloads:
            try:
                answer = self._client.get(reference("Workload", *key))
                self._workloads[key] = Item(answer.resource, answer.now_ms)
            except CallError as error:
                if error.code != "NOT_FOUND":
                    raise
                self._workloads[key] = None
        return self._workloads[key]


def _why(replica: Item, workload: Item | None) -> str:
    status = status_words(replica)
    if workload is None:
        return f"{status}, its workload is gone"
    for entry in workload.status.get("unplaced") or []:
        if isinstance(entry, dict) and entry.get("replica") == replica.name:
            return f"{status}, no other place: {entry.get('message') or 'no node qualifies'}"
    message = replica.status.get("message") or workload.status.get("message")
    return f"{status}: {message}" if message else status
