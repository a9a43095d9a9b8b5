"""How far back a box goes: what a member that was broken into can replay, and what it cannot."""

from dataclasses import dataclass, field, replace

import pytest

from polder.release import Release
from polder.release_floor import Floor
from tests.unit.test_release import RELEASE


def release(version: str, signed_ms: int, *, downgrade: bool = False) -> Release:
    return replace(RELEASE, version=version, issued_at_ms=signed_ms, downgrade=downgrade)


@dataclass
class Box:
    """Takes what it does not refuse."""

    runs: Release
    floor: Floor = field(default_factory=Floor)

    def told(self, wanted: Release) -> str:
        refused = self.floor.refuses(wanted, self.runs)
        if not refused:
            self.runs, self.floor = wanted, self.floor.after(wanted, self.runs)
        return refused


def test_to_a_later_version_it_goes_whenever_that_was_signed() -> None:
    """A mended older line is signed after the newer one, and leads to it all the same."""
    box = Box(release("0.1.0-1", 30))
    assert not box.told(release("0.2.1-1", 20)) and not box.told(release("0.3.0-1", 10))
    assert box.floor == Floor(signed_ms=30)


def test_what_was_signed_once_takes_no_box_back() -> None:
    """Not even when it was signed last: as a way back, say."""
    box = Box(release("0.2.0-1", 10))
    for version, signed_ms in (("0.1.0-1", 5), ("0.1.0-1", 99), ("0.2.0~rc1-1", 99)):
        assert "not signed as a downgrade" in box.told(release(version, signed_ms))
    assert box.runs.version == "0.2.0-1" and box.floor == Floor()


def test_a_downgrade_that_the_root_signed_does() -> None:
    box = Box(release("0.2.0-1", 10))
    assert not box.told(release("0.1.0-1", 20, downgrade=True))
    assert box.floor == Floor(signed_ms=20, since_ms=20)


def test_what_was_left_for_a_downgrade_does_not_come_back() -> None:
    bad = release("0.2.0-1", 10)
    box = Box(bad)
    box.told(release("0.1.0-1", 20, downgrade=True))
    assert "before the last downgrade" in box.told(bad)
    assert not box.told(release("0.2.0-1", 30)), "the root has signed it anew"


@pytest.mark.parametrize("signed_ms", [5, 10])
def test_a_downgrade_from_before_is_none_any_more(signed_ms: int) -> None:
    """Signed for boxes of that time, and before what this one runs."""
    old = release("0.1.0-1", signed_ms, downgrade=True)
    assert "was signed as a downgrade before" in Box(release("0.4.0-1", 10)).told(old)


def test_a_downgrade_takes_a_box_back_once_and_no_second_time() -> None:
    down = release("0.1.0-1", 20, downgrade=True)
    box = Box(release("0.2.0-1", 10))
    assert not box.told(down) and not box.told(release("0.2.1-1", 30))
    assert "was signed as a downgrade before" in box.told(down)


def test_what_ran_in_between_counts_although_it_runs_no_more() -> None:
    box = Box(release("0.1.0-1", 1))
    for later in (release("0.2.0-1", 50), release("0.3.0-1", 10)):
        assert not box.told(later)
    assert box.told(release("0.1.0-1", 40, downgrade=True))
    assert not box.told(release("0.1.0-1", 51, downgrade=True))


def test_what_somebody_put_there_by_hand_is_where_it_starts_from() -> None:
    """Who is root on the box decides for it; what is remembered of times stays."""
    box = Box(release("0.1.0-1", 5), Floor(signed_ms=50))
    assert not box.told(release("0.1.1-1", 6))
    assert box.told(release("0.1.0-1", 40, downgrade=True))


def test_a_downgrade_that_is_an_upgrade_for_this_box_is_one() -> None:
    box = Box(release("0.1.0-1", 1))
    assert not box.told(release("0.2.0-1", 20, downgrade=True))
    assert box.floor == Floor(signed_ms=20), "nothing that was signed before is past"
