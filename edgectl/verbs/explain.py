"""`edgectl explain KIND.field`: the schema, from the same classes that check manifests."""

from edgectl.errors import CliError
from edgectl.invocation import Invocation
from polder.manifest.explain import explain


def run(invocation: Invocation) -> int:
    options = invocation.options
    try:
        print(explain(options.path, options.recursive))
    except ValueError as error:
        raise CliError(str(error), "edgectl explain lists the kinds") from None
    return 0
