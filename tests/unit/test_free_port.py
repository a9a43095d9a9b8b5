"""Ports for listeners, by `devcluster/ports.py`."""

from pathlib import Path

import pytest

from devcluster import ports


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
    (tmp_path / "range").write_text("15004\t60999\n")
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "range")
    monkeypatch.setattr(ports, "_LOWEST", 15_000)
    monkeypatch.setattr(ports, "_given", {15_000, 15_001, 15_002})
    assert ports.free_port() == 15_003
    with pytest.raises(OSError, match="no free port"):
        ports.free_port()
