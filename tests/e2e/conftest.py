"""Installations of real processes for the end-to-end tests."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster.image import hello_image
from devcluster.installation import Installation
from tests.containerd_fixtures import WRONG_ARCHITECTURE


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="polder-e2e-"))
    yield folder
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
