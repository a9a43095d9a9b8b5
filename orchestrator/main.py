"""The command `edge-orchestrator`: serve, and what an admin does on the machine itself.

serve              run a member; the first start makes the CA, the Store and admin.yaml
ca init, ca show   make and look at certificate authorities
migrate            move an installation to another Store, while no orchestrator runs
operator create    a new operator's context file, while no orchestrator runs on the data
version
"""

import argparse
import asyncio
import gc
import json
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from orchestrator import log
from orchestrator.config import Config, ConfigError, load_config, settings
from orchestrator.identity.authority import create_region, create_root, trust_domain_of
from orchestrator.identity.pem import UnusableFile, read_certificates
from orchestrator.installation import (
    WrongInstallation,
    describe_certificate,
    issue_context,
    prepare_authority,
    prepare_store,
)
from orchestrator.listeners import CannotListen
from orchestrator.moving import add_migrate
from orchestrator.refusals import Refused
from orchestrator.server import Orchestrator, running_version
from orchestrator.store.migrate import CannotMigrate
from orchestrator.store.port import StoreError
from orchestrator.store.sqlite import open_sqlite
from polder.identity import InvalidIdentity, MemberId, parse

_FAILURES = (
    ConfigError,
    UnusableFile,
    WrongInstallation,
    CannotListen,
    CannotMigrate,
    StoreError,
    Refused,
    OSError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 ok, 1 failed, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except _FAILURES as error:
        print(f"edge-orchestrator: {error}", file=sys.stderr)  # noqa: T201 - a command line speaks
        hint = getattr(error, "hint", "")
        if hint:
            print(f"  {hint}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-orchestrator", description="The control plane of a Polder installation."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run a member")
    _add_settings(serve)
    serve.add_argument(
        "--init",
        action="store_true",
        help="only prepare the data directory (CA, store, admin.yaml), and end",
    )
    serve.set_defaults(run=_serve)
    _add_ca(commands)
    operator = commands.add_parser("operator", help="operators of this installation")
    actions = operator.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="write a context file for a new operator")
    create.add_argument("name", metavar="NAME")
    create.add_argument(
        "--role",
        action="append",
        required=True,
        metavar="ROLE",
        help="admin, operator:NAMESPACE or viewer:NAMESPACE; may be repeated",
    )
    create.add_argument("--out", required=True, type=Path, metavar="FILE")
    create.add_argument("--namespace", default="default", help="that edgectl starts in")
    _add_settings(create)
    create.set_defaults(run=_operator_create)
    add_migrate(commands)
    commands.add_parser("version", help="print the version").set_defaults(run=_version)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for every setting of `config.py`."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML")
    for info in settings():
        parser.add_argument(
            f"--{info.key.replace('_', '-')}",
            dest=f"set_{info.key}",
            metavar=info.key.rpartition("_")[2].upper(),
            action="append" if info.default == () else "store",
            help=info.rule.doc.replace("%", "%%"),
        )


def _add_ca(commands: Any) -> None:
    ca = commands.add_parser("ca", help="certificate authorities")
    actions = ca.add_subparsers(required=True, metavar="ACTION")
    init = actions.add_parser(
        "init",
        help="make the root if there is none, and make or renew a region's CA; "
        "root.key can go offline",
    )
    init.add_argument("--dir", required=True, type=Path)
    init.add_argument("--trust-domain", help="default: the root's, or polder.internal")
    init.add_argument("--region", default="local")
    init.set_defaults(run=_ca_init)
    show = actions.add_parser("show", help="print what there is, as JSON")
    show.add_argument("--dir", required=True, type=Path)
    show.set_defaults(run=_ca_show)


def _config(options: argparse.Namespace) -> Config:
    flags = {info.key: getattr(options, f"set_{info.key}") for info in settings()}
    return load_config(options.config, flags=flags)


# --- commands -----------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    config = _config(options)
    log.set_up(config.log_level, config.log_format)
    return uvloop.run(_prepare(config) if options.init else _run(config))


async def _run(config: Config) -> int:
    """Until SIGTERM or SIGINT. 1 when a part of the process failed."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    orchestrator = Orchestrator(config)
    await orchestrator.start()
    _tune_collector()
    waiting = [asyncio.create_task(event.wait()) for event in (stop, orchestrator.failed)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    await orchestrator.stop()
    return 0 if stop.is_set() else 1


def _tune_collector() -> None:
    """The mirror is a large graph that lives long and has no cycles: walking it is wasted time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def _prepare(config: Config) -> int:
    orchestrator = Orchestrator(config)
    await orchestrator.prepare()
    await orchestrator.stop()
    return 0


def _operator_create(options: argparse.Namespace) -> int:
    return uvloop.run(_create_operator(_config(options), options))


async def _create_operator(config: Config, options: argparse.Namespace) -> int:
    authority = prepare_authority(config, time.time, fresh=False)
    store = await open_sqlite(config.data_path / "polder.db")
    try:
        await prepare_store(store, authority, config, time.time)
        roles = tuple(options.role)
        await issue_context(
            store,
            authority,
            config,
            time.time,
            options.name,
            roles,
            options.out,
            options.namespace,
        )
    finally:
        await store.close()
    print(options.out)  # noqa: T201
    return 0


def _ca_init(options: argparse.Namespace) -> int:
    root = options.dir / "root.crt"
    known = trust_domain_of(read_certificates(root)[0]) if root.exists() else ""
    trust_domain = options.trust_domain or known or Config().trust_domain
    _check_names(trust_domain, options.region)
    if not known:
        create_root(options.dir, trust_domain, time.time())
    elif trust_domain != known:
        raise ConfigError(f"{options.dir} has the root of {known}, not of {trust_domain}")
    renewed = (options.dir / "regions" / options.region / "ca.crt").exists()
    create_region(options.dir, options.region, time.time())
    print(  # noqa: T201
        f"{options.dir}: the CA of region {options.region} is {'renewed' if renewed else 'ready'}. "
        + ("Restart the region's orchestrator to use it. " if renewed else "")
        + "Keep root.key offline: only `ca init` needs it, for a new region or to renew one."
    )
    return 0


def _check_names(trust_domain: str, region: str) -> None:
    if re.fullmatch(r"[A-Za-z0-9._-]+", region) is None:
        raise ConfigError(f"{region!r} is not a region's name")
    try:
        parse(str(MemberId(trust_domain, region, "member")))
    except InvalidIdentity as error:
        raise ConfigError(str(error)) from error


def _ca_show(options: argparse.Namespace) -> int:
    body = {
        "root": describe_certificate(read_certificates(options.dir / "root.crt")[0]),
        "rootKey": "here" if (options.dir / "root.key").exists() else "away",
        "regions": {
            path.parent.name: describe_certificate(read_certificates(path)[0])
            for path in sorted(options.dir.glob("regions/*/ca.crt"))
        },
    }
    print(json.dumps(body, indent=2))  # noqa: T201
    return 0


def _version(_: argparse.Namespace) -> int:
    print(running_version())  # noqa: T201
    return 0
