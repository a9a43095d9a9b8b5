"""The agent's settings: defaults, then the file (TOML), then POLDER_* variables, then flags.

`agent/main.py` loads them once. The file is read strictly: a key that nobody knows is an error that
names the line, because a setting that is silently ignored is found out in the field.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from agent.domain.files import host_rule
from polder.manifest.quantity import cpu_millis, memory_bytes

DEFAULT_FILE = Path("/etc/polder/agent.toml")
STATE_DIR = Path("/var/lib/polder-agent")
ENV_PREFIX = "POLDER_"
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("json", "logfmt")
HOST_PATHS_MAX = 256  # as many as an orchestrator believes
ENDPOINTS_MAX = 16
# A name or an IPv4 address, or an IPv6 address in brackets, and perhaps a port; or one bare.
_HOST = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?|[0-9A-Fa-f:.]+")
_RESOURCE = re.compile(r"[a-z0-9][-a-z0-9.]*/[a-z0-9][-a-z0-9.]*")


class InvalidConfig(Exception):
    """A setting cannot be used; the message names file, line and key."""


@dataclass(frozen=True, slots=True)
class Share:
    """An amount: absolute, or a fraction of the capacity."""

    amount: int = 0
    fraction: float = 0.0

    def of(self, capacity: int) -> int:
        """In the unit of `capacity`, never more than all of it."""
        return min(capacity, max(self.amount, int(capacity * self.fraction)))


@dataclass(frozen=True, slots=True)
class Reserved:
    """What is kept back for the system. A default is the larger of an amount and a fraction."""

    cpu: Share = Share(100, 0.05)
    memory: Share = Share(256 << 20, 0.05)
    disk: Share = Share(0, 0.10)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """`devices` maps a resource name to the device node patterns and CDI kinds that make it up.

    `host_paths` are what pods may see of the box: `PATH` with all below it, or `PATH:ro`.
    `site_listen` is where the other nodes of the site reach this one; empty: they do not, and it
    takes nothing over. `site_advertise` is what they are told: hosts with or without a port, commas
    between; empty: all addresses of the box. `local_listen` and `local_advertise` are the same for
    operators who come to the site itself.
    """

    state_dir: Path = STATE_DIR
    log_dir: Path = Path("/var/log/polder/pods")
    runtime_socket: Path = Path("/run/containerd/containerd.sock")
    cgroup_parent: str = ""
    log_level: str = "info"
    log_format: str = "json"
    site_listen: str = "[::]:7445"
    site_advertise: str = ""
    local_listen: str = "[::]:7446"
    local_advertise: str = ""
    reserved: Reserved = Reserved()
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    host_paths: tuple[str, ...] = ()


def _text(raw: object) -> str:
    if not isinstance(raw, str) or not raw or "\0" in raw:
        raise ValueError("expected a text")
    return raw


def _path(raw: object) -> Path:
    path = Path(_text(raw))
    if not path.is_absolute():
        raise ValueError(f"{raw!r} is not an absolute path")
    return path


def _socket(raw: object) -> Path:
    return _path(_text(raw).removeprefix("unix://"))


def _one_of(allowed: tuple[str, ...]) -> Callable[[object], str]:
    def check(raw: object) -> str:
        if raw not in allowed:
            raise ValueError(f"{raw!r} is none of {', '.join(allowed)}")
        return str(raw)

    return check


def _listen(raw: object) -> str:
    if raw == "":
        return ""
    text = _text(raw)
    host, colon, port = text.rpartition(":")
    numbered = port.isdigit() and 0 < int(port) < 65_536
    if not (colon and numbered) or (":" in host) != host.startswith("["):
        raise ValueError(f"{raw!r} is not HOST:PORT, such as [::]:7445, nor empty")
    return text


def _hosts(raw: object) -> str:
    if raw == "":
        return ""
    text = _text(raw)
    hosts = text.split(",")
    if len(hosts) > ENDPOINTS_MAX or not all(_HOST.fullmatch(host) for host in hosts):
        raise ValueError(f"{raw!r} is not a list of hosts, with or without a port: a, b:7445, ...")
    return text


def _share(amount: Callable[[object], int]) -> Callable[[object], Share]:
    def parse(raw: object) -> Share:
        if not (isinstance(raw, str) and raw.endswith("%")):
            return Share(amount(raw))
        try:
            percent = float(raw[:-1])
        except ValueError:
            percent = -1.0
        if not 0 <= percent <= 90:
            raise ValueError(f"{raw!r} is not a share from 0% to 90%")
        return Share(0, percent / 100)

    return parse


def _patterns(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise ValueError("expected a list of device paths and CDI kinds")
    for item in raw:
        if not item.startswith("/dev/") and not re.fullmatch(r"[\w.-]+/[\w.-]+", item):
            raise ValueError(f"{item!r} is neither a path below /dev nor a CDI kind vendor/class")
    return tuple(raw)


def _host_paths(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise ValueError("expected a list of paths")
    if len(raw) > HOST_PATHS_MAX:
        raise ValueError(f"{len(raw)} paths; at most {HOST_PATHS_MAX} are allowed")
    for item in raw:
        host_rule(item)
    return tuple(raw)


def _not_a_resource(_raw: object) -> NoReturn:
    raise ValueError("not a resource name such as polder.eu/gpu")


# Where a key of the file goes, and how it is read.
_TOP: dict[str, tuple[str, Callable[[object], object]]] = {
    "state_dir": ("state_dir", _path),
    "log_dir": ("log_dir", _path),
    "runtime_socket": ("runtime_socket", _socket),
    "cgroup_parent": ("cgroup_parent", _text),
    "log_level": ("log_level", _one_of(LOG_LEVELS)),
    "log_format": ("log_format", _one_of(LOG_FORMATS)),
    "site_listen": ("site_listen", _listen),
    "site_advertise": ("site_advertise", _hosts),
    "local_listen": ("local_listen", _listen),
    "local_advertise": ("local_advertise", _hosts),
}
_RESERVED = {
    "cpu": _share(cpu_millis),
    "memory": _share(memory_bytes),
    "disk": _share(memory_bytes),
}


def _line_of(text: str, section: str, key: str) -> int:
    """Where `key` stands, for the message; 1 if it is written in a form that is not looked for."""
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line)
        if header:
            current = header.group(1).strip("\"'")
            if not section and current.split(".")[0].strip("\"' ") == key:
                return number
        name = re.match(r"\s*(\"[^\"]*\"|'[^']*'|[A-Za-z0-9_-]+)\s*[.=]", line)
        if name and current == section and name.group(1).strip("\"'") == key:
            return number
    return 1


def reserved(cpu: str, memory: str, disk: str) -> Reserved:
    """Of texts as the file has them; a profile's recommendation. Raises ValueError."""
    return Reserved(_RESERVED["cpu"](cpu), _RESERVED["memory"](memory), _RESERVED["disk"](disk))


def parse_file(
    text: str, name: str = "agent.toml", kept_back: Reserved | None = None
) -> AgentConfig:
    """The settings of a file's text over the defaults. Raises InvalidConfig.

    `kept_back` is the default of `reserved` where the box's profile recommends one.
    """
    import tomllib  # not in the long-running process

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"{name}: {error}") from error

    def read(
        section: str, key: str, parse: Callable[[object], object] | None, raw: object
    ) -> object:
        where = f"{name}:{_line_of(text, section, key)}: {f'{section}.{key}' if section else key}"
        if parse is None:
            raise InvalidConfig(f"{where}: unknown setting")
        try:
            return parse(raw)
        except ValueError as error:
            raise InvalidConfig(f"{where}: {error}") from error

    def table(key: str) -> dict[str, object]:
        raw = data.pop(key, {})
        if not isinstance(raw, dict):
            raise InvalidConfig(f"{name}:{_line_of(text, '', key)}: {key}: expected a table")
        return raw

    own_reserved = {
        key: read("reserved", key, _RESERVED.get(key), raw)
        for key, raw in table("reserved").items()
    }
    devices = {}
    for resource, raw in table("devices").items():
        named = _patterns if _RESOURCE.fullmatch(resource) else _not_a_resource
        devices[resource] = read("devices", resource, named, raw)
    host_paths = read("", "host_paths", _host_paths, data.pop("host_paths", []))
    top = {}
    for key, raw in data.items():
        attribute, parse = _TOP.get(key, (key, None))
        top[attribute] = read("", key, parse, raw)
    made = replace(AgentConfig(), **top)  # type: ignore[arg-type]
    return replace(
        made,
        reserved=replace(kept_back or Reserved(), **own_reserved),  # type: ignore[arg-type]
        devices=devices,  # type: ignore[arg-type]
        host_paths=host_paths,  # type: ignore[arg-type]
    )


def load(
    file: Path | None,
    environ: Mapping[str, str] = os.environ,
    kept_back: Reserved | None = None,
    **flags: object,
) -> AgentConfig:
    """The settings in use. `file` None means the default file, if there is one.

    `flags` are those of the command line, None where not given, `kept_back` as for `parse_file`.
    Raises InvalidConfig.
    """
    chosen = file or (Path(environ["POLDER_CONFIG"]) if "POLDER_CONFIG" in environ else None)
    try:
        text = (chosen or DEFAULT_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        if chosen is not None:
            raise InvalidConfig(f"{chosen}: no such file") from None
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{chosen or DEFAULT_FILE}: {error}") from error
    config = parse_file(text, str(chosen or DEFAULT_FILE), kept_back)
    for key, (attribute, parse) in _TOP.items():
        variable = ENV_PREFIX + key.upper()
        for source, raw in ((variable, environ.get(variable)), (f"--{key}", flags.pop(key, None))):
            if raw is None:
                continue
            try:
                config = replace(config, **{attribute: parse(raw)})  # type: ignore[arg-type]
            except ValueError as error:
                raise InvalidConfig(
                    f"{source.replace('_', '-') if source[0] == '-' else source}: {error}"
                ) from error
    if flags:
        known = ", ".join(f.name for f in fields(AgentConfig))
        raise TypeError(f"no such settings: {', '.join(flags)} (known: {known})")
    return config


def to_plain(config: AgentConfig) -> dict[str, Any]:
    """As JSON can carry it, for `from_plain` in another process."""
    plain: dict[str, Any] = {name: str(getattr(config, name)) for name in _TOP}
    plain["reserved"] = {
        name: [share.amount, share.fraction]
        for name in ("cpu", "memory", "disk")
        for share in [getattr(config.reserved, name)]
    }
    plain["host_paths"] = list(config.host_paths)
    plain["devices"] = {resource: list(patterns) for resource, patterns in config.devices.items()}
    return plain


def from_plain(plain: dict[str, Any]) -> AgentConfig:
    """The settings that `to_plain` wrote."""
    return AgentConfig(
        state_dir=Path(plain["state_dir"]),
        log_dir=Path(plain["log_dir"]),
        runtime_socket=Path(plain["runtime_socket"]),
        cgroup_parent=plain["cgroup_parent"],
        log_level=plain["log_level"],
        log_format=plain["log_format"],
        site_listen=plain["site_listen"],
        site_advertise=plain["site_advertise"],
        local_listen=plain["local_listen"],
        local_advertise=plain["local_advertise"],
        reserved=Reserved(**{name: Share(*share) for name, share in plain["reserved"].items()}),
        devices={resource: tuple(patterns) for resource, patterns in plain["devices"].items()},
        host_paths=tuple(plain["host_paths"]),
    )
