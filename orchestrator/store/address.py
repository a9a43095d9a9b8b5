"""Where a Store is, as one word: `sqlite:PATH` or `etcd:HOST:PORT[,HOST:PORT...]`.

Called by `edge-orchestrator serve` and its offline commands through the configuration, and by
`edge-orchestrator migrate`.
"""

from dataclasses import dataclass
from pathlib import Path

from orchestrator.store.etcd.adapter import open_etcd
from orchestrator.store.etcd.settings import DEFAULT_PREFIX, EtcdSettings, EtcdTls
from orchestrator.store.port import Store, StoreUnusable
from orchestrator.store.sqlite import open_sqlite


@dataclass(frozen=True, slots=True)
class EtcdAccess:
    """What an `etcd:` address needs besides: PEM files and the prefix."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    prefix: str = DEFAULT_PREFIX

    def tls(self) -> EtcdTls:
        """Raises StoreUnusable when a file is not named."""
        if self.ca is None or self.certificate is None or self.key is None:
            raise StoreUnusable(
                "etcd is spoken to with certificates only: name the CA, the certificate and its key"
            )
        return EtcdTls(self.ca, self.certificate, self.key)


def parse_address(address: str, access: EtcdAccess) -> Path | EtcdSettings:
    """The file of an SQLite Store, or where etcd is. Raises StoreUnusable with what is wrong."""
    kind, _, rest = address.partition(":")
    if kind == "sqlite" and rest:
        return Path(rest)
    if kind == "etcd" and rest:
        return EtcdSettings(tuple(rest.split(",")), access.tls(), access.prefix)
    raise StoreUnusable(f"{address!r} is neither sqlite:PATH nor etcd:HOST:PORT[,HOST:PORT...]")


async def open_address(address: str, access: EtcdAccess, *, create: bool) -> Store:
    """Open it. `create`: an SQLite file that is not there is made. Raises StoreError."""
    found = parse_address(address, access)
    if isinstance(found, EtcdSettings):
        return await open_etcd(found)
    if not create and not found.is_file():
        raise StoreUnusable(f"there is no file {found}")
    return await open_sqlite(found)
