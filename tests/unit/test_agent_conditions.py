"""Conditions of the node: what is told when one begins, changes and ends."""

from agent.conditions import MAX_MESSAGE, Conditions


def watched() -> tuple[Conditions, list[tuple[str, bool, str]]]:
    told: list[tuple[str, bool, str]] = []
    conditions = Conditions(lambda: 1000.0)
    conditions.on_change = lambda *flip: told.append(flip)
    return conditions, told


def test_one_that_ends_says_what_it_was_last() -> None:
    conditions, told = watched()
    conditions.set("NoVoters", "NoVoters", "too few voters are heard to take over web-0")
    conditions.set("NoVoters", "NoVoters", "too few voters are heard to take over web-0, web-1")
    conditions.clear("NoVoters")
    assert told == [
        ("NoVoters", True, "too few voters are heard to take over web-0"),
        ("NoVoters", False, "it is over: too few voters are heard to take over web-0, web-1"),
    ]
    conditions.clear("NoVoters")
    assert len(told) == 2


def test_no_event_of_an_end_is_empty_or_without_bounds() -> None:
    conditions, told = watched()
    for message, end in (("", "it is over: NetworkPlugin"), ("x" * 10_000, "it is over: xxx")):
        conditions.set("NetworkNotReady", "NetworkPlugin", message)
        conditions.clear("NetworkNotReady")
        assert told[-1][2].startswith(end)
        assert len(told[-1][2]) <= MAX_MESSAGE
