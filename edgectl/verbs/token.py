"""`edgectl token create`: the token alone on stdout, so that a script can take it."""

import sys

from edgectl.durations import option_seconds
from edgectl.errors import UsageError
from edgectl.invocation import Invocation
from polder.manifest.quantity import format_duration
from polder.tokens import InvalidToken, parse

MAX_TTL_S = 600


def create(invocation: Invocation) -> int:
    options = invocation.options
    ttl_s = option_seconds(options.ttl, "--ttl")
    if not 1 <= ttl_s <= MAX_TTL_S:
        raise UsageError(f"--ttl {options.ttl}: a join token lives from 1s to 10m")
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


def _endpoints(token: str) -> str:
    try:
        return f" (it will dial {', '.join(parse(token).endpoints)})"
    except InvalidToken:
        return ""
