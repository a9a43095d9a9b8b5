"""One installation of a CA in one etcd: a mistyped prefix must not found a second one.

Called by `installation.py` at each start. Nodes and operators of the first one would be unknown to
a second, and believe its members all the same, since they have the same root. So beside all
prefixes there is a register of etcd's installations: by root, under which prefix. Where etcd's user
may touch nothing outside its own prefix there is none, which the log says.
"""

import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from orchestrator.config import Config
from orchestrator.store import keys
from orchestrator.store.address import open_address
from orchestrator.store.port import Compare, CompareTarget, Put, Store, StoreError, StoreUnusable

log = logging.getLogger(__name__)

REGISTER = "/polder-installations"
_ATTEMPTS = 5


async def found_under(config: Config, root_der: bytes) -> str:
    """Before a Store becomes an installation: the other prefix that holds the one of this CA;
    empty: none does, and this prefix is noted from now on. Raises StoreError."""
    own, key = _prefix(config), _key(root_der)
    try:
        async with _opened(config, REGISTER) as register:
            for _ in range(_ATTEMPTS):
                entry = await register.get(key)
                noted = entry.value.decode() if entry is not None else own
                if entry is not None and noted == own:
                    return ""
                if noted != own and await _holds_one(config, noted):
                    return noted
                seen = entry.mod_revision if entry is not None else 0
                unchanged = Compare(key, CompareTarget.MOD_REVISION, seen)
                if (await register.txn([unchanged], [Put(key, own.encode())])).committed:
                    return ""
    except StoreUnusable as error:
        log.warning("whether another prefix holds this installation is not known: %s", error)
    return ""


async def note(config: Config, root_der: bytes) -> None:
    """An installation that is there, for those that are founded later. It is no reason not to start
    that this cannot be written: etcd may be full."""
    key = _key(root_der)
    try:
        async with _opened(config, REGISTER) as register:
            if await register.get(key) is None:
                put = Put(key, _prefix(config).encode())
                await register.txn([Compare.absent(key)], [put])
    except StoreError as error:
        log.info("the installation's prefix is not noted: %s", error)


async def _holds_one(config: Config, prefix: str) -> bool:
    async with _opened(config, prefix) as other:
        return await other.get(keys.INSTALLATION) is not None


@asynccontextmanager
async def _opened(config: Config, prefix: str) -> AsyncIterator[Store]:
    access = replace(config.etcd_access, prefix=prefix)
    store = await open_address(config.store_address, access, create=False)
    try:
        yield store
    finally:
        await store.close()


def _prefix(config: Config) -> str:
    return config.etcd_prefix.rstrip("/")


def _key(root_der: bytes) -> str:
    return "/" + hashlib.sha256(root_der).hexdigest()
