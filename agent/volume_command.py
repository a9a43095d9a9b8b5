"""`edge-agent volume list|delete`: local data on this box, which nothing else ever deletes.

Called by `agent/main.py`. It works with and without a running agent, from the plan on disk: data of
a replica that the plan assigns to this box is in use.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from agent.state import CURRENT
from polder.manifest.names import HOST_NAME, LABEL
from polder.manifest.quantity import format_bytes
from polder.v1 import plan_pb2


class VolumeRefused(Exception):
    """The message says why the volume is not deleted, and what to do."""


@dataclass(frozen=True, slots=True)
class LocalData:
    """One directory. `changed_at`: unix seconds, of its newest entry."""

    namespace: str
    replica: str
    volume: str
    size_bytes: int
    changed_at: float
    in_use: bool


def found(state_dir: Path) -> list[LocalData]:
    """All local data of the box, by name. Raises OSError."""
    assigned = _assigned(state_dir)
    data = []
    for directory in sorted((state_dir / "volumes").glob("*/*/*")):
        volume, replica, namespace = (directory, *list(directory.parents)[:2])
        size, changed = _measure(directory)
        data.append(
            LocalData(
                namespace.name,
                replica.name,
                volume.name,
                size,
                changed,
                (namespace.name, replica.name) in assigned,
            )
        )
    return data


def _measure(directory: Path) -> tuple[int, float]:
    size, changed = 0, directory.stat().st_mtime
    for path in directory.rglob("*"):
        facts = path.lstat()
        size += facts.st_blocks * 512
        changed = max(changed, facts.st_mtime)
    return size, changed


def _assigned(state_dir: Path) -> set[tuple[str, str]]:
    """Replicas that the plan on disk gives to this box, and those that it still stops."""
    try:
        raw = (state_dir / CURRENT).read_bytes()
    except FileNotFoundError:
        return set()
    try:
        signed = plan_pb2.SignedNodePlan.FromString(raw)
        plan = plan_pb2.NodePlan.FromString(signed.node_plan)
    except DecodeError as error:
        raise VolumeRefused(f"the plan on disk cannot be read: {error}") from error
    named = {(item.namespace, item.replica) for item in plan.assignments}
    return named | {(item.namespace, item.replica) for item in plan.stops}


def _mounted() -> Iterator[str]:
    """What directories are mounted anywhere: containers that no plan names any more run on too."""
    for file in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):  # that process has ended
            for line in file.read_text(errors="replace").splitlines():
                yield line.split(" ")[3]


def table(state_dir: Path, now: float) -> str:
    """For people."""
    rows = [("NAMESPACE/REPLICA/VOLUME", "SIZE", "CHANGED", "USED")]
    for item in found(state_dir):
        name = f"{item.namespace}/{item.replica}/{item.volume}"
        changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(min(item.changed_at, now)))
        rows.append((name, format_bytes(item.size_bytes), changed, "yes" if item.in_use else "no"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ("   ".join((*map(str.ljust, row[:3], widths), row[3])) for row in rows)
    return "".join(line.rstrip() + "\n" for line in lines)


def delete(state_dir: Path, name: str) -> None:
    """Delete NAMESPACE/REPLICA/VOLUME. Raises VolumeRefused and OSError."""
    parts = name.split("/")
    if len(parts) != 3 or not all(
        pattern.fullmatch(part)
        for pattern, part in zip((LABEL, HOST_NAME, LABEL), parts, strict=True)
    ):
        raise VolumeRefused(f"{name!r} is not of the form NAMESPACE/REPLICA/VOLUME")
    directory = state_dir.joinpath("volumes", *parts)
    inside = f"/volumes/{name}"
    if not directory.is_dir():
        raise VolumeRefused(f"there is no {name}; `edge-agent volume list` shows what there is")
    if (parts[0], parts[1]) in _assigned(state_dir):
        raise VolumeRefused(
            f"{parts[1]} is assigned to this box: delete or move its workload first"
        )
    if any(root.endswith(inside) for root in _mounted()):
        raise VolumeRefused(f"a container on this box still has {name} mounted")
    shutil.rmtree(directory)
    for parent in (directory.parent, directory.parent.parent):
        try:
            parent.rmdir()
        except OSError:  # others are in it
            break
