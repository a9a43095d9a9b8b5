"""A file that is applied says what it takes back of what was done by hand."""

from typing import Any

import pytest

from orchestrator.api.overwriting import taken_back
from orchestrator.records import StoredResource


def workload(**spec: Any) -> StoredResource:
    return StoredResource("Workload", "default", "web", "u", spec, changed_by="operator/ann")


PAUSED = workload(update={"paused": True})


@pytest.mark.parametrize("spec", [{}, {"update": {}}, {"update": {"paused": False}}])
def test_a_file_that_says_nothing_of_a_pause_ends_it_and_says_so(spec: dict[str, Any]) -> None:
    (text,) = taken_back(PAUSED, workload(**spec), 0)
    assert "was paused (operator/ann changed it last)" in text


@pytest.mark.parametrize(
    ("existing", "record", "expected"),
    [
        (None, workload(), 0),
        (workload(), workload(), 0),
        (PAUSED, PAUSED, 0),
        (PAUSED, workload(), 7),  # `rollout resume` read it at that revision
    ],
)
def test_nothing_is_taken_back(
    existing: StoredResource | None, record: StoredResource, expected: int
) -> None:
    assert taken_back(existing, record, expected) == []
