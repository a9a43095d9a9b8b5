"""The words of journal entries: what was done by whom, and what was not."""

import pytest

from polder import journal
from polder.v1 import agent_pb2


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"verb": "stop"}, ("LocalStop", "stopped it", False)),
        (
            {"verb": "move", "detail": "node-b", "reason": "fan broken"},
            ("LocalMove", "moved it to node-b, because: fan broken", False),
        ),
        (
            {"verb": "exec", "detail": "sh -c date", "refused": "needs operator:shop"},
            ("LocalExecRefused", "refused: exec sh -c date: needs operator:shop", True),
        ),
        (
            {"verb": "enter", "purpose": "incident 4711"},
            ("LocalEnter", "entered (break-glass token, issued for: incident 4711)", True),
        ),
        ({"verb": "defrost"}, ("LocalDefrost", "defrost", False)),
        ({}, ("LocalCall", "call", False)),
    ],
)
def test_words(fields: dict[str, str], expected: tuple[str, str, bool]) -> None:
    assert journal.words(agent_pb2.JournalEntry(**fields)) == expected  # type: ignore[arg-type]
