"""The dead-man's switch whose table cannot be written; the rest is in `test_switch.py`."""

import errno
from pathlib import Path

import pytest

from agent import switch


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> switch.Switch:
    """With a replica that is armed, and a table that takes nothing more."""
    monkeypatch.setattr(switch, "objection", lambda _directory: "")
    table = switch.Table(str(tmp_path / "table"))
    found = switch.Switch(str(tmp_path / "switch.sock"), table)
    assert arm(found, 60) == "ok"

    def save(_uid: str, _armed: switch.Armed) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(table, "save", save)
    return found


def arm(found: switch.Switch, seconds: int) -> str:
    deadline = switch.now_ns() + seconds * 1_000_000_000
    return found._answer(["arm", "u1", str(deadline), "/nowhere"])


def left_s(found: switch.Switch) -> float:
    return (found._armed["u1"].deadline_ns - switch.now_ns()) / 1e9


def test_a_later_deadline_counts_since_the_one_on_file_is_only_too_early(
    made: switch.Switch,
) -> None:
    assert arm(made, 90) == "ok"
    assert left_s(made) > 80


def test_a_sooner_one_is_refused_since_a_new_switch_would_go_by_the_file(
    made: switch.Switch,
) -> None:
    """Voters are let off what they granted for longer only when nothing can run for longer."""
    for _ in range(2):  # said again, it is no other
        assert arm(made, 3) == "no Input/output error"
        assert left_s(made) > 50
