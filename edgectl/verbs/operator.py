"""`edgectl operator create`: the key is made here and never leaves; the CA signs the request."""

import sys
from collections.abc import Iterable
from pathlib import Path

from edgectl import config, config_file
from edgectl.durations import option_seconds
from edgectl.errors import CliError, UsageError
from edgectl.invocation import Invocation
from polder.manifest.names import LABEL, LABEL_HELP
from polder.roles import parse_role
from polder.v1 import operator_pb2


def create(invocation: Invocation) -> int:
    options = invocation.options
    roles = _roles(options.role)
    if LABEL.fullmatch(options.name) is None:
        raise UsageError(f"{options.name!r} is not {LABEL_HELP}")
    ttl_s = option_seconds(options.ttl, "--ttl")
    path = Path(options.out or f"{options.name}.polder.yaml").expanduser()
    if path.exists() and not options.force:
        raise CliError(f"{path} exists", "--force overwrites it; --out names another file")
    from edgectl.certificates import new_key_and_request, pem_bundle

    key, request = new_key_and_request(options.name)
    response = invocation.client.issue_operator(
        operator_pb2.IssueOperatorRequest(
            name=options.name, roles=roles, csr=request, ttl_ms=round(ttl_s * 1000)
        )
    )
    document = config.context_document(
        options.name,
        cluster=_cluster(invocation, pem_bundle(response.trust_bundle), response.endpoints),
        certificate_pem=pem_bundle(response.certificate_chain),
        key_pem=key,
        namespace=_namespace(invocation, roles),
    )
    _write(path, config_file.render(document), force=options.force)
    print(path)
    print(
        f"Give the file to {options.name} over a safe way: it holds the private key.",
        f"There: edgectl config import {path.name} --use",
        sep="\n",
        file=sys.stderr,
    )
    return 0


def _roles(given: list[str]) -> list[str]:
    try:
        return [str(parse_role(text)) for text in given]
    except ValueError as error:
        raise UsageError(f"--role: {error}") from None


def _cluster(invocation: Invocation, ca_pem: bytes, endpoints: Iterable[str]) -> config.Document:
    """The cluster entry that we use ourselves, with the trust bundle and the members' addresses of
    the answer. What we dial stays in it: it may be a name or a way in that members know nothing of.
    """
    import base64

    own = invocation.connection
    trusted = ca_pem or own.ca_pem
    cluster: config.Document = {
        "endpoints": list(dict.fromkeys((*endpoints, *own.endpoints))),
        "certificateAuthorityData": base64.b64encode(trusted).decode(),
    }
    if own.trust_domain:
        cluster["trustDomain"] = own.trust_domain
    if own.server_name:
        cluster["serverName"] = own.server_name
    return cluster


def _namespace(invocation: Invocation, roles: list[str]) -> str:
    """The namespace that the roles are for, unless -n names another."""
    of_roles = [role.partition(":")[2] for role in roles if ":" in role]
    return invocation.explicit_namespace or (of_roles[0] if of_roles else "")


def _write(path: Path, text: str, *, force: bool) -> None:
    try:
        config_file.write_private(path, text, overwrite=force)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from error
