"""`edgectl delete`: asks for the deletion, then waits until the resource is gone."""

import sys
import time

from edgectl import targets
from edgectl.conditions import gone
from edgectl.durations import option_seconds
from edgectl.errors import CallError, CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.manifests import load_references
from edgectl.progress import Progress
from edgectl.resources import reference
from edgectl.text import safe
from edgectl.verbs import regions
from edgectl.waiting import wait_for
from polder.v1 import common_pb2


def run(invocation: Invocation) -> int:
    options = invocation.options
    member = regions.of(options.targets)
    if member is not None:
        return regions.delete(invocation, member)
    timeout_s = option_seconds(options.timeout, "--timeout")
    refs = _references(invocation)
    pending = []
    for ref in refs:
        finished = _delete(invocation, ref)
        if not finished:
            pending.append(ref)
    if pending and options.wait == "true" and not options.dry_run:
        _wait(invocation, pending, time.monotonic() + timeout_s, options.timeout)
    return 0


def _references(invocation: Invocation) -> list[common_pb2.ResourceRef]:
    options = invocation.options
    if bool(options.targets) == bool(options.filename):
        raise UsageError("name what to delete, as in workload/hello, or give a file with -f")
    if options.filename:
        found = load_references(
            options.filename,
            recursive=options.recursive,
            default_namespace=invocation.namespace,
        )
        return [reference(*each) for each in found]
    wanted = targets.parse(options.targets, names_needed=True)
    return [
        reference(t.info.name, invocation.namespace if t.info.namespaced else "", t.name)
        for t in wanted
    ]


def _delete(invocation: Invocation, ref: common_pb2.ResourceRef) -> bool:
    """True when there is nothing to wait for."""
    options = invocation.options
    label = f"{ref.kind.lower()}/{ref.name}"
    try:
        response = invocation.client.delete(ref, dry_run=options.dry_run)
    except CallError as error:
        if error.code == "NOT_FOUND" and options.ignore_not_found:
            print(f"{label} not found")
            return True
        raise
    for warning in response.warnings:
        print(f"warning: {label}: {safe(warning)}", file=sys.stderr)
    if options.dry_run:
        print(f"{label} deleted (dry run)")
    elif response.finished:
        print(f"{label} deleted", flush=True)
    elif options.wait != "true":
        print(f"{label} deletion requested")
    return bool(response.finished)


def _wait(
    invocation: Invocation, pending: list[common_pb2.ResourceRef], deadline: float, timeout: str
) -> None:
    with Progress() as progress:
        for ref in pending:
            outcome = wait_for(invocation.client, ref, gone, deadline, progress)
            if not outcome.met:
                raise CliError(
                    f"{ref.kind.lower()}/{ref.name} still exists after {timeout}: {outcome.why}",
                    "its deletion goes on; edgectl describe tells what it waits for",
                )
            progress.result(f"{ref.kind.lower()}/{ref.name} deleted")
