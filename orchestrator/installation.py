"""An installation on disk: made at the first start, found again at every later one.

Called by `serve` and by the offline commands of `edge-orchestrator`. In the data directory:

    polder.db        the SQLite Store
    ca/              the CA (identity/authority.py)
    admin.yaml       edgectl's context of the first admin
"""

import base64
import json
import logging
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from orchestrator.config import Config
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
from orchestrator.records import StoredResource
from orchestrator.store import keys
from orchestrator.store.port import Compare, Put, Store
from polder.manifest.document import DEFAULT_NAMESPACE

log = logging.getLogger(__name__)

SCHEMA = 1
ADMIN = "admin"
CLUSTER = "polder"
CA_WARNING_S = 60 * 86_400.0


class WrongInstallation(Exception):
    """Data directory, CA and configuration do not belong together; the message says which."""


def prepare_authority(config: Config, clock: Callable[[], float], *, fresh: bool) -> Authority:
    """The region's CA; made when the installation is `fresh`. Raises UnusableFile,
    WrongInstallation."""
    directory = config.ca_path
    if fresh and not (directory / "root.crt").exists():
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
                "a CA certificate ends soon; renew it with `edge-orchestrator ca init`",
                extra={"what": what, "days_left": days},
            )
    return authority


async def prepare_store(
    store: Store, authority: Authority, config: Config, clock: Callable[[], float]
) -> None:
    """Mark an empty Store as this installation's; check that a used one is. Raises
    WrongInstallation, StoreError."""
    root = base64.b64encode(authority.roots_der[0]).decode()
    mark = {"schema": SCHEMA, "trustDomain": authority.trust_domain, "root": root}
    entry = await store.get(keys.INSTALLATION)
    if entry is None:
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
        compares = [Compare.absent(keys.INSTALLATION), Compare.absent(key)]
        ops = [Put(keys.INSTALLATION, value), Put(key, namespace.to_bytes())]
        if (await store.txn(compares, ops)).committed:
            log.info("initialised the store", extra={"trust_domain": authority.trust_domain})
            return
        entry = await store.get(keys.INSTALLATION)
    found = json.loads(entry.value) if entry is not None else {}
    if found.get("schema") != SCHEMA:
        raise WrongInstallation(
            f"the store has schema {found.get('schema')!r}, and this version knows {SCHEMA}"
        )
    if found.get("root") != root:
        raise WrongInstallation(
            f"the store belongs to another CA than the one in {config.ca_path}: nodes and "
            "operators of it would all be refused. Put the right CA there, or choose another "
            "data_dir"
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
    text = context_file(
        endpoints=config.endpoints,
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


def describe_certificate(certificate: x509.Certificate) -> dict[str, str]:
    """For `ca show`."""
    return {
        "subject": certificate.subject.rfc4514_string(),
        "notBefore": f"{certificate.not_valid_before_utc:%FT%TZ}",
        "notAfter": f"{certificate.not_valid_after_utc:%FT%TZ}",
        "serial": f"{certificate.serial_number:x}",
        "pem": certificate.public_bytes(Encoding.PEM).decode(),
    }
