"""Which files, directories and devices a replica's pod needs. Pure; `agent/volumes.py` makes them.

Called by the reconcile state machine before a container starts, and after every plan for pods that
run: files from Configs and Secrets follow their source.
"""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.domain.given import Given, Unresolved
from agent.domain.plan import Assignment
from polder.manifest import Container, PodTemplate
from polder.manifest.names import FILE_NAME, HOST_NAME, LABEL
from polder.manifest.volumes import OWN_DIRECTORY, Volume, VolumeMount, is_taken

MEMORY_BYTES_DEFAULT = 64 << 20
READ_ONLY = ":ro"
EPOCH_FILE = "epoch"
EPOCH_VOLUME = "_epoch"  # no template can name a volume like this


@dataclass(frozen=True, slots=True)
class Projected:
    """Values of a Config or a Secret, by file name. Text is written as UTF-8."""

    volume: str
    secret: bool
    files: Mapping[str, str | bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Kept:
    """Files whose source is gone: they stay as they are."""

    volume: str
    secret: bool


@dataclass(frozen=True, slots=True)
class Scratch:
    """An empty directory that goes with the pod. `memory_bytes` 0: on disk, without a limit."""

    volume: str
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Local:
    """A directory that stays on the node."""

    volume: str
    namespace: str
    replica: str


@dataclass(frozen=True, slots=True)
class HostPath:
    """A path of the box."""

    volume: str
    path: str


@dataclass(frozen=True, slots=True)
class PodFiles:
    """All volumes of one pod."""

    volumes: tuple["PodVolume", ...] = ()


PodVolume = Projected | Kept | Scratch | Local | HostPath


def pod_files(
    assignment: Assignment,
    template: PodTemplate,
    given: Given,
    host_paths: Iterable[str],
    *,
    started: bool = False,
) -> PodFiles:
    """Raises Unresolved: ConfigMissing, SecretMissing, BadFileName, HostPathNotAllowed.

    `started`: the pod had a container before, so its files are there. One that is started again
    gets them as they are when their source is gone: a deletion must not end what runs.
    """
    made = [_volume(assignment, v, given, host_paths, started) for v in template.volumes]
    return PodFiles((*made, *epoch_files(assignment)))


def epoch_files(assignment: Assignment) -> tuple[Projected, ...]:
    """The epoch of a replica that another node may take over: it may rise while it runs, and who
    fences a storage by it must see that. Variables cannot change."""
    if assignment.group is None:
        return ()
    return (Projected(EPOCH_VOLUME, False, {EPOCH_FILE: f"{assignment.epoch}\n"}),)


def mounts_of(assignment: Assignment, container: Container) -> tuple[VolumeMount, ...]:
    """What the container mounts, ours included. Raises Unresolved: MountPathTaken."""
    mounts = container.volume_mounts
    if assignment.group is None:
        return mounts
    for mount in mounts:
        if is_taken(mount.mount_path):
            text = f"container {container.name}: {mount.mount_path}: {OWN_DIRECTORY} is Polder's"
            raise Unresolved(f"{text} in a replica with standbys", "MountPathTaken")
    return (*mounts, VolumeMount(EPOCH_VOLUME, OWN_DIRECTORY, True))


def projected_files(
    assignment: Assignment, template: PodTemplate, given: Given
) -> tuple[Projected, ...]:
    """Only what may change: from Configs and Secrets, and the epoch. Raises Unresolved."""
    found = (_projected(assignment.namespace, volume, given) for volume in template.volumes)
    return (*(item for item in found if item is not None), *epoch_files(assignment))


def _volume(
    assignment: Assignment,
    volume: Volume,
    given: Given,
    host_paths: Iterable[str],
    started: bool,
) -> PodVolume:
    try:
        projected = _projected(assignment.namespace, volume, given)
    except Unresolved:
        if not started:
            raise
        return Kept(volume.name, volume.secret is not None)
    if projected is not None:
        return projected
    if volume.local is not None:
        return _local(assignment, volume.name)
    if volume.host_path is not None:
        path = volume.host_path.path
        if allowing(host_paths, path) is None:
            text = f"volume {volume.name}: this node's configuration does not allow {path!r}"
            raise Unresolved(f"{text} (host_paths)", "HostPathNotAllowed")
        return HostPath(volume.name, path)
    scratch = volume.scratch
    if scratch is None or not scratch.memory:
        return Scratch(volume.name)
    return Scratch(volume.name, scratch.size_max or MEMORY_BYTES_DEFAULT)


def _projected(namespace: str, volume: Volume, given: Given) -> Projected | None:
    data: Mapping[str, str | bytes]
    if volume.config is not None:
        name, items, reason = volume.config.name, volume.config.items, "ConfigMissing"
        what, data = f"config {name!r}", given.config(namespace, name).data
    elif volume.secret is not None:
        name, items, reason = volume.secret.name, volume.secret.items, "SecretMissing"
        what, data = f"secret {name!r}", given.secret(namespace, name).data
    else:
        return None
    files: dict[str, str | bytes] = {}
    for key in sorted(items or data):
        if key not in data:
            raise Unresolved(f"volume {volume.name}: {what} has no key {key!r}", reason)
        file_name = items.get(key, key)
        if not FILE_NAME.fullmatch(file_name):
            text = f"volume {volume.name}: {what}: {file_name!r} is no file name; give one in items"
            raise Unresolved(text, "BadFileName")
        files[file_name] = data[key]
    return Projected(volume.name, volume.secret is not None, files)


def _local(assignment: Assignment, volume: str) -> Local:
    """Names become directories: they are checked here again, whoever signed the plan."""
    names = (assignment.namespace, assignment.replica, volume)
    if not all(p.fullmatch(n) for p, n in zip((LABEL, HOST_NAME, LABEL), names, strict=True)):
        raise Unresolved(f"volume {volume}: {'/'.join(names)!r} is no directory", "BadFileName")
    return Local(volume, assignment.namespace, assignment.replica)


@dataclass(frozen=True, slots=True)
class HostRule:
    """An entry of `host_paths`: the path with all that is below it."""

    path: str
    read_only: bool = False


def host_rule(text: str) -> HostRule:
    """`/srv/data` or `/srv/data:ro`. Raises ValueError for what is no plain absolute path."""
    read_only = text.endswith(READ_ONLY)
    path = text.removesuffix(READ_ONLY)
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise ValueError(f"{text!r} is no absolute path without '..'")
    clean = _clean(path)
    if clean == "/":
        raise ValueError(f"{text!r} would give away the whole box")
    return HostRule(clean, read_only)


def allowing(rules: Iterable[str], path: str) -> HostRule | None:
    """The entry that allows a path: of several the longest. None: none does.

    By the text alone; what its symbolic links lead to is checked when it is mounted.
    """
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        return None
    wanted = _clean(path)
    found = [rule for rule in map(host_rule, rules) if is_within(wanted, rule.path)]
    return max(found, key=lambda rule: len(rule.path), default=None)


def is_within(path: str, directory: str) -> bool:
    """Whether a clean path is the directory or below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _clean(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")
