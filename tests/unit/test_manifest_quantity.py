"""Quantities: what is read, what is refused, and that equal amounts are equal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polder.manifest.quantity import (
    MAX_BYTES,
    MAX_CPU_MILLIS,
    cpu_millis,
    duration_s,
    format_bytes,
    format_cpu,
    format_duration,
    memory_bytes,
)

MIB = 1 << 20


@pytest.mark.parametrize(
    ("raw", "millis"),
    [
        ("500m", 500),
        ("0.5", 500),
        (0.5, 500),
        (0.1, 100),
        (0.001, 1),
        ("2", 2000),
        (2, 2000),
        (" 2 ", 2000),
        ("1.50", 1500),
        ("0", 0),
        ("100.0m", 100),
        (10_000, MAX_CPU_MILLIS),
    ],
)
def test_cpu(raw: object, millis: int) -> None:
    assert cpu_millis(raw) == millis


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("-1", "negative"),
        (-0.5, "negative"),
        ("-0", "negative"),
        ("0.0005", "finer"),
        ("0.5m", "finer"),
        ("1." + "0" * 30 + "1", "finer"),  # more digits than Decimal's default precision
        ("1Mi", "suffix 'Mi'"),
        ("10000.001", "more than 10000 cores"),
        (10**30, "more than"),
    ],
)
def test_cpu_refused(raw: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cpu_millis(raw)


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        ("256Mi", 256 * MIB),
        ("1G", 10**9),
        (1048576, MIB),
        ("0.5Ki", 512),
        ("0.1Gi", 107_374_183),  # rounded up
        ("0.1", 1),  # never down to 0, which means: no limit
        (0.1, 1),
        ("0.000001k", 1),
        (0, 0),
        ("1Pi", MAX_BYTES),
        (float(MIB), MIB),
    ],
)
def test_memory(raw: object, count: int) -> None:
    assert memory_bytes(raw) == count


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("256mi", "suffix 'mi'"),
        ("256m", "did you mean M or Mi"),
        ("1E", "suffix"),
        (MAX_BYTES + 1, "absurdly"),
        ("1025Ti", "absurdly"),
        ("-1Mi", "negative"),
    ],
)
def test_memory_refused(raw: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        memory_bytes(raw)


def test_the_memory_of_a_whole_pod_fits_64_bits() -> None:
    assert 16 * MAX_BYTES < 1 << 62


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("1h0m0.5s", 3600.5),
        ("500ms", 0.5),
        (10, 10.0),
        ("10", 10.0),
        (0.25, 0.25),
        ("2d", 172_800.0),
        (0, 0.0),
        ("0.0000000001", 0.0),
        (3650 * 86400, 3650 * 86400.0),
    ],
)
def test_duration(raw: object, seconds: float) -> None:
    assert duration_s(raw) == seconds
    assert str(duration_s(raw)) == str(seconds)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("-5s", "negative"),
        (-5, "negative"),
        (-0.0, "negative"),
        ("", "not a duration"),
        ("s", "not a duration"),
        ("5 s", "not a duration"),
        ("5sx", "not a duration"),
        ("x5s", "not a duration"),
        ("1e3", "not a duration"),
        ("1_0", "not a duration"),
        ("nan", "not a duration"),
        ("inf", "not a duration"),
        (float("nan"), "between 0 and ten years"),
        (float("inf"), "between 0 and ten years"),
        (1e300, "between 0 and ten years"),
        ("3651d", "between 0 and ten years"),
        (10**30, "between 0 and ten years"),
    ],
)
def test_duration_refused(raw: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        duration_s(raw)


@pytest.mark.parametrize("parse", [cpu_millis, memory_bytes, duration_s])
@pytest.mark.parametrize(
    "raw",
    [
        "+5",
        "1e9",
        "٣",  # digits to \\d, to str.isdigit and to int()
        "\uff15",
        "²",
        "0x10",
        "1_000",
        "1.",
        ".5",
        "1.5.5",
        "5\x00",
        "Infinity",
        "NaN",
        "m",
        "--5",
        "-",
        "1" * 65,
        "1" * 1_000_000,
        None,
        True,
        [],
        {},
        (1,),
        b"5",
    ],
    ids=lambda raw: repr(raw)[:12],
)
def test_what_no_quantity_is(parse: object, raw: object) -> None:
    assert callable(parse)
    with pytest.raises(ValueError) as caught:
        parse(raw)
    assert 0 < len(str(caught.value)) < 200


def test_an_integer_too_long_for_text_is_refused() -> None:
    for parse in (cpu_millis, memory_bytes, duration_s):
        for raw in (10**6000, -(10**6000)):
            with pytest.raises(ValueError, match="is a number with far too many digits"):
                parse(raw)


def test_a_deeply_nested_list_is_no_quantity() -> None:
    nested: list[object] = []
    for _ in range(5000):
        nested = [nested]
    for parse in (cpu_millis, memory_bytes, duration_s):
        with pytest.raises(ValueError, match="found a list"):
            parse(nested)


@given(st.integers(0, MAX_CPU_MILLIS))
def test_cpu_is_exact_however_it_is_written(millis: int) -> None:
    assert cpu_millis(f"{millis}m") == millis
    assert cpu_millis(f"{millis // 1000}.{millis % 1000:03}") == millis
    assert cpu_millis(millis / 1000) == millis
    assert cpu_millis(format_cpu(millis)) == millis


@given(st.integers(0, 10**9))
def test_durations_are_equal_however_they_are_written(millis: int) -> None:
    value = duration_s(f"{millis}ms")
    assert value == millis / 1000
    assert value == duration_s(millis / 1000)
    assert value == duration_s(f"{millis // 1000}s{millis % 1000}ms")
    assert value == duration_s(f"{millis // 1000}.{millis % 1000:03}")


@given(st.integers(0, MAX_BYTES))
def test_memory_is_exact(count: int) -> None:
    assert memory_bytes(count) == memory_bytes(str(count)) == count
    assert memory_bytes(f"{count // 1024}Ki") == count // 1024 * 1024


@given(st.one_of(st.text(max_size=40), st.floats(), st.integers(), st.none(), st.booleans()))
def test_whatever_is_given_the_answer_is_in_bounds_or_a_value_error(raw: object) -> None:
    for parse, most in ((cpu_millis, MAX_CPU_MILLIS), (memory_bytes, MAX_BYTES), (duration_s, 4e8)):
        try:
            assert 0 <= parse(raw) <= most
        except ValueError as error:
            assert len(str(error)) < 200


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1000"),
        (1023, "1023"),
        (1024, "1Ki"),
        (268_435_456, "256Mi"),
        (int(999.7 * MIB), "1000Mi"),  # not 1e+03Mi
        (1536 * MIB, "1.5Gi"),
        (MIB - 1, "1Mi"),
        (5000 << 40, "5000Ti"),
    ],
)
def test_bytes_for_tables(count: int, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 1 << 62))
def test_bytes_for_tables_stay_narrow(count: int) -> None:
    text = format_bytes(count)
    assert "e" not in text
    assert len(text) <= 9


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (5.9, "5s"), (119, "119s"), (120, "2m"), (10_800, "3h"), (259_200, "3d")],
)
def test_duration_for_tables(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
