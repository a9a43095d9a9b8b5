"""`edgectl --site-endpoint` stop, start, restart, move, freeze, unfreeze and overrides.

What they decide is written down at the site, obeyed there, and told to the orchestrator once it is
back (docs/local-operators.md).
"""

import sys
from collections.abc import Iterable
from typing import Any

from edgectl import replicas
from edgectl.errors import CallError, UsageError
from edgectl.invocation import Invocation
from edgectl.output import structured
from edgectl.plain import plain
from edgectl.site.client import Changed
from edgectl.text import safe
from polder.v1 import local_pb2

_ELSEWHERE = {
    "stop": "edgectl scale workload/NAME --replicas N",
    "start": "edgectl scale workload/NAME --replicas N",
    "restart": "edgectl rollout restart workload/NAME",
    "move": "edgectl drain NODE",
    "unfreeze": "edgectl thaw",
    "overrides": "edgectl override list",
}
_AS_IT_IS = ("NotFrozen",)  # of a node that was not frozen, where another one was


def needs_site(invocation: Invocation) -> int:
    """Without --site-endpoint. Raises UsageError."""
    verb = invocation.options.verb
    raise UsageError(
        f"{verb} is decided at a site: name one of its nodes with --site-endpoint HOST[:PORT]",
        f"at the orchestrator it is {_ELSEWHERE[verb]}",
    )


def stop(invocation: Invocation) -> int:
    return _each(invocation, "stop")


def start(invocation: Invocation) -> int:
    return _each(invocation, "start")


def restart(invocation: Invocation) -> int:
    return _each(invocation, "restart")


def move(invocation: Invocation) -> int:
    replica = replicas.single(invocation, invocation.options.target)
    request = _request(invocation, "move")
    request.namespace, request.replica = replica.namespace, replica.name
    request.to_node = invocation.options.to
    return _say(invocation, [(replica.label, invocation.site.change_replica(request))])


def freeze(invocation: Invocation) -> int:
    """It is of the whole site: a namespace would be a smaller promise than is kept."""
    if invocation.explicit_namespace:
        raise UsageError("a site is frozen as a whole", "leave --namespace out")
    return _whole(invocation, "freeze")


def unfreeze(invocation: Invocation) -> int:
    return _whole(invocation, "unfreeze")


def overrides(invocation: Invocation) -> int:
    from edgectl.site import presenting

    options = invocation.options
    picture = invocation.site.picture
    shown = [known for known in picture.overrides() if options.all or known.in_force]
    if options.output not in ("", "wide"):
        documents = [presenting.override_view(known) for known in shown]
        sys.stdout.write(structured(options.output, documents))
        return 0
    if not shown:
        print(f"Nothing is decided locally at site {picture.site}.", file=sys.stderr)
        return 0
    for line in presenting.override_lines(picture, shown, wide=options.output == "wide"):
        print(line)
    return 0


def _each(invocation: Invocation, verb: str) -> int:
    """All targets are found before the first is changed; then one after the other."""
    names: dict[tuple[str, str], str] = {}
    for word in invocation.options.targets:
        for item in replicas.chosen(invocation, word):
            names[(item.namespace, item.name)] = item.label
    done: list[tuple[str, Changed]] = []
    failed: list[tuple[str, CallError]] = []
    for (namespace, name), label in names.items():
        request = _request(invocation, verb)
        request.namespace, request.replica = namespace, name
        try:
            done.append((label, invocation.site.change_replica(request)))
        except CallError as error:
            failed.append((label, error))
    if done or invocation.options.output:
        _say(invocation, done)
    for label, failure in failed[:-1]:
        print(f"error: {label}: {safe(failure.message)}", file=sys.stderr)
    if failed:
        raise failed[-1][1]
    return 0


def _whole(invocation: Invocation, verb: str) -> int:
    done, failed = invocation.site.change_site(_request(invocation, verb))
    site = f"site/{invocation.site.picture.site}"
    _say(invocation, [(site, changed) for changed in done])
    failed = [(node, error) for node, error in failed if error.reason not in _AS_IT_IS]
    for node, error in failed:
        print(f"warning: not at {node}: {safe(error.message)}", file=sys.stderr)
    return 1 if failed else 0


def _request(invocation: Invocation, verb: str) -> local_pb2.ChangeRequest:
    options = invocation.options
    reason = getattr(options, "reason", "")
    return local_pb2.ChangeRequest(verb=verb, reason=reason, dry_run=options.dry_run)


def _say(invocation: Invocation, done: Iterable[tuple[str, Changed]]) -> int:
    options = invocation.options
    output = getattr(options, "output", "")
    if output:
        sys.stdout.write(structured(output, [_view(label, changed) for label, changed in done]))
        return 0
    where: dict[str, list[str]] = {}
    for _, changed in done:
        where.setdefault(changed.answer.message, []).append(changed.node)
        for warning in changed.answer.warnings:
            print(f"warning: {safe(changed.node)}: {safe(warning)}", file=sys.stderr)
    for message, nodes in where.items():
        print(f"{safe(message)} [{safe(', '.join(nodes))}]", flush=True)
    return 0


def _view(label: str, changed: Changed) -> dict[str, Any]:
    answer = changed.answer
    return {
        "target": label,
        "node": changed.node,
        "message": answer.message,
        "warnings": list(answer.warnings),
        "override": plain(answer.override) if answer.HasField("override") else None,
    }
