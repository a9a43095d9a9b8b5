"""`edgectl maintenance site/x`: windows that cordon a site, or drain it, and end by themselves."""

from typing import Any

from edgectl import targets, windows
from edgectl.edits import edit
from edgectl.errors import UsageError
from edgectl.invocation import Invocation
from edgectl.resources import Item, reference
from edgectl.targets import Target
from edgectl.text import moment


def run(invocation: Invocation) -> int:
    """Lists the windows when none is given and none is cleared."""
    options = invocation.options
    setting = bool(options.start or options.until or options.drain)
    if options.clear and setting:
        raise UsageError("--clear and a new window exclude each other")
    if setting and not options.until:
        raise UsageError("--until is missing: a window ends by itself", "such as --until +2h")
    for word in options.sites:
        target = targets.parse([word if "/" in word else f"site/{word}"], names_needed=True)[0]
        if target.info.name != "Site":
            raise UsageError(f"{target.label} is not a site: windows are of sites")
        if options.clear:
            _clear(invocation, target)
        elif setting:
            _set(invocation, target)
        else:
            _list(invocation, target)
    return 0


def _set(invocation: Invocation, target: Target) -> None:
    options = invocation.options
    now_ms = invocation.client.whoami().now_ms  # the window opens by the server's clock
    now_s = now_ms / 1000
    start_s = windows.at(options.start or "now", "--from", now_s)
    end_s = windows.at(options.until, "--until", start_s)
    new = windows.window(start_s, end_s, drain=options.drain, now_s=now_s)

    def change(manifest: dict[str, Any]) -> None:
        spec = manifest["spec"]
        spec["maintenance"] = windows.added(windows.listed(spec), new, now_s)

    suffix = " (dry run)" if options.dry_run else ""
    if edit(invocation.client, _ref(target), change, dry_run=options.dry_run):
        begins = "now" if start_s <= now_s else moment(int(start_s * 1000), now_ms)
        ends = moment(int(end_s * 1000), now_ms)
        what = "is drained" if options.drain else "gets no new replicas"
        print(f"{target.label} {what} from {begins} until {ends}{suffix}")
    else:
        print(f"{target.label} has that window already{suffix}")


def _clear(invocation: Invocation, target: Target) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["spec"].pop("maintenance", None)

    options = invocation.options
    changed = edit(invocation.client, _ref(target), change, dry_run=options.dry_run)
    suffix = " (dry run)" if options.dry_run else ""
    print(f"{target.label} {'has no windows any more' if changed else 'has no windows'}{suffix}")


def _list(invocation: Invocation, target: Target) -> None:
    answer = invocation.client.get(_ref(target))
    item = Item(answer.resource, answer.now_ms)
    found = list(windows.lines(item.spec, item.now_ms))
    if not found:
        print(f"{target.label} has no windows")
    for text in found:
        print(f"{target.label} {text}")


def _ref(target: Target) -> Any:
    return reference("Site", "", target.name)
