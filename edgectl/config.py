"""The configuration as data: which orchestrators, as whom, in which namespace. Pure.

The file has the shape of a kubeconfig: lists of named clusters, users and contexts. Keys are
camelCase, as in manifests and as the orchestrator writes them; kubeconfig's spelling with hyphens
is read too. Edits keep entries and keys that this version does not know. `edgectl.config_file`
reads and writes the file.
"""

import base64
import binascii
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgectl.errors import CliError, UsageError

SECTIONS = {"clusters": "cluster", "users": "user", "contexts": "context"}
MAX_ENDPOINTS = 64
DEFAULT_NAMESPACE = "default"
DEFAULT_SERVER_NAME = "orchestrator.polder.internal"
_SECRETS = ("clientKeyData",)
_PUBLIC_DATA = ("clientCertificateData", "certificateAuthorityData")

# As in a kubeconfig, and what we call it.
_SPELLINGS = {
    "current-context": "currentContext",
    "certificate-authority": "certificateAuthority",
    "certificate-authority-data": "certificateAuthorityData",
    "client-certificate": "clientCertificate",
    "client-certificate-data": "clientCertificateData",
    "client-key": "clientKey",
    "client-key-data": "clientKeyData",
    "trust-domain": "trustDomain",
    "server-name": "serverName",
    "tls-server-name": "serverName",
}

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything that a call needs. `endpoints` are host:port, tried in order. PEM as bytes."""

    context: str
    endpoints: tuple[str, ...]
    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    server_name: str = ""
    trust_domain: str = ""
    namespace: str = DEFAULT_NAMESPACE


def empty() -> Document:
    return {
        "apiVersion": "polder.eu/v1",
        "kind": "Config",
        "currentContext": "",
        "clusters": [],
        "users": [],
        "contexts": [],
    }


def checked(raw: object, source: str) -> Document:
    """`raw` as a configuration document. Raises CliError that names what has the wrong shape."""
    if raw is None:
        return empty()
    if not isinstance(raw, dict):
        raise CliError(f"{source}: is not an edgectl configuration (expected a mapping)")
    _respell(raw)
    for section, inner in SECTIONS.items():
        entries = raw.get(section)
        if entries is None:
            entries = raw[section] = []
        if not isinstance(entries, list):
            raise CliError(f"{source}: {section}: expected a list")
        for number, entry in enumerate(entries):
            named = isinstance(entry, dict) and isinstance(entry.get("name"), str)
            if not named or not isinstance(entry.get(inner), dict):
                raise CliError(f"{source}: {section}[{number}]: needs a name and a {inner}")
            _respell(entry[inner])
    current = raw.get("currentContext") or ""
    if not isinstance(current, str):
        raise CliError(f"{source}: currentContext: expected a name")
    raw["currentContext"] = current
    return raw


def entry(document: Mapping[str, Any], section: str, name: str) -> Document | None:
    """The content of a named entry, or None."""
    for item in document[section]:
        if item["name"] == name:
            content: Document = item[SECTIONS[section]]
            return content
    return None


def names(document: Mapping[str, Any], section: str) -> list[str]:
    return [item["name"] for item in document[section]]


def with_entry(document: Document, section: str, name: str, content: Document) -> Document:
    """A copy in which the entry has this content."""
    changed = copy.deepcopy(document)
    for item in changed[section]:
        if item["name"] == name:
            item[SECTIONS[section]] = content
            return changed
    changed[section].append({"name": name, SECTIONS[section]: content})
    return changed


def without_context(document: Document, name: str) -> Document:
    """A copy without the context and without what only it used. Raises CliError if unknown."""
    _required_context(document, name)
    changed = copy.deepcopy(document)
    changed["contexts"] = [item for item in changed["contexts"] if item["name"] != name]
    for section, key in (("clusters", "cluster"), ("users", "user")):
        used = {item["context"].get(key) for item in changed["contexts"]}
        gone = (entry(document, "contexts", name) or {}).get(key)
        changed[section] = [
            item for item in changed[section] if item["name"] != gone or item["name"] in used
        ]
    if changed["currentContext"] == name:
        changed["currentContext"] = ""
    return changed


def with_current(document: Document, name: str) -> Document:
    _required_context(document, name)
    return {**document, "currentContext": name}


def merged(document: Document, other: Document, *, overwrite: bool) -> Document:
    """A copy with the other's entries. Raises CliError on a different entry of the same name."""
    changed = document
    for section, inner in SECTIONS.items():
        for item in other[section]:
            existing = entry(changed, section, item["name"])
            if existing is not None and existing != item[inner] and not overwrite:
                raise CliError(
                    f"the configuration already has another {inner} named {item['name']!r}",
                    "use --overwrite to replace it",
                )
            changed = with_entry(changed, section, item["name"], item[inner])
    return changed


def redacted(document: Document) -> Document:
    """A copy that may be shown: keys are hidden, long public data is named only."""
    shown = copy.deepcopy(document)
    for section, inner in SECTIONS.items():
        for item in shown[section]:
            for key in item[inner]:
                if key in _SECRETS:
                    item[inner][key] = "REDACTED"
                elif key in _PUBLIC_DATA:
                    item[inner][key] = "DATA+OMITTED"
    return shown


def connection(
    document: Document, source: str, context_name: str, read: Callable[[str], bytes]
) -> Connection:
    """What the named (or current) context means. `read` returns the content of a file that an
    entry names, relative to the configuration. Raises CliError."""
    name = context_name or document["currentContext"]
    if not name and not document["contexts"]:
        raise CliError(
            f"there is no context: {source} is missing or empty",
            "the first admin's context is admin.yaml in the orchestrator's data directory",
            "edgectl config import FILE adds one; EDGECTL_CONFIG or --config names another file",
        )
    if not name:
        raise CliError(
            "no context is chosen",
            f"the configuration is {source}",
            "edgectl config import FILE adds one; edgectl config use-context NAME chooses one",
        )
    context = _required_context(document, name)
    cluster_name, user_name = context.get("cluster", ""), context.get("user", "")
    cluster = entry(document, "clusters", cluster_name)
    user = entry(document, "users", user_name)
    if cluster is None or user is None:
        missing = f"cluster {cluster_name!r}" if cluster is None else f"user {user_name!r}"
        raise CliError(f"context {name!r} names the {missing}, which {source} does not have")
    return Connection(
        context=name,
        endpoints=_endpoints(cluster, f"{source}: cluster {cluster_name!r}"),
        ca_pem=_data(cluster, "certificateAuthority", source, read),
        certificate_pem=_data(user, "clientCertificate", source, read),
        key_pem=_data(user, "clientKey", source, read),
        server_name=str(cluster.get("serverName") or ""),
        trust_domain=str(cluster.get("trustDomain") or ""),
        namespace=str(context.get("namespace") or DEFAULT_NAMESPACE),
    )


def checked_endpoint(text: str) -> str:
    """`host:port`, `[v6]:port`. Raises UsageError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
        raise UsageError(f"{text!r} is not an endpoint such as orchestrator.example:7443")
    return text


def context_document(
    name: str,
    *,
    cluster: Document,
    certificate_pem: bytes,
    key_pem: bytes,
    namespace: str = "",
    user: str = "",
) -> Document:
    """A configuration with one context: what `operator create` writes."""
    context = {"cluster": name, "user": user or name}
    if namespace:
        context["namespace"] = namespace
    identity = {
        "clientCertificateData": base64.b64encode(certificate_pem).decode(),
        "clientKeyData": base64.b64encode(key_pem).decode(),
    }
    document = with_entry(empty(), "clusters", name, cluster)
    document = with_entry(document, "users", user or name, identity)
    document = with_entry(document, "contexts", name, context)
    return {**document, "currentContext": name}


def _respell(mapping: Document) -> None:
    for given, ours in _SPELLINGS.items():
        if given in mapping:
            mapping.setdefault(ours, mapping.pop(given))


def _required_context(document: Mapping[str, Any], name: str) -> Document:
    found = entry(document, "contexts", name)
    if found is None:
        known = ", ".join(names(document, "contexts")) or "none"
        raise CliError(f"there is no context {name!r}", f"known contexts: {known}")
    return found


def _endpoints(cluster: Document, source: str) -> tuple[str, ...]:
    given = cluster.get("endpoints")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise CliError(f"{source}: endpoints: expected a list of HOST:PORT")
    return tuple(checked_endpoint(text) for text in texts[:MAX_ENDPOINTS])


def _data(content: Document, key: str, source: str, read: Callable[[str], bytes]) -> bytes:
    inline, path = content.get(f"{key}Data"), content.get(key)
    if isinstance(inline, str) and inline:
        if inline.lstrip().startswith("-----BEGIN"):
            return inline.encode()
        try:
            return base64.b64decode("".join(inline.split()), validate=True)
        except (binascii.Error, ValueError):
            raise CliError(f"{source}: {key}Data is not base64 of PEM") from None
    if isinstance(path, str) and path:
        return read(path)
    raise CliError(f"{source}: needs {key} or {key}Data")
