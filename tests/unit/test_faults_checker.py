"""The checker of histories: what it must accept, and what it must not."""

import itertools
import random

import pytest

from tests.faults.checker import check, search
from tests.faults.history import NEVER, Operation, dump, load

_clients = itertools.count()


def op(kind: str, at: tuple[float, float], outcome: str, **more: object) -> Operation:
    return Operation(next(_clients), "k", kind, *at, outcome, **more)  # type: ignore[arg-type]


def applied(at: tuple[float, float], outcome: str, value: str, generation: int = 0) -> Operation:
    uid = "u" if generation else ""
    return op("apply", at, outcome, value=value, uid=uid, generation=generation)


def read(at: tuple[float, float], value: str, generation: int, **more: object) -> Operation:
    return op("get", at, "found", value=value, uid="u", generation=generation, **more)


CREATED = applied((0, 1), "created", "a", 1)


def is_linearizable(*history: Operation) -> bool:
    return not check(history)


def test_one_after_the_other() -> None:
    assert is_linearizable(
        op("get", (-1, -0.5), "absent"),
        CREATED,
        read((2, 3), "a", 1),
        applied((4, 5), "unchanged", "a", 1),
        applied((6, 7), "configured", "b", 2),
        read((8, 9), "b", 2),
        op("delete", (10, 11), "deleted"),
        op("delete", (12, 13), "absent"),
        op("get", (14, 15), "absent"),
    )


def test_what_overlaps_may_have_been_either_way() -> None:
    changed = applied((2, 5), "configured", "b", 2)
    assert is_linearizable(CREATED, changed, read((3, 4), "a", 1))
    assert is_linearizable(CREATED, changed, read((3, 4), "b", 2))
    assert not is_linearizable(CREATED, changed, read((3, 3.4), "b", 2), read((3.5, 4), "a", 1))


def test_a_lost_write() -> None:
    assert not is_linearizable(CREATED, applied((2, 3), "configured", "b", 2), read((4, 5), "a", 1))
    assert not is_linearizable(CREATED, op("get", (2, 3), "absent"))
    deleted = op("delete", (2, 3), "deleted")
    assert not is_linearizable(CREATED, deleted, read((4, 5), "a", 1))


def test_a_stale_read() -> None:
    changed = applied((2, 3), "configured", "b", 2)
    stale = read((4, 5), "a", 1)
    assert not is_linearizable(CREATED, changed, stale, read((6, 7), "b", 2))
    (violation,) = check([CREATED, changed, stale])
    assert violation.stuck[0] == stale
    assert "no order of the calls explains" in str(violation)


def test_an_old_read_is_held_to_the_age_that_it_admits() -> None:
    changed = applied((2, 3), "configured", "b", 2)
    assert is_linearizable(CREATED, changed, read((4, 5), "a", 1, age_s=1.5))
    assert not is_linearizable(CREATED, changed, read((4, 5), "a", 1, age_s=0.5))


def test_a_doubled_generation() -> None:
    assert not is_linearizable(CREATED, applied((2, 3), "configured", "b", 3))
    unknown = applied((2, 3), "unknown", "b")
    assert is_linearizable(CREATED, unknown, read((4, 5), "b", 2))
    assert not is_linearizable(CREATED, unknown, read((4, 5), "b", 3))


def test_a_create_that_was_made_twice() -> None:
    assert not is_linearizable(CREATED, applied((2, 3), "created", "a", 1))
    assert not is_linearizable(
        applied((0, 9), "created", "a", 1), applied((0, 9), "created", "b", 1)
    )


def test_a_late_second_effect_of_an_acknowledged_write() -> None:
    """The request waited in a paused member while another one did it."""
    assert not is_linearizable(
        CREATED,
        applied((2, 3), "configured", "b", 2),
        applied((4, 5), "configured", "c", 3),
        read((6, 7), "b", 4),
    )


def test_an_unknown_outcome_is_at_any_later_time_or_never() -> None:
    unknown = applied((2, 3), "unknown", "b")
    assert is_linearizable(CREATED, unknown, read((4, 5), "a", 1))
    assert is_linearizable(CREATED, unknown, read((4, 5), "a", 1), read((6, 7), "b", 2))
    assert not is_linearizable(CREATED, unknown, read((4, 5), "b", 2), read((6, 7), "a", 1))
    assert not is_linearizable(CREATED, read((1.1, 1.2), "b", 2), unknown)


def test_an_unknown_create_has_one_uid() -> None:
    unknown = applied((0, 1), "unknown", "a")
    one = read((2, 3), "a", 1)
    other = op("get", (4, 5), "found", value="a", uid="other", generation=1)
    assert is_linearizable(unknown, one)
    assert not is_linearizable(unknown, one, other)


def test_keys_are_independent() -> None:
    other = Operation(9, "other", "get", 4, 5, "found", value="x", uid="u", generation=1)
    (violation,) = check([CREATED, other])
    assert violation.key == "other"


def test_a_history_survives_its_file() -> None:
    history = [CREATED, applied((2, NEVER), "unknown", "b"), read((4, 5), "b", 2, age_s=0.5)]
    assert load(dump(history)) == history


def _explained(spans: list[tuple[float, float]], values: list[tuple[str, int]]) -> bool:
    """By trying every order: a register of numbers."""
    count = len(spans)
    for order in itertools.permutations(range(count)):
        place = {n: i for i, n in enumerate(order)}
        if any(spans[a][1] < spans[b][0] and place[a] > place[b] for a in place for b in place):
            continue
        state = 0
        for n in order:
            kind, value = values[n]
            if kind == "write":
                state = value
            elif state != value:
                break
        else:
            return True
    return False


@pytest.mark.parametrize("seed", range(300))
def test_it_agrees_with_trying_every_order(seed: int) -> None:
    chance = random.Random(seed)
    spans, values = [], []
    for _ in range(6):
        begin = chance.randrange(12)
        spans.append((float(begin), begin + chance.choice((0.5, 2.5, 5.5))))
        values.append((chance.choice(("write", "read")), chance.randrange(3)))

    def step(state: int, n: int) -> int | None:
        kind, value = values[n]
        return value if kind == "write" or state == value else None

    assert (search(spans, 0, step) is None) == _explained(spans, values)
