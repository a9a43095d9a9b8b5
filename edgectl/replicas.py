"""Which replica, and which of its containers, is meant. Called by logs and exec."""

from edgectl import targets
from edgectl.columns import containers, status_words
from edgectl.errors import CallError, CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.resources import Item, reference


def chosen(invocation: Invocation, word: str) -> list[Item]:
    """`replica/x`, `x`, or `workload/x` for all of its replicas. Raises CliError for none."""
    target = targets.parse([word if "/" in word else f"replica/{word}"], names_needed=True)[0]
    if target.info.name == "Replica":
        return [_replica(invocation, target.name, plain="/" not in word)]
    if target.info.name != "Workload":
        raise UsageError(f"{word!r} is neither a replica nor a workload")
    namespace = invocation.namespace
    invocation.reader.get(reference("Workload", namespace, target.name))
    resources, now_ms = invocation.reader.list_all("Replica", namespace)
    items = [Item(resource, now_ms) for resource in resources]
    own = [item for item in items if item.spec.get("workload") == target.name]
    if not own:
        raise CliError(
            f"workload/{target.name} has no replicas",
            f"edgectl describe workload/{target.name} tells why",
        )
    return own


def single(invocation: Invocation, word: str, more_hint: str = "") -> Item:
    """Exactly one. Raises CliError with the choices when there are several."""
    found = chosen(invocation, word)
    if len(found) == 1:
        return found[0]
    choices = [f"{item.label}   {status_words(item)}" for item in found[:20]]
    rest = [f"... and {len(found) - 20} more"] if len(found) > 20 else []
    raise CliError(
        f"{word} has {len(found)} replicas; name one of them", *choices, *rest, more_hint
    )


def container_of(replica: Item, wanted: str) -> str:
    """The container's name; empty where the agent decides because none has been reported.

    Raises CliError when several could be meant or the wanted one does not exist.
    """
    names = [str(container.get("name")) for container in containers(replica.status)]
    if wanted:
        if names and wanted not in names:
            raise CliError(
                f"{replica.label} has no container {wanted!r}", f"containers: {', '.join(names)}"
            )
        return wanted
    if len(names) > 1:
        raise CliError(
            f"{replica.label} has several containers; choose one with -c",
            f"containers: {', '.join(names)}",
        )
    return names[0] if names else ""


def _replica(invocation: Invocation, name: str, *, plain: bool) -> Item:
    try:
        answer = invocation.reader.get(reference("Replica", invocation.namespace, name))
    except CallError as error:
        if error.code == "NOT_FOUND" and plain:
            error.hints = (*error.hints, f"for a workload's replicas write workload/{name}")
        raise
    return Item(answer.resource, answer.now_ms)
