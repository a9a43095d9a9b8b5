"""`edgectl cordon`, `uncordon` and `undrain`; drain marks nodes through here too."""

from typing import Any

from edgectl import targets
from edgectl.edits import edit
from edgectl.errors import UsageError
from edgectl.invocation import Invocation
from edgectl.resources import Item, reference
from edgectl.targets import Target

CORDONED_KINDS = ("Node", "Site", "Provider")


def cordon(invocation: Invocation) -> int:
    for target in places(invocation.options.nodes):
        changed = mark(invocation, target, unschedulable=True)
        _told(invocation, target, "cordoned", "already cordoned", changed=changed)
    return 0


def uncordon(invocation: Invocation) -> int:
    """Also ends a drain: a node that takes new replicas does not send its own away."""
    for target in places(invocation.options.nodes):
        wanted: dict[str, Any] = {"unschedulable": False}
        if target.info.name == "Node":
            wanted |= {"draining": False, "drainDeadline": None}
        changed = mark(invocation, target, **wanted)
        _told(invocation, target, "uncordoned", "already uncordoned", changed=changed)
    return 0


def undrain(invocation: Invocation) -> int:
    for target in nodes_of(invocation, invocation.options.nodes):
        changed = mark(invocation, target, draining=False, drainDeadline=None)
        name = target.name
        done = f"no longer draining; it stays cordoned until edgectl uncordon {name}"
        _told(invocation, target, done, "not draining", changed=changed)
    return 0


def mark(invocation: Invocation, target: Target, **wanted: object) -> bool:
    """Set fields of a spec; False and None are written as absent. True if anything changed."""

    def change(manifest: dict[str, Any]) -> None:
        spec = manifest["spec"]
        for key, value in wanted.items():
            if value:
                spec[key] = value
            else:
                spec.pop(key, None)

    ref = reference(target.info.name, "", target.name)
    return edit(invocation.client, ref, change, dry_run=invocation.options.dry_run)


def places(words: list[str]) -> list[Target]:
    """Nodes, sites and providers; a plain name is a node. Raises UsageError."""
    found = [_target(word) for word in words]
    for target in found:
        if target.info.name not in CORDONED_KINDS:
            raise UsageError(f"{target.label} is neither a node nor a site nor a provider")
    return list(dict.fromkeys(found))


def nodes_of(invocation: Invocation, words: list[str]) -> list[Target]:
    """Nodes, and the nodes of sites, in order. Raises UsageError, also for an empty site."""
    found: list[Target] = []
    for target in places(words):
        if target.info.name == "Node":
            found.append(target)
            continue
        if target.info.name != "Site":
            raise UsageError(f"{target.label}: name nodes or sites")
        invocation.client.get(reference("Site", "", target.name))  # a name that is not there
        listed, _ = invocation.client.list_all("Node")
        node = targets.known_kind("node")
        items = [Item(resource, 0) for resource in listed]
        names = [Target(node, item.name) for item in items if item.spec.get("site") == target.name]
        if not names:
            raise UsageError(f"{target.label} has no nodes")
        found += names
    return list(dict.fromkeys(found))


def _target(word: str) -> Target:
    return targets.parse([word if "/" in word else f"node/{word}"], names_needed=True)[0]


def _told(
    invocation: Invocation, target: Target, done: str, unchanged: str, *, changed: bool
) -> None:
    suffix = " (dry run)" if invocation.options.dry_run else ""
    print(f"{target.label} {done if changed else unchanged}{suffix}", flush=True)
