"""What `edge-agent` says when the box lets it do nothing."""

import pytest

from agent import main as command


def _refusing(*_: object, **__: object) -> None:
    raise PermissionError(1, "Operation not permitted", "/etc/polder")


def test_who_is_not_root_hears_that_it_must_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("agent.config.load", _refusing)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert command.main(["status"]) == 1
    assert capsys.readouterr().err == (
        "edge-agent: /etc/polder: permission denied: run it as root\n"
    )


def test_root_is_not_told_to_become_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.config.load", _refusing)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(PermissionError):
        command.main(["status"])
