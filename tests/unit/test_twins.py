"""Whether a newcomer is the node's own box, a copy, or the box that its disk moved to."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.twins import Former, Patience, Verdict, judge

HEARD, GONE = 3.0, 30.0


@pytest.mark.parametrize(
    ("told", "instance", "former", "expected"),
    [
        # A box comes back: by itself, with another process, after a reboot.
        ("a", "1", Former("a", "1", HEARD), Verdict.SAME),
        ("a", "2", Former("a", "1", HEARD), Verdict.SAME),
        ("a", "2", Former("a", "1", GONE), Verdict.SAME),
        # One of the two does not tell which it is.
        ("", "2", Former("a", "1", HEARD), Verdict.SAME),
        ("b", "2", Former("", "1", HEARD), Verdict.SAME),
        ("", "2", Former("", "1", GONE), Verdict.SAME),
        # Two boxes.
        ("b", "2", Former("a", "1", HEARD), Verdict.COPY),
        ("b", "2", Former("a", "", HEARD), Verdict.COPY),
        ("b", "", Former("a", "", HEARD), Verdict.COPY),
        # One after the other.
        ("b", "2", Former("a", "1", GONE), Verdict.MOVED),
        ("b", "2", Former("a", "", inf), Verdict.MOVED),
        # The process that is known is no other box, whatever its board is called now.
        ("b", "1", Former("a", "1", HEARD), Verdict.SAME),
    ],
)
def test_who_comes_in(told: str, instance: str, former: Former, expected: Verdict) -> None:
    assert judge(told, instance, former, 30.0) is expected


@pytest.mark.parametrize(
    ("knocked_s", "silent_s", "expected"),
    [
        (None, 0.0, 30.0),
        (None, inf, 30.0),
        (80.0, 85.0, 30.0),  # it died before the other one came: perhaps the disk moved
        (80.0, 71.5, 30.0),  # or a moment later, as another member believes
        (80.0, 5.0, 3600.0),  # it was heard long after the other one had come: there are two
        (1800.0, 1700.0, 3600.0),
        (20.0, inf, 30.0),
    ],
)
def test_who_was_heard_beside_the_other_box_has_a_copy(
    knocked_s: float | None, silent_s: float, expected: float
) -> None:
    assert Patience(30.0, 3600.0).of(knocked_s, silent_s) == expected


@given(told=st.text(max_size=2), known=st.text(max_size=2), silent_s=st.floats(0, 100))
def test_nobody_is_kept_out_without_a_box_that_is_heard_and_known_to_be_another(
    told: str, known: str, silent_s: float
) -> None:
    verdict = judge(told, "2", Former(known, "1", silent_s), 30.0)
    if verdict is Verdict.COPY:
        assert told and known and told != known and silent_s < 30.0
    assert (verdict is Verdict.SAME) == (not told or not known or told == known)
