"""The command `edge-orchestrator migrate`: move an installation to another Store.

Called by `main`. It says at the end what was moved, as JSON.
"""

import argparse
import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.installation import read_mark
from orchestrator.store import keys
from orchestrator.store.address import EtcdAccess, open_address
from orchestrator.store.etcd.settings import DEFAULT_PREFIX
from orchestrator.store.migrate import Migrated, migrate


def add_migrate(commands: Any) -> None:
    command = commands.add_parser(
        "migrate",
        help="move an installation to another store, while no orchestrator runs",
        description="Copies every record, compares both sides, and only then makes the target an "
        "installation. Stopped at any moment it can be started again. The source stays as it is; "
        "keep it as a backup, and start no orchestrator on it any more. Store revisions start "
        "anew: edgectl edits that were open have to be repeated.",
    )
    where = "sqlite:PATH or etcd:HOST:PORT[,HOST:PORT...]"
    command.add_argument("--from", required=True, dest="source", metavar="STORE", help=where)
    command.add_argument("--to", required=True, dest="target", metavar="STORE", help=where)
    for side in ("from", "to"):
        for name, text in (
            ("ca", "PEM file of the CA of etcd's members"),
            ("cert", "PEM file of our certificate for etcd"),
            ("key", "PEM file of its key"),
        ):
            command.add_argument(f"--{side}-{name}", type=Path, metavar="FILE", help=text)
        command.add_argument(
            f"--{side}-prefix", default=DEFAULT_PREFIX, help=f"in etcd (default {DEFAULT_PREFIX})"
        )
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    done = asyncio.run(_move(options))
    print(json.dumps(asdict(done), indent=2))  # noqa: T201 - what the caller asked for
    return 0


async def _move(options: argparse.Namespace) -> Migrated:
    source = await open_address(options.source, _access(options, "from"), create=False)
    try:
        installation = await source.get(keys.INSTALLATION)
        if installation is not None:
            read_mark(installation.value)  # another version may have more to carry than we know
        target = await open_address(options.target, _access(options, "to"), create=True)
        try:
            return await migrate(source, target)
        finally:
            await target.close()
    finally:
        await source.close()


def _access(options: argparse.Namespace, side: str) -> EtcdAccess:
    given = vars(options)
    return EtcdAccess(
        given[f"{side}_ca"], given[f"{side}_cert"], given[f"{side}_key"], given[f"{side}_prefix"]
    )
