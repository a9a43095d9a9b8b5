"""What one can wait for: ready, running, delete, a job's end, a condition, a value. Pure.

A condition looks at a resource (None: it does not exist) and gives a `Verdict`; called by wait,
delete and drain.
"""

from collections.abc import Callable
from dataclasses import dataclass

from edgectl import jobs
from edgectl.columns import conditions, number, status_words, unknown
from edgectl.errors import UsageError
from edgectl.jsonpath import Template
from edgectl.resources import Item


@dataclass(frozen=True, slots=True)
class Verdict:
    """`why` is what is missing, or what was found. `hopeless`: it will not be met any more."""

    met: bool
    why: str = ""
    hopeless: bool = False


Condition = Callable[[Item | None], Verdict]


def parse(text: str) -> Condition:
    """What follows `--for`. Raises UsageError."""
    word, _, rest = text.partition("=")
    if text in _SIMPLE:
        return _SIMPLE[text]
    if word == "condition" and rest:
        kind, _, status = rest.partition("=")
        return _condition(kind, status or "true")
    if word == "jsonpath" and rest:
        return _jsonpath(rest)
    raise UsageError(
        f"--for {text!r} is not something to wait for",
        "wait for ready, running, delete, complete, failed, condition=TYPE[=STATUS] or "
        "jsonpath={PATH}[=VALUE]",
    )


def ready(item: Item | None) -> Verdict:
    """All replicas run the newest spec and are ready; or the node or replica is ready."""
    if item is None:
        return Verdict(False, "does not exist yet")
    if item.deleting:
        return Verdict(False, "is being deleted")
    if item.kind == "Workload":
        return _workload(item, "ready")
    if item.kind == "Site":
        counts = number(item.status.get("ready")), number(item.status.get("nodes"))
        return Verdict(0 < counts[0] == counts[1], f"{counts[0]} of {counts[1]} nodes ready")
    return Verdict(item.status.get("ready") is True, _state(item))


def running(item: Item | None) -> Verdict:
    """All replicas run the newest spec, ready or not."""
    if item is None:
        return Verdict(False, "does not exist yet")
    if item.deleting:
        return Verdict(False, "is being deleted")
    if item.kind == "Workload":
        return _workload(item, "running")
    if item.kind == "Replica":
        return Verdict(item.status.get("phase") == "Running", _state(item))
    return ready(item)


def gone(item: Item | None) -> Verdict:
    """It does not exist."""
    if item is None:
        return Verdict(True, "does not exist")
    if item.kind == "Workload":
        message = str(item.status.get("message", ""))
        return Verdict(False, f"{status_words(item)}: {message}" if message else status_words(item))
    return Verdict(False, status_words(item))


def complete(item: Item | None) -> Verdict:
    """The job ended well. One that failed never will."""
    if item is None:
        return Verdict(False, "does not exist yet")
    ended, why = jobs.outcome(item)
    hopeless = ended not in ("", "Complete") or not jobs.is_job(item)
    return Verdict(ended == "Complete", why, hopeless)


def failed(item: Item | None) -> Verdict:
    """The job ended, and not well."""
    if item is None:
        return Verdict(False, "does not exist yet")
    ended, why = jobs.outcome(item)
    hopeless = ended == "Complete" or not jobs.is_job(item)
    return Verdict(ended not in ("", "Complete"), why, hopeless)


_SIMPLE: dict[str, Condition] = {
    "ready": ready,
    "running": running,
    "delete": gone,
    "complete": complete,
    "failed": failed,
}


def _workload(item: Item, key: str) -> Verdict:
    status = item.status
    if jobs.is_schedule(item):
        return Verdict(True, "it is scheduled")
    if jobs.is_job(item) and (jobs.outcome(item)[0] or key == "ready"):
        return complete(item)
    if number(status.get("observedGeneration")) < item.resource.metadata.generation:
        return Verdict(False, "the newest spec has not been looked at yet")
    desired, count = number(status.get("replicas")), number(status.get(key))
    updated = number(status.get("updated", desired))
    why = f"{count} of {desired} replicas {key}"
    if updated < desired:
        why += f", {updated} updated"
    reason = " ".join(str(status[k]) for k in ("reason", "message") if status.get(k))
    met = count >= desired and updated >= desired
    return Verdict(met, f"{why}: {reason}" if reason and not met else why)


def _state(item: Item) -> str:
    message = item.status.get("message")
    words = status_words(item)
    return f"{words}: {message}" if message else words


def _condition(kind: str, wanted: str) -> Condition:
    if kind.lower() == "ready" and wanted.lower() == "true":
        return ready  # no condition here, but what kubectl's users write

    def check(item: Item | None) -> Verdict:
        if item is None:
            return Verdict(False, "does not exist yet")
        for found in conditions(item.status):
            if str(found.get("type")).lower() == kind.lower():
                status = "unknown" if unknown(found) else str(found.get("status")).lower()
                reason = " ".join(str(found.get(k) or "") for k in ("reason", "message")).strip()
                return Verdict(status == wanted.lower(), f"{kind} is {status} {reason}".strip())
        return Verdict(False, f"it has no condition {kind}")

    return check


def _jsonpath(text: str) -> Condition:
    """`{.status.phase}=Running`; without a value: that the path finds something."""
    end = text.rfind("}") if text.startswith("{") else text.find("=") - 1
    path, rest = (text, "") if end < 0 else (text[: end + 1], text[end + 1 :])
    wanted = rest.removeprefix("=")
    if rest and not rest.startswith("="):
        raise UsageError(f"--for jsonpath: expected {{PATH}} or {{PATH}}=VALUE, found {text!r}")
    template = Template(path)
    template.values({})

    def check(item: Item | None) -> Verdict:
        if item is None:
            return Verdict(False, "does not exist yet")
        values = template.values(item.view())
        shown = [value if isinstance(value, str) else _json(value) for value in values]
        if not rest:
            return Verdict(bool(values), f"{path} finds {', '.join(shown) or 'nothing'}")
        return Verdict(wanted in shown, f"{path} is {', '.join(shown) or 'not there'}")

    return check


def _json(value: object) -> str:
    import json

    return json.dumps(value)
