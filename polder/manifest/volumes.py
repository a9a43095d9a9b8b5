"""Files that a pod's containers see: from Configs and Secrets, scratch space, local data, the host.

Read by the agent, which makes them, and by the scheduler, for those that tie a replica to a node.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from polder.manifest.names import (
    ABSOLUTE_PATH,
    ABSOLUTE_PATH_HELP,
    FILE_NAME,
    FILE_NAME_HELP,
    LABEL,
    LABEL_HELP,
)
from polder.manifest.quantity import memory_bytes
from polder.manifest.schema import Violation, spec

OWN_DIRECTORY = "/run/polder"
"""Where containers see what the agent tells them: of templates nobody may mount anything there."""


def is_taken(mount_path: str) -> bool:
    """Whether a path in a container is at or below what is Polder's. In most images /var/run leads
    to /run: what a template mounted there would be hidden without a word."""
    path = posixpath.normpath("/" + mount_path.lstrip("/"))
    path = path.removeprefix("/var") if path.startswith("/var/run/") else path
    return path == OWN_DIRECTORY or path.startswith(OWN_DIRECTORY + "/")


def _items() -> dict[str, str]:
    value: dict[str, str] = spec(
        "File name by key. Default: every key, as the file of its name.",
        default_factory=dict,
        max_items=100,
        pattern=FILE_NAME,
        pattern_help=FILE_NAME_HELP,
    )
    return value


@dataclass(frozen=True, slots=True)
class ConfigVolume:
    """The values of a Config as files. A changed Config changes the files of what runs."""

    name: str = spec("The Config's name.", pattern=LABEL, pattern_help=LABEL_HELP)
    items: dict[str, str] = _items()


@dataclass(frozen=True, slots=True)
class SecretVolume:
    """The values of a Secret as files, in memory. A changed Secret changes the files."""

    name: str = spec("The Secret's name.", pattern=LABEL, pattern_help=LABEL_HELP)
    items: dict[str, str] = _items()


@dataclass(frozen=True, slots=True)
class ScratchVolume:
    """An empty directory that lives as long as the pod."""

    memory: bool = spec("In memory instead of on disk.", default=False)
    size_max: int = spec(
        "With memory: its limit. 0: 64Mi.",
        default=0,
        parse=memory_bytes,
        shown_type="quantity such as 64Mi",
    )


@dataclass(frozen=True, slots=True)
class LocalVolume:
    """A directory on the node that outlives the pod. It ties the replica to that node."""


@dataclass(frozen=True, slots=True)
class HostPathVolume:
    """A file, directory or device of the box that its own configuration allows (`host_paths`)."""

    path: str = spec("The path on the box.", pattern=ABSOLUTE_PATH, pattern_help=ABSOLUTE_PATH_HELP)


_SOURCES = ("config", "secret", "scratch", "local", "host_path")


@dataclass(frozen=True, slots=True)
class Volume:
    """Exactly one of config, secret, scratch, local and hostPath."""

    name: str = spec("What volumeMounts call it.", pattern=LABEL, pattern_help=LABEL_HELP)
    config: ConfigVolume | None = spec("A Config's values.", default=None)
    secret: SecretVolume | None = spec("A Secret's values.", default=None)
    scratch: ScratchVolume | None = spec("Empty space.", default=None)
    local: LocalVolume | None = spec("Data that stays on the node.", default=None)
    host_path: HostPathVolume | None = spec("A path of the box.", default=None)

    def violations(self) -> Iterator[Violation]:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            yield Violation("", f"needs exactly one source of {', '.join(_SOURCES)}; found {found}")


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """Where a container sees a volume."""

    name: str = spec("A volume of the pod.", pattern=LABEL, pattern_help=LABEL_HELP)
    mount_path: str = spec(
        "Path in the container.", pattern=ABSOLUTE_PATH, pattern_help=ABSOLUTE_PATH_HELP
    )
    read_only: bool = spec("What comes from a Config or a Secret is never writable.", default=False)
