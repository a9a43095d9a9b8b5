"""`edgectl set image workload/x app=registry/img:2`: one line instead of an edited file."""

from collections.abc import Iterator
from typing import Any

from edgectl import targets
from edgectl.edits import edit
from edgectl.errors import CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.resources import reference

ALL = "*"


def run(invocation: Invocation) -> int:
    options = invocation.options
    words = [word for word in options.targets if "=" not in word]
    images = parse_images([word for word in options.targets if "=" in word])
    wanted = targets.parse(words, names_needed=True)
    for target in wanted:
        if target.info.name != "Workload":
            raise UsageError(f"{target.label} is not a workload: it has no images")
    for target in wanted:

        def change(manifest: dict[str, Any], label: str = target.label) -> None:
            apply_images(manifest["spec"].get("template") or {}, images, label)

        ref = reference("Workload", invocation.namespace, target.name)
        changed = edit(invocation.client, ref, change, dry_run=options.dry_run)
        suffix = " (dry run)" if options.dry_run else ""
        text = "image updated" if changed else "has that image already"
        print(f"{target.label} {text}{suffix}", flush=True)
    return 0


def parse_images(words: list[str]) -> dict[str, str]:
    """By container. Raises UsageError."""
    if not words:
        raise UsageError("give CONTAINER=IMAGE, such as app=registry.example/hello:2")
    images: dict[str, str] = {}
    for word in words:
        container, _, image = word.partition("=")
        if not container or not image:
            raise UsageError(f"{word!r} is not CONTAINER=IMAGE")
        if container in images:
            raise UsageError(f"{container} is given twice")
        images[container] = image
    return images


def apply_images(template: dict[str, Any], images: dict[str, str], label: str) -> None:
    """In place. Raises CliError for a container that it does not have."""
    found = {str(container.get("name")): container for container in _containers(template)}
    missing = [name for name in images if name not in found and name != ALL]
    if missing:
        raise CliError(
            f"{label} has no container {missing[0]!r}", f"containers: {', '.join(found)}"
        )
    for name, container in found.items():
        image = images.get(name) or images.get(ALL)
        if image:
            container["image"] = image


def _containers(template: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key in ("containers", "initContainers"):
        for container in template.get(key) or []:
            if isinstance(container, dict):
                yield container
