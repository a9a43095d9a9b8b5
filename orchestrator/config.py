"""What an operator can set: defaults, then a TOML file, then `POLDER_*` variables, then flags.

Strict: an unknown key or a wrong value is an error that names it. One schema serves all sources;
`main.py` makes the flags of `serve` from it.
"""

import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.domain.liveness import SILENT_AFTER_S
from orchestrator.log import FORMATS, LEVELS
from orchestrator.store.address import EtcdAccess
from orchestrator.store.address import parse_address as parse_store
from orchestrator.store.etcd.settings import DEFAULT_PREFIX
from orchestrator.store.port import StoreUnusable
from polder.manifest import InvalidManifest, decode
from polder.manifest.names import LABEL, LABEL_HELP
from polder.manifest.quantity import duration_s, format_duration
from polder.manifest.schema import FieldInfo, fields_of, spec

ENVIRONMENT_PREFIX = "POLDER_"
LEFT_OF_LIFE = 0.6
"""Of a node's certificate, as long as orchestrators are reached: it is renewed at a third of it."""
_DURATION = {"parse": duration_s, "shown_type": "duration"}


class ConfigError(Exception):
    """Says what is wrong, where, and what is expected."""


@dataclass(frozen=True, slots=True)
class Config:
    """The schema. Durations are seconds once decoded; addresses are host:port."""

    data_dir: str = spec(
        "Where the database and the CA are.", key="data_dir", default="/var/lib/polder"
    )
    store: str = spec(
        "sqlite:PATH, or etcd:HOST:PORT,HOST:PORT,... for several regions. "
        "Default: polder.db in data_dir.",
        default="",
    )
    etcd_ca: str = spec("PEM file of the CA of etcd's members.", key="etcd_ca", default="")
    etcd_cert: str = spec("PEM file of our certificate for etcd.", key="etcd_cert", default="")
    etcd_key: str = spec("PEM file of its key.", key="etcd_key", default="")
    etcd_prefix: str = spec(
        "Where in etcd everything is.", key="etcd_prefix", default=DEFAULT_PREFIX
    )
    trust_domain: str = spec(
        "Of all identities; fixed at the first start.",
        key="trust_domain",
        default="polder.internal",
    )
    region: str = spec(
        "Where this member runs.",
        key="region",
        default="local",
        pattern=LABEL,
        pattern_help=LABEL_HELP,
    )
    member: str = spec("This member's name. Default: from the host's name.", default="")
    listen: str = spec("For agents and operators, mTLS.", default="0.0.0.0:7443")
    join_listen: str = spec("For joining nodes.", key="join_listen", default="0.0.0.0:7444")
    metrics_listen: str = spec(
        "Metrics and health over plain HTTP. Empty: off.",
        key="metrics_listen",
        default="127.0.0.1:7480",
    )
    health_listen: str = spec(
        "Health for a platform's probes: grpc.health.v1 without TLS. Empty: off.",
        key="health_listen",
        default="",
    )
    advertise: tuple[str, ...] = spec(
        "Addresses of this member that agents and operators dial. Default: from listen.", default=()
    )
    advertise_join: tuple[str, ...] = spec(
        "Addresses of this member that joining nodes dial. Default: from join_listen.",
        key="advertise_join",
        default=(),
    )
    peer_listen: str = spec(
        "For other members, mTLS: needed where several share `listen`. Default: listen.",
        key="peer_listen",
        default="",
    )
    advertise_peer: str = spec(
        "Where other members dial this one. Default: from peer_listen, or advertise.",
        key="advertise_peer",
        default="",
    )
    share_port: bool = spec(
        "Several processes on this machine serve the same listen and join_listen.",
        key="share_port",
        default=False,
    )
    location: str = spec(
        "LATITUDE,LONGITUDE of the region: agents try the nearest region first.", default=""
    )
    hosts: tuple[str, ...] = spec(
        "More names and addresses in this member's certificate.", default=()
    )
    ca_dir: str = spec("Where the CA is. Default: ca in data_dir.", key="ca_dir", default="")
    node_certificate_life: float = spec(
        "Of a node's certificate. Cut off for at most 0.6 of that, a node can always come back.",
        key="node_certificate_life",
        default=12 * 86_400.0,
        minimum=2,
        **_DURATION,
    )
    member_certificate_life: float = spec(
        "Of this member's certificate.",
        key="member_certificate_life",
        default=30 * 86_400.0,
        minimum=2,
        **_DURATION,
    )
    operator_certificate_life: float = spec(
        "The longest that an operator can get.",
        key="operator_certificate_life",
        default=90 * 86_400.0,
        minimum=2,
        **_DURATION,
    )
    heartbeat_interval: float = spec(
        "What agents are told.",
        key="heartbeat_interval",
        default=5.0,
        minimum=0.2,
        maximum=60,
        **_DURATION,
    )
    session_age: float = spec(
        "After about so long an agent goes back to its nearest member. 0: never.",
        key="session_age",
        default=3600.0,
        minimum=0,
        **_DURATION,
    )
    accept_rate: float = spec(
        "New sessions of agents per second; those beyond are told when to come back.",
        key="accept_rate",
        default=300.0,
        minimum=1,
    )
    silent_after: float = spec(
        "A node is not Ready after that much silence.",
        key="silent_after",
        default=SILENT_AFTER_S,
        minimum=0.5,
        **_DURATION,
    )
    lost_after: float = spec(
        "A node's replicas move after that much silence.",
        key="lost_after",
        default=30.0,
        minimum=1,
        **_DURATION,
    )
    autonomy: float = spec(
        "For so long without an orchestrator the nodes of a site take over for each other.",
        default=7 * 86_400.0,
        minimum=1,
        maximum=365 * 86_400,
        **_DURATION,
    )
    hold_stops_above: int = spec(
        "So many replicas may stop at once without an approval.",
        key="hold_stops_above",
        default=10,
        minimum=0,
    )
    hold_share_above: float = spec(
        "And such a share of those of the fleet, a site or a namespace. 1: no stop is held.",
        key="hold_share_above",
        default=0.5,
        minimum=0,
        maximum=1,
    )
    suspicion_limit: float = spec(
        "A site or region that fell silent at once is doubted so long, while others are heard.",
        key="suspicion_limit",
        default=600.0,
        minimum=1,
        **_DURATION,
    )
    shutdown_grace: float = spec(
        "For RPCs that run when the process is told to stop.",
        key="shutdown_grace",
        default=5.0,
        maximum=60,
        **_DURATION,
    )
    log_format: str = spec("Of stderr.", key="log_format", default="logfmt", choices=FORMATS)
    log_level: str = spec("Least that is logged.", key="log_level", default="info", choices=LEVELS)

    @property
    def concerns(self) -> tuple[str, ...]:
        """What is allowed, and likely a mistake."""
        needed = self.autonomy / LEFT_OF_LIFE
        if self.node_certificate_life >= needed:
            return ()
        return (
            "node_certificate_life: a node that was cut off for as long as autonomy says may have "
            f"to join again; {format_duration(needed)} or more is enough",
        )

    @property
    def member_name(self) -> str:
        return self.member or _host_name()

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir)

    @property
    def ca_path(self) -> Path:
        return Path(self.ca_dir) if self.ca_dir else self.data_path / "ca"

    @property
    def store_address(self) -> str:
        """As `store.address` reads it."""
        return self.store or f"sqlite:{self.data_path.absolute() / 'polder.db'}"

    @property
    def shares_store(self) -> bool:
        """Other members may be at work on the same Store."""
        return self.store.startswith("etcd:")

    @property
    def etcd_access(self) -> EtcdAccess:
        named = (self.etcd_ca, self.etcd_cert, self.etcd_key)
        ca, certificate, key = (Path(file) if file else None for file in named)
        return EtcdAccess(ca, certificate, key, self.etcd_prefix)

    @property
    def endpoints(self) -> tuple[str, ...]:
        return self.advertise or (reachable(self.listen),)

    @property
    def join_endpoints(self) -> tuple[str, ...]:
        return self.advertise_join or (reachable(self.join_listen),)

    @property
    def peer_endpoint(self) -> str:
        """Where other members dial this one."""
        if self.advertise_peer or not self.peer_listen:
            return self.advertise_peer or self.endpoints[0]
        return reachable(self.peer_listen)

    @property
    def coordinates(self) -> tuple[float, float] | None:
        """Latitude and longitude of the region in degrees."""
        return parse_location(self.location) if self.location else None


def settings() -> tuple[FieldInfo, ...]:
    """Every key with its type, default and sentence."""
    return fields_of(Config)


def load_config(
    path: Path | None,
    environment: Mapping[str, str] = os.environ,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Raises ConfigError with everything that is wrong."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is not TOML: {error}") from error
    for info in settings():
        found = environment.get(ENVIRONMENT_PREFIX + info.key.upper())
        if found is not None:
            values[info.key] = _split(info, found)
        given = (flags or {}).get(info.key)
        if given is not None:
            values[info.key] = _typed(info, given) if isinstance(given, str) else given
    where = f"{path}: " if path is not None else ""
    try:
        config = decode(Config, values)
        _check(config)
    except InvalidManifest as error:
        lines = [f"{where}{v.path}: {v.message}" for v in error.violations]
        raise ConfigError("\n".join(lines)) from error
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error
    return config


def _split(info: FieldInfo, text: str) -> object:
    """Lists in variables are separated by commas."""
    if info.default == ():
        return [part for part in text.split(",") if part]
    return _typed(info, text)


def _typed(info: FieldInfo, text: str) -> object:
    """Flags and variables are text. What does not fit stays text, and is refused as such."""
    if isinstance(info.default, bool):
        return {"true": True, "false": False}.get(text, text)
    try:
        if isinstance(info.default, int):
            return int(text)
        if isinstance(info.default, float) and info.rule.parse is None:
            return float(text)
    except ValueError:
        pass
    return text


def _check(config: Config) -> None:
    if LABEL.fullmatch(config.member_name) is None:
        raise ConfigError(f"member: {config.member_name!r} is not {LABEL_HELP}")
    optional = ("metrics_listen", "health_listen", "peer_listen", "advertise_peer")
    for key in ("listen", "join_listen", *optional):
        address = getattr(config, key)
        if address or key not in optional:
            parse_address(key, address)
    for key in ("advertise", "advertise_join"):
        for address in getattr(config, key):
            parse_address(key, address)
    if config.lost_after <= config.silent_after:
        raise ConfigError("lost_after: must be longer than silent_after")
    if config.silent_after <= config.heartbeat_interval:
        raise ConfigError(
            "silent_after: must be longer than heartbeat_interval "
            f"({config.heartbeat_interval:g}s), or nodes are silent between two heartbeats"
        )
    _check_store(config)
    _check_members(config)


def _check_store(config: Config) -> None:
    etcd_files = {key: getattr(config, key) for key in ("etcd_ca", "etcd_cert", "etcd_key")}
    if config.shares_store:
        missing = [key for key, file in etcd_files.items() if not file]
        if missing:
            raise ConfigError(
                f"{missing[0]}: etcd is spoken to with certificates only: give "
                "etcd_ca, etcd_cert and etcd_key, each a PEM file"
            )
    elif given := [key for key, file in etcd_files.items() if file]:
        raise ConfigError(f"{given[0]}: is for a store at etcd, and store names none")
    try:
        found = parse_store(config.store_address, config.etcd_access)
    except StoreUnusable as error:
        raise ConfigError(f"store: {error}") from error
    if isinstance(found, Path) and not found.is_absolute():
        raise ConfigError(f"store: {str(found)!r} is a relative path; give an absolute one")


def _check_members(config: Config) -> None:
    if config.location:
        parse_location(config.location)
    if config.share_port:
        if not config.shares_store:
            raise ConfigError("share_port: is for members that share a store at etcd")
        if not config.peer_listen:
            raise ConfigError(
                "share_port: needs peer_listen: other members must reach this one, and not "
                "whichever process of the machine takes the connection"
            )
        for key in ("listen", "join_listen"):
            if parse_address(key, getattr(config, key))[1] == 0:
                raise ConfigError(f"{key}: a port that is shared must be named, and not 0")
    if config.peer_listen and config.peer_listen in (config.listen, config.join_listen):
        raise ConfigError("peer_listen: is an address of its own, or empty")


def parse_location(text: str) -> tuple[float, float]:
    """`52.09,5.12`: degrees of latitude and longitude. Raises ConfigError."""
    try:
        latitude, longitude = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"location: {text!r} is not LATITUDE,LONGITUDE") from None
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):  # also refuses nan
        raise ConfigError(f"location: {text!r} is not on Earth: degrees, latitude first")
    return latitude, longitude


def parse_address(key: str, text: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port`. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{key}: {text!r} is not an address such as 0.0.0.0:7443")
    return host.strip("[]"), int(port)


def reachable(listen: str) -> str:
    """What to dial for a listening address: a wildcard is this machine's own address."""
    host, _, port = listen.rpartition(":")
    if host.strip("[]") not in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        return listen
    return f"{_own_address()}:{port}"


def _own_address() -> str:
    """The address of the default route's interface; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _host_name() -> str:
    """The host's first label, as far as a member's name can hold it."""
    label = "".join(c if c.isalnum() else "-" for c in socket.gethostname().partition(".")[0])
    return label.lower().strip("-")[:63] or "orchestrator"
