"""`edgectl revoke`: an identity that is lost or stolen is refused from now on."""

import sys

from edgectl import targets
from edgectl.errors import CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.resources import reference


def run(invocation: Invocation) -> int:
    options = invocation.options
    wanted = targets.parse(options.targets, names_needed=True)
    for target in wanted:
        if target.info.name not in ("Node", "Operator"):
            raise UsageError(f"{target.label}: only nodes and operators have an identity to revoke")
    if not options.yes:
        _confirm([target.label for target in wanted])
    for target in wanted:
        ref = reference(target.info.name, "", target.name)
        response = invocation.client.revoke(ref, options.reason)
        print(f"{target.label} revoked{_closed(response.closed_streams)}", flush=True)
    return 0


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
