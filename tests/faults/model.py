"""What one resource does when calls come one after the other. Pure; used by the checker.

The state is whether it is there, with its uid, generation and value. A create whose answer was lost
gave a uid that nobody knows: it is `?` until somebody reads it.
"""

from dataclasses import dataclass

from tests.faults.history import Operation

_UNREAD = "?"


@dataclass(frozen=True, slots=True)
class State:
    """`generation` 0: it is not there."""

    uid: str = ""
    generation: int = 0
    value: str = ""


ABSENT = State()


def step(state: State, operation: Operation) -> State | None:
    """The state after it; None when it could not have been answered so in this state."""
    if operation.kind == "apply":
        return _apply(state, operation)
    if operation.kind == "delete":
        return _delete(state, operation)
    assert operation.kind == "get", operation
    return _get(state, operation)


def _apply(state: State, operation: Operation) -> State | None:
    said = operation.outcome
    if not state.generation:
        after, outcome = State(_UNREAD, 1, operation.value), "created"
    elif state.value == operation.value:
        after, outcome = state, "unchanged"
    else:
        after = State(state.uid, state.generation + 1, operation.value)
        outcome = "configured"
    if said == "unknown":
        return after
    if said != outcome or operation.generation != after.generation:
        return None
    return _seen(after, operation.uid)


def _delete(state: State, operation: Operation) -> State | None:
    if operation.outcome == "unknown":
        return ABSENT
    return ABSENT if (operation.outcome == "deleted") == bool(state.generation) else None


def _get(state: State, operation: Operation) -> State | None:
    if operation.outcome == "absent":
        return state if not state.generation else None
    if (state.generation, state.value) != (operation.generation, operation.value):
        return None
    return _seen(state, operation.uid)


def _seen(state: State, uid: str) -> State | None:
    if state.uid == _UNREAD:
        return State(uid, state.generation, state.value)
    return state if state.uid == uid else None
