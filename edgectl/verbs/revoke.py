"""`edgectl revoke`: an identity that is lost or stolen is refused from now on.

So is a break-glass token, by its serial: sites that can be told do not let it in any more.
"""

import sys
from collections.abc import Sequence

from edgectl import targets
from edgectl.errors import CliError, UsageError
from edgectl.invocation import Invocation
from polder.v1 import common_pb2

_BREAK_GLASS = "break-glass/"


def run(invocation: Invocation) -> int:
    options = invocation.options
    wanted = _wanted(options.targets)
    if not options.yes:
        _confirm([label for label, _, _ in wanted])
    for label, kind, name in wanted:
        ref = common_pb2.ResourceRef(kind=kind, name=name)
        response = invocation.client.revoke(ref, options.reason)
        print(f"{label} revoked{_closed(response.closed_streams)}", flush=True)
    return 0


def _wanted(words: Sequence[str]) -> list[tuple[str, str, str]]:
    """(label, kind, name) of each. Raises UsageError."""
    tokens = [word for word in words if word.startswith(_BREAK_GLASS)]
    others = [word for word in words if not word.startswith(_BREAK_GLASS)]
    found = [(word, "BreakGlass", word.removeprefix(_BREAK_GLASS)) for word in tokens]
    for target in targets.parse(others, names_needed=True) if others or not tokens else ():
        if target.info.name not in ("Node", "Operator"):
            raise UsageError(f"{target.label}: only nodes and operators have an identity to revoke")
        found.append((target.label, target.info.name, target.name))
    return found


def _closed(streams: int) -> str:
    if not streams:
        return ""
    return f" ({streams} open stream{'s' if streams > 1 else ''} closed)"


def _confirm(labels: list[str]) -> None:
    names = ", ".join(labels)
    if not sys.stdin.isatty():
        raise CliError(f"revoking {names} cannot be undone", "confirm it with --yes")
    print(f"{names}: the certificate will be refused for ever. Type yes: ", end="", flush=True)
    if sys.stdin.readline().strip().lower() != "yes":
        raise CliError("nothing was revoked")
