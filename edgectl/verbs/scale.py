"""`edgectl scale workload/x --replicas=N`, with --current-replicas as a precondition."""

from typing import Any

from edgectl import targets
from edgectl.edits import edit
from edgectl.errors import CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.resources import reference
from edgectl.targets import Target


def run(invocation: Invocation) -> int:
    options = invocation.options
    if options.replicas < 0:
        raise UsageError(f"--replicas {options.replicas} is negative")
    wanted = targets.parse(options.targets, names_needed=True)
    for target in wanted:
        if target.info.name != "Workload":
            raise UsageError(f"{target.label} is not a workload: only workloads have replicas")
    for target in wanted:
        _scale(invocation, target)
    return 0


def _scale(invocation: Invocation, target: Target) -> None:
    options = invocation.options
    before = 0

    def change(manifest: dict[str, Any]) -> None:
        nonlocal before
        spec = manifest["spec"]
        before = _scaled(spec, target.label, options.replicas, options.current_replicas)

    ref = reference("Workload", invocation.namespace, target.name)
    changed = edit(invocation.client, ref, change, dry_run=options.dry_run)
    suffix = " (dry run)" if options.dry_run else ""
    text = f"scaled from {before} to {options.replicas}" if changed else "has as many already"
    print(f"{target.label} {text}{suffix}", flush=True)


def _scaled(spec: dict[str, Any], label: str, wanted: int, expected: int | None) -> int:
    """Changes the spec; how many there were. Raises CliError."""
    for key in ("perSite", "perNode"):
        if spec.get(key) is not None:
            raise CliError(
                f"{label} has {key}: {spec[key]}; its replicas follow from how many there are",
                f"edgectl edit {label} changes that",
            )
    if spec.get("run") == "once":
        raise CliError(
            f"{label} is a job; job.completions says how many replicas run",
            f"edgectl edit {label} changes that",
        )
    before = 1 if spec.get("replicas") is None else int(spec["replicas"])
    if expected is not None and before != expected:
        raise CliError(
            f"{label} has {before} replicas, not {expected}; nothing was changed",
            f"edgectl get {label} shows it",
        )
    if before != wanted:
        spec["replicas"] = wanted
    return before
