"""Which of several stays stays: the same answer wherever it is asked."""

from hypothesis import given
from hypothesis import strategies as st

from polder import epochs
from polder.succession import TIE_S, Contender, decided_in, keeper

E1 = epochs.decided_at(1)


def one(node: str, ready_for_s: float | None, epoch: int = E1) -> Contender:
    return Contender(node, f"u-{node}", epoch, ready_for_s is not None, ready_for_s or 0.0)


def test_older_is_who_has_been_ready_for_longest() -> None:
    stays = [one("a", 5.0, E1 + 1), one("b", 60.0), one("c", 8.0, E1 + 2)]
    assert keeper(stays, "older") == stays[1]
    assert keeper(stays, "newer") == stays[0]


def test_who_is_not_ready_is_nobodys_reason_to_stop() -> None:
    stays = [one("a", None, E1 + 9), one("b", 1.0)]
    assert keeper(stays, "older") == keeper(stays, "newer") == stays[1]
    assert keeper([one("a", None)], "older") is None and keeper([], "older") is None


def test_a_later_decision_of_an_orchestrator_comes_first() -> None:
    later = one("b", 1.0, epochs.decided_at(2))
    assert keeper([one("a", 3600.0, E1 + 7), later], "older") == later
    not_ready = one("b", None, epochs.decided_at(2))
    assert keeper([one("a", 3600.0, E1 + 7), not_ready], "older") == one("a", 3600.0, E1 + 7)


def test_a_tie_does_not_depend_on_epochs_which_the_keeper_raises() -> None:
    a, b = one("a", 10.0, E1), one("b", 10.0 + TIE_S, E1 + 1)
    assert keeper([a, b], "older") == a
    assert keeper([one("a", 10.0, E1 + 5), b], "older") == one("a", 10.0, E1 + 5)
    assert keeper([a, one("b", 10.1 + TIE_S)], "older") == one("b", 10.1 + TIE_S)


def test_what_an_epoch_counts_on_from() -> None:
    assert (
        decided_in(epochs.decided_at(77)) == decided_in(epochs.after(epochs.decided_at(77))) == 77
    )


CONTENDERS = st.lists(
    st.builds(
        Contender,
        node=st.sampled_from("abcdef"),
        uid=st.sampled_from("uvw"),
        epoch=st.integers(0, 5).map(epochs.decided_at) | st.integers(E1, E1 + 5),
        ready=st.booleans(),
        ready_for_s=st.floats(0, 100),
    ),
    max_size=6,
    unique_by=lambda c: (c.node, c.uid),
)


@given(CONTENDERS, st.sampled_from(["older", "newer"]), st.randoms())
def test_the_order_in_which_they_are_heard_of_does_not_matter(
    contenders: list[Contender], on_return: str, dice: object
) -> None:
    best = keeper(contenders, on_return)
    assert (best is None) == (not any(c.ready for c in contenders))
    shuffled = list(contenders)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    assert keeper(shuffled, on_return) == best


@given(CONTENDERS, st.sampled_from(["older", "newer"]))
def test_the_keeper_stays_it_when_all_others_have_stopped(
    contenders: list[Contender], on_return: str
) -> None:
    best = keeper(contenders, on_return)
    if best is not None:
        assert keeper([best], on_return) == best
