"""Makes the files and directories that pods see, keeps them current, and clears them away.

Called by `agent/operations.py` around the start and the end of a pod. What a pod needs is decided
in `agent/domain/files.py`; here is what touches the disk:

    <state>/pods/<sandbox id>/<volume>     files of a Config, a scratch directory, or a tmpfs
    <secrets>/<sandbox id>/<volume>        files of a Secret
    <state>/volumes/<namespace>/<replica>/<volume>    local data: never cleared away here

`<secrets>` lies below /run where that is in memory; elsewhere it is `<state>/secrets`, and
`secrets_in_memory` says so. Everything above what a container sees is for root alone, so that the
modes inside matter only to containers that mount it: 0644 for Configs, 0444 for Secrets, 0777 for
directories that are written to.

A volume of files is written as the kubelet does it: names are links to `..data/NAME`, and `..data`
is a link to a directory that is never changed. A new version is complete before `..data` turns to
it with one rename: whoever reads sees all of the old or all of the new one, and a write that fails
leaves the old one in use.
"""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from agent import mounts
from agent.domain.files import (
    HostPath,
    HostRule,
    Kept,
    Local,
    PodFiles,
    Projected,
    Scratch,
    allowing,
    host_rule,
    is_within,
)
from agent.runtime.port import ContainerFailure, Device, Mount
from polder.manifest.volumes import VolumeMount

log = logging.getLogger(__name__)

RUN = Path("/run")
DATA = "..data"
LEFTOVER_AGE_S = 60.0
CONFIG_MODE, SECRET_MODE, OPEN_MODE = 0o644, 0o444, 0o777

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Owner:
    """As whom a container runs, as far as that is known."""

    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the runtime is to show the container."""

    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()


class Volumes:
    """`host_paths` as in the agent's configuration. Its methods may be called at any time.

    `runtime_socket`: of the runtime that is to see what is mounted here; None: it does.
    """

    def __init__(
        self,
        state: Path,
        host_paths: Iterable[str] = (),
        run: Path = RUN,
        runtime_socket: Path | None = None,
    ) -> None:
        self._state = state
        self._runtime_socket = runtime_socket
        self._host_paths = tuple(host_paths)
        self._pods = state / "pods"
        self._local = state / "volumes"
        self.secrets_in_memory = mounts.is_in_memory(run)
        own = sha256(str(state.resolve()).encode()).hexdigest()[:12]
        self.secrets = run / f"polder-agent-{own}" if self.secrets_in_memory else state / "secrets"
        self._roots = (self._pods, self.secrets)
        self._lock = asyncio.Lock()
        self._told = False

    async def prepare(
        self, pod_id: str, files: PodFiles, wanted: Sequence[VolumeMount], owner: Owner
    ) -> Prepared:
        """What a container mounts, made where it is not there yet. Raises ContainerFailure."""
        if not wanted:
            return Prepared()
        return await self._guarded(lambda: self._prepare(pod_id, files, wanted, owner))

    async def update(self, pod_id: str, files: Sequence[Projected]) -> None:
        """New contents for a pod that runs: seen at once. Raises ContainerFailure."""

        def write() -> None:
            for item in files:
                self._write(pod_id, item)

        await self._guarded(write)

    async def discard(self, pod_id: str) -> None:
        """The pod is gone. What cannot be removed now is removed by a later `sweep`."""
        if any((root / pod_id).is_dir() for root in self._roots):  # most pods have none
            async with self._lock:
                await asyncio.to_thread(self._discard, pod_id)

    async def sweep(self, known: Collection[str]) -> None:
        """Remove what is left of pods that the runtime does not have; `known` are all it has."""
        if any(root.is_dir() for root in self._roots):
            async with self._lock:
                await asyncio.to_thread(self._sweep, known)

    async def _guarded(self, work: Callable[[], T]) -> T:
        async with self._lock:
            try:
                return await asyncio.to_thread(work)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                reason = "DiskFull" if full else "FilesNotWritten"
                raise ContainerFailure(reason, f"its files cannot be written: {error}") from error

    # --- making --------------------------------------------------------------------------------

    def _prepare(
        self, pod_id: str, files: PodFiles, wanted: Sequence[VolumeMount], owner: Owner
    ) -> Prepared:
        volumes = {volume.volume: volume for volume in files.volumes}
        shown: list[Mount] = []
        devices: list[Device] = []
        for mount in wanted:
            volume = volumes[mount.name]
            if isinstance(volume, HostPath):
                found = self._of_host(volume, mount)
                if isinstance(found, Device):
                    devices.append(found)
                else:
                    shown.append(found)
                continue
            directory = self._directory(pod_id, volume)
            if isinstance(volume, Projected):
                if not (directory / DATA).exists():  # newer contents are the business of `update`
                    self._write(pod_id, volume)
            elif isinstance(volume, Kept):
                if not (directory / DATA).exists():
                    reason = "SecretMissing" if volume.secret else "ConfigMissing"
                    text = f"volume {volume.volume}: its source is gone, and so are its files"
                    raise ContainerFailure(reason, text)
            elif isinstance(volume, Local):
                _own(_open_directory(self._local, directory), owner)
            else:
                made = _open_directory(self._pods, directory)
                _scratch(made, volume, self._runtime_socket)
            read_only = mount.read_only or isinstance(volume, Projected | Kept)
            shown.append(Mount(str(directory), mount.mount_path, read_only))
        return Prepared(tuple(shown), tuple(devices))

    def _directory(self, pod_id: str, volume: Projected | Kept | Scratch | Local) -> Path:
        if isinstance(volume, Local):
            return self._local / volume.namespace / volume.replica / volume.volume
        secret = isinstance(volume, Projected | Kept) and volume.secret
        return (self.secrets if secret else self._pods) / pod_id / volume.volume

    def _write(self, pod_id: str, volume: Projected) -> None:
        if volume.secret and not self.secrets_in_memory and not self._told:
            self._told = True
            log.warning("/run is not in memory: files of Secrets are on disk, for root alone")
        directory = self._directory(pod_id, volume)
        _private(directory.parent.parent)
        write_volume(directory, volume.files, SECRET_MODE if volume.secret else CONFIG_MODE)

    def _of_host(self, volume: HostPath, mount: VolumeMount) -> Mount | Device:
        """Both the path as it is written and what it leads to must be allowed."""
        try:
            real = os.path.realpath(volume.path, strict=True)
            mode = os.stat(real).st_mode  # noqa: PTH116
        except OSError as error:
            text = f"volume {volume.volume}: {volume.path}: {error.strerror}"
            raise ContainerFailure("HostPathMissing", text) from error
        rules = [_resolved(host_rule(text)) for text in self._host_paths]
        written = allowing(self._host_paths, volume.path)
        holding = max(
            (rule for rule in rules if is_within(real, rule.path)),
            key=lambda rule: len(rule.path),
            default=None,
        )
        if written is None or holding is None or self._is_ours(real):
            leads = f" leads to {real}, which" if real != volume.path else ""
            text = f"volume {volume.volume}: {volume.path}{leads} is not allowed by host_paths"
            raise ContainerFailure("HostPathNotAllowed", text)
        protected = written.read_only or holding.read_only
        read_only = mount.read_only or protected
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            return Device(real, mount.mount_path, "r" if read_only else "rw")
        inner = mounts.below(real) if protected and stat.S_ISDIR(mode) else []
        if inner:  # a read-only bind mount says nothing of what is mounted inside
            text = f"volume {volume.volume}: {volume.path} is read-only, but {inner[0]} inside is"
            raise ContainerFailure("HostPathNotAllowed", f"{text} another file system")
        return Mount(real, mount.mount_path, read_only)

    def _is_ours(self, real: str) -> bool:
        """The agent's key, plans and secrets are never shown, whatever is allowed."""
        own = (str(self._state.resolve()), str(self.secrets.resolve()))
        return any(is_within(real, path) or is_within(path, real) for path in own)

    # --- clearing away -------------------------------------------------------------------------

    def _discard(self, pod_id: str) -> None:
        for root in self._roots:
            directory = root / pod_id
            if directory.parent != root or not directory.is_dir():
                continue
            try:
                for entry in directory.iterdir():
                    if entry.is_mount():
                        mounts.unmount(entry)
                shutil.rmtree(directory)
            except OSError as error:
                log.warning("files of a pod stay", extra={"pod": pod_id, "error": str(error)})

    def _sweep(self, known: Collection[str]) -> None:
        for root in self._roots:
            for directory in root.iterdir() if root.is_dir() else ():
                age_s = time.time() - directory.lstat().st_mtime
                if directory.name not in known and age_s > LEFTOVER_AGE_S:
                    self._discard(directory.name)


def _resolved(rule: HostRule) -> HostRule:
    return HostRule(os.path.realpath(rule.path), rule.read_only)


def _private(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)


def _open_directory(root: Path, directory: Path) -> Path:
    """Below a root that only we may enter."""
    _private(root)
    if not directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(OPEN_MODE)
    return directory


def _own(directory: Path, owner: Owner) -> None:
    """Its top belongs to whoever uses it now; what is inside is not touched."""
    found = directory.stat()
    uid = found.st_uid if owner.uid is None else owner.uid
    gid = found.st_gid if owner.gid is None else owner.gid
    if (uid, gid) != (found.st_uid, found.st_gid):
        os.chown(directory, uid, gid)


def _scratch(directory: Path, volume: Scratch, runtime_socket: Path | None) -> None:
    if not volume.memory_bytes or directory.is_mount():
        return
    if runtime_socket is not None and not mounts.is_shared_with(runtime_socket):
        text = "the agent's service has a mount namespace of its own: a memory volume made there"
        raise ContainerFailure("MemoryVolume", f"{text} would not be seen by the container runtime")
    mounts.mount_memory(directory, volume.memory_bytes)


def write_volume(directory: Path, files: Mapping[str, str | bytes], mode: int) -> None:
    """Make a directory hold exactly these files, all at once. Raises OSError; then it is as before.

    Nothing is written when it holds them already.
    """
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    wanted = {name: v.encode() if isinstance(v, str) else v for name, v in files.items()}
    current = directory / DATA
    if not _holds(current, wanted, mode):
        _turn_to(directory, wanted, mode)
    _tidy(directory, wanted)


def _holds(current: Path, wanted: Mapping[str, bytes], mode: int) -> bool:
    try:
        if {entry.name for entry in current.iterdir()} != wanted.keys():
            return False
        return all(
            stat.S_IMODE((current / name).stat().st_mode) == mode
            and (current / name).read_bytes() == content
            and (current.parent / name).is_symlink()
            for name, content in wanted.items()
        )
    except OSError:
        return False


def _turn_to(directory: Path, wanted: Mapping[str, bytes], mode: int) -> None:
    """Links to new names come before the turn: should they not fit, the old version stays whole."""
    stamp = f"..{time.strftime('%Y_%m_%d_%H_%M_%S', time.gmtime())}.{os.urandom(4).hex()}"
    fresh, pointer = directory / stamp, directory / f"{DATA}_tmp"
    linked: list[Path] = []
    try:
        fresh.mkdir()
        fresh.chmod(0o755)
        for name, content in wanted.items():
            _write_file(fresh / name, content, mode)
        for name in wanted:
            link = directory / name
            if not link.is_symlink():
                link.symlink_to(f"{DATA}/{name}")
                linked.append(link)
        pointer.unlink(missing_ok=True)
        pointer.symlink_to(stamp)
        pointer.replace(directory / DATA)
    except OSError:
        with contextlib.suppress(OSError):
            for path in (*linked, pointer):
                path.unlink(missing_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _write_file(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fchmod(descriptor, mode)


def _tidy(directory: Path, wanted: Mapping[str, bytes]) -> None:
    """Names that are no more, older versions, and what a write that was cut short left."""
    in_use = os.readlink(directory / DATA)  # noqa: PTH115
    for entry in directory.iterdir():
        if entry.name.startswith(".."):
            if entry.name not in (DATA, in_use):
                if entry.is_symlink():
                    entry.unlink(missing_ok=True)
                else:
                    shutil.rmtree(entry, ignore_errors=True)
        elif entry.name not in wanted:
            entry.unlink(missing_ok=True)
