"""After a restore from a backup epochs and groups are numbered above all that is known."""

import pytest

from orchestrator.domain.restored import LEAD_MAX, LEAP, is_credible, to_raise
from orchestrator.records import (
    AssignmentRecord,
    GroupRecord,
    NodePlacement,
    StopRecord,
)
from polder.epochs import decided_at, revision_of

NOW = 50  # what the Store counts to


def raised(placed: int = 0, heard: int = 0, *, ahead: bool = False, leapt: bool = False) -> int:
    return NOW + to_raise(NOW, placed, heard, ahead=ahead, leapt=leapt)


@pytest.mark.parametrize("heard", [0, decided_at(49), decided_at(49) + 7])
def test_a_store_that_is_not_behind_counts_on(heard: int) -> None:
    assert raised(decided_at(49), heard) == NOW
    assert raised(decided_at(49), heard, ahead=True, leapt=True) == NOW


@pytest.mark.parametrize("heard", [decided_at(50), decided_at(60), decided_at(60) + 3])
def test_what_is_heard_is_passed_by_a_leap(heard: int) -> None:
    """A number that nobody tells of now may have been used a little later."""
    assert decided_at(raised(heard=heard)) > heard
    assert raised(heard=heard) == revision_of(heard) + LEAP


def test_a_plan_that_the_store_never_made_is_proof_as_well() -> None:
    """A group may have changed since, and all epochs that are told of are older."""
    assert raised(heard=decided_at(40), ahead=True) == NOW + LEAP


def test_the_next_leader_counts_on_from_what_is_placed_without_leaping() -> None:
    placed = decided_at(2 * LEAP) + 4
    assert raised(placed, heard=placed) == 2 * LEAP + 1


def test_an_agent_that_makes_numbers_up_is_not_followed() -> None:
    assert is_credible(decided_at(NOW + LEAD_MAX), NOW)
    assert not is_credible(decided_at(NOW + LEAD_MAX + 1), NOW)


def test_a_placement_tells_of_stays_and_of_groups() -> None:
    group = GroupRecord(decided_at(9), ("n1",), exclusive=True)
    item = AssignmentRecord("ns", "w", "uid", "w-0", "u", decided_at(7) + 2, 1)
    stop = StopRecord("ns", "w", "w-1", "v", "Moved", "", 0, group=group)
    assert NodePlacement("n1").highest_epoch == 0
    assert NodePlacement("n1", 1, (item,)).highest_epoch == decided_at(7) + 2
    assert NodePlacement("n1", 1, (item,), (stop,)).highest_epoch == decided_at(9)
