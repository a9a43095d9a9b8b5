"""`edgectl rollout status|history|undo|pause|resume|restart workload/x`."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from edgectl import rollouts, targets
from edgectl.durations import option_seconds
from edgectl.edits import edit
from edgectl.errors import CallError, CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.output import structured
from edgectl.plain import plain
from edgectl.progress import Progress
from edgectl.resources import reference
from edgectl.targets import Target
from edgectl.text import Table, safe
from polder.v1 import common_pb2, operator_pb2

POLL_S = 0.5
POLL_SLOW_S = 2.0  # once it has been the same for a while


def status(invocation: Invocation) -> int:
    """0: it ended as asked (or, without --watch, has not failed); 1: it did not."""
    options = invocation.options
    if options.output not in ("", "json", "yaml"):
        raise UsageError(f"-o {options.output!r} is not a format", "formats: json, yaml")
    timeout_s = option_seconds(options.timeout, "--timeout")
    target = _workload(options.target)
    request = operator_pb2.RolloutRequest(ref=_ref(invocation, target))
    with Progress() as progress:
        if options.watch == "true":
            found = _followed(invocation, request, target.label, timeout_s, progress)
        else:
            found = invocation.client.rollout(request).status
    if options.output:
        sys.stdout.write(structured(options.output, plain(found)))
    if rollouts.succeeded(found, options.until):
        _say(invocation, f"{target.label}: {rollouts.success(found)}")
        return 0
    if not rollouts.ended(found, options.until):
        _say(invocation, f"{target.label}: {rollouts.line(found)}")
        return 0
    where = f" -n {invocation.namespace}" if invocation.explicit_namespace else ""
    message, hints = rollouts.failure(target.label + where, found)
    raise CliError(f"{target.label}: {message}", *hints)


def _say(invocation: Invocation, text: str) -> None:
    if not invocation.options.output:
        print(safe(text), flush=True)


def _followed(
    invocation: Invocation,
    request: operator_pb2.RolloutRequest,
    label: str,
    timeout_s: float,
    progress: Progress,
) -> operator_pb2.RolloutStatus:
    """The status once it has ended. Raises CliError at the deadline."""
    deadline = time.monotonic() + timeout_s if timeout_s else None
    changed_at, last = time.monotonic(), None
    while True:
        now = time.monotonic()
        try:
            found = invocation.client.rollout(request).status
        except CallError as error:
            if not error.transient or (deadline is not None and now >= deadline):
                raise
            progress.show(f"{label}: {error.message}; trying again", error.code)
        else:
            if rollouts.ended(found, invocation.options.until):
                return found
            progress.show(f"{label}: {rollouts.line(found)}", rollouts.news(found))
            if rollouts.news(found) != last:
                last, changed_at = rollouts.news(found), now
            if deadline is not None and now >= deadline:
                raise CliError(
                    f"{label} has not ended after {invocation.options.timeout}: "
                    f"{rollouts.line(found)}",
                    f"it goes on without edgectl; edgectl describe {label} tells what it waits for",
                )
        pause = POLL_S if now - changed_at < 10 * POLL_S else POLL_SLOW_S
        time.sleep(max(0.0, pause if deadline is None else min(pause, deadline - now)))


def history(invocation: Invocation) -> int:
    options = invocation.options
    if options.output not in ("", "wide", "json", "yaml"):
        raise UsageError(f"-o {options.output!r} is not a format", "formats: wide, json, yaml")
    target = _workload(options.target)
    request = operator_pb2.RolloutRequest(ref=_ref(invocation, target), revision=options.revision)
    answer = invocation.client.rollout(request)
    if options.revision:
        _show_revision(answer, target, options.revision, options.output)
    elif options.output in ("json", "yaml"):
        listed = [plain(info) for info in answer.revisions]
        sys.stdout.write(structured(options.output, {"revisions": listed}))
    else:
        wide = options.output == "wide"
        table = Table(rollouts.history_headers(wide=wide))
        rows = [rollouts.history_row(i, answer.now_ms, wide=wide) for i in answer.revisions]
        print("\n".join(table.lines(rows)))
    return 0


def _show_revision(
    answer: operator_pb2.RolloutResponse, target: Target, number: int, output: str
) -> None:
    info = rollouts.find(answer.revisions, number)
    if info is None:
        kept = ", ".join(str(found.number) for found in answer.revisions)
        raise CliError(f"{target.label} has no revision {number}", f"kept are {kept or 'none'}")
    template: Any = json.loads(answer.template_json) if answer.template_json else {}
    if output in ("json", "yaml"):
        sys.stdout.write(structured(output, {**plain(info), "template": template}))
        return
    for text in rollouts.revision_heading(info, answer.now_ms):
        print(f"# {safe(text)}")
    sys.stdout.write(structured("yaml", {"template": template}))


def undo(invocation: Invocation) -> int:
    options = invocation.options
    target = _workload(options.target)
    answer = invocation.client.undo_rollout(
        operator_pb2.UndoRolloutRequest(
            ref=_ref(invocation, target),
            to_revision=options.to_revision,
            dry_run=options.dry_run,
        )
    )
    for warning in answer.warnings:
        print(f"warning: {target.label}: {safe(warning)}", file=sys.stderr)
    suffix = " (dry run)" if options.dry_run else ""
    print(
        f"{target.label} goes from revision {answer.from_revision} back to the template of "
        f"revision {answer.to_revision}{suffix}"
    )
    if not options.dry_run:
        print(f"  edgectl rollout status {target.label} follows it", file=sys.stderr)
    return 0


def pause(invocation: Invocation) -> int:
    def change(manifest: dict[str, Any]) -> None:
        manifest["spec"].setdefault("update", {})["paused"] = True

    return _each(invocation, "paused", "already paused", change)


def resume(invocation: Invocation) -> int:
    def change(manifest: dict[str, Any]) -> None:
        update = manifest["spec"].get("update", {})
        update.pop("paused", None)
        if not update:
            manifest["spec"].pop("update", None)

    return _each(invocation, "resumed", "not paused", change)


def restart(invocation: Invocation) -> int:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def change(manifest: dict[str, Any]) -> None:
        spec = manifest["spec"]
        if spec.get("run") == "once":
            raise CliError(
                f"workload/{manifest['metadata']['name']} is a job: it has nothing to restart"
            )
        if spec.get("update", {}).get("paused"):
            name = manifest["metadata"]["name"]
            raise CliError(
                f"workload/{name} is paused, so nothing would restart",
                f"edgectl rollout resume workload/{name} first",
            )
        spec["template"]["restartedAt"] = moment

    return _each(invocation, "restarted", "just restarted", change)


def _each(
    invocation: Invocation, done: str, unchanged: str, change: Callable[[dict[str, Any]], None]
) -> int:
    options = invocation.options
    for target in targets.parse(options.targets, names_needed=True):
        _check(target)
        changed = edit(invocation.client, _ref(invocation, target), change, dry_run=options.dry_run)
        suffix = " (dry run)" if options.dry_run else ""
        print(f"{target.label} {done if changed else unchanged}{suffix}", flush=True)
    return 0


def _workload(word: str) -> Target:
    target = targets.parse([word if "/" in word else f"workload/{word}"], names_needed=True)[0]
    _check(target)
    return target


def _check(target: Target) -> None:
    if target.info.name != "Workload":
        raise UsageError(f"{target.label} is not a workload: only workloads roll out")


def _ref(invocation: Invocation, target: Target) -> common_pb2.ResourceRef:
    return reference("Workload", invocation.namespace, target.name)
