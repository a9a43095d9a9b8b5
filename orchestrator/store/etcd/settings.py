"""What an operator says about the etcd that is the Store: where it is, how to prove who we are.

Made by the orchestrator's configuration and by tests; read by the client and the adapter.
"""

from dataclasses import dataclass
from pathlib import Path

from orchestrator.store.port import StoreUnusable

DEFAULT_PREFIX = "/polder"
# 128 compares and 128 ops carry it each: a full transaction must still fit etcd's request limit.
PREFIX_BYTES_MAX = 32


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """PEM files. They are read again for every new connection, so that a renewal needs no restart.

    Where etcd has authentication switched on, its user is the certificate's common name.
    """

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """Endpoints are `host:port`; a connection is always TLS, with a certificate on both sides."""

    endpoints: tuple[str, ...]
    tls: EtcdTls

    prefix: str = DEFAULT_PREFIX
    """Everything is below this, so that an etcd can be shared with others."""

    connect_s: float = 1.5
    """For one endpoint: to connect, shake hands and say that it has a leader."""

    attempt_s: float = 3.0
    """For the first try of what may be tried again; each next one gets twice as long."""

    deadline_s: float = 9.0
    """For a whole call that may be tried again."""

    write_s: float = 6.0
    """For one that may not. What was on its way to a leader that died is never answered: etcd gives
    up after 7 s, and says no more than we know before, that the outcome is unknown."""

    watch_probe_s: float = 5.0
    """A watch that was silent this long is asked whether it lives, and has as long to answer."""

    watch_resume_s: float = 6.0
    """How long a broken watch tries to go on elsewhere before its reader is told."""

    close_s: float = 3.0
    """What is under way at close has this long to end."""

    pending_max: int = 8192
    """Calls under way before more are refused with StoreUnavailable."""

    def __post_init__(self) -> None:
        """Raises StoreUnusable, with what to change."""
        if not self.endpoints:
            raise StoreUnusable("no endpoint of etcd is given; name at least one as host:port")
        for endpoint in self.endpoints:
            host, _, port = endpoint.rpartition(":")
            if not host or not port.isdigit() or "/" in host:
                raise StoreUnusable(f"endpoint {endpoint!r} of etcd is not host:port")
        prefix = self.prefix.rstrip("/")
        if not prefix.startswith("/") or "\0" in prefix:
            raise StoreUnusable(f"the prefix {self.prefix!r} must start with / and have a name")
        if len(prefix.encode()) > PREFIX_BYTES_MAX:
            raise StoreUnusable(f"the prefix {self.prefix!r} is over {PREFIX_BYTES_MAX} bytes")

    @property
    def root(self) -> bytes:
        """What stands before every key. It ends with a slash of its own: `/polder2` is not ours."""
        return self.prefix.rstrip("/").encode() + b"/"
