"""Ports for listeners, by `devcluster/ports.py`."""

import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest

from devcluster import ports

FREE = ports._LOWEST - 1


def test_no_listener_gets_a_port_that_examples_serve_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One did, and a container of another test was refused its port."""
    (tmp_path / "range").write_text("18100\t60999\n")
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "range")
    monkeypatch.setattr(ports, "_LOWEST", 18_080)
    with pytest.raises(OSError, match="no free port"):
        ports.free_port()


def test_no_two_listeners_of_a_process_get_one_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the dozen that four members listen at were the same, now and then."""
    only_one_is_left(tmp_path, monkeypatch)
    assert ports.free_port() == FREE
    with pytest.raises(OSError, match="no free port"):
        ports.free_port()


def test_what_another_process_was_given_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_one_is_left(tmp_path, monkeypatch)
    marking = f"from devcluster import ports; print(ports._mark({FREE}), flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", marking],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == b"True\n"
        with pytest.raises(OSError, match="no free port"):
            ports.free_port()
    finally:
        other.communicate(b"\n", timeout=30)
    assert ports.free_port() == FREE


def test_marks_are_no_leak_of_open_files() -> None:
    for _ in range(2 * ports._MARKS_MAX):
        ports.free_port()
    assert len(ports._marks) == ports._MARKS_MAX


def only_one_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FREE, below those that others on this machine are given meanwhile."""
    (tmp_path / "range").write_text(f"{FREE + 1}\t60999\n")
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "range")
    monkeypatch.setattr(ports, "_LOWEST", FREE - 3)
    monkeypatch.setattr(ports, "_given", {FREE - 3, FREE - 2, FREE - 1})
    monkeypatch.setattr(ports, "_marks", deque())
