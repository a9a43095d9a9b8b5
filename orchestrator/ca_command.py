"""The command `edge-orchestrator ca`: certificate authorities, on the machine that holds them.

Called by main.py. Everything here reads and writes files; members that run take up what changed by
themselves (identity/rotation.py).
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.config import Config, ConfigError
from orchestrator.identity.authority import (
    create_region,
    create_root,
    load_authority,
    region_home,
    trust_domain_of,
)
from orchestrator.identity.break_glass import Wish, issue
from orchestrator.identity.bundle import export_region, import_region, read_bundle
from orchestrator.identity.etcd_authority import etcd_home, is_client, issue_etcd
from orchestrator.identity.pem import UnusableFile, read_certificates, write_file
from orchestrator.identity.releases import DebianPackage, read_package
from orchestrator.identity.releases import issue as issue_release
from orchestrator.installation import describe_certificate
from polder.identity import InvalidIdentity, MemberId, parse
from polder.local_access import ACTIONS, LIFE_MAX_S
from polder.manifest.names import LABEL, LABEL_HELP
from polder.manifest.quantity import duration_s, format_duration
from polder.release import InvalidRelease

_COMMON_NAME_MAX = 64  # RFC 5280
_TAKEN_UP = "Its members take it up within seconds, without a restart"


def add_ca(commands: Any) -> None:
    """Its parsers; each sets `run`."""
    ca = commands.add_parser("ca", help="certificate authorities")
    actions = ca.add_subparsers(required=True, metavar="ACTION")
    init = _action(
        actions,
        "init",
        _init,
        "make the root if there is none, and make or renew a region's CA; root.key can go offline",
    )
    init.add_argument("--trust-domain", help="default: the root's, or polder.internal")
    init.add_argument("--region", default="local")
    rotate = _action(
        actions,
        "rotate",
        _rotate,
        "a new key and certificate for a region's CA; what the former issued stays valid",
    )
    rotate.add_argument("--region", required=True)
    export = _action(
        actions, "export", _export, "write what a region's machine needs; never root.key"
    )
    export.add_argument("--region", required=True)
    export.add_argument("--out", required=True, type=Path, metavar="FILE")
    take = _action(actions, "import", _import, "take over what `ca export` wrote elsewhere")
    take.add_argument("file", type=Path, metavar="FILE")
    take.add_argument("--trust-domain", help="refuse the file of any other")
    etcd = _action(
        actions, "etcd", _etcd, "make or renew certificates for etcd, from a CA of its own"
    )
    etcd.add_argument("--name", required=True, help="of the member, or of the client")
    etcd.add_argument(
        "--host",
        action="append",
        default=[],
        help="a name or address at which the member is dialled; may be repeated",
    )
    etcd.add_argument(
        "--client", action="store_true", help="for an orchestrator, which only connects to etcd"
    )
    _add_break_glass(actions)
    _add_sign_release(actions)
    _action(actions, "show", _show, "print what there is, as JSON")


def _add_break_glass(actions: Any) -> None:
    glass = _action(
        actions,
        "break-glass",
        _break_glass,
        "make a token with which somebody may act at one site that no orchestrator reaches; "
        "nothing but the CA's key is needed, and agents check it alone",
    )
    glass.add_argument("--site", required=True)
    glass.add_argument("--namespace", default="", help="default: all that is at the site")
    glass.add_argument("--workload", default="", help="default: all of the namespace")
    glass.add_argument(
        "--allow",
        required=True,
        metavar="ACTION[,ACTION...]",
        help=f"{', '.join(ACTIONS)}; reading is always included",
    )
    glass.add_argument("--purpose", required=True, metavar="TEXT", help="goes into every journal")
    glass.add_argument(
        "--for",
        dest="life",
        required=True,
        metavar="DURATION",
        help=f"such as 2h; at most {format_duration(LIFE_MAX_S)}",
    )
    glass.add_argument("--region", default="", help="signed by its CA; default: by the root")


def _add_sign_release(actions: Any) -> None:
    release = _action(
        actions,
        "sign-release",
        _sign_release,
        "sign a version of the agent, so that boxes of this installation take it; nothing but the "
        "packages and the root's key is needed",
    )
    release.add_argument(
        "--deb",
        required=True,
        action="append",
        type=Path,
        metavar="FILE",
        help="a package of the version; once for each architecture",
    )
    release.add_argument("--out", required=True, type=Path, metavar="FILE", help="as v.release")
    release.add_argument(
        "--downgrade",
        action="store_true",
        help="boxes that run a later version may go back to it, too",
    )


def _action(actions: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text)
    parser.add_argument("--dir", required=True, type=Path, help="where the CA is")
    parser.set_defaults(run=run)
    return parser


def _init(options: argparse.Namespace) -> int:
    root = options.dir / "root.crt"
    known = trust_domain_of(read_certificates(root)[0]) if root.exists() else ""
    trust_domain = options.trust_domain or known or Config().trust_domain
    _check_names(trust_domain, options.region)
    owner = _owner(options.dir)
    if known and not (options.dir / "root.key").exists():
        raise UnusableFile(
            f"{options.dir} has no root.key, and only the root signs a region's CA: do this where "
            "it is kept, then `ca export` there and `ca import` here"
        )
    if not known:
        create_root(options.dir, trust_domain, time.time())
    elif trust_domain != known:
        raise ConfigError(f"{options.dir} has the root of {known}, not of {trust_domain}")
    renewed = (region_home(options.dir, options.region) / "ca.crt").exists()
    create_region(options.dir, options.region, time.time())
    _hand_over(options.dir, options.region, owner)
    _say(
        f"{options.dir}: the CA of region {options.region} is {'renewed' if renewed else 'ready'}. "
        + (f"{_TAKEN_UP}. " if renewed else "")
        + "Keep root.key offline: only a new region, a rotation and a release of the agent need it."
    )
    return 0


def _rotate(options: argparse.Namespace) -> int:
    directory, region = options.dir, options.region
    former = load_authority(directory, region).intermediate
    if not (directory / "root.key").exists():
        raise UnusableFile(
            f"{directory} has no root.key, and only the root signs a region's CA. Rotate where it "
            f"is kept, then carry it here: ca export --region {region} --out FILE there, "
            f"ca import FILE --dir {directory} here"
        )
    create_region(directory, region, time.time())
    _hand_over(directory, region, _owner(directory))
    _say(
        f"{directory}: the CA of region {region} has a new key. {_TAKEN_UP}; on other machines "
        "after `ca export` here and `ca import` there.\n"
        f"What the former one (serial {former.serial_number:x}) issued is valid until it ends, at "
        f"the latest {former.not_valid_after_utc:%F}."
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    authority = export_region(options.dir, options.region, options.out)
    _say(
        f"{options.out} holds the root's certificate, and the certificate and key of the CA of "
        f"region {options.region} of {authority.trust_domain}. Whoever has it can act as this "
        "region: carry it safely, and delete it after\n"
        f"  edge-orchestrator ca import {options.out.name} --dir DATA_DIR/ca"
    )
    return 0


def _import(options: argparse.Namespace) -> int:
    bundle = read_bundle(options.file)
    found = bundle.authority.trust_domain
    if options.trust_domain not in (None, found):
        raise ConfigError(
            f"{options.file} is of the trust domain {found}, not of {options.trust_domain}"
        )
    _check_names(found, bundle.region)
    owner = _owner(options.dir)
    outcome = import_region(bundle, options.dir)
    _hand_over(options.dir, bundle.region, owner)
    told = {
        "imported": f"the CA of region {bundle.region} of {found} is ready",
        "replaced": f"the CA of region {bundle.region} is replaced. {_TAKEN_UP}",
        "unchanged": f"the CA of region {bundle.region} is the one of the file already",
    }
    _say(f"{options.dir}: {told[outcome]}. Delete {options.file}: it holds the region's key.")
    return 0


def _etcd(options: argparse.Namespace) -> int:
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,62}", options.name) is None:
        raise ConfigError(f"{options.name!r} is no name for a certificate")
    if options.client and options.host:
        raise ConfigError("a client of etcd is not dialled: leave --host out")
    hosts = tuple(options.host)
    known = (etcd_home(options.dir) / "ca.crt").exists()
    files = issue_etcd(options.dir, options.name, hosts, time.time(), client=options.client)
    ca, certificate, key = files.ca, files.certificate, files.key
    if not known:
        _say(
            f"Made a new CA for etcd, {etcd_home(options.dir)}/ca.crt: all members and clients of "
            "one etcd need certificates of the same. Its ca.key stays here.\n"
        )
    if options.client:
        _say(
            "For the orchestrator's configuration:\n"
            f'  etcd_ca = "{ca}"\n  etcd_cert = "{certificate}"\n  etcd_key = "{key}"'
        )
        return 0
    _say(
        "For this member of etcd:\n"
        f"  --cert-file={certificate} --key-file={key}\n"
        f"  --trusted-ca-file={ca} --client-cert-auth=true\n"
        f"  --peer-cert-file={certificate} --peer-key-file={key}\n"
        f"  --peer-trusted-ca-file={ca} --peer-client-cert-auth=true"
    )
    return 0


def _break_glass(options: argparse.Namespace) -> int:
    try:
        life_s = duration_s(options.life)
        wish = Wish(
            site=options.site,
            namespace=options.namespace,
            workload=options.workload,
            allow=tuple(options.allow.split(",")),
            purpose=options.purpose,
            life_s=life_s,
        )
        grant, token = issue(options.dir, options.region, wish, time.time())
    except ValueError as error:  # InvalidGrant is one
        raise ConfigError(str(error)) from error
    _say(str(token))
    print(  # noqa: T201 - the token alone is on stdout, so that a script can take it
        f"Serial {grant.serial}. For {format_duration(life_s)} whoever has this text may "
        f"{', '.join(grant.allow)} at the site {grant.site}, of {grant.target}; every use is "
        f"journaled there. To void it: edgectl revoke break-glass/{grant.serial}\n"
        "  edgectl --site-endpoint NODE --break-glass-token FILE get workloads",
        file=sys.stderr,
    )
    return 0


def _sign_release(options: argparse.Namespace) -> int:
    try:
        packages = [read_package(path) for path in options.deb]
        release, signed = issue_release(
            options.dir, packages, time.time(), downgrade=options.downgrade
        )
    except InvalidRelease as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    write_file(options.out, f"{signed}\n".encode(), mode=0o644)
    _say(
        f"{options.out}: version {release.version} of the agent for {release.trust_domain}, "
        f"state schema {release.state_schema}, signed by the root"
        f"{', as a downgrade, too' if release.downgrade else ''}\n"
        + "".join(_described(package) for package in packages)
        + "Next, with edgectl, as an admin:\n"
        f"  edgectl agent upload {options.out} "
        + " ".join(f"--deb {package.path}" for package in packages)
    )
    return 0


def _described(found: DebianPackage) -> str:
    package = found.package
    return f"  {package.arch}  sha256:{package.sha256}  {package.size} bytes  {found.path}\n"


def _show(options: argparse.Namespace) -> int:
    body: dict[str, Any] = {
        "root": describe_certificate(read_certificates(options.dir / "root.crt")[0]),
        "rootKey": "here" if (options.dir / "root.key").exists() else "away",
        "regions": {
            path.parent.name: describe_certificate(read_certificates(path)[0])
            for path in sorted(options.dir.glob("regions/*/ca.crt"))
        },
    }
    etcd = etcd_home(options.dir)
    if (etcd / "ca.crt").exists():
        body["etcd"] = {
            "ca": describe_certificate(read_certificates(etcd / "ca.crt")[0]),
            **_etcd_names(etcd),
        }
    _say(json.dumps(body, indent=2))
    return 0


def _etcd_names(etcd: Path) -> dict[str, dict[str, dict[str, str]]]:
    found: dict[str, dict[str, dict[str, str]]] = {"members": {}, "clients": {}}
    for path in sorted(etcd.glob("*/etcd.crt")):
        certificate = read_certificates(path)[0]
        group = "clients" if is_client(certificate) else "members"
        found[group][path.parent.name] = describe_certificate(certificate)
    return found


def _check_names(trust_domain: str, region: str) -> None:
    if LABEL.fullmatch(region) is None:  # as `serve` wants it
        raise ConfigError(f"region: {region!r} is not {LABEL_HELP}")
    if len(f"{trust_domain} {region}") > _COMMON_NAME_MAX:
        raise ConfigError(f"{trust_domain!r} and {region!r} together are too long for a name")
    try:
        parse(str(MemberId(trust_domain, region, "member")))
    except InvalidIdentity as error:
        raise ConfigError(str(error)) from error


def _owner(directory: Path) -> os.stat_result:
    """Whose it is, or will be: of the directory, or of the nearest one above that is there."""
    found = directory.absolute()
    while not found.exists():
        found = found.parent
    return found.stat()


def _hand_over(directory: Path, region: str, owner: os.stat_result) -> None:
    """What root wrote belongs to the directory's owner: an orchestrator that runs as a user of its
    own must be able to read it. Not root.key, which it does not need."""
    if os.geteuid() != 0:
        return
    home = region_home(directory, region)
    made: Iterable[Path] = (directory, directory / "root.crt", home.parent, home, *home.iterdir())
    for path in made:
        os.chown(path, owner.st_uid, owner.st_gid)


def _say(text: str) -> None:
    print(text)  # noqa: T201 - a command line speaks
