"""One manifest: apiVersion, kind, metadata, spec. Called by edgectl and by the operator API."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from polder.manifest.decode import InvalidManifest, Violation, decode, describe, spec
from polder.manifest.kinds import KINDS, LABEL_VALUE, QUALIFIED, KindInfo, kind_named

API_VERSION = "polder.eu/v1"
DEFAULT_NAMESPACE = "default"
_DOCUMENT_KEYS = ("apiVersion", "kind", "metadata", "spec", "status")
# What the server adds; accepted and ignored, so that `get -o yaml | apply -f -` works.
_SERVER_KEYS = ("uid", "generation", "revision", "createdAt", "deletionRequestedAt")


@dataclass(frozen=True, slots=True)
class ManifestMetadata:
    """What every resource carries."""

    name: str = spec("Unique for its kind, in its namespace if it has one.")
    namespace: str = spec("Only for kinds that belong to one. Default: default.", default="")
    labels: dict[str, str] = spec(
        "For selection by operators and schedulers.", default_factory=dict, max_items=100
    )
    annotations: dict[str, str] = spec(
        "For people and tools; nothing selects by them.", default_factory=dict, max_items=100
    )

    def violations(self) -> Iterator[Violation]:
        for key, value in self.labels.items():
            if not QUALIFIED.fullmatch(key):
                yield Violation(f"labels.{key}", "is not a label key such as app or example.eu/app")
            if not LABEL_VALUE.fullmatch(value):
                yield Violation(f"labels.{key}", f"{value!r} is not a label value")


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
        Violation(str(key), f"unknown field; known are {', '.join(_DOCUMENT_KEYS[:4])}")
        for key in raw
        if key not in _DOCUMENT_KEYS
    ]
    if raw.get("apiVersion") != API_VERSION:
        found.append(Violation("apiVersion", f"must be {API_VERSION}"))
    info = _kind(raw, found)
    metadata = _collect(
        ManifestMetadata, _without_server_keys(raw.get("metadata")), "metadata", found
    )
    decoded = None
    if info is not None:
        decoded = _collect(info.spec_class, raw.get("spec", {}), "spec", found)
        if metadata is not None:
            metadata = _with_namespace(info, metadata, default_namespace, found)
    if found:
        raise InvalidManifest(found)
    assert info is not None and metadata is not None
    return Manifest(info, metadata, decoded, dict(raw.get("spec") or {}))


def _kind(raw: Mapping[str, Any], found: list[Violation]) -> KindInfo | None:
    kind = raw.get("kind")
    if kind is None:
        found.append(Violation("kind", "is required"))
        return None
    info = KINDS.get(kind) if isinstance(kind, str) else None
    if info is None:
        near = kind_named(kind) if isinstance(kind, str) else None
        hint = f"; did you mean {near.name}?" if near else f"; known are {', '.join(KINDS)}"
        found.append(Violation("kind", f"{kind!r} is not a kind{hint}"))
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


def _with_namespace(
    info: KindInfo, metadata: ManifestMetadata, default: str, found: list[Violation]
) -> ManifestMetadata:
    if info.names.fullmatch(metadata.name) is None:
        found.append(Violation("metadata.name", f"{metadata.name!r} is not {info.names_help}"))
    namespace = metadata.namespace
    if not info.namespaced:
        if namespace:
            found.append(Violation("metadata.namespace", f"a {info.name} belongs to no namespace"))
        return metadata
    namespace = namespace or default
    if KINDS["Namespace"].names.fullmatch(namespace) is None:
        text = f"{namespace!r} is not {KINDS['Namespace'].names_help}"
        found.append(Violation("metadata.namespace", text))
    return ManifestMetadata(metadata.name, namespace, metadata.labels, metadata.annotations)
