"""Images on arm64: Debian's containerd and the agent's package, both emulated, and a registry.

The same index that gives this machine the image of its own architecture gives a board that of
arm64 (`test_cri_images.py` has this machine's side); what is not for arm64 is refused by name.
"""

import subprocess
import time
from collections.abc import Iterator

import pytest

from devcluster.debian_root import Root
from devcluster.emulation import agent_package, arm64_programs, debian
from devcluster.image import build, hello_image
from tests.registry import Registry, running_registry

pytestmark = [pytest.mark.long, pytest.mark.emulation, pytest.mark.timeout(1800)]

SOCKET = "/c/c.sock"
# There is no overlayfs within an overlay; nothing is run, so how layers are kept does not matter.
CONFIG = f"""
version = 2
root = "/c/root"
state = "/c/state"
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"""
# Tells for each image its id, or why there is none.
PULL = f"""
import asyncio, sys
from agent.inventory import Box, architecture
from agent.runtime.cri.adapter import CriRuntime
from agent.runtime.port import PullPolicy, RuntimeFailure

async def main():
    runtime = CriRuntime("unix://{SOCKET}")
    for image in sys.argv[1:]:
        try:
            found = await runtime.ensure_image(
                image, PullPolicy.IF_NOT_PRESENT, None, architecture(Box())
            )
            print(found)
        except RuntimeFailure as failure:
            print(failure.reason)
    await runtime.close()

asyncio.run(main())
"""
ANSWERS_S = 120.0


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    """Of arm64, with the agent's package and a containerd that runs."""
    folder = tmp_path_factory.mktemp("board")
    with arm64_programs(), Root(str(debian("arm64", folder))) as root:
        root.install(agent_package(folder))
        install = "apt-get install -y -qq --no-install-recommends containerd"
        root.run("sh", "-c", f"apt-get update -qq && {install}")
        root.put("/c/config.toml", CONFIG)
        root.put("/c/pull.py", PULL)
        command = root.inside("/usr/bin/containerd", "--config", "/c/config.toml")
        with (folder / "containerd.log").open("wb") as log:
            containerd = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + ANSWERS_S
            while pulled(root, "nothing.invalid/here:1") == ["RuntimeUnavailable"]:
                assert time.monotonic() < deadline, (folder / "containerd.log").read_text()[-2000:]
            yield root
        finally:
            containerd.terminate()
            containerd.wait()


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running_registry() as server:
        yield server


def pulled(board: Root, *images: str) -> list[str]:
    """By the agent's own adapter, under the package's Python."""
    return board.run("/opt/polder-agent/bin/python3", "/c/pull.py", *images).stdout.splitlines()


def test_an_index_gives_a_board_the_image_for_arm64(board: Root, registry: Registry) -> None:
    built = {arch: build(hello_image(arch)) for arch in ("amd64", "arm64")}
    image = registry.add_index("both", built)
    assert pulled(board, image) == [built["arm64"].config.digest]


def test_what_is_not_for_arm64_is_refused_by_name(board: Root, registry: Registry) -> None:
    built = build(hello_image("amd64"))
    images = (registry.add_index("index", {"amd64": built}), registry.add("single", built))
    assert pulled(board, *images) == ["ImagePlatform", "ImagePlatform"]
