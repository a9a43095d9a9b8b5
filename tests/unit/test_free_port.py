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
