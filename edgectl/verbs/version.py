"""`edgectl version`: both ends, and a warning when they are too far apart."""

import re
import sys

from edgectl.errors import CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.output import structured
from polder import __version__

MAX_MINOR_SKEW = 1


def run(invocation: Invocation) -> int:
    options = invocation.options
    if options.output not in ("", "json", "yaml"):
        raise UsageError(f"-o {options.output!r} is not a format", "formats: json, yaml")
    found: dict[str, object] = {"client": __version__}
    failure: CliError | None = None
    warning = ""
    if not options.client:
        try:
            answer = invocation.client.whoami()
        except CliError as error:
            failure = error
        else:
            found["server"] = answer.server_version
            found["member"] = f"{answer.region}/{answer.member}"
            found["identity"] = answer.identity
            found["roles"] = list(answer.roles)
            warning = skew(__version__, answer.server_version)
    if options.output:
        sys.stdout.write(structured(options.output, found))
    else:
        for key, value in found.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"{key + ':':<10}{shown}")
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    if failure is not None:
        raise failure
    return 0


def skew(client: str, server: str) -> str:
    """What to say about two versions that may not fit; empty when they do."""
    ours, theirs = _numbers(client), _numbers(server)
    if ours is None or theirs is None:
        return f"versions {client} and {server} cannot be compared"
    if ours[0] == theirs[0] and abs(ours[1] - theirs[1]) <= MAX_MINOR_SKEW:
        return ""
    older = "edgectl" if ours < theirs else "the orchestrator"
    return f"versions {client} and {server} are too far apart; upgrade {older}"


def _numbers(version: str) -> tuple[int, int] | None:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match.group(1)), int(match.group(2))) if match else None
