"""Records that a newer version wrote, read by this one: in a rolling upgrade both are there."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.event_records import EventRecord
from orchestrator.records import (
    AssignmentRecord,
    IdentityRecord,
    MemberRecord,
    NodePlacement,
    NodeStatusRecord,
    PresenceRecord,
    StopRecord,
    StoredResource,
    TemplateRevision,
    TokenRecord,
)

ASSIGNMENT = AssignmentRecord("default", "w", "u1", "w-0", "r1", 7, 1, ("box-2",))
STOP = StopRecord("default", "w", "w-1", "r2", "ScaledDown", "", 5)

Record = tuple[Any, Callable[[bytes], Any]]
RECORDS: list[Record] = [
    (
        StoredResource("Config", "default", "c", "u2", {"data": {}}),
        lambda raw: StoredResource.from_bytes(raw, 0),
    ),
    (TemplateRevision("u1", 1, {"containers": []}, "d", 5), TemplateRevision.from_bytes),
    (
        NodePlacement("box-1", 3, (ASSIGNMENT,), (STOP,)),
        lambda raw: NodePlacement.from_bytes(raw, 0),
    ),
    (
        IdentityRecord("node", "box-1", site="s", serials={"ab": 5}),
        lambda raw: IdentityRecord.from_bytes(raw, 0),
    ),
    (TokenRecord("s", "", "operator/ann", 1, 2), TokenRecord.from_bytes),
    (NodeStatusRecord("box-1", "0.1.0", "b", {}, 5), NodeStatusRecord.from_bytes),
    (
        MemberRecord("m", "r", "0.1.0", ("h:1",), ("h:2",), "h:3", (52.0, 5.0)),
        MemberRecord.from_bytes,
    ),
    (PresenceRecord("m", "r", "0.1.0", "i", 5), PresenceRecord.from_bytes),
    (EventRecord("Node", "", "box-1", 0, "Ready", "", "leader/m", 1, 2), EventRecord.from_bytes),
]


@pytest.mark.parametrize(
    ("record", "read"), RECORDS, ids=[type(record).__name__ for record, _ in RECORDS]
)
def test_a_field_of_a_newer_version_is_passed_over(
    record: Any, read: Callable[[bytes], Any]
) -> None:
    body = json.loads(record.to_bytes())
    body["ofTheNextVersion"] = {"x": 1}
    for nested in (*body.get("assignments", ()), *body.get("stops", ())):
        nested["ofTheNextVersion"] = 1
    assert read(json.dumps(body).encode()) == record == read(record.to_bytes())
