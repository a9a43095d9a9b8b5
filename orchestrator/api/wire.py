"""Records as `polder.v1.Resource`. Pure; used by everything that answers an operator."""

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.records import StoredResource
from polder.manifest import API_VERSION
from polder.v1 import common_pb2

REDACTED = "REDACTED"


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def dump(value: object) -> bytes:
    """Compact JSON."""
    return _encode(value).encode()


def to_wire(
    record: StoredResource, status: Mapping[str, Any] | None = None, *, secrets: bool = False
) -> common_pb2.Resource:
    """`secrets`: whether the values of a Secret are shown; otherwise only its keys are."""
    spec = record.spec if secrets or record.kind != "Secret" else _redacted(record.spec)
    return common_pb2.Resource(
        api_version=API_VERSION,
        kind=record.kind,
        metadata=common_pb2.Metadata(
            name=record.name,
            namespace=record.namespace,
            uid=record.uid,
            generation=record.generation,
            revision=record.store_revision,
            labels=record.labels,
            annotations=record.annotations,
            created_at_ms=record.created_at_ms,
            deletion_requested_at_ms=record.deletion_requested_at_ms,
            changed_by=record.changed_by,
            changed_at_ms=record.changed_at_ms,
        ),
        spec_json=dump(spec),
        status_json=dump(status) if status is not None else b"",
    )


def _redacted(spec: dict[str, Any]) -> dict[str, Any]:
    data = spec.get("data")
    shown = dict.fromkeys(data, REDACTED) if isinstance(data, dict) else {}
    return {**spec, "data": shown}
