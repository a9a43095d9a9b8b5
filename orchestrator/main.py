"""The command `edge-orchestrator`: serve, and what an admin does on the machine itself.

serve              run a member; the first start makes the CA, the Store and admin.yaml
ca                 make, renew and carry certificate authorities (ca_command.py)
migrate            move an installation to another Store, while no orchestrator runs
operator create    a new operator's context file; with SQLite, while no orchestrator runs on it
operator admin-context  print the context that the first start made
probe              what a box would find: is it served, and by whom (probing.py)
kube               secrets and records of a release in Kubernetes, for the Helm chart (kube/)
version
"""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from orchestrator import log
from orchestrator.ca_command import add_ca
from orchestrator.config import Config, ConfigError, load_config, settings
from orchestrator.identity.pem import UnusableFile
from orchestrator.installation import (
    ADMIN_CONTEXT,
    WrongInstallation,
    issue_context,
    prepare_authority,
    prepare_store,
    with_endpoints,
)
from orchestrator.kube.api import KubeRefused
from orchestrator.kube.command import add_kube
from orchestrator.listeners import CannotListen
from orchestrator.members import NotAdmitted
from orchestrator.moving import add_migrate
from orchestrator.probing import NotServed, add_probe
from orchestrator.refusals import Refused
from orchestrator.server import Orchestrator
from orchestrator.stopping import STOP_S, end_within
from orchestrator.store.address import open_address
from orchestrator.store.migrate import CannotMigrate
from orchestrator.store.port import StoreError
from orchestrator.version import running_version

_M_MMAP_THRESHOLD = -3  # malloc.h
_MAPPED_FROM_BYTES = 16_000
_TURN_S = 0.001
"""For how long the leader's thinking keeps the interpreter from the loop: the usual 5 ms would be
added to every pass of the loop while it thinks."""

_FAILURES = (
    ConfigError,
    UnusableFile,
    WrongInstallation,
    NotAdmitted,
    CannotListen,
    CannotMigrate,
    KubeRefused,
    NotServed,
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
    add_ca(commands)
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
    create.add_argument("--out", required=True, type=Path, metavar="FILE", help="-: print it")
    create.add_argument("--namespace", default="default", help="that edgectl starts in")
    _add_settings(create)
    create.set_defaults(run=_operator_create)
    shown = actions.add_parser(
        "admin-context",
        help="print the context that the first start made, with today's addresses: it holds a key",
    )
    _add_settings(shown)
    shown.set_defaults(run=_admin_context)
    add_migrate(commands)
    add_probe(commands)
    add_kube(commands)
    commands.add_parser("version", help="print the version").set_defaults(run=_version)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for every setting of `config.py`."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML")
    for info in settings():
        flag, text = f"--{info.key.replace('_', '-')}", info.rule.doc.replace("%", "%%")
        if info.default is False:
            parser.add_argument(
                flag, dest=f"set_{info.key}", action="store_const", const=True, help=text
            )
            continue
        parser.add_argument(
            flag,
            dest=f"set_{info.key}",
            metavar=info.key.rpartition("_")[2].upper(),
            action="append" if info.default == () else "store",
            help=text,
        )


def _config(options: argparse.Namespace) -> Config:
    flags = {info.key: getattr(options, f"set_{info.key}") for info in settings()}
    return load_config(options.config, flags=flags)


# --- commands -----------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    config = _config(options)
    log.set_up(config.log_level, config.log_format)
    _spare_memory()
    sys.setswitchinterval(_TURN_S)
    return uvloop.run(_prepare(config) if options.init else _run(config))


async def _run(config: Config) -> int:
    """Until SIGTERM or SIGINT. 1 when a part of the process failed, or did not end in time."""
    stop = asyncio.Event()
    stop_s = config.shutdown_grace + STOP_S

    def told() -> None:
        if not stop.is_set():
            stop.set()
            end_within(stop_s)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    orchestrator = Orchestrator(config)
    if not await _start(orchestrator, stop):
        return 0
    _tune_collector()
    waiting = [asyncio.create_task(event.wait()) for event in (stop, orchestrator.failed)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    failed = not stop.is_set()
    if failed:
        end_within(stop_s)
    await orchestrator.stop()
    return int(failed)


async def _start(orchestrator: Orchestrator, stop: asyncio.Event) -> bool:
    """Whether it serves; False when it was told to stop before, such as while the Store is away."""
    starting = asyncio.create_task(orchestrator.start())
    told = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
    if starting.cancelled():
        return False
    starting.result()
    return True


def _spare_memory() -> None:
    """A TLS connection has three buffers of 16 to 17 KB of which small messages touch a page or
    two: from the heap they come touched by others before, mapped on their own they do not."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)


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
    store = await open_address(config.store_address, config.etcd_access, create=True)
    try:
        await prepare_store(store, authority, config, time.time)
        with tempfile.TemporaryDirectory() as folder:
            printed = options.out == Path("-")
            path = Path(folder) / "context.yaml" if printed else options.out
            await issue_context(
                store,
                authority,
                config,
                time.time,
                options.name,
                tuple(options.role),
                path,
                options.namespace,
            )
            print(path.read_text() if printed else path, end="" if printed else "\n")  # noqa: T201
    finally:
        await store.close()
    return 0


def _admin_context(options: argparse.Namespace) -> int:
    config = _config(options)
    path = config.data_path / ADMIN_CONTEXT
    if not path.exists():
        raise WrongInstallation(
            f"there is no {path}: another member made the first admin, or it was taken away",
            "Ask the other members, or: edge-orchestrator operator create NAME --role admin.",
        )
    text = with_endpoints(path.read_text(), config.endpoints)
    print(text, end="")  # noqa: T201 - what the caller asked for
    return 0


def _version(_: argparse.Namespace) -> int:
    print(running_version())  # noqa: T201
    return 0
