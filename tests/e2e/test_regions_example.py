"""The example of examples/regions, shortened: up, kill, heal, down, as a person types it."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster.continent import Continent

pytestmark = [pytest.mark.containerd, pytest.mark.netns, pytest.mark.etcd]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "regions" / "run.py"


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="polder-regions-"))
    yield path
    Continent(path).stop()


def typed(folder: Path, *words: str) -> tuple[int, str]:
    command = [sys.executable, str(EXAMPLE), *words, "--directory", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    print(done.stdout, done.stderr)
    return done.returncode, done.stdout


def test_a_region_is_killed_and_no_request_fails(folder: Path) -> None:
    code, shown = typed(folder, "up")
    assert code == 0
    assert "region eu-central" in shown and "EDGECTL_CONFIG=" in shown
    name = Continent(folder).name
    code, shown = typed(folder, "kill", "eu-central", "--seconds", "14")
    assert code == 0
    counted = re.search(r"(\d+) requests, 0 failed; (\d+) writes", shown)
    assert counted and int(counted[1]) > 50 and int(counted[2]) > 5
    code, shown = typed(folder, "heal", "--seconds", "3")
    assert code == 0
    assert typed(folder, "down")[0] == 0
    for command in ["ip", "netns", "list"], ["ip", "-brief", "link"]:
        left = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert name not in left
    assert not folder.exists()
