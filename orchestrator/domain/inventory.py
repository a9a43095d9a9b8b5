"""What a node says it has: checked before anything believes it, and read back from the record.

The gateway refuses a node whose numbers cannot be true; the leader and the operator API read the
stored form. A broken agent must harm nobody but its own node.
"""

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from polder.manifest.quantity import MAX_BYTES, MAX_CPU_MILLIS
from polder.v1 import agent_pb2

DEVICES_MAX = 256
ACCELERATORS_MAX = 256
DEVICE_COUNT_MAX = 1_000_000
HOST_PATHS_MAX = 256
PATH_MAX = 4096
READ_ONLY = ":ro"
TEXT_MAX = 256
TEXTS = (
    "os",
    "kernel",
    "runtime_version",
    "machine_id",
    "model",
    "hostname",
    "hardware_profile",
    "hardware_id",
)
SITE_ENDPOINTS_MAX = 16
SITE_CERTIFICATE_MAX = 4096  # bytes
_AMOUNT_LIMITS = {
    "cpu_millis": MAX_CPU_MILLIS,
    "memory_bytes": MAX_BYTES,
    "disk_bytes": MAX_BYTES,
}


def problems(inventory: agent_pb2.NodeInventory) -> list[str]:
    """Everything that cannot be true of a machine; empty when it can be believed."""
    found = []
    for name in ("capacity", "reserved", "allocatable"):
        found += _resource_problems(name, getattr(inventory, name))
    for amount in _AMOUNT_LIMITS:
        has, gives = getattr(inventory.capacity, amount), getattr(inventory.allocatable, amount)
        if gives > has >= 0:
            found.append(f"allocatable.{amount} is {gives}, more than the capacity of {has}")
    if inventory.arch not in ("amd64", "arm64"):
        found.append(f"arch is {inventory.arch[:40]!r}, neither amd64 nor arm64")
    if len(inventory.accelerators) > ACCELERATORS_MAX:
        found.append(f"has {len(inventory.accelerators)} accelerators")
    for name in TEXTS:
        if len(getattr(inventory, name)) > TEXT_MAX:
            found.append(f"{name} is longer than {TEXT_MAX} characters")
    if len(inventory.addresses) > TEXT_MAX:
        found.append(f"has {len(inventory.addresses)} addresses")
    if len(inventory.host_paths) > HOST_PATHS_MAX:
        found.append(f"has {len(inventory.host_paths)} host paths")
    for path in inventory.host_paths[:HOST_PATHS_MAX]:
        if not path.startswith("/") or len(path) > PATH_MAX:
            found.append(f"hostPaths has {path[:40]!r}, which is no absolute path")
    return found + _site_problems(inventory)


def _site_problems(inventory: agent_pb2.NodeInventory) -> list[str]:
    """Of where and how peers and operators reach it: it is told to them as it is."""
    found = []
    told = (("site", inventory.site_endpoints), ("local", inventory.local_endpoints))
    for kind, endpoints in told:
        if len(endpoints) > SITE_ENDPOINTS_MAX:
            found.append(f"has {len(endpoints)} {kind} endpoints")
        for endpoint in endpoints[:SITE_ENDPOINTS_MAX]:
            host, _, port = endpoint.rpartition(":")
            if not host or len(endpoint) > TEXT_MAX or not _is_port(port):
                found.append(f"{kind}Endpoints has {endpoint[:40]!r}, which is not host:port")
    if len(inventory.site_certificate) > SITE_CERTIFICATE_MAX:
        found.append(f"siteCertificate has {len(inventory.site_certificate)} bytes")
    return found


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65535


def host_paths(inventory: agent_pb2.NodeInventory) -> tuple[str, ...]:
    """Paths that pods may see there, be it only for reading: what they may do the box enforces."""
    return tuple(sorted({path.removesuffix(READ_ONLY) for path in inventory.host_paths}))


def covers(allowed: str, path: str) -> bool:
    """Whether an allowed path admits another: itself and everything below, by whole components.

    `..` is not resolved but refused: it would lead out of what was allowed.
    """
    base, asked = _components(allowed), _components(path)
    return ".." not in asked and ".." not in base and asked[: len(base)] == base


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _resource_problems(name: str, resources: agent_pb2.Resources) -> list[str]:
    found = []
    for amount, limit in _AMOUNT_LIMITS.items():
        value = getattr(resources, amount)
        if not 0 <= value <= limit:
            found.append(f"{name}.{amount} is {value}, not between 0 and {limit}")
    if len(resources.devices) > DEVICES_MAX:
        found.append(f"{name} has {len(resources.devices)} kinds of devices")
    for device, count in list(resources.devices.items())[:DEVICES_MAX]:
        if not 0 <= count <= DEVICE_COUNT_MAX:
            found.append(f"{name}.devices[{device[:TEXT_MAX]}] is {count}")
    return found


def believable(heartbeat: agent_pb2.Heartbeat) -> bool:
    """Whether a heartbeat's numbers are numbers: neither NaN, infinite nor negative."""
    usage = heartbeat.usage
    amounts = (
        usage.cpu_millis,
        usage.memory_bytes,
        usage.disk_bytes,
        usage.network_rx_bytes,
        usage.network_tx_bytes,
        heartbeat.agent_memory_bytes,
        heartbeat.agent_cpu_seconds,
        heartbeat.replicas_running,
        heartbeat.replicas_ready,
    )
    return math.isfinite(usage.temperature_celsius) and all(
        math.isfinite(amount) and amount >= 0 for amount in amounts
    )


def stored_form(inventory: agent_pb2.NodeInventory) -> dict[str, Any]:
    """As NodeStatusRecord keeps it: camelCase keys, numbers as numbers, bytes as base64.

    The canonical JSON form of protobuf writes 64-bit integers as text, for JavaScript's sake; those
    who read a node's capacity want to compare it.
    """
    return _plain(inventory)


def _plain(message: Message) -> dict[str, Any]:
    form: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
            form[descriptor.json_name] = dict(value)
        elif descriptor.message_type is None:
            if isinstance(value, bytes):
                value = base64.b64encode(value).decode()
            form[descriptor.json_name] = list(value) if descriptor.is_repeated else value
        elif descriptor.is_repeated:
            form[descriptor.json_name] = [_plain(item) for item in value]
        else:
            form[descriptor.json_name] = _plain(value)
    return form


def from_stored(form: Mapping[str, Any]) -> agent_pb2.NodeInventory:
    """The message again; fields that this version does not know are dropped."""
    return agent_pb2.NodeInventory(**_arguments(agent_pb2.NodeInventory.DESCRIPTOR, form))


def site_access(form: Mapping[str, Any]) -> tuple[tuple[str, ...], bytes]:
    """(endpoints, certificate) by which its peers reach a node, from the stored form; both empty
    when they cannot."""
    try:
        certificate = base64.b64decode(form.get("siteCertificate", ""), validate=True)
    except (binascii.Error, ValueError, TypeError):
        return (), b""
    endpoints = tuple(form.get("siteEndpoints", ()))
    return (endpoints, certificate) if endpoints and certificate else ((), b"")


def _arguments(descriptor: Descriptor, form: Mapping[str, Any]) -> dict[str, Any]:
    """By hand, in a sixth of the time that json_format takes: the leader reads all nodes at once.

    Of 64-bit numbers the canonical form as text is taken, too.
    """
    found: dict[str, Any] = {}
    for key, value in form.items():
        field = descriptor.fields_by_camelcase_name.get(key)
        if field is None:
            continue
        kind = field.message_type
        if kind is None and field.type == field.TYPE_BYTES:
            found[field.name] = base64.b64decode(value)
        elif kind is None:
            found[field.name] = int(value) if field.cpp_type == field.CPPTYPE_INT64 else value
        elif kind.GetOptions().map_entry:
            whole = kind.fields_by_name["value"].cpp_type == field.CPPTYPE_INT64
            found[field.name] = {k: int(v) if whole else v for k, v in value.items()}
        elif field.is_repeated:
            found[field.name] = [_arguments(kind, item) for item in value]
        else:
            found[field.name] = _arguments(kind, value)
    return found
