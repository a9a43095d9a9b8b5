"""An installation on disk: made at the first start, found again at every later one.

Called by `serve` and by the other commands of `edge-orchestrator`. In the data directory:

    polder.db        the SQLite Store, if the Store is not at etcd
    ca/              the CA (identity/authority.py)
    admin.yaml       edgectl's context of the first admin
"""

import base64
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from orchestrator.config import Config
from orchestrator.domain.endpoints import addresses, nearest
from orchestrator.founding import found_under, note
from orchestrator.identity.authority import (
    Authority,
    Issued,
    create_region,
    create_root,
    load_authority,
)
from orchestrator.identity.member import SERVER_NAME
from orchestrator.identity.operators import OperatorIdentities
from orchestrator.identity.pem import key_pem, new_key, pem_of, write_file
from orchestrator.records import MemberRecord, StoredResource
from orchestrator.store import keys
from orchestrator.store.migrate import epoch_base
from orchestrator.store.port import Compare, Put, Store
from orchestrator.version import running_version
from polder.manifest.document import DEFAULT_NAMESPACE

log = logging.getLogger(__name__)

SCHEMA = 1
ADMIN = "admin"
ADMIN_CONTEXT = "admin.yaml"
CLUSTER = "polder"
CA_WARNING_S = 60 * 86_400.0


class WrongInstallation(Exception):
    """Data directory, CA, Store and configuration do not belong together; the message says which.

    `hint` says what to do, where the message does not.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def prepare_authority(config: Config, clock: Callable[[], float], *, fresh: bool) -> Authority:
    """The region's CA; made when the installation is `fresh` and nobody else's. Raises
    UnusableFile, WrongInstallation."""
    directory = config.ca_path
    if config.shares_store:
        _require_region(config)
    elif fresh and not (directory / "root.crt").exists():
        create_root(directory, config.trust_domain, clock())
        log.info("made a root CA", extra={"dir": str(directory)})
    region_missing = not (directory / "regions" / config.region / "ca.crt").exists()
    if region_missing and (directory / "root.key").exists():
        create_region(directory, config.region, clock())
        log.info("made the region's CA", extra={"region": config.region})
    authority = load_authority(directory, config.region)
    if authority.trust_domain != config.trust_domain:
        raise WrongInstallation(
            f"the CA in {directory} is for the trust domain {authority.trust_domain!r}, and the "
            f"configuration says {config.trust_domain!r}"
        )
    for what, when in authority.ends_at.items():
        if when - clock() < CA_WARNING_S:
            days = max(0, int((when - clock()) / 86_400))
            log.warning(
                "a CA certificate ends soon; renew it with `edge-orchestrator ca rotate`",
                extra={"what": what, "days_left": days},
            )
    return authority


def _require_region(config: Config) -> None:
    """With several members nothing is made by itself: each would have a root of its own. Raises
    WrongInstallation."""
    directory, region = config.ca_path, config.region
    home = directory / "regions" / region
    missing = [path for path in (directory / "root.crt", home / "ca.crt") if not path.exists()]
    if missing:
        raise WrongInstallation(
            f"there is no {missing[0]}: all regions of an installation have one root, which is "
            "made once and not by a start",
            "Where the root's key is kept: edge-orchestrator ca init --dir CA "
            f"--trust-domain {config.trust_domain} --region {region}, and edge-orchestrator "
            f"ca export --dir CA --region {region} --out {region}.json. "
            f"Here: edge-orchestrator ca import {region}.json --dir {directory}.",
        )


async def prepare_store(
    store: Store, authority: Authority, config: Config, clock: Callable[[], float]
) -> int:
    """Mark an empty Store as this installation's; check that a used one is. Several members may
    do so at once: one of them marks it. Raises WrongInstallation, StoreError.

    Gives `Cache.epoch_base`."""
    root = base64.b64encode(authority.roots_der[0]).decode()
    mark = {"schema": SCHEMA, "trustDomain": authority.trust_domain, "root": root}
    entry = await store.get(keys.INSTALLATION)
    if entry is None:
        await _check_empty(store, config, authority)
        namespace = StoredResource(
            kind="Namespace",
            namespace="",
            name=DEFAULT_NAMESPACE,
            uid="00000000-0000-4000-8000-000000000000",
            spec={"description": "Where workloads go that name no namespace"},
            created_at_ms=int(clock() * 1000),
        )
        key = keys.spec(*namespace.ref)
        value = json.dumps(mark, sort_keys=True).encode()
        compares = [Compare.absent(k) for k in (keys.INSTALLATION, keys.MIGRATION, key)]
        ops = [Put(keys.INSTALLATION, value), Put(key, namespace.to_bytes())]
        if (await store.txn(compares, ops)).committed:
            log.info("initialised the store", extra={"trust_domain": authority.trust_domain})
            return 0
        entry = await store.get(keys.INSTALLATION)
        if entry is None:
            await _check_empty(store, config, authority)
    found = read_mark(entry.value) if entry is not None else {}
    if found.get("root") != root:
        raise WrongInstallation(
            f"the store belongs to another CA than the one in {config.ca_path}: nodes and "
            "operators of it would all be refused. Put the right CA there, or choose another "
            "data_dir, or store"
        )
    if config.shares_store:
        await note(config, authority.roots_der[0])
    return epoch_base(entry.value) if entry is not None else 0


def read_mark(value: bytes) -> dict[str, Any]:
    """What the Store says of its installation. Raises WrongInstallation when it is of another
    schema: what this version would write there, the others might not understand, or worse."""
    found: dict[str, Any] = json.loads(value)
    if found.get("schema") != SCHEMA:
        raise WrongInstallation(
            f"the store has schema {found.get('schema')!r}, and version {running_version()} knows "
            f"{SCHEMA}: nothing was changed",
            "Run the version that wrote it, or a later one. To go back, restore a backup from "
            "before that upgrade: docs/operating.md.",
        )
    return found


async def _check_empty(store: Store, config: Config, authority: Authority) -> None:
    """Whether a Store without an installation may become one. Raises WrongInstallation."""
    if await store.get(keys.MIGRATION) is not None:
        raise WrongInstallation(
            "an installation is being moved to this store and is not complete",
            "Run the same `edge-orchestrator migrate` again: it takes up where it stopped.",
        )
    admin = config.data_path / ADMIN_CONTEXT
    if config.shares_store and admin.exists():
        # A new installation would admit nobody whom the lost one knew.
        raise WrongInstallation(
            f"{admin} is there, and {config.store_address} holds no installation under "
            f"{config.etcd_prefix}: was etcd lost, or is the address or the prefix another?",
            "Restore etcd from a snapshot; or move an SQLite installation there with "
            f"`edge-orchestrator migrate`; or move {admin.name} away to begin anew.",
        )
    other = await found_under(config, authority.roots_der[0]) if config.shares_store else ""
    if other:
        raise WrongInstallation(
            f"the installation of this CA is in {config.store_address} under {other}, and "
            f"etcd_prefix is {config.etcd_prefix}: a second one of the same CA is not founded",
            f'Set etcd_prefix = "{other}". A second installation needs a CA of its own '
            "(`edge-orchestrator ca init`). Should the one that is there be forgotten: stop its "
            f"members, and `etcdctl del --prefix {other}/`.",
        )


async def issue_context(
    store: Store,
    authority: Authority,
    config: Config,
    clock: Callable[[], float],
    name: str,
    roles: tuple[str, ...],
    path: Path,
    namespace: str = DEFAULT_NAMESPACE,
) -> Issued:
    """A new operator certificate as a context file (mode 0600). Raises Refused, StoreError."""
    key = new_key()
    operators = OperatorIdentities(store, authority, clock, config.operator_certificate_life)
    issued, _ = await operators.issue(name, roles, key.public_key())
    found = await store.range(keys.MEMBERS)
    members = [MemberRecord.from_bytes(entry.value) for entry in found.entries]
    near = nearest(members, region=config.region, coordinates=None, salt=name)
    text = context_file(
        endpoints=addresses(near) or config.endpoints,
        trust_domain=authority.trust_domain,
        roots_pem=pem_of(authority.roots_der),
        name=name,
        chain_pem=pem_of(issued.chain_der),
        private_key_pem=key_pem(key),
        namespace=namespace,
    )
    write_file(path, text.encode())
    return issued


def context_file(
    *,
    endpoints: tuple[str, ...],
    trust_domain: str,
    roots_pem: bytes,
    name: str,
    chain_pem: bytes,
    private_key_pem: bytes,
    namespace: str,
) -> str:
    """edgectl's configuration with one context. JSON, which is YAML too."""
    context = f"{name}@{CLUSTER}"
    body = {
        "apiVersion": "polder.eu/v1",
        "kind": "Config",
        "currentContext": context,
        "clusters": [
            {
                "name": CLUSTER,
                "cluster": {
                    "endpoints": list(endpoints),
                    "certificateAuthorityData": base64.b64encode(roots_pem).decode(),
                    "trustDomain": trust_domain,
                    "serverName": SERVER_NAME,
                },
            }
        ],
        "users": [
            {
                "name": name,
                "user": {
                    "clientCertificateData": base64.b64encode(chain_pem).decode(),
                    "clientKeyData": base64.b64encode(private_key_pem).decode(),
                },
            }
        ],
        "contexts": [
            {
                "name": context,
                "context": {"cluster": CLUSTER, "user": name, "namespace": namespace},
            }
        ],
    }
    return json.dumps(body, indent=2) + "\n"


def with_endpoints(context: str, endpoints: tuple[str, ...]) -> str:
    """A context file as it was made, with other addresses: those of a load balancer, say, are known
    only after the first start."""
    body = json.loads(context)
    for entry in body["clusters"]:
        entry["cluster"]["endpoints"] = list(endpoints)
    return json.dumps(body, indent=2) + "\n"


def describe_certificate(certificate: x509.Certificate) -> dict[str, str]:
    """For `ca show`."""
    return {
        "subject": certificate.subject.rfc4514_string(),
        "notBefore": f"{certificate.not_valid_before_utc:%FT%TZ}",
        "notAfter": f"{certificate.not_valid_after_utc:%FT%TZ}",
        "serial": f"{certificate.serial_number:x}",
        "pem": certificate.public_bytes(Encoding.PEM).decode(),
    }
