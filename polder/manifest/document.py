"""One manifest: apiVersion, kind, metadata, spec. Called by edgectl and by the operator API."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from polder.manifest.decode import MAX_VIOLATIONS, InvalidManifest, decode, unknown_field
from polder.manifest.kinds import KINDS, KindInfo, kind_named
from polder.manifest.names import LABEL_VALUE, LABEL_VALUE_HELP, QUALIFIED, QUALIFIED_HELP
from polder.manifest.schema import Violation, spec
from polder.manifest.text import describe, key_text, nearest, shown

API_VERSION = "polder.eu/v1"
DEFAULT_NAMESPACE = "default"
_DOCUMENT_KEYS = ("apiVersion", "kind", "metadata", "spec", "status")
# What the server adds; accepted and ignored, so that `get -o yaml | apply -f -` works.
_SERVER_KEYS = (
    "uid",
    "generation",
    "revision",
    "createdAt",
    "changedBy",
    "changedAt",
    "deletionRequestedAt",
)


@dataclass(frozen=True, slots=True)
class ManifestMetadata:
    """What every resource carries."""

    name: str = spec("Unique for its kind, in its namespace if it has one.")
    namespace: str = spec("Only for kinds that belong to one. Default: default.", default="")
    labels: dict[str, str] = spec(
        "For selection by operators and schedulers.",
        default_factory=dict,
        max_items=100,
        key_pattern=QUALIFIED,
        key_help=QUALIFIED_HELP,
        pattern=LABEL_VALUE,
        pattern_help=LABEL_VALUE_HELP,
    )
    annotations: dict[str, str] = spec(
        "For people and tools; nothing selects by them.", default_factory=dict, max_items=100
    )


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked document. `raw_spec` is the spec as the operator wrote it; `spec` is decoded."""

    info: KindInfo
    metadata: ManifestMetadata
    spec: Any
    raw_spec: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.info.name

    @property
    def ref(self) -> tuple[str, str, str]:
        """(kind, namespace, name)."""
        return (self.info.name, self.metadata.namespace, self.metadata.name)


def decode_document(raw: object, *, default_namespace: str = DEFAULT_NAMESPACE) -> Manifest:
    """Check one document. Raises InvalidManifest with every violation that can be told at once."""
    if raw is None:
        raise InvalidManifest([Violation(".", "the document is empty")])
    if not isinstance(raw, Mapping):
        raise InvalidManifest([Violation(".", f"expected a mapping, found {describe(raw)}")])
    found = [
        Violation(key_text(key), unknown_field(key, _DOCUMENT_KEYS[:4]))
        for key in itertools.islice(raw, MAX_VIOLATIONS + len(_DOCUMENT_KEYS))
        if key not in _DOCUMENT_KEYS
    ]
    _check_version(raw.get("apiVersion"), found)
    info = _kind(raw.get("kind"), found)
    raw_metadata = _without_server_keys(raw.get("metadata"))
    metadata = _collect(ManifestMetadata, raw_metadata, "metadata", found)
    decoded = None
    if info is not None:
        decoded = _collect(info.spec_class, raw.get("spec"), "spec", found)
        if isinstance(raw_metadata, Mapping):
            _check_names(info, raw_metadata, default_namespace, found)
    if found:
        raise InvalidManifest(found)
    assert info is not None and metadata is not None
    if info.namespaced and not metadata.namespace:
        metadata = replace(metadata, namespace=default_namespace)
    return Manifest(info, metadata, decoded, dict(raw.get("spec") or {}))


def _check_version(version: object, found: list[Violation]) -> None:
    if version is None:
        found.append(Violation("apiVersion", f"must be {API_VERSION}; it is missing"))
    elif version != API_VERSION:
        found.append(Violation("apiVersion", f"must be {API_VERSION}, not {shown(version)}"))


def _kind(kind: object, found: list[Violation]) -> KindInfo | None:
    if kind is None:
        found.append(Violation("kind", "is required"))
        return None
    info = KINDS.get(kind) if isinstance(kind, str) else None
    if info is None:
        hint = f"; known are {', '.join(KINDS)}"
        if isinstance(kind, str):
            named = kind_named(kind)
            near = named.name if named is not None else nearest(kind, KINDS)
            hint = f"; did you mean {near}?" if near is not None else hint
        found.append(Violation("kind", f"{shown(kind)} is not a kind{hint}"))
    return info


def _without_server_keys(metadata: object) -> object:
    if not isinstance(metadata, Mapping):
        return metadata if metadata is not None else {}
    return {key: value for key, value in metadata.items() if key not in _SERVER_KEYS}


def _collect(cls: type, raw: object, path: str, found: list[Violation]) -> Any:
    try:
        return decode(cls, raw if raw is not None else {}, path)
    except InvalidManifest as error:
        found.extend(error.violations)
        return None


def _check_names(
    info: KindInfo, metadata: Mapping[str, object], default: str, found: list[Violation]
) -> None:
    """What the kind demands of name and namespace. Texts only: the rest is told by the schema."""
    name = metadata.get("name")
    if isinstance(name, str) and info.names.fullmatch(name) is None:
        found.append(Violation("metadata.name", f"{shown(name)} is not {info.names_help}"))
    namespace = metadata.get("namespace") or (default if info.namespaced else "")
    if not isinstance(namespace, str) or not namespace:
        return
    if not info.namespaced:
        found.append(Violation("metadata.namespace", f"a {info.name} belongs to no namespace"))
    elif KINDS["Namespace"].names.fullmatch(namespace) is None:
        text = f"{shown(namespace)} is not {KINDS['Namespace'].names_help}"
        found.append(Violation("metadata.namespace", text))
