"""The text of `edgectl describe`, without the events. Pure.

Values of secrets are never part of it.
"""

from base64 import b64decode
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

from edgectl import jobs, windows
from edgectl.columns import conditions, containers, number, part, status_words, unknown
from edgectl.resources import Item
from edgectl.text import NONE, age, moment, safe, since
from polder import epochs
from polder.manifest.quantity import format_bytes, format_cpu, format_duration

_WIDTH = 20
_REDACTED = "REDACTED"  # what the server sends to whoever may not read secrets
# Ends of keys whose numbers have these units.
_FORMATS = {"Bytes": format_bytes, "Millis": format_cpu}


def description(item: Item) -> list[str]:
    """Lines, sections from the general to the particular."""
    return [
        *_heading(item),
        *(_BODIES.get(item.kind) or _other)(item),
    ]


def _heading(item: Item) -> Iterator[str]:
    metadata = item.resource.metadata
    yield _pair("Name", item.name)
    if item.namespace:
        yield _pair("Namespace", item.namespace)
    yield _pair("Kind", item.kind)
    yield from _mapping("Labels", dict(metadata.labels))
    yield from _mapping("Annotations", dict(metadata.annotations))
    yield _pair("Created", moment(metadata.created_at_ms, item.now_ms))
    if metadata.deletion_requested_at_ms:
        yield _pair("Deletion", moment(metadata.deletion_requested_at_ms, item.now_ms))
    yield _pair("Generation", metadata.generation)
    yield _pair("Status", status_words(item))
    for key in ("reason", "message"):
        if item.status.get(key):
            yield _pair(f"  {key.capitalize()}", item.status[key])
    if metadata.changed_by:
        changed = moment(metadata.changed_at_ms, item.now_ms)
        yield _pair("Last change", f"{changed} by {metadata.changed_by}")
    if number(item.status.get("asOfAt")):
        old = since(number(item.status["asOfAt"]), item.now_ms)
        yield _pair("Known", f"not {old}: the orchestrator cannot read its store")


def _node(item: Item) -> Iterator[str]:
    status, inventory = item.status, part(item.status, "inventory")
    source = status.get("source") or NONE
    yield _pair("Last seen", f"{moment(number(status.get('lastSeenAt')), item.now_ms)} by {source}")
    yield _pair("Session", "open" if status.get("session") else "none")
    yield _pair("Agent version", status.get("agentVersion") or NONE)
    expires = number(status.get("certificateExpiresAt"))
    yield _pair("Certificate until", moment(expires, item.now_ms))
    plan = f"generation {number(status.get('planGeneration'))}"
    yield _pair("Plan", f"{plan}, acknowledged {number(status.get('ackedGeneration'))}")
    if status.get("planError"):
        yield _pair("Plan error", status["planError"])
    yield _pair("Site", item.spec.get("site") or NONE)
    yield from _leaving(item)
    taints = item.spec.get("taints")
    yield from _list("Taints", [_taint(t) for t in taints] if isinstance(taints, list) else [])
    if inventory:
        yield from _machine(item, inventory)
    else:
        yield _pair("Inventory", "not reported yet")
    usage = part(status, "usage")
    if usage:
        measured = number(status.get("usageAt") or status.get("lastSeenAt"))
        shown = f"measured {moment(measured, item.now_ms)}"
        if status.get("usageKnown") is False:
            shown = f"unknown {since(measured, item.now_ms)}; when last heard:"
        yield _pair("Usage", shown)
        yield from _usage(usage, part(inventory, "capacity"))
    yield from _conditions(item)


def _leaving(item: Item) -> Iterator[str]:
    """Why no new replicas come, and until when those that are there leave."""
    if item.status.get("cordoned"):
        yield _pair("No new replicas", item.status["cordoned"])
    if item.status.get("draining") is True or item.spec.get("draining"):
        deadline = item.spec.get("drainDeadline")
        text = "its replicas move away"
        if deadline:
            text += f"; what is left at {deadline} is stopped"
        yield _pair("Draining", text)


def _machine(item: Item, inventory: dict[str, Any]) -> Iterator[str]:
    machine = {k: v for k, v in inventory.items() if k not in _RESOURCE_PARTS and v}
    if "siteCertificate" in machine:
        machine["siteCertificate"] = _fingerprint(machine["siteCertificate"])
    observed = number(item.status.get("inventoryAt"))
    yield _pair("Inventory", f"reported {moment(observed, item.now_ms)}")
    yield from _tree(machine, 2, item.now_ms)
    yield "Resources:"
    yield from _resources(inventory, part(item.status, "allocated"))


def _fingerprint(certificate: object) -> str:
    """Enough to compare it: all of it is seven hundred characters, and in -o json."""
    try:
        der = b64decode(str(certificate), validate=True)
    except ValueError:
        return "not readable"
    return f"sha256:{sha256(der).hexdigest()}"


def _usage(usage: dict[str, Any], capacity: dict[str, Any]) -> Iterator[str]:
    """Sensors that the box does not have are left out: temperature 0, battery -1."""
    cores = number(usage.get("cpuMillis")) / 1000
    yield _pair("  CPU", f"{cores:.2f} cores{_of(usage, capacity, 'cpuMillis', format_cpu)}")
    for title, key in (("Memory", "memoryBytes"), ("Disk", "diskBytes")):
        shown = format_bytes(number(usage.get(key)))
        yield _pair(f"  {title}", f"{shown}{_of(usage, capacity, key, format_bytes)}")
    received, sent = (number(usage.get(f"network{way}Bytes")) for way in ("Rx", "Tx"))
    network = f"{format_bytes(received)} received, {format_bytes(sent)} sent since it booted"
    yield _pair("  Network", network)
    if number(usage.get("temperatureCelsius")):
        yield _pair("  Temperature", f"{usage['temperatureCelsius']:g} degrees Celsius")
    battery = number(usage.get("batteryPercent", -1))
    if battery >= 0:
        source = "running on it" if usage.get("onBattery") else "on mains power"
        yield _pair("  Battery", f"{battery} percent, {source}")


def _of(used: dict[str, Any], total: dict[str, Any], key: str, shown: Callable[[int], str]) -> str:
    whole = number(total.get(key))
    if not whole:
        return ""
    return f" ({100 * number(used.get(key)) / whole:.0f} percent of {shown(whole)})"


_RESOURCE_PARTS = ("capacity", "reserved", "allocatable")


def _resources(inventory: dict[str, Any], allocated: dict[str, Any]) -> Iterator[str]:
    parts = [part(inventory, name) for name in _RESOURCE_PARTS] + [allocated]
    yield f"  {'':<12}{'CAPACITY':<12}{'RESERVED':<12}{'ALLOCATABLE':<14}ALLOCATED"
    for title, key, shown in (
        ("cpu", "cpuMillis", format_cpu),
        ("memory", "memoryBytes", format_bytes),
        ("disk", "diskBytes", format_bytes),
    ):
        cells = [shown(number(p.get(key))) for p in parts]
        yield f"  {title:<12}{cells[0]:<12}{cells[1]:<12}{cells[2]:<14}{cells[3]}"
    for device in sorted(part(parts[0], "devices")):
        counts = [str(number(part(p, "devices").get(device))) for p in parts]
        yield f"  {safe(device)}: {counts[0]} of which allocatable {counts[2]}, in use {counts[3]}"


def _conditions(item: Item) -> Iterator[str]:
    """`Ready true since 14:02:11 (3m ago) [agent/edge-1, heard 2s ago]`."""
    found = conditions(item.status)
    if found:
        yield "Conditions:"
    for condition in found:
        words = [condition.get("reason"), condition.get("message")]
        text = ": ".join(str(word) for word in words if word)
        heard = number(condition.get("lastHeardAt"))
        if unknown(condition):
            state = f"unknown {since(heard, item.now_ms)}"
        else:
            state = str(condition.get("status")).lower()
            state += f" {since(number(condition.get('lastTransitionAt')), item.now_ms)}"
        source = str(condition.get("source") or "")
        if heard and source:
            source += f", heard {age(heard, item.now_ms)} ago"
        line = f"{condition.get('type')} {state} {text}{f' [{source}]' if source else ''}"
        yield f"  {safe(' '.join(line.split()))}"


def _rollout(item: Item) -> Iterator[str]:
    rollout = part(item.status, "rollout")
    if not rollout:
        return
    at = since(number(rollout.get("sinceAt")), item.now_ms)
    yield _pair("Rollout", f"{rollout.get('phase')} {at}".strip())
    if rollout.get("message"):
        yield _pair("  Message", rollout["message"])
    proven = number(rollout.get("provenRevision"))
    revisions = f"newest {number(rollout.get('newestRevision'))}, "
    revisions += f"led to {number(rollout.get('targetRevision'))}, proven {proven or NONE}"
    yield _pair("  Revisions", revisions)


def _workload(item: Item) -> Iterator[str]:
    status = item.status
    counts = ("replicas", "placed", "running", "ready", "updated")
    shown = ", ".join(f"{number(status.get(key))} {key}" for key in counts)
    if number(status.get("unknown")):
        shown += f", {number(status['unknown'])} unknown"
    yield _pair("Counts", shown.replace("replicas", "wanted", 1))
    if status.get("frozen"):
        yield _pair("Frozen", status["frozen"])
    yield _pair("Revision", number(status.get("revision")))
    for title, text in jobs.described(item):
        yield _pair(title, text) if title else " " * _WIDTH + text
    yield from _rollout(item)
    yield _pair("Observed", moment(number(status.get("updatedAt")), item.now_ms))
    yield from _conditions(item)
    waiting = status.get("waiting")
    for entry in waiting if isinstance(waiting, list) else []:
        if isinstance(entry, dict):
            who = safe(entry.get("replica") or "all of it")
            yield f"Waits {who}: {safe(entry.get('reason'))}: {safe(entry.get('message') or '')}"
    unplaced = status.get("unplaced")
    for entry in unplaced if isinstance(unplaced, list) else []:
        if isinstance(entry, dict):
            yield f"Unplaced {safe(entry.get('replica'))}: {safe(entry.get('message') or '')}"
            for reason in entry.get("reasons") or []:
                if isinstance(reason, dict):
                    nodes = number(reason.get("nodes"))
                    yield f"  {nodes} node{'' if nodes == 1 else 's'}: {safe(reason.get('reason'))}"
    yield "Spec:"
    yield from _tree(item.spec, 2, item.now_ms)


def _replica(item: Item) -> Iterator[str]:
    spec, status = item.spec, item.status
    yield _pair("Workload", spec.get("workload") or NONE)
    yield _pair("Node", spec.get("node") or status.get("node") or NONE)
    revision = f"{number(spec.get('revision'))} (epoch {epochs.shown(number(spec.get('epoch')))})"
    yield _pair("Revision", revision)
    observed = moment(number(status.get("observedAt")), item.now_ms)
    yield _pair("Observed", f"{observed} by {status.get('source') or NONE}")
    if number(status.get("placedAt")):
        yield _pair("Placed", moment(number(status["placedAt"]), item.now_ms))
    yield from _takeovers(item)
    waits = part(status, "waits")
    if waits:
        yield _pair("Waits", f"{waits.get('reason')}: {waits.get('message')}")
    if status.get("phase") == "Unknown" and status.get("containers"):
        last = since(number(status.get("observedAt")), item.now_ms)
        yield _pair("Below", f"as it was when last heard of; unknown {last}")
    yield _pair("Pod IP", status.get("podIp") or NONE)
    ports = status.get("hostPorts")
    shown = ", ".join(str(port) for port in ports) if isinstance(ports, list) else ""
    yield _pair("Host ports", shown or NONE)
    yield _pair("Started", moment(number(status.get("startedAt")), item.now_ms))
    yield _pair("Restarts", number(status.get("restarts")))
    yield from _conditions(item)
    for container in containers(status):
        yield f"Container {safe(container.get('name'))}:"
        yield from _container(container, item.now_ms)


def _takeovers(item: Item) -> Iterator[str]:
    """What its site did by itself, and who could take it over now."""
    status, now_ms = item.status, item.now_ms
    if number(status.get("epoch")) > number(item.spec.get("epoch")):
        shown = epochs.shown(number(status["epoch"]))
        yield _pair("Epoch now", f"{shown}: its site counted on")
    took = part(status, "tookOver")
    if took:
        yield _pair(
            "Taken over", f"from {took.get('from')} {since(number(took.get('at')), now_ms)}"
        )
    for stay in _mappings(status, "localStays"):
        ready = "ready" if stay.get("ready") else "not ready"
        when = since(number(stay.get("sinceAt")), now_ms)
        text = f"on {stay.get('node')}, {ready} {when}".rstrip()
        shown = epochs.shown(number(stay.get("epoch")))
        yield _pair("Runs also", f"{text} (epoch {shown}): its site decided, and nobody else yet")
    standbys = [_standby(found, now_ms) for found in _mappings(status, "standbys")]
    if standbys:
        yield from _list("Standbys", standbys)


def _standby(found: dict[str, Any], now_ms: int) -> str:
    words = [str(found[key]) for key in ("state", "reason", "message") if found.get(key)]
    heard = number(found.get("lastHeardAt"))
    age_ = f" [heard {age(heard, now_ms)} ago]" if heard else ""
    return f"{found.get('node')} {': '.join(words)}{age_}"


def _mappings(status: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = status.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _container(container: dict[str, Any], now_ms: int) -> Iterator[str]:
    state = str(container.get("state") or NONE)
    yield _pair("  State", f"{state}, {'ready' if container.get('ready') else 'not ready'}")
    for key in ("reason", "message", "image", "id"):
        if container.get(key):
            yield _pair(f"  {key.capitalize()}", container[key])
    for title, key in (("Started", "startedAt"), ("Finished", "finishedAt")):
        if container.get(key):
            yield _pair(f"  {title}", moment(number(container[key]), now_ms))
    if container.get("finishedAt"):
        yield _pair("  Exit code", container.get("exitCode"))
    yield _pair("  Restarts", number(container.get("restarts")))
    last = part(container, "lastExit")
    if last:
        at = moment(number(last.get("finishedAt")), now_ms)
        words = f"exit code {last.get('exitCode')}, {last.get('reason') or NONE}, {at}"
        yield _pair("  Last exit", words)
        if last.get("message"):
            yield _pair("    Message", last["message"])
        for line in str(last.get("lastLog") or "").splitlines():
            yield f"    | {safe(line)}"


def _secret(item: Item) -> Iterator[str]:
    yield _pair("Type", item.spec.get("type") or "Opaque")
    data = part(item.spec, "data")
    sizes = [
        f"{safe(key)}: " + ("hidden" if value == _REDACTED else f"{len(str(value))} characters")
        for key, value in sorted(data.items())
    ]
    yield from _list("Data", sizes)


def _site(item: Item) -> Iterator[str]:
    status = item.status
    nodes = f"{number(status.get('nodes'))}, of which {number(status.get('ready'))} ready"
    yield _pair("Nodes", nodes)
    yield from _list("Maintenance", list(windows.lines(item.spec, item.now_ms)))
    yield from _conditions(item)
    yield "Spec:"
    yield from _tree({k: v for k, v in item.spec.items() if k != "maintenance"}, 2, item.now_ms)


def _config(item: Item) -> Iterator[str]:
    data = part(item.spec, "data")
    sizes = [f"{safe(key)}: {len(str(value))} characters" for key, value in sorted(data.items())]
    yield from _list("Data", sizes)


def _other(item: Item) -> Iterator[str]:
    if item.spec:
        yield "Spec:"
        yield from _tree(item.spec, 2, item.now_ms)
    if item.status:
        yield "Details:"
        yield from _tree(item.status, 2, item.now_ms)


_BODIES = {
    "Node": _node,
    "Workload": _workload,
    "Replica": _replica,
    "Secret": _secret,
    "Site": _site,
    "Config": _config,
}


# --- pieces -----------------------------------------------------------------------------------


def _pair(title: str, value: object) -> str:
    return f"{title + ':':<{_WIDTH}}{safe(value)}".rstrip()


def _mapping(title: str, values: dict[str, str]) -> Iterator[str]:
    yield from _list(title, [f"{key}={value}" for key, value in sorted(values.items())])


def _list(title: str, values: list[str]) -> Iterator[str]:
    for number_, value in enumerate(values or [NONE]):
        yield _pair(title, value) if number_ == 0 else " " * _WIDTH + safe(value)


def _taint(taint: Any) -> str:
    if not isinstance(taint, dict):
        return safe(taint)
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint.get('key')}{value}:{taint.get('effect')}"


def _tree(value: Any, indent: int, now_ms: int) -> Iterator[str]:
    """Nested data in the shape of YAML; numbers with units in a form for people."""
    pad = " " * indent
    if isinstance(value, dict):
        for key, child in value.items():
            if isinstance(child, dict | list) and child:
                yield f"{pad}{safe(key)}:"
                yield from _tree(child, indent + 2, now_ms)
            else:
                yield f"{pad}{safe(key)}: {_leaf(str(key), child, now_ms)}"
    elif isinstance(value, list):
        for child in value:
            lines = list(_tree(child, indent + 2, now_ms))
            if lines:
                yield f"{pad}- {lines[0].lstrip()}"
                yield from lines[1:]
    else:
        yield f"{pad}{safe(value)}"


def _leaf(key: str, value: Any, now_ms: int) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | float):
        return NONE if value in (None, {}, []) else safe(value)
    if key.endswith("At"):
        return moment(int(value), now_ms)
    for suffix, shown in _FORMATS.items():
        if key.endswith(suffix):
            return shown(int(value))
    return format_duration(value) if key.endswith("Seconds") else f"{value:g}"
