"""A resource as the wire carries it, opened for printing. Called by every verb that shows some."""

import json
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from polder.manifest import KINDS
from polder.v1 import common_pb2


class Item:
    """Parses spec and status when they are first asked for."""

    def __init__(self, resource: common_pb2.Resource, now_ms: int) -> None:
        self.resource = resource
        self.now_ms = now_ms

    @property
    def kind(self) -> str:
        return self.resource.kind

    @property
    def name(self) -> str:
        return self.resource.metadata.name

    @property
    def namespace(self) -> str:
        return self.resource.metadata.namespace

    @property
    def label(self) -> str:
        """`workload/hello`"""
        return f"{self.kind.lower()}/{self.name}"

    @cached_property
    def spec(self) -> dict[str, Any]:
        return _mapping(self.resource.spec_json)

    @cached_property
    def status(self) -> dict[str, Any]:
        return _mapping(self.resource.status_json)

    @property
    def deleting(self) -> bool:
        return bool(self.resource.metadata.deletion_requested_at_ms)

    def view(self) -> dict[str, Any]:
        """As `-o json` and `-o yaml` show it; apply accepts it."""
        shown = {
            "apiVersion": self.resource.api_version,
            "kind": self.kind,
            "metadata": _metadata(self.resource.metadata),
            "spec": self.spec,
        }
        return {**shown, "status": self.status} if self.status else shown

    def manifest(self) -> dict[str, Any]:
        """What apply is sent to change it: no server's keys, no status."""
        metadata = self.resource.metadata
        kept: dict[str, Any] = {"name": metadata.name}
        if metadata.namespace:
            kept["namespace"] = metadata.namespace
        for key, values in (("labels", metadata.labels), ("annotations", metadata.annotations)):
            if values:
                kept[key] = dict(sorted(values.items()))
        return {
            "apiVersion": self.resource.api_version,
            "kind": self.kind,
            "metadata": kept,
            "spec": self.spec,
        }


def reference(kind: str, namespace: str, name: str) -> common_pb2.ResourceRef:
    """The namespace is left out for kinds that belong to none."""
    where = namespace if KINDS[kind].namespaced else ""
    return common_pb2.ResourceRef(kind=kind, namespace=where, name=name)


def _metadata(metadata: common_pb2.Metadata) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": metadata.name}
    if metadata.namespace:
        shown["namespace"] = metadata.namespace
    if metadata.labels:
        shown["labels"] = dict(sorted(metadata.labels.items()))
    if metadata.annotations:
        shown["annotations"] = dict(sorted(metadata.annotations.items()))
    shown["uid"] = metadata.uid
    shown["generation"] = metadata.generation
    shown["revision"] = metadata.revision
    shown["createdAt"] = _iso(metadata.created_at_ms)
    if metadata.changed_by:
        shown["changedBy"] = metadata.changed_by
        shown["changedAt"] = _iso(metadata.changed_at_ms)
    if metadata.deletion_requested_at_ms:
        shown["deletionRequestedAt"] = _iso(metadata.deletion_requested_at_ms)
    return shown


def _iso(at_ms: int) -> str:
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _mapping(raw: bytes) -> dict[str, Any]:
    value = json.loads(raw) if raw else {}
    return value if isinstance(value, dict) else {}
