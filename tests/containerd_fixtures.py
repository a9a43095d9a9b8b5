"""Fixtures for tests marked `containerd`; registered by tests/conftest.py."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.runtime.cri.adapter import CriRuntime
from devcluster.containerd import PrivateContainerd
from devcluster.image import hello_image
from tests.cri_support import Pods

WRONG_ARCHITECTURE = "polder.local/wrong-architecture:1"


@pytest.fixture(scope="session")
def containerd() -> Iterator[PrivateContainerd]:
    """The session's private containerd, with the hello image and one that no machine can run.

    Its directory is new, and with it its name, bridge and subnet: two test runs can coexist.
    """
    directory = Path(tempfile.mkdtemp(prefix="polder-test-"))
    instance = PrivateContainerd(directory)
    try:
        instance.start()
        instance.import_images([hello_image(), hello_image("s390x", WRONG_ARCHITECTURE)])
        yield instance
    finally:
        instance.stop(wipe=True)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def cri(containerd: PrivateContainerd) -> AsyncIterator[CriRuntime]:
    adapter = CriRuntime(containerd.socket)
    yield adapter
    await adapter.close()


@pytest.fixture
async def pods(cri: CriRuntime, tmp_path: Path) -> AsyncIterator[Pods]:
    """Makes pods, and removes them when the test ends."""
    maker = Pods(cri, tmp_path)
    yield maker
    await maker.remove_all()
