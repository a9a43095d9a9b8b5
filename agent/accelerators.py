"""Accelerators of a box: from CDI specs and from device nodes. `agent/inventory.py` asks.

CDI (Container Device Interface, github.com/cncf-tags/container-device-interface, SPEC.md) is what
the runtime acts on, so a device that has a CDI name is known by it, and its bare node is not
counted again.
"""

import fnmatch
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_SPEC_BYTES = 1 << 20
MAX_DEVICES = 256

# Resource name -> device node patterns and CDI kinds. `devices` of agent.toml overrides it by name.
DEFAULT_DEVICES: Mapping[str, tuple[str, ...]] = {
    "polder.eu/gpu": ("nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu", "/dev/nvidia[0-9]*",
                      "/dev/dri/renderD*"),
    "polder.eu/npu": ("intel.com/npu", "hailo.ai/npu", "/dev/accel/accel*", "/dev/accel[0-9]*",
                      "/dev/hailo*"),
    "polder.eu/tpu": ("google.com/tpu", "/dev/apex_*"),
}  # fmt: skip
_PCI_VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel", "0x1ac1": "google",
                "0x1e60": "hailo"}  # fmt: skip
_KIND = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z][\w.-]*")
_NAME = re.compile(r"[A-Za-z0-9]([\w.:-]*[A-Za-z0-9])?")


class UnreadableSpec(ValueError):
    """A CDI spec that cannot be used."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """`id` is a CDI name (`vendor.com/class=name`) or a device path; `nodes` are its paths."""

    resource: str
    id: str
    vendor: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CdiDevice:
    kind: str
    name: str
    nodes: tuple[str, ...]


def find(root: Path, devices: Mapping[str, tuple[str, ...]]) -> tuple[list[Accelerator], list[str]]:
    """What the box below `root` has, and complaints about specs that cannot be read."""
    table = {**DEFAULT_DEVICES, **devices}
    cdi, complaints = _cdi_devices(root)
    found = [
        Accelerator(resource, f"{d.kind}={d.name}", d.kind.partition(".")[0], d.nodes)
        for d in cdi
        if (resource := _resource_of_kind(table, d.kind))
    ]
    covered = {node for accelerator in found for node in accelerator.nodes}
    cdi_vendors = {accelerator.vendor for accelerator in found}
    vendors_by_device_node: set[str] = set()
    for resource, patterns in table.items():
        for node in _nodes(root, patterns):
            vendor = _vendor(root, node)
            is_render = node.startswith("/dev/dri/")
            # A driver with nodes of its own gives a render node too: one card is not two.
            if node in covered or (is_render and vendor in cdi_vendors | vendors_by_device_node):
                continue
            covered.add(node)
            if not is_render and vendor:
                vendors_by_device_node.add(vendor)
            found.append(Accelerator(resource, node, vendor, (node,)))
    return sorted(found[:MAX_DEVICES], key=lambda a: (a.resource, a.id)), complaints


def _resource_of_kind(table: Mapping[str, tuple[str, ...]], kind: str) -> str:
    return next((resource for resource, patterns in table.items() if kind in patterns), "")


def _nodes(root: Path, patterns: tuple[str, ...]) -> Iterator[str]:
    for pattern in patterns:
        if not pattern.startswith("/dev/"):
            continue
        directory, _, name = pattern.rpartition("/")
        try:
            entries = sorted(p.name for p in (root / directory[1:]).iterdir())
        except OSError:
            continue
        yield from (f"{directory}/{entry}" for entry in entries if fnmatch.fnmatch(entry, name))


def _vendor(root: Path, node: str) -> str:
    name = node.rpartition("/")[2]
    for prefix, vendor in (("nvidia", "nvidia"), ("apex_", "google"), ("hailo", "hailo")):
        if name.startswith(prefix):
            return vendor
    for group in ("drm", "accel"):
        device = root / "sys/class" / group / name / "device"
        try:
            code = (device / "vendor").read_text().strip()
        except OSError:
            if vendor := _vendor_of_chip(device):
                return vendor
            continue
        return _PCI_VENDORS.get(code, code)
    return ""


def _vendor_of_chip(device: Path) -> str:
    """Of a device that is part of the chip, on no bus with vendors: as the device tree names it."""
    try:
        facts = (device / "uevent").read_text()
    except OSError:
        return ""
    named = re.search(r"^OF_COMPATIBLE_0=([\w.-]+),", facts, re.MULTILINE)
    return named[1] if named else ""


# --- CDI --------------------------------------------------------------------------------------


def _cdi_devices(root: Path) -> tuple[list[CdiDevice], list[str]]:
    """Of both standard directories; a spec in /var/run/cdi overrides one in /etc/cdi."""
    found: dict[tuple[str, str], CdiDevice] = {}
    complaints = []
    for directory in ("etc/cdi", "var/run/cdi"):
        try:
            files = sorted((root / directory).iterdir())
        except OSError:
            continue
        for file in files:
            if file.suffix not in (".json", ".yaml", ".yml"):
                continue
            try:
                for device in read_spec(file):
                    found[device.kind, device.name] = device
            except (OSError, ValueError) as error:
                complaints.append(f"/{directory}/{file.name}: {error}")
    return _distinct(found.values()), complaints


def _distinct(devices: Iterable[CdiDevice]) -> list[CdiDevice]:
    """Without the name `all` and without second names (index and UUID) of one device.

    A kind with no other name than `all` is one device: Jetsons, by older releases of nvidia-ctk.
    """
    kept: dict[object, CdiDevice] = {}
    kinds = set()
    for device in sorted(devices, key=lambda d: (d.kind, d.name == "all", len(d.name), d.name)):
        if device.name != "all" or device.kind not in kinds:
            kinds.add(device.kind)
            key = (device.kind, device.nodes or device.name)
            kept.setdefault(key, device)
    return list(kept.values())


def read_spec(file: Path) -> list[CdiDevice]:
    """The devices of one spec file. Raises OSError and UnreadableSpec."""
    with file.open("rb") as source:
        raw = source.read(MAX_SPEC_BYTES + 1)
    if len(raw) > MAX_SPEC_BYTES:
        raise UnreadableSpec("larger than 1 MiB")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise UnreadableSpec("not UTF-8") from None
    kind, devices = _parse_json(text) if file.suffix == ".json" else _parse_yaml(text)
    if not _KIND.fullmatch(kind):
        raise UnreadableSpec(f"{kind[:80]!r} is no CDI kind")
    for name, _ in devices:
        if not _NAME.fullmatch(name):
            raise UnreadableSpec(f"{name[:80]!r} is no CDI device name")
    return [CdiDevice(kind, name, nodes) for name, nodes in devices]


def _parse_json(text: str) -> tuple[str, list[tuple[str, tuple[str, ...]]]]:
    try:
        spec = json.loads(text)
        devices = []
        for device in spec["devices"]:
            nodes = (device.get("containerEdits") or {}).get("deviceNodes") or ()
            devices.append((str(device["name"]), tuple(str(n["path"]) for n in nodes)))
        return str(spec["kind"]), devices
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableSpec(f"not a CDI spec ({type(error).__name__}: {error})") from error


_YAML_PAIR = re.compile(r"( *)((?:- +)*)([A-Za-z]+):(?: +(.*?))?\s*$")


def _parse_yaml(text: str) -> tuple[str, list[tuple[str, tuple[str, ...]]]]:
    """The `kind`, and of each device `name` and device node `path`s, of a block-style YAML spec.

    The agent carries no YAML library. This reads what `nvidia-ctk cdi generate` and its like write:
    keys in block style, one per line. Anything cleverer where it matters is refused, not guessed.
    """
    kind = ""
    devices: list[tuple[str, tuple[str, ...]]] = []
    nodes: list[str] = []
    name, column, inside = "", -1, False
    for line in text.splitlines():
        if "\t" in line[: len(line) - len(line.lstrip())]:
            raise UnreadableSpec("tabs in the indentation")
        pair = _YAML_PAIR.fullmatch(line)
        if pair is None:
            if line[:1] in "{[&*!%":
                raise UnreadableSpec("only block-style YAML is read; use JSON")
            continue
        indent, dashes, key, value = len(pair[1]), pair[2], pair[3], pair[4] or ""
        at = indent + len(dashes)
        if at == 0:
            inside = key == "devices"
            if key == "kind":
                kind = _scalar(value)
            if inside and value:
                raise UnreadableSpec("only block-style YAML is read; use JSON")
            continue
        if not inside:
            continue
        if dashes and column in (-1, at):  # a new item of the list of devices
            if column != -1:
                devices.append((name, tuple(nodes)))
            name, nodes, column = "", [], at
        if at == column and key == "name":
            name = _scalar(value)
        elif key == "path" and value.strip("\"'").startswith("/dev/"):
            nodes.append(_scalar(value))
    if column != -1:
        devices.append((name, tuple(nodes)))
    if not kind or not devices:
        raise UnreadableSpec("no kind or no devices found; only block-style YAML is read; use JSON")
    return kind, devices


def _scalar(value: str) -> str:
    if value[:1] in ("&", "*", "!", "|", ">", "{", "["):
        raise UnreadableSpec("only plain YAML values are read; use JSON")
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value.partition(" #")[0].strip()
