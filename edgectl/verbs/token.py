"""`edgectl token create`: one token alone on stdout, for a script to take; or those of a pallet."""

import sys
from pathlib import Path

from edgectl.config_file import write_private
from edgectl.durations import option_seconds
from edgectl.errors import CliError, UsageError
from edgectl.invocation import Invocation
from polder.manifest.names import HOST_NAME, HOST_NAME_HELP
from polder.manifest.quantity import format_duration
from polder.tokens import InvalidToken, parse

# As the orchestrator allows: a token that any box can use is gone before it can get far.
MAX_TTL_S = 600
NAMED_MAX_TTL_S = 24 * 3600


def create(invocation: Invocation) -> int:
    options = invocation.options
    if options.count or options.out:
        return _pallet(invocation)
    if options.prefix or options.first is not None:
        raise UsageError("--prefix and --first name the boxes of a pallet: give --count and --out")
    ttl_s = _ttl(options.ttl or "10m", bool(options.node))
    response = invocation.client.create_join_token(options.site, options.node, round(ttl_s * 1000))
    print(response.token, flush=True)
    who = f"the node {options.node!r}" if options.node else "one node"
    print(
        f"Valid once, within {format_duration(ttl_s)}, for {who} at the site {options.site!r}.",
        f"On the box: edge-agent join{_endpoints(response.token)}",
        sep="\n",
        file=sys.stderr,
    )
    return 0


def _ttl(text: str, is_named: bool) -> float:
    ttl_s = option_seconds(text, "--ttl")
    longest = NAMED_MAX_TTL_S if is_named else MAX_TTL_S
    if not 1 <= ttl_s <= longest:
        most = format_duration(longest)
        hint = "" if is_named else "; one that names its node (--node, --count) up to 24h"
        raise UsageError(f"--ttl {text}: a join token lives from 1s to {most}{hint}")
    return ttl_s


def _endpoints(token: str) -> str:
    try:
        return f" (it will dial {', '.join(parse(token).endpoints)})"
    except InvalidToken:
        return ""


# --- a pallet of boxes ------------------------------------------------------------------------


def _pallet(invocation: Invocation) -> int:
    """A folder for each box. What is there already is not touched, and no token is made for it."""
    from edgectl import enrolment

    options = invocation.options
    ttl_s = _ttl(options.ttl or "24h", is_named=True)
    nodes, out = _nodes(invocation), Path(options.out)
    known = {resource.metadata.name for resource in invocation.client.list_all("Node")[0]}
    taken = [node for node in nodes if node in known or (out / node).exists()]
    if taken:
        what = "is a node already" if taken[0] in known else f"has a folder in {out} already"
        raise CliError(f"{taken[0]} {what}: choose another --prefix or --first, or delete it")
    _private_folder(out)
    for node in nodes:
        response = invocation.client.create_join_token(options.site, node, round(ttl_s * 1000))
        folder = out / node
        _private_folder(folder)
        for name, text in enrolment.seeds(node, response.token).items():
            write_private(folder / name, text, overwrite=False)
        print(node, flush=True)
    write_private(out / "README", enrolment.README, overwrite=True)
    print(
        f"{len(nodes)} folders in {out}; each token is valid once, within "
        f"{format_duration(ttl_s)}, for its node at the site {options.site!r}.",
        f"What to do with them: {out / 'README'}",
        sep="\n",
        file=sys.stderr,
    )
    return 0


def _nodes(invocation: Invocation) -> list[str]:
    """The names of the boxes. Raises UsageError."""
    from edgectl import enrolment

    options = invocation.options
    if not options.out or not options.count:
        raise UsageError("--count and --out belong together: how many boxes, and where to")
    if options.node:
        raise UsageError("--node is for one box; with --count the names are made from --prefix")
    first = 1 if options.first is None else options.first
    if not 1 <= options.count <= enrolment.COUNT_MAX or first < 0:
        raise UsageError(f"--count goes from 1 to {enrolment.COUNT_MAX}, --first from 0")
    names = enrolment.names(options.prefix or f"{options.site}-", first, options.count)
    for name in (names[0], names[-1]):
        if HOST_NAME.fullmatch(name) is None:
            raise UsageError(f"--prefix: {name!r} is not {HOST_NAME_HELP}")
    return names


def _private_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from error
