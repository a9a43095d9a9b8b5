"""The command `edge-orchestrator kube`: what the Helm chart's jobs run. Called by `main.py`.

prepare    refuse a version that is too old for the store, another store or root, and settings that
           a member would refuse; make the secrets that are missing
record     write down the root, the store, and which schemas this version has rolled out
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.config import Config, ConfigError, load_config
from orchestrator.kube.api import own_api
from orchestrator.kube.keeping import STORES, Keeper, Release


def add_kube(commands: Any) -> None:
    """Its parsers; each sets `run`."""
    kube = commands.add_parser("kube", help="secrets and records of a release in Kubernetes")
    actions = kube.add_subparsers(required=True, metavar="ACTION")
    prepare = actions.add_parser(
        "prepare", help="make the secrets that are missing; refuse what members would refuse"
    )
    prepare.add_argument("--name", required=True, help="what the names of its objects begin with")
    prepare.add_argument("--trust-domain", required=True)
    prepare.add_argument("--region", required=True)
    prepare.add_argument("--config", required=True, help="orchestrator.toml of a member, as text")
    prepare.add_argument("--ca-secret", default="", help="use this one, and make none")
    prepare.add_argument("--etcd-secret", default="", help="of an etcd that is not bundled")
    prepare.add_argument(
        "--etcd-host", action="append", default=[], help="of a member of the bundled etcd"
    )
    prepare.set_defaults(run=_prepare)
    record = actions.add_parser("record", help="write down the schemas of this version")
    record.add_argument("--name", required=True)
    record.add_argument("--store", required=True, choices=STORES)
    record.add_argument("--ca-secret", required=True, help="that members use")
    record.set_defaults(run=_record)


def _prepare(options: argparse.Namespace) -> int:
    config = _config(options.config)
    keeper = Keeper(own_api(), time.time())
    keeper.prepare(
        Release(
            options.name,
            options.trust_domain,
            options.region,
            store="etcd" if config.shares_store else "sqlite",
            ca_secret=options.ca_secret,
            etcd_secret=options.etcd_secret,
            etcd_hosts=tuple(options.etcd_host),
        )
    )
    return _told(keeper)


def _config(text: str) -> Config:
    """Read as the member will read it, while the one that runs is still there. Raises
    ConfigError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "orchestrator.toml"
        path.write_text(text)
        try:
            return load_config(path, {})
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{folder}/", "")) from error


def _record(options: argparse.Namespace) -> int:
    keeper = Keeper(own_api(), time.time())
    keeper.record(options.name, options.store, options.ca_secret)
    return _told(keeper)


def _told(keeper: Keeper) -> int:
    for line in keeper.told:
        print(line)  # noqa: T201 - the job's log: names, no contents
    return 0
