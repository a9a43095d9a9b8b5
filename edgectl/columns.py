"""What tables show of each kind: NAME first, AGE last, every status with its age. Pure.

`status_words` is also what describe, wait and drain call the state of a resource.
"""

from collections.abc import Callable
from typing import Any

from edgectl import jobs
from edgectl.resources import Item
from edgectl.text import NONE, age, clock, since
from edgectl.windows import open_until
from polder import epochs
from polder.manifest.quantity import format_bytes, format_cpu, format_duration

_Cells = Callable[[Item], list[str]]


def headers(kind: str, *, wide: bool, namespaces: bool) -> list[str]:
    normal, extra, _, _ = _KINDS[kind]
    middle = [*normal, *extra] if wide else list(normal)
    return [*(["NAMESPACE"] if namespaces else []), "NAME", *middle, "AGE"]


def row(item: Item, *, wide: bool, namespaces: bool, prefixed: bool = False) -> list[str]:
    """Cells under `headers`. `prefixed`: the name says its kind, as in `node/edge-1`."""
    _, _, cells, more = _KINDS[item.kind]
    middle = [*cells(item), *more(item)] if wide else cells(item)
    name = item.label if prefixed else item.name
    first = [item.namespace or NONE] if namespaces else []
    return [*first, name, *middle, age(item.resource.metadata.created_at_ms, item.now_ms)]


def status_words(item: Item) -> str:
    """Such as `Ready,cordoned`, `Unknown since 14:02:11 (3m ago)`, `Pending (HostPortTaken)`."""
    if item.kind == "Node":
        return _node_status(item)
    if item.kind == "Workload":
        return _phase(item, "updatedAt")
    if item.kind == "Replica":
        return _phase(item, "observedAt")
    if item.kind == "Operator":
        return _operator_status(item)
    if item.kind in ("Site", "Provider") and not item.deleting:
        return _place_status(item)
    return "Deleting" if item.deleting else "Active"


def number(value: Any) -> int:
    """A count out of a status; 0 for anything else."""
    return int(value) if isinstance(value, int | float) else 0


# --- Node -------------------------------------------------------------------------------------


def _node_status(item: Item) -> str:
    status, spec = item.status, item.spec
    if status.get("revoked"):
        word = "Revoked"
    elif status.get("ready") is True:
        word = "Ready"
    else:
        word = "NotReady" if status.get("ready") is False else "Unknown"
        seen = number(status.get("sinceAt") or status.get("lastSeenAt"))
        word = f"{word} {since(seen, item.now_ms)}".strip()
    if spec.get("draining") or status.get("draining") is True:
        word += ",draining"
    elif spec.get("unschedulable") or status.get("cordoned"):
        word += ",cordoned"
    if item.deleting:
        word += ",deleting"
    return word


def _node(item: Item) -> list[str]:
    inventory = part(item.status, "inventory")
    allocatable, allocated = part(inventory, "allocatable"), part(item.status, "allocated")
    cpu = _share(allocated.get("cpuMillis"), allocatable.get("cpuMillis"), format_cpu)
    memory = _share(allocated.get("memoryBytes"), allocatable.get("memoryBytes"), format_bytes)
    return [
        _node_status(item),
        str(item.spec.get("site") or NONE),
        str(inventory.get("arch") or NONE),
        cpu,
        memory,
        str(number(item.status.get("replicas"))),
    ]


def _node_wide(item: Item) -> list[str]:
    inventory = part(item.status, "inventory")
    addresses = inventory.get("addresses")
    expires = number(item.status.get("certificateExpiresAt"))
    return [
        str((addresses if isinstance(addresses, list) and addresses else [NONE])[0]),
        str(inventory.get("os") or NONE),
        str(inventory.get("kernel") or NONE),
        str(inventory.get("runtimeVersion") or NONE),
        str(item.status.get("agentVersion") or NONE),
        _devices(part(item.status, "allocated"), part(inventory, "allocatable")),
        _expiry(expires, item.now_ms),
        ",".join(bad_conditions(item)) or NONE,
    ]


def _devices(allocated: dict[str, Any], allocatable: dict[str, Any]) -> str:
    """`polder.eu/gpu=1/2`"""
    used, total = part(allocated, "devices"), part(allocatable, "devices")
    shown = [f"{name}={number(used.get(name))}/{number(total[name])}" for name in sorted(total)]
    return ",".join(shown) or NONE


_NO_TROUBLE = ("Ready", "Cordoned", "Draining")  # STATUS says so


def bad_conditions(item: Item) -> list[str]:
    """Types of a node's conditions that report trouble; with a `?` those that did when last heard
    of."""
    shown = []
    for found in conditions(item.status):
        if found.get("type") not in _NO_TROUBLE and (holds(found) or unknown(found)):
            shown.append(f"{found.get('type')}{'?' if unknown(found) else ''}")
    return shown


def conditions(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The conditions of a status."""
    found = status.get("conditions")
    return [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []


def unknown(condition: dict[str, Any]) -> bool:
    """Whether it has not been heard of within its interval."""
    return "status" in condition and condition["status"] is None


def holds(condition: dict[str, Any]) -> bool:
    """Whether a condition is true, however the status is written."""
    return condition.get("status") is True or str(condition.get("status")).lower() == "true"


# --- Workload and Replica ---------------------------------------------------------------------


def _phase(item: Item, observed_key: str) -> str:
    status = item.status
    phase = str(status.get("phase") or "Pending")
    if item.deleting and phase not in ("Unknown",):
        return "Deleting"
    if phase == "Unknown":
        return f"Unknown {since(number(status.get(observed_key)), item.now_ms)}".strip()
    reason = status.get("reason") or _container_reason(status)
    settled = phase == "Running" and (status.get("ready") or item.kind == "Workload")
    settled = settled and reason != "NonCompliant"  # it runs well, where it must not
    return f"{phase} ({reason})" if reason and not settled else phase


def _container_reason(status: dict[str, Any]) -> str:
    for container in containers(status):
        if container.get("reason") and not container.get("ready"):
            return str(container["reason"])
    return ""


def containers(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The containers of a replica's status."""
    found = status.get("containers")
    return [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []


def _workload(item: Item) -> list[str]:
    status = item.status
    ready = f"{number(status.get('ready'))}/{number(status.get('replicas'))}"
    if jobs.is_job(item) or jobs.is_schedule(item):
        ready = jobs.progress(item)
    return [ready, _phase(item, "updatedAt"), str(number(status.get("revision")))]


def _workload_wide(item: Item) -> list[str]:
    status = item.status
    template = part(item.spec, "template")
    given = template.get("containers")
    images = [str(c.get("image")) for c in given or [] if isinstance(c, dict)]
    return [
        str(number(status.get("placed"))),
        str(number(status.get("running"))),
        str(number(status.get("updated"))),
        str(item.spec.get("priority") or 0),
        ",".join(images) or NONE,
        str(status.get("message") or NONE),
    ]


def _replica(item: Item) -> list[str]:
    status = item.status
    own = containers(status)
    ready = sum(1 for container in own if container.get("ready"))
    shown = "?" if status.get("phase") == "Unknown" else str(ready)  # what it said is old
    return [
        f"{shown}/{len(own)}",
        _phase(item, "observedAt"),
        _restarts(item),
        str(item.spec.get("node") or status.get("node") or NONE),
    ]


def _restarts(item: Item) -> str:
    """`3 (2m ago)`: when the last container before this one ended."""
    own = containers(item.status)
    total = number(item.status.get("restarts")) or sum(number(c.get("restarts")) for c in own)
    ends = [number(part(c, "lastExit").get("finishedAt")) for c in own]
    if total and any(ends):
        return f"{total} ({age(max(ends), item.now_ms)} ago)"
    return str(total)


def _replica_wide(item: Item) -> list[str]:
    status = item.status
    ports = status.get("hostPorts")
    observed = number(status.get("observedAt"))
    return [
        str(status.get("podIp") or NONE),
        ",".join(str(port) for port in ports) if isinstance(ports, list) and ports else NONE,
        str(number(item.spec.get("revision"))),
        epochs.shown(number(status.get("epoch")) or number(item.spec.get("epoch"))),
        _standbys(status),
        clock(observed, item.now_ms) if observed else NONE,
        str(status.get("message") or NONE),
    ]


def _standbys(status: dict[str, Any]) -> str:
    """`1/2`: how many could take it over now, of how many shall be able to."""
    found = status.get("standbys")
    states = [s.get("state") for s in found if isinstance(s, dict)] if found else []
    able, all_ = states.count("Able"), len(states) - states.count("Votes")
    return f"{able}/{all_}" if all_ else NONE


# --- the other kinds --------------------------------------------------------------------------


def _place_status(item: Item) -> str:
    """Of a site or a provider: whether new replicas come there, by its own record."""
    until_s, drains = open_until(item.spec, item.now_ms)
    words = ["Cordoned"] if item.spec.get("unschedulable") else []
    if until_s:
        what = "Draining" if drains else "Maintenance"
        words.append(f"{what} until {clock(int(until_s * 1000), item.now_ms)}")
    return ",".join(words) or "Active"


def _config(item: Item) -> list[str]:
    return [str(len(part(item.spec, "data")))]


def _volume(item: Item) -> list[str]:
    return [str(item.spec.get(key) or NONE) for key in ("replica", "volume", "node")]


def _site(item: Item) -> list[str]:
    status = item.status
    return [
        status_words(item),
        str(item.spec.get("provider") or NONE),
        str(item.spec.get("country") or NONE),
        str(item.spec.get("region") or NONE),
        f"{number(status.get('ready'))}/{number(status.get('nodes'))}",
    ]


def _provider(item: Item) -> list[str]:
    facts = [str(item.spec.get(key) or NONE) for key in ("legalName", "seatCountry")]
    return [status_words(item), *facts]


def _namespace(item: Item) -> list[str]:
    return [status_words(item), str(item.spec.get("description") or NONE)[:60]]


def _secret(item: Item) -> list[str]:
    return [str(item.spec.get("type") or "Opaque"), str(len(part(item.spec, "data")))]


def _operator(item: Item) -> list[str]:
    roles = item.spec.get("roles")
    expires = number(item.status.get("certificateExpiresAt"))
    shown = ",".join(str(role) for role in roles) if isinstance(roles, list) else ""
    return [shown or NONE, _operator_status(item), _expiry(expires, item.now_ms)]


def _operator_status(item: Item) -> str:
    if item.status.get("revoked"):
        return "Revoked"
    expires = number(item.status.get("certificateExpiresAt"))
    return "Expired" if expires and expires <= item.now_ms else "Valid"


def _nothing(_: Item) -> list[str]:
    return []


_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], _Cells, _Cells]] = {
    "Node": (
        ("STATUS", "SITE", "ARCH", "CPU", "MEMORY", "REPLICAS"),
        ("ADDRESS", "OS", "KERNEL", "RUNTIME", "AGENT", "DEVICES", "CERTIFICATE", "CONDITIONS"),
        _node,
        _node_wide,
    ),
    "Workload": (
        ("READY", "STATUS", "REVISION"),
        ("PLACED", "RUNNING", "UPDATED", "PRIORITY", "IMAGES", "MESSAGE"),
        _workload,
        _workload_wide,
    ),
    "Replica": (
        ("READY", "STATUS", "RESTARTS", "NODE"),
        ("IP", "HOSTPORTS", "REVISION", "EPOCH", "STANDBYS", "OBSERVED", "MESSAGE"),
        _replica,
        _replica_wide,
    ),
    "Site": (("STATUS", "PROVIDER", "COUNTRY", "REGION", "READY"), (), _site, _nothing),
    "Provider": (("STATUS", "LEGAL-NAME", "COUNTRY"), (), _provider, _nothing),
    "Namespace": (("STATUS", "DESCRIPTION"), (), _namespace, _nothing),
    "Secret": (("TYPE", "DATA"), (), _secret, _nothing),
    "Config": (("DATA",), (), _config, _nothing),
    "Volume": (("REPLICA", "VOLUME", "NODE"), (), _volume, _nothing),
    "Operator": (("ROLES", "STATUS", "CERTIFICATE"), (), _operator, _nothing),
}


def part(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    """A mapping inside of a status; empty for anything else."""
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def _share(used: Any, total: Any, shown: Callable[[int], str]) -> str:
    if not total:
        return NONE
    return f"{shown(number(used))}/{shown(number(total))}"


def _expiry(expires_ms: int, now_ms: int) -> str:
    if not expires_ms:
        return NONE
    left = (expires_ms - now_ms) / 1000
    return f"{format_duration(left)} left" if left > 0 else "expired"
