"""`edgectl label` and `edgectl taint`, with the syntax of kubectl."""

from collections.abc import Callable
from functools import partial
from typing import Any

from edgectl import changes, targets
from edgectl.edits import edit
from edgectl.errors import UsageError
from edgectl.invocation import Invocation
from edgectl.resources import reference
from edgectl.targets import Target


def label(invocation: Invocation) -> int:
    words, edits = changes.split(invocation.options.targets)
    wanted = targets.parse(words, names_needed=True)
    wished = [changes.parse_label(word) for word in edits]
    for target in wanted:
        if target.info.name == "Secret":
            raise UsageError("a secret's labels are changed by applying its manifest")
        if not target.info.editable:
            raise UsageError(f"{target.label} is read-only")

    def change(target: Target, manifest: dict[str, Any]) -> None:
        labels = manifest["metadata"].setdefault("labels", {})
        changes.apply_labels(
            labels, wished, overwrite=invocation.options.overwrite, what=target.label
        )
        if not labels:
            del manifest["metadata"]["labels"]

    return _each(invocation, wanted, "labeled", change)


def taint(invocation: Invocation) -> int:
    words, edits = changes.split(invocation.options.targets)
    if words and "/" not in words[0] and words[0] in ("node", "nodes", "no"):
        words = words[1:]  # `taint nodes edge-1 ...`, as with kubectl
    if not words:
        raise UsageError("name a node")
    names = [targets.node_name(word) for word in words]
    wished = [changes.parse_taint(word) for word in edits]
    node = targets.known_kind("node")

    def change(target: Target, manifest: dict[str, Any]) -> None:
        taints = manifest["spec"].get("taints") or []
        changed = changes.apply_taints(
            taints, wished, overwrite=invocation.options.overwrite, what=target.label
        )
        manifest["spec"]["taints"] = changed
        if not changed:
            del manifest["spec"]["taints"]

    return _each(invocation, [Target(node, name) for name in names], "tainted", change)


def _each(
    invocation: Invocation,
    wanted: list[Target],
    word: str,
    change: Callable[[Target, dict[str, Any]], None],
) -> int:
    options = invocation.options
    for target in wanted:
        namespace = invocation.namespace if target.info.namespaced else ""
        ref = reference(target.info.name, namespace, target.name)
        changed = edit(
            invocation.client,
            ref,
            partial(change, target),
            dry_run=options.dry_run,
        )
        suffix = " (dry run)" if options.dry_run else ""
        print(f"{target.label} {word if changed else 'unchanged'}{suffix}", flush=True)
    return 0
