"""`edgectl cordon` and `uncordon`; drain marks nodes through here too."""

from typing import Any

from edgectl import targets
from edgectl.edits import edit
from edgectl.invocation import Invocation
from edgectl.resources import reference


def cordon(invocation: Invocation) -> int:
    return _each(invocation, "cordoned", unschedulable=True)


def uncordon(invocation: Invocation) -> int:
    return _each(invocation, "uncordoned", unschedulable=False, draining=False)


def mark(invocation: Invocation, name: str, **wanted: bool) -> bool:
    """Set flags of a node's spec; False is written as absent. True if anything changed."""

    def change(manifest: dict[str, Any]) -> None:
        spec = manifest["spec"]
        for key, value in wanted.items():
            if value:
                spec[key] = True
            else:
                spec.pop(key, None)

    ref = reference("Node", "", name)
    return edit(invocation.client, ref, change, dry_run=invocation.options.dry_run)


def _each(invocation: Invocation, word: str, **wanted: bool) -> int:
    for given in invocation.options.nodes:
        name = targets.node_name(given)
        changed = mark(invocation, name, **wanted)
        suffix = " (dry run)" if invocation.options.dry_run else ""
        print(f"node/{name} {word if changed else 'already ' + word}{suffix}", flush=True)
    return 0
