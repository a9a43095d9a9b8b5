"""`edgectl fence`: vouch that an exclusive replica of a node that is not heard runs no more."""

import sys

from edgectl.invocation import Invocation
from edgectl.text import safe


def run(invocation: Invocation) -> int:
    """Without --force nothing is done, and the exit status is 1."""
    options = invocation.options
    replica = options.replica.removeprefix("replica/")
    answer = invocation.client.fence(invocation.namespace, replica, options.force)
    for warning in answer.warnings:
        print(f"Warning: {safe(warning)}", file=sys.stderr)
    print(safe(answer.message), flush=True)
    return 0 if answer.fenced else 1
