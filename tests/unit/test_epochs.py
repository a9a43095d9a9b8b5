"""Epochs: what an orchestrator decides later is newer than all that a site counted before."""

import pytest

from polder import epochs


def test_a_site_counts_on_below_the_next_decision() -> None:
    decided, later = epochs.decided_at(7), epochs.decided_at(8)
    taken_over = epochs.after(decided, epochs.decided_at(6))
    assert epochs.is_local(taken_over) and not epochs.is_local(decided)
    assert decided < taken_over < epochs.after(taken_over) < later


def test_a_site_that_counted_through_all_waits_for_a_decision() -> None:
    with pytest.raises(epochs.EpochsUsedUp, match="no epoch is left after 7"):
        epochs.after(epochs.decided_at(8) - 1)


def test_people_see_the_revision_and_the_takeovers_since() -> None:
    assert epochs.shown(epochs.decided_at(7)) == "7"
    assert epochs.shown(epochs.after(epochs.decided_at(7))) == "7+1"
    assert epochs.shown(41) == "41", "decided before there were takeovers"
