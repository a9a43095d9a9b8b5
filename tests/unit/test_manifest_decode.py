"""The decoder itself, on small schemas: rules that reach into lists and maps, hints, bounds."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polder.countries import country_code
from polder.manifest.decode import MAX_VIOLATIONS, InvalidManifest, decode
from polder.manifest.quantity import cpu_millis, duration_s
from polder.manifest.schema import Violation, spec
from polder.manifest.text import describe, key_text, nearest, one_edit, shown


@dataclass(frozen=True, slots=True)
class Inner:
    level: int = spec("A level.", minimum=1, maximum=4)


@dataclass(frozen=True, slots=True)
class Outer:
    counts: tuple[int, ...] = spec("Counts.", default=(), minimum=1, maximum=9, max_items=3)
    waits: tuple[float, ...] | None = spec("Waits.", default=None, parse=duration_s, maximum=60)
    residency: tuple[str, ...] = spec("Countries.", default=(), parse=country_code)
    shares: dict[str, int] = spec("Shares.", default_factory=dict, parse=cpu_millis)
    levels: dict[str, Inner] = spec("Levels.", default_factory=dict)
    lists: dict[str, tuple[int, ...]] = spec("Lists.", default_factory=dict, maximum=5)
    ratio: float = spec("A ratio.", default=0.5, minimum=0.1, maximum=1)
    by_key: str = spec("Another key.", default="", key="odd_key", max_length=3)

    def violations(self) -> Iterator[Violation]:
        if self.by_key == "no":
            yield Violation("", "says no")


def found(raw: object, path: str = "") -> list[tuple[str, str]]:
    with pytest.raises(InvalidManifest) as caught:
        decode(Outer, raw, path)
    return [(v.path, v.message) for v in caught.value.violations]


def test_rules_reach_the_items_of_lists_and_maps() -> None:
    value = decode(
        Outer,
        {
            "counts": [1, 9],
            "waits": ["1m", 2],
            "residency": ["NL", "XK"],
            "shares": {"a": "100m"},
            "levels": {"SOV-2": {"level": 3}},
            "lists": {"x": [5]},
            "odd_key": "yes",
        },
    )
    assert value == Outer(
        (1, 9), (60.0, 2.0), ("NL", "XK"), {"a": 100}, {"SOV-2": Inner(3)}, {"x": (5,)}, 0.5, "yes"
    )


@pytest.mark.parametrize(
    ("raw", "path", "message"),
    [
        ({"counts": [1, 0]}, "counts[1]", "is 0; the least allowed is 1"),
        ({"counts": [1, 10]}, "counts[1]", "is 10; the most allowed is 9"),
        ({"counts": [1, 2, 3, 4]}, "counts", "has 4 items; at most 3 are allowed"),
        ({"counts": (1,)}, "counts", "expected a list, found a list"),
        ({"waits": "5s"}, "waits", "expected a list, found the text '5s'"),
        ({"waits": ["5s", None]}, "waits[1]", None),
        ({"waits": ["2m"]}, "waits[0]", "is 120; the most allowed is 60"),
        ({"residency": ["NL", "ZZ"]}, "residency[1]", None),
        ({"shares": {"a": None}}, "shares.a", None),
        ({"shares": {"a": "1", "b": "x"}}, "shares.b", "'x' is not a quantity such as 500m or 2"),
        ({"levels": {"a": {"level": 5}}}, "levels.a.level", "is 5; the most allowed is 4"),
        ({"levels": {"a": None}}, "levels.a", "expected a mapping, found nothing"),
        ({"lists": {"a": [1, 6]}}, "lists.a[1]", "is 6; the most allowed is 5"),
        ({"ratio": 0.05}, "ratio", "is 0.05; the least allowed is 0.1"),
        ({"ratio": "1"}, "ratio", "expected a number, found the text '1'"),
        ({"odd_key": "long"}, "odd_key", "is longer than 3 characters"),
        ({"odd_key": "no"}, ".", "says no"),
        ({"byKey": "x"}, "byKey", None),
        ([], ".", "expected a mapping, found a list"),
    ],
)
def test_violations(raw: object, path: str, message: str | None) -> None:
    assert [p for p, _ in found(raw)] == [path]
    assert message is None or found(raw) == [(path, message)]


def test_paths_start_where_the_caller_says() -> None:
    assert found({"counts": [0]}, "spec.x") == [("spec.x.counts[0]", found({"counts": [0]})[0][1])]
    assert found({"odd_key": "no"}, "spec") == [("spec", "says no")]


def test_negative_zero_is_zero() -> None:
    @dataclass(frozen=True, slots=True)
    class Place:
        latitude: float = spec("Degrees.")

    assert str(decode(Place, {"latitude": -0.0}).latitude) == "0.0"


def test_the_last_violation_says_that_there_are_more() -> None:
    few = found({f"x{n}": 1 for n in range(MAX_VIOLATIONS)})
    assert len(few) == MAX_VIOLATIONS
    assert all(path != "." for path, _ in few)
    many = found({f"x{n}": 1 for n in range(MAX_VIOLATIONS + 1)})
    assert len(many) == MAX_VIOLATIONS
    assert many[-1] == (".", f"has more errors than these {MAX_VIOLATIONS - 1}")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("ports", "ports"),
        ("Ports", "ports"),  # the same but for case goes before one edit away
        ("prots", "ports"),
        ("portss", "ports"),
        ("por", "port"),
        ("host_port", "hostPort"),
        ("host-port", "hostPort"),
        ("b", None),
        ("", None),
        ("volumes", None),
        ("x" * 1_000_000, None),
    ],
)
def test_suggestions(word: str, meant: str | None) -> None:
    assert nearest(word, ["port", "ports", "hostPort", "by"]) == meant


@pytest.mark.parametrize(
    ("a", "b", "near"),
    [
        ("", "", True),
        ("", "a", True),
        ("ab", "ba", True),
        ("abc", "acb", True),
        ("abc", "abc", True),
        ("abc", "abcd", True),
        ("abc", "xbc", True),
        ("abc", "cba", False),
        ("ab", "", False),
        ("abcd", "badc", False),
        ("abcd", "axxd", False),
    ],
)
def test_one_edit(a: str, b: str, near: bool) -> None:
    assert one_edit(a, b) is one_edit(b, a) is near


@given(st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_one_edit_agrees_with_trying_every_edit(a: str, b: str) -> None:
    edits = {a}
    for i in range(len(a) + 1):
        edits |= {a[:i] + c + a[i:] for c in "abc"}
        edits |= {a[:i] + c + a[i + 1 :] for c in "abc"} | {a[:i] + a[i + 1 :]}
        edits.add(a[:i] + a[i : i + 2][::-1] + a[i + 2 :])
    if len(a) == len(b) or abs(len(a) - len(b)) == 1:
        assert one_edit(a, b) is (b in edits)
    else:
        assert not one_edit(a, b)


@given(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.binary(),
        st.tuples(st.integers()),
        st.just("x" * 100_000),
        st.just("\ud800" * 300),
    )
)
def test_values_in_messages_are_short_and_printable(raw: object) -> None:
    for text in (describe(raw), shown(raw), key_text(raw)):
        assert 0 < len(text) <= 700
        text.encode()
        assert text.isprintable()
