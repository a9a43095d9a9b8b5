"""What a release keeps in Kubernetes: secrets that are made once, and which store it has.

Called by `command.py`, in the jobs that the chart runs before and after an install, upgrade or
rollback. Nothing that is there is changed: what is missing is made from what is there. To renew
something, delete it and upgrade. For a release NAME:

    Secret NAME-root         the root's certificate and key; no pod reads it, and it can go away
    Secret NAME-ca           what members need of the CA: root.crt, ca.crt, ca.key
    Secret NAME-etcd-ca      of the bundled etcd; no pod reads it
    Secret NAME-etcd-server, NAME-etcd-client   ca.crt, tls.crt, tls.key
    ConfigMap NAME-installation   the root, the kind of store, and the newest schemas that were
                                  rolled out

The secrets belong to no release of Helm's, so that `helm uninstall` leaves them: without them the
volumes would be of no use.
"""

import base64
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from orchestrator.identity.authority import (
    create_region,
    create_root,
    load_authority,
    region_home,
)
from orchestrator.identity.etcd_authority import etcd_home, issue_etcd
from orchestrator.identity.pem import UnusableFile, read_certificates, read_key, write_file
from orchestrator.installation import SCHEMA
from orchestrator.kube.api import Body, KubeRefused
from orchestrator.store.sqlite_file import SCHEMA_VERSION
from orchestrator.version import running_version

SCHEMAS = {"schema": SCHEMA, "sqliteSchema": SCHEMA_VERSION}
STORES = ("sqlite", "etcd")
_CA_FILES = ("root.crt", "ca.crt", "ca.key")
_ETCD_FILES = ("ca.crt", "tls.crt", "tls.key")
_ETCD_CLIENT = "polder"
_ETCD_SERVER = "etcd"

Files = Mapping[str, bytes]
Record = Mapping[str, str]


class Api(Protocol):
    """`api.KubeApi`, or what a test puts in its place."""

    def get(self, plural: str, name: str) -> Body | None: ...
    def create(self, plural: str, body: Body) -> bool: ...
    def replace(self, plural: str, body: Body) -> None: ...


@dataclass(frozen=True, slots=True)
class Release:
    """What the chart says of it. `ca_secret`, `etcd_secret`: the operator's own; `etcd_hosts`: of
    the members of the bundled etcd, empty when there is none."""

    name: str
    trust_domain: str
    region: str
    store: str = "sqlite"
    ca_secret: str = ""
    etcd_secret: str = ""
    etcd_hosts: tuple[str, ...] = ()


@dataclass(slots=True)
class Keeper:
    """`prepare` before a change, `record` after it. `told` is what to print: names, no contents."""

    api: Api
    now: float
    told: list[str] = field(default_factory=list)

    # --- the store -------------------------------------------------------------------------------

    def refuse_unfit(self, release: Release) -> Record | None:
        """What is recorded of the installation, if any is. Raises KubeRefused when this version is
        too old for what has been rolled out: its members would refuse the store one by one. And on
        the way from etcd to SQLite: no member would refuse that. It would found an installation
        anew, or go on from what its volume had before the move, and boxes would do as it says."""
        known_as = f"{release.name}-installation"
        found = self.api.get("configmaps", known_as)
        data = (found or {}).get("data") or {}
        if release.store == "sqlite" and data.get("store") == "etcd":
            raise KubeRefused(
                "this installation is in etcd, and store.type says sqlite: nothing was changed",
                "Keep store.type=etcd. If nothing was moved to etcd yet, say so first: kubectl "
                f"patch configmap {known_as} --type=merge "
                """--patch='{"data": {"store": "sqlite"}}'""",
            )
        for key, known in SCHEMAS.items():
            if _number(data.get(key)) > known:
                raise KubeRefused(
                    f"the store has {key} {data[key]}, written by version {data.get('version')}, "
                    f"and version {running_version()} knows {known}: nothing was changed",
                    "Go back to that version, or restore a backup from before it: docs/helm.md.",
                )
        return None if found is None else data

    def record(self, name: str, store: str, ca_secret: str) -> None:
        """The root, the store, and the schemas that members of this version write. Raises
        KubeRefused."""
        known = f"{name}-installation"
        data = {key: str(value) for key, value in SCHEMAS.items()}
        data |= {"store": store, "version": running_version()}
        files = self._files(ca_secret)
        if files is None:
            raise KubeRefused(f"Secret {ca_secret} is gone, and members use it")
        data["root"] = _fingerprint(files)
        body = _object(name, known, "ConfigMap") | {"data": data}
        if self.api.create("configmaps", body):
            self.told.append(f"ConfigMap {known}: written")
            return
        found = self.api.get("configmaps", known)
        if found is None:
            raise KubeRefused(f"ConfigMap {known} came and went: try again")
        before = found.get("data") or {}
        highest = {key: str(max(value, _number(before.get(key)))) for key, value in SCHEMAS.items()}
        self.api.replace("configmaps", {**found, "data": {**data, **highest}})
        self.told.append(f"ConfigMap {known}: written")

    # --- secrets ---------------------------------------------------------------------------------

    def prepare(self, release: Release) -> None:
        """Raises KubeRefused, UnusableFile."""
        known = self.refuse_unfit(release)
        with tempfile.TemporaryDirectory() as folder:
            if release.ca_secret:
                self._check_given(release, Path(folder), known)
            else:
                self._own_ca(release, Path(folder), known)
        with tempfile.TemporaryDirectory() as folder:
            if release.etcd_secret:
                self._check_etcd_given(release.etcd_secret, Path(folder))
            elif release.etcd_hosts:
                self._etcd(release, Path(folder))

    def _check_given(self, release: Release, folder: Path, known: Record | None) -> None:
        files = self._files(release.ca_secret)
        if files is None:
            raise KubeRefused(
                f"ca.existingSecret: there is no Secret {release.ca_secret}",
                "On the safe machine: edge-orchestrator ca init --dir ca --region "
                f"{release.region}; then docs/helm.md tells how its files become the Secret.",
            )
        _check_ca(release, release.ca_secret, files, folder, known)
        self.told.append(f"Secret {release.ca_secret}: used")

    def _check_etcd_given(self, name: str, folder: Path) -> None:
        """Whether a member can speak to etcd with it; a pod would wait for a Secret that is not
        there without a word."""
        files = self._files(name)
        if files is None:
            raise KubeRefused(
                f"store.etcd.existingSecret: there is no Secret {name}",
                "On the safe machine: edge-orchestrator ca etcd --dir ca --name polder --client; "
                "then docs/helm.md tells how its files become the Secret.",
            )
        _require(name, files, _ETCD_FILES)
        _write(folder, {key: files[key] for key in _ETCD_FILES})
        try:
            read_certificates(folder / "ca.crt")
            certificate = read_certificates(folder / "tls.crt")[0]
            fits = certificate.public_key() == read_key(folder / "tls.key").public_key()
        except UnusableFile as error:
            raise KubeRefused(f"Secret {name}: {_without(folder, error)}") from error
        if not fits:
            raise KubeRefused(f"Secret {name}: tls.key does not belong to tls.crt")
        self.told.append(f"Secret {name}: used")

    def _own_ca(self, release: Release, folder: Path, known: Record | None) -> None:
        name, root_name = f"{release.name}-ca", f"{release.name}-root"
        files = self._files(name)
        if files is not None:
            _check_ca(release, name, files, folder, known)
            self.told.append(f"Secret {name}: kept")
            return
        root = self._files(root_name)
        if root is None and known is not None:
            raise KubeRefused(
                f"this installation's Secret {name} is gone, and {root_name} is not here to make "
                "it again: a new root would shut out every box and operator",
                f"Restore one of them. To begin anew instead, delete ConfigMap {release.name}"
                "-installation, and the volumes.",
            )
        if root is None:
            create_root(folder, release.trust_domain, self.now)
            root = _read(folder, ("root.crt", "root.key"))
            self._keep(release, root_name, root, immutable=True)
            root = self._files(root_name) or root
        _write(folder, root)
        create_region(folder, release.region, self.now)
        home = region_home(folder, release.region)
        self._keep(
            release, name, {**_read(folder, ("root.crt",)), **_read(home, ("ca.crt", "ca.key"))}
        )

    def _etcd(self, release: Release, folder: Path) -> None:
        names = {
            _ETCD_SERVER: f"{release.name}-etcd-server",
            _ETCD_CLIENT: f"{release.name}-etcd-client",
        }
        there = {who: self._files(name) for who, name in names.items()}
        _check_hosts(release, there[_ETCD_SERVER])
        for who, files in there.items():
            if files is not None:
                self.told.append(f"Secret {names[who]}: kept")
        missing = [who for who, files in there.items() if files is None]
        if not missing:
            return
        self._etcd_ca(release, folder, begun=len(missing) < len(there))
        for who in missing:
            client = who == _ETCD_CLIENT
            made = issue_etcd(
                folder, who, () if client else release.etcd_hosts, self.now, client=client
            )
            self._keep(
                release,
                names[who],
                {
                    "ca.crt": made.ca.read_bytes(),
                    "tls.crt": made.certificate.read_bytes(),
                    "tls.key": made.key.read_bytes(),
                },
            )

    def _etcd_ca(self, release: Release, folder: Path, *, begun: bool) -> None:
        """Into `folder`: the one that is kept, or a new one."""
        name, home = f"{release.name}-etcd-ca", etcd_home(folder)
        files = self._files(name)
        if files is None and begun:
            raise KubeRefused(
                f"Secret {name} is gone: a certificate of another CA would be refused by etcd",
                "Restore it; or delete the Secrets of etcd's server and client, too: all of them "
                "are made anew then, and etcd and the orchestrators have to be restarted.",
            )
        if files is None:
            issue_etcd(folder, _ETCD_CLIENT, (), self.now, client=True)  # makes the CA
            self._keep(release, name, _read(home, ("ca.crt", "ca.key")), immutable=True)
            files = self._files(name)
        if files is not None:
            _write(home, files)

    def _files(self, name: str) -> dict[str, bytes] | None:
        found = self.api.get("secrets", name)
        if found is None:
            return None
        try:
            data = found.get("data") or {}
            return {key: base64.b64decode(value, validate=True) for key, value in data.items()}
        except ValueError as error:
            raise KubeRefused(f"Secret {name} is damaged") from error

    def _keep(self, release: Release, name: str, files: Files, *, immutable: bool = False) -> None:
        """Creates it; another job that was faster is fine, since what it made is used."""
        data = {key: base64.b64encode(value).decode() for key, value in files.items()}
        body = _object(release.name, name, "Secret") | {"type": "Opaque", "data": data}
        if immutable:
            body["immutable"] = True
        made = self.api.create("secrets", body)
        self.told.append(f"Secret {name}: {'made' if made else 'kept'}")


def _object(release: str, name: str, kind: str) -> Body:
    labels = {
        "app.kubernetes.io/part-of": "polder",
        "app.kubernetes.io/managed-by": "edge-orchestrator",
        "polder.eu/release": release,
    }
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": name, "labels": labels},
    }


def _number(text: object) -> int:
    return int(text) if isinstance(text, str) and text.isdecimal() else 0


def _require(name: str, files: Files, keys: Sequence[str]) -> None:
    missing = [key for key in keys if key not in files]
    if missing:
        raise KubeRefused(f"Secret {name} lacks {', '.join(missing)}")


def _without(folder: Path, error: UnusableFile) -> str:
    return str(error).replace(f"{folder}/", "")


def _fingerprint(files: Files) -> str:
    """Of the root that members compare the Store's with."""
    return x509.load_pem_x509_certificate(files["root.crt"]).fingerprint(hashes.SHA256()).hex()


def _check_ca(
    release: Release, name: str, files: Files, folder: Path, known: Record | None
) -> None:
    """Raises KubeRefused when a member could not start with it."""
    _require(name, files, _CA_FILES)
    _write(folder, {"root.crt": files["root.crt"]})
    _write(region_home(folder, release.region), {key: files[key] for key in ("ca.crt", "ca.key")})
    try:
        authority = load_authority(folder, release.region)
    except UnusableFile as error:
        raise KubeRefused(f"Secret {name}: {_without(folder, error)}") from error
    if authority.trust_domain != release.trust_domain:
        raise KubeRefused(
            f"Secret {name} is of trust domain {authority.trust_domain}, and trustDomain says "
            f"{release.trust_domain}: that cannot be changed"
        )
    if authority.region != release.region:
        raise KubeRefused(
            f"Secret {name} is of region {authority.region}, and region says {release.region}"
        )
    if known is not None and known.get("root", _fingerprint(files)) != _fingerprint(files):
        raise KubeRefused(
            f"Secret {name} has another root than this installation: every box and operator would "
            "be shut out",
            "The root stays: make a CA for the region with the one that there is "
            f"(Secret {release.name}-root, or where its key was taken).",
        )


def _check_hosts(release: Release, server: Files | None) -> None:
    """Members of etcd come and go by its own procedure, not by a number. Raises KubeRefused."""
    if server is None:
        return
    certificate = x509.load_pem_x509_certificate(server.get("tls.crt", b""))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    covered = set(names.get_values_for_type(x509.DNSName))
    if any(host not in covered for host in release.etcd_hosts):
        raise KubeRefused(
            f"etcd.replicas: the bundled etcd was made for {json.dumps(sorted(covered))}; its "
            "members cannot be changed by a number",
            "docs/helm.md tells how to move to another etcd.",
        )


def _read(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def _write(folder: Path, files: Files) -> None:
    for name, data in files.items():
        write_file(folder / name, data)
