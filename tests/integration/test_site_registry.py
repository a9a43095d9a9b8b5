"""Nodes of a site that get their images from each other: Debian's registry, and none outside."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agent.runtime.cri.adapter import CriRuntime
from agent.runtime.port import ImageFailure, PullPolicy
from devcluster.containerd import PrivateContainerd
from devcluster.image import build, hello_image, host_architecture
from devcluster.ports import free_port
from devcluster.site_registry import SiteRegistry, use_mirrors
from tests.cri_support import Pods
from tests.registry import running_registry

pytestmark = [pytest.mark.containerd, pytest.mark.registry]
ARCH = host_architecture()
OUTSIDE = "registry.invalid"  # no name server knows it: RFC 6761
IMAGE = f"{OUTSIDE}/team/hello:1"


@dataclass(frozen=True, slots=True)
class Peer:
    """A new node of the site, with nothing on it."""

    containerd: PrivateContainerd
    cri: CriRuntime

    async def pull(self, image: str) -> str:
        return await self.cri.ensure_image(image, PullPolicy.IF_NOT_PRESENT, None, ARCH)

    async def refused(self, image: str) -> ImageFailure:
        with pytest.raises(ImageFailure) as caught:
            await self.pull(image)
        return caught.value

    def forget(self) -> None:
        """All images but those that it needs itself."""
        for name in self.containerd.ctr("images", "ls", "-q").split():
            if OUTSIDE in name:
                self.containerd.ctr("images", "rm", "--sync", name)


@pytest.fixture(scope="module")
def bare() -> Iterator[PrivateContainerd]:
    directory = Path(tempfile.mkdtemp(prefix="polder-test-"))
    instance = PrivateContainerd(directory)
    try:
        instance.start()
        yield instance
    finally:
        instance.stop(wipe=True)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def peer(bare: PrivateContainerd) -> AsyncIterator[Peer]:
    made = Peer(bare, CriRuntime(bare.socket))
    yield made
    made.forget()
    shutil.rmtree(bare.paths.certs / OUTSIDE, ignore_errors=True)
    await made.cri.close()


@pytest.fixture
def registry(containerd: PrivateContainerd, tmp_path: Path) -> Iterator[SiteRegistry]:
    """On a node that has the image, which it once pulled from outside."""
    made = SiteRegistry(tmp_path / "registry", "127.0.0.1", free_port())
    made.start()
    containerd.import_images([hello_image(name=IMAGE)])
    made.push(containerd, IMAGE)
    yield made
    made.stop()


async def test_a_new_node_gets_its_image_from_a_peer(
    peer: Peer, registry: SiteRegistry, tmp_path: Path
) -> None:
    assert (await peer.refused(IMAGE)).reason == "ImageRegistry", "there is no outside"
    use_mirrors(peer.containerd, OUTSIDE, [registry.url])
    resolved = await peer.pull(IMAGE)
    pods = Pods(peer.cri, tmp_path)
    try:
        ended, words = await pods.ended_with_log("echo served by a peer", image=resolved)
        assert (ended.exit_code, words) == (0, "served by a peer")
    finally:
        await pods.remove_all()


async def test_by_its_digest_too(peer: Peer, registry: SiteRegistry) -> None:
    use_mirrors(peer.containerd, OUTSIDE, [registry.url])
    digest = build(hello_image(name=IMAGE)).manifest.digest
    assert await peer.pull(f"{OUTSIDE}/team/hello@{digest}")
    other = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    await peer.refused(f"{OUTSIDE}/team/hello@{other}")


async def test_a_peer_that_is_down_is_passed_over(peer: Peer, registry: SiteRegistry) -> None:
    use_mirrors(peer.containerd, OUTSIDE, [f"http://127.0.0.1:{free_port()}", registry.url])
    assert await peer.pull(IMAGE)


async def test_an_image_that_no_peer_has_is_asked_for_outside(
    peer: Peer, registry: SiteRegistry
) -> None:
    use_mirrors(peer.containerd, OUTSIDE, [registry.url])
    failure = await peer.refused(f"{OUTSIDE}/team/absent:1")
    assert failure.reason == "ImageRegistry" and OUTSIDE in failure.message


async def test_images_of_two_registries_are_two(peer: Peer, registry: SiteRegistry) -> None:
    """The same name below another registry is not in the site's."""
    other = "other.invalid"
    use_mirrors(peer.containerd, other, [registry.url])
    assert (await peer.refused(f"{other}/team/hello:1")).reason == "ImageRegistry"


async def test_a_peer_cannot_pass_off_other_content_for_a_digest(peer: Peer) -> None:
    # Nobody has this one yet: what is in the node's store is not asked for again.
    real = build(replace(hello_image(name=IMAGE), environment=("ONLY=here", "PATH=/bin")))
    forged = build(hello_image(name=IMAGE, architecture="s390x"))
    with running_registry() as liar:
        liar.add(f"{OUTSIDE}/team/hello", forged)
        liar.blobs[real.manifest.digest] = forged.manifest.content
        use_mirrors(peer.containerd, OUTSIDE, [f"http://{liar.host}"])
        failure = await peer.refused(f"{OUTSIDE}/team/hello@{real.manifest.digest}")
        assert "unexpected commit digest" in failure.message
        assert OUTSIDE not in peer.containerd.ctr("images", "ls", "-q")


async def test_a_registry_that_is_for_reading_takes_no_images(
    containerd: PrivateContainerd, tmp_path: Path
) -> None:
    made = SiteRegistry(tmp_path / "registry", "127.0.0.1", free_port(), read_only=True)
    made.start()
    try:
        containerd.import_images([hello_image(name=IMAGE)])
        with pytest.raises(Exception, match="returned non-zero"):
            made.push(containerd, IMAGE)
    finally:
        made.stop()
