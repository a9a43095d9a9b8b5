"""The command `edge-orchestrator ca`: certificate authorities, on the machine that holds them.

Called by main.py. No orchestrator need run: everything here reads and writes files.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

from orchestrator.config import Config, ConfigError
from orchestrator.identity.authority import create_region, create_root, trust_domain_of
from orchestrator.identity.pem import read_certificates
from orchestrator.installation import describe_certificate
from polder.identity import InvalidIdentity, MemberId, parse


def add_ca(commands: Any) -> None:
    """Its parsers; each sets `run`."""
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
    init.set_defaults(run=_init)
    show = actions.add_parser("show", help="print what there is, as JSON")
    show.add_argument("--dir", required=True, type=Path)
    show.set_defaults(run=_show)


def _init(options: argparse.Namespace) -> int:
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
    print(  # noqa: T201 - a command line speaks
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


def _show(options: argparse.Namespace) -> int:
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
