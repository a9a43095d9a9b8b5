"""`edgectl apply -f`: all files are checked before any is sent, and they are sent together."""

import sys
from collections.abc import Sequence

from edgectl.errors import CallError, InvalidFiles, UsageError
from edgectl.invocation import Invocation
from edgectl.manifests import ManifestFile, load_all
from edgectl.output import structured
from edgectl.requests import bundles, lines_of
from edgectl.resources import Item
from edgectl.text import safe
from polder.v1 import operator_pb2

OUTCOMES = {
    operator_pb2.APPLY_OUTCOME_CREATED: "created",
    operator_pb2.APPLY_OUTCOME_CONFIGURED: "configured",
    operator_pb2.APPLY_OUTCOME_UNCHANGED: "unchanged",
}


def run(invocation: Invocation) -> int:
    options = invocation.options
    if options.output not in ("", "name", "json", "yaml"):
        raise UsageError(f"-o {options.output!r} is not a format", "formats: name, json, yaml")
    files = read_files(invocation)
    applied: list[Item] = []
    done = 0
    for bundle in bundles(files):
        try:
            response = send(invocation, bundle, dry_run=options.dry_run)
        except (CallError, InvalidFiles) as error:
            _say_what_is_done(files, done, dry_run=options.dry_run)
            raise error
        done += len(bundle)
        for result in response.results:
            applied.append(Item(result.resource, 0))
            _report(result, options.output, dry_run=options.dry_run)
    if options.output in ("json", "yaml"):
        views = [item.view() for item in applied]
        whole = views[0] if len(views) == 1 else _list(views)
        sys.stdout.write(structured(options.output, whole))
    return 0


def read_files(invocation: Invocation) -> list[ManifestFile]:
    """What -f names, checked, with namespaces filled in. Raises InvalidFiles."""
    options = invocation.options
    return load_all(
        options.filename,
        recursive=options.recursive,
        default_namespace=invocation.namespace,
        only_namespace=invocation.explicit_namespace,
    )


def send(
    invocation: Invocation, files: Sequence[ManifestFile], *, dry_run: bool
) -> operator_pb2.ApplyResponse:
    """Files as one request. Raises InvalidFiles with lines when the server finds violations."""
    documents = [
        operator_pb2.Document(json=document.encoded())
        for file in files
        for document in file.documents
    ]
    name = files[0].name if len(files) == 1 else f"{len(files)} files"
    try:
        return invocation.client.apply(documents, dry_run=dry_run)
    except CallError as error:
        if not error.violations:
            error.message = f"{name}: {error.message}"
            raise
        lines = lines_of(files, error)
        what = "the orchestrator refused this; nothing of it was applied"
        refused = InvalidFiles(f"{name}: {what}", lines)
        refused.hints = error.hints
        raise refused from error


def _report(result: operator_pb2.ApplyResult, output: str, *, dry_run: bool) -> None:
    label = Item(result.resource, 0).label
    for warning in result.warnings:
        print(f"warning: {label}: {safe(warning)}", file=sys.stderr)
    if output == "name":
        print(label)
    elif not output:
        outcome = OUTCOMES.get(result.outcome, "applied")
        print(f"{label} {outcome}{' (dry run)' if dry_run else ''}", flush=True)


def _say_what_is_done(files: Sequence[ManifestFile], failed: int, *, dry_run: bool) -> None:
    if len(files) < 2 or dry_run:
        return
    done = ", ".join(file.name for file in files[:failed]) or "none"
    left = ", ".join(file.name for file in files[failed:])
    print(f"applied: {done}; not applied: {left}", file=sys.stderr)


def _list(views: list[dict[str, object]]) -> dict[str, object]:
    return {"apiVersion": "polder.eu/v1", "kind": "List", "items": views}
