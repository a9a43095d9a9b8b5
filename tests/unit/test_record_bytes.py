"""What stands in the Store of a record is all of it, however deep it is nested."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from orchestrator.event_records import EventRecord
from orchestrator.records import (
    AssignmentRecord,
    ElectorateRecord,
    GroupRecord,
    IdentityRecord,
    NodePlacement,
    StopRecord,
    StoredResource,
    TokenRecord,
)
from polder.manifest import decode_document

GROUP = GroupRecord(7, ("n1", "n2"), ("w",), True, before=(ElectorateRecord(6, ("n1", "n3")),))
PLACEMENT = NodePlacement(
    "n1",
    3,
    (AssignmentRecord("ns", "w", "u", "w-0", "r", 5, 1, ("n2",), group=GROUP),),
    (StopRecord("ns", "w", "w-1", "r1", "WorkloadDeleted", "gone", 9, group=GROUP),),
    store_revision=4,
)
IDENTITY = IdentityRecord("node", "n1", "s", {"b": 2, "a": 1}, ("admin",), store_revision=4)
EVENT = EventRecord("Node", "", "n1", 1, "Joined", "für immer", "gateway/m1", 1, 2, 3, "u")
TOKEN = TokenRecord("s", "n1", "operator/ann", 1, 2)


@pytest.mark.parametrize("record", [PLACEMENT, IDENTITY, EVENT, TOKEN])
def test_every_field_is_stored(record: Any) -> None:
    expected = {name: value for name, value in asdict(record).items() if name != "store_revision"}
    assert json.loads(record.to_bytes()) == json.loads(json.dumps(expected))


def test_nested_records_come_back_as_they_were() -> None:
    assert NodePlacement.from_bytes(PLACEMENT.to_bytes(), 4) == PLACEMENT
    assert list(IdentityRecord.from_bytes(IDENTITY.to_bytes(), 4).serials) == ["b", "a"]


def test_a_resource_that_is_known_differs_in_its_revision_alone() -> None:
    document = {"kind": "Namespace", "metadata": {"name": "n"}, "spec": {"description": "d"}}
    manifest = decode_document({"apiVersion": "polder.eu/v1", **document})
    former = StoredResource("Namespace", "", "n", "u", manifest.raw_spec, store_revision=1)
    made = former.known(manifest.spec, 2)
    assert made.decoded is manifest.spec and made.store_revision == 2
    assert made.to_bytes() == former.to_bytes() and former.store_revision == 1
    assert "decoded" not in vars(former)
