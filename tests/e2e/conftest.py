"""Installations of real processes for the end-to-end tests."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster.image import hello_image
from devcluster.installation import Installation
from tests.containerd_fixtures import WRONG_ARCHITECTURE

LOG_LINES = 25


def _show_ends_of_logs(folder: Path) -> None:
    for log in sorted((*folder.glob("*.log"), *folder.glob("*/*.log"))):
        print(f"\n--- {log.relative_to(folder)}, its last {LOG_LINES} lines")
        for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:]:
            print(line[:500])


@pytest.fixture(scope="module")
def directory(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Goes when the module is done; if a test failed, the ends of the logs are shown before."""
    failed_before = request.session.testsfailed
    folder = Path(tempfile.mkdtemp(prefix="polder-e2e-"))
    yield folder
    if request.session.testsfailed > failed_before:
        # Captured output of a teardown is shown only if the module's last test is what failed.
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            _show_ends_of_logs(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def polder(directory: Path) -> Iterator[Installation]:
    """An orchestrator and one agent on a real containerd."""
    made = Installation(directory)
    try:
        made.start_orchestrator()
        made.apply_site()
        images = (hello_image(), hello_image("s390x", WRONG_ARCHITECTURE))
        made.add_agent("box-1", images=images)
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def control(directory: Path) -> Iterator[Installation]:
    """An orchestrator and one agent whose runtime is simulated: for what needs no container."""
    made = Installation(directory)
    try:
        made.start_orchestrator()
        made.apply_site()
        made.add_agent("sim-1", runtime="simulated")
        yield made
    finally:
        made.stop()
