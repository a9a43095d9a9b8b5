"""The simulation of the mesh over a few seeds, and whether it would notice what it is there for."""

import pytest

from orchestrator.fleet import Fleet
from tests.sim.__main__ import main
from tests.sim.mesh import Moved, check


@pytest.mark.parametrize("seed", range(16))
def test_nothing_that_lives_is_moved(seed: int) -> None:
    check(seed)


def test_it_notices_when_silence_is_believed_that_cannot_be_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fleet, "cannot_ask", lambda self, members: None)
    with pytest.raises(Moved):
        for seed in range(40):
            check(seed)


def test_a_failing_seed_is_told_with_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.sim.mesh.FLAPPING_S", 1.0)
    monkeypatch.setattr("tests.sim.mesh.Story._only_the_dead_moved", _fails)
    assert main(["mesh", "--seeds", "1", "--first", "3"]) == 1
    shown = capsys.readouterr().out
    assert "seed 3 FAILED: something" in shown
    assert "replay: python -m tests.sim mesh --first 3 --seeds 1" in shown


def _fails(story: object) -> None:
    raise Moved("something")
