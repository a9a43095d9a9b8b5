"""Which versions of members work together, and how the floor rises."""

from itertools import pairwise

import pytest

from orchestrator.domain.skew import floor_of, why_not
from polder.skew import minor_of


@pytest.mark.parametrize(
    ("own", "floor", "present"),
    [
        ("0.1.0", "", {}),
        ("0.2.0", "0.1", {"a": "0.1.7"}),
        ("0.1.0", "0.1", {"a": "0.2.0", "b": "0.1.9"}),
        ("0.1.9", "0.1", {"a": "0.1.0"}),
        ("0.9.0", "0.1", {}),  # nobody is there: the group was stopped
        ("1.0.0", "0.9", {}),
        ("0+source", "0.4", {"a": "0.4.0"}),
        ("0.4.0", "0.4", {"a": "0+source"}),
        ("0.10.0", "0.9", {"a": "0.9.0"}),
    ],
)
def test_may_join(own: str, floor: str, present: dict[str, str]) -> None:
    assert why_not(own, floor, present) is None


@pytest.mark.parametrize(
    ("own", "floor", "present", "message", "hint"),
    [
        ("0.1.0", "0.2", {"a": "0.2.1"}, "at 0.2 or later", "Upgrade this member to 0.2.1."),
        ("0.1.0", "0.2", {}, "at 0.2 or later", "Upgrade this member to 0.2 or later."),
        ("0.3.0", "0.1", {"a": "0.1.4"}, "member a runs 0.1.4", "bring every member to 0.2 first"),
        ("0.4.0", "", {"a": "0.6.0"}, "member a runs 0.6.0", "to 0.5 or 0.6"),
        ("1.0.0", "0.9", {"a": "0.9.0"}, "member a runs 0.9.0", "stop all members"),
        ("0.3.0", "0.2", {"a": "0.3.0", "b": "0.1.0"}, "member b", "0.2 first"),
    ],
)
def test_may_not_join_and_says_why(
    own: str, floor: str, present: dict[str, str], message: str, hint: str
) -> None:
    found = why_not(own, floor, present)
    assert found is not None
    assert own in found.message
    assert message in found.message
    assert hint in found.hint


@pytest.mark.parametrize(
    ("floor", "present", "wanted"),
    [
        ("", ["0.1.0"], "0.1"),
        ("0.1", ["0.2.0", "0.1.9"], "0.1"),
        ("0.1", ["0.2.0", "0.2.1"], "0.2"),
        ("0.2", ["0.1.0"], "0.2"),
        ("0.2", [], "0.2"),
        ("0.1", ["0.2.0", "0+source"], "0.1"),
        ("0.9", ["0.10.0"], "0.10"),
    ],
)
def test_the_floor_is_what_all_have_reached(floor: str, present: list[str], wanted: str) -> None:
    assert floor_of(floor, present) == wanted


def test_a_rolling_upgrade_is_never_refused_on_its_way() -> None:
    """Three members, one after the other, five minor versions."""
    versions = [f"0.{minor}.0" for minor in range(1, 6)]
    members = dict.fromkeys("abc", versions[0])
    floor = floor_of("", members.values())
    for _, newer in pairwise(versions):
        for name in members:
            others = {other: version for other, version in members.items() if other != name}
            assert why_not(newer, floor, others) is None
            members[name] = newer
            floor = floor_of(floor, members.values())
        assert floor == str(minor_of(newer))
