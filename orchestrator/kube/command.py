"""The command `edge-orchestrator kube`: what the Helm chart's jobs run. Called by `main.py`.

prepare    refuse a version that is too old for the store, and make the secrets that are missing
record     write down which schemas this version has rolled out
"""

import argparse
import time
from typing import Any

from orchestrator.kube.api import own_api
from orchestrator.kube.keeping import Keeper, Release


def add_kube(commands: Any) -> None:
    """Its parsers; each sets `run`."""
    kube = commands.add_parser("kube", help="secrets and records of a release in Kubernetes")
    actions = kube.add_subparsers(required=True, metavar="ACTION")
    prepare = actions.add_parser(
        "prepare", help="make the secrets that are missing; refuse a version that is too old"
    )
    prepare.add_argument("--name", required=True, help="what the names of its objects begin with")
    prepare.add_argument("--trust-domain", required=True)
    prepare.add_argument("--region", required=True)
    prepare.add_argument("--ca-secret", default="", help="use this one, and make none")
    prepare.add_argument(
        "--etcd-host", action="append", default=[], help="of a member of the bundled etcd"
    )
    prepare.set_defaults(run=_prepare)
    record = actions.add_parser("record", help="write down the schemas of this version")
    record.add_argument("--name", required=True)
    record.set_defaults(run=_record)


def _prepare(options: argparse.Namespace) -> int:
    keeper = Keeper(own_api(), time.time())
    hosts = tuple(options.etcd_host)
    keeper.prepare(
        Release(options.name, options.trust_domain, options.region, options.ca_secret, hosts)
    )
    return _told(keeper)


def _record(options: argparse.Namespace) -> int:
    keeper = Keeper(own_api(), time.time())
    keeper.record(options.name)
    return _told(keeper)


def _told(keeper: Keeper) -> int:
    for line in keeper.told:
        print(line)  # noqa: T201 - the job's log: names, no contents
    return 0
