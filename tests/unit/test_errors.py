"""Error details: bounded whatever is put in, and read back."""

from hypothesis import given
from hypothesis import strategies as st

from polder.errors import DETAIL_KEY, MAX_DETAIL_BYTES, detail, parse_detail


def test_text_and_back() -> None:
    found = parse_detail(detail("Invalid", "do this", [(0, "spec.replicas", "is required")]))
    assert found is not None
    assert (found.reason, found.hint) == ("Invalid", "do this")
    assert [(v.document, v.path, v.message) for v in found.violations] == [
        (0, "spec.replicas", "is required")
    ]


def test_what_is_too_much_is_cut_and_the_first_is_kept() -> None:
    many = [(n, f"path{n}", "m" * 10_000) for n in range(1000)]
    metadata = detail("R" * 10_000, "h" * 10_000, many)
    assert len(metadata[0][1]) <= MAX_DETAIL_BYTES
    found = parse_detail(metadata)
    assert found is not None
    assert [v.path for v in found.violations] == [f"path{n}" for n in range(len(found.violations))]
    assert len(found.violations) > 3


def test_equal_violations_are_cut_at_the_end() -> None:
    found = parse_detail(detail("R", violations=[(0, "p", "m" * 400)] * 100))
    assert found is not None
    assert 5 < len(found.violations) < 12


def test_metadata_without_a_detail() -> None:
    assert parse_detail(None) is None
    assert parse_detail([]) is None
    assert parse_detail([("other", "x"), (DETAIL_KEY, "text")]) is None
    assert parse_detail([(DETAIL_KEY, b"\xff\xff\xff")]) is None


texts = st.text(st.characters(exclude_categories=()), max_size=700)


@given(texts, texts, st.lists(st.tuples(st.integers(0, 1000), texts, texts), max_size=20))
def test_any_text_can_be_sent(
    reason: str, hint: str, violations: list[tuple[int, str, str]]
) -> None:
    metadata = detail(reason, hint, violations)
    assert len(metadata[0][1]) <= MAX_DETAIL_BYTES
    assert parse_detail(metadata) is not None
