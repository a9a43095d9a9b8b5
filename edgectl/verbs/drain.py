"""`edgectl drain`: marks nodes and waits until what can move has moved, saying what blocks it."""

import time
from collections.abc import Iterator
from typing import Any

from edgectl.columns import part, status_words
from edgectl.durations import option_seconds
from edgectl.errors import CallError, CliError
from edgectl.invocation import Invocation
from edgectl.progress import Progress
from edgectl.resources import Item, reference
from edgectl.text import moment
from edgectl.verbs.nodes import mark, nodes_of
from polder.manifest.quantity import format_timestamp

POLL_S = 1.0
_SHOWN = 20


def run(invocation: Invocation) -> int:
    options = invocation.options
    timeout_s = option_seconds(options.timeout, "--timeout")
    nodes = nodes_of(invocation, options.nodes)
    wanted, suffix = _wanted(invocation)
    for target in nodes:
        mark(invocation, target, **wanted)
        print(f"{target.label} draining{suffix}", flush=True)
    drain = _Drain(invocation)
    if options.dry_run:
        for target in nodes:
            for replica, why in drain.remaining(target.name):
                print(f"  {replica.label} would move: {why}")
        return 0
    if options.wait == "true":
        deadline = time.monotonic() + timeout_s
        with Progress() as progress:
            for target in nodes:
                drain.wait(target.name, deadline, options.timeout, progress)
    return 0


def _wanted(invocation: Invocation) -> tuple[dict[str, Any], str]:
    """The fields of the spec, and what is said of them."""
    options = invocation.options
    wanted: dict[str, Any] = {"unschedulable": True, "draining": True}
    suffix = ""
    if options.force_after:
        patience_s = option_seconds(options.force_after, "--force-after")
        now_ms = invocation.client.whoami().now_ms  # the deadline is by the server's clock
        at_s = now_ms / 1000 + patience_s
        wanted["drainDeadline"] = format_timestamp(at_s)
        suffix = f"; what is left at {moment(int(at_s * 1000), now_ms)} is stopped"
    return wanted, suffix + (" (dry run)" if options.dry_run else "")


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
                    *shown[:_SHOWN],
                    f"and {len(left) - _SHOWN} more" if len(left) > _SHOWN else "",
                    f"it goes on draining; edgectl undrain {name} stops that, and edgectl drain "
                    f"{name} --force-after 5m stops what is left by then",
                )
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            progress.show(f"node/{name}: {len(left)} left; {shown[0]}{more}")
            time.sleep(max(0.0, min(POLL_S, deadline - time.monotonic())))

    def remaining(self, node: str) -> Iterator[tuple[Item, str]]:
        """The node's replicas that have to move, what blocks them first, and why."""
        self._workloads.clear()
        resources, now_ms = self._client.list_all("Replica")
        items = [Item(resource, now_ms) for resource in resources]
        here = [item for item in items if item.spec.get("node") == node]
        for replica in sorted(here, key=lambda item: not _blocker(item)):
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


def _blocker(replica: Item) -> str:
    """What the leader says that it waits for; empty: nothing."""
    waits = part(replica.status, "waits")
    words = [str(waits[key]) for key in ("reason", "message") if waits.get(key)]
    return ": ".join(words)


def _why(replica: Item, workload: Item | None) -> str:
    status = status_words(replica)
    if workload is None:
        return f"{status}, its workload is gone"
    if blocker := _blocker(replica):
        return f"{status}; {blocker}"
    for entry in workload.status.get("unplaced") or []:
        if isinstance(entry, dict) and entry.get("replica") == replica.name:
            return f"{status}, no other place: {entry.get('message') or 'no node qualifies'}"
    message = replica.status.get("message") or workload.status.get("message")
    return f"{status}: {message}" if message else status
