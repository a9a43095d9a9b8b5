"""`edgectl wait --for=...`: exit code 0 once every target meets the condition."""

import time

from edgectl import conditions, selectors, targets
from edgectl.durations import option_seconds
from edgectl.errors import CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.progress import Progress
from edgectl.resources import reference
from edgectl.waiting import wait_for
from polder.v1 import common_pb2


def run(invocation: Invocation) -> int:
    options = invocation.options
    condition = conditions.parse(options.condition)
    timeout_s = option_seconds(options.timeout, "--timeout")
    deadline = time.monotonic() + timeout_s
    refs = _references(invocation)
    with Progress() as progress:
        for ref in refs:
            label = f"{ref.kind.lower()}/{ref.name}"
            verdict = wait_for(invocation.reader, ref, condition, deadline, progress)
            if verdict.hopeless:
                raise CliError(
                    f"{label} will not be {options.condition}: {verdict.why}",
                    f"edgectl describe {label} and edgectl events --for {label} tell more",
                )
            if not verdict.met:
                raise CliError(
                    f"timed out after {options.timeout} waiting for {label} "
                    f"({options.condition}): {verdict.why}",
                    f"edgectl describe {label} and edgectl events --for {label} tell more",
                )
            progress.result(f"{label} condition met")
    return 0


def _references(invocation: Invocation) -> list[common_pb2.ResourceRef]:
    options = invocation.options
    selectors.parse(options.selector)
    refs = []
    for target in targets.parse(options.targets):
        namespace = invocation.namespace if target.info.namespaced else ""
        if target.name:
            refs.append(reference(target.info.name, namespace, target.name))
            continue
        if not options.selector:
            raise UsageError("name the resources, or choose them with --selector")
        found, _ = invocation.reader.list_all(target.info.name, namespace, options.selector)
        refs.extend(reference(r.kind, r.metadata.namespace, r.metadata.name) for r in found)
    if not refs:
        raise CliError("nothing matches the selector")
    return refs
