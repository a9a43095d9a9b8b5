"""The example of examples/isolation, shortened, as a person types it."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster.site import LocalSite

pytestmark = [pytest.mark.containerd, pytest.mark.netns, pytest.mark.long]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "isolation" / "run.py"


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="polder-isolation-"))
    yield path
    LocalSite(path).stop()


def test_a_site_heals_itself_in_front_of_everybody(folder: Path) -> None:
    command = [sys.executable, str(EXAMPLE), "--seconds", "8", "--directory", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "WRONG" not in done.stdout
    assert re.search(r"ledger: 0 overlaps, 0 writes with an old epoch", done.stdout)
    assert re.search(r"uplink cut .*\(off\)", done.stdout)
    assert not folder.exists()
