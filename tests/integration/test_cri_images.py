"""Images through a real containerd: present, absent, refused, for the wrong machine."""

import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from agent.runtime.cri.adapter import CriRuntime
from agent.runtime.port import ImageFailure, PullPolicy, RegistryAuth
from devcluster.containerd import PrivateContainerd
from devcluster.image import HELLO, build, hello_image, host_architecture
from devcluster.ports import free_port
from tests.containerd_fixtures import WRONG_ARCHITECTURE
from tests.cri_support import Pods
from tests.registry import Registry, running_registry

pytestmark = pytest.mark.containerd
ARCH = host_architecture()


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running_registry() as server:
        yield server


async def refused(
    cri: CriRuntime, image: str, policy: PullPolicy, auth: RegistryAuth | None = None
) -> ImageFailure:
    with pytest.raises(ImageFailure) as caught:
        await cri.ensure_image(image, policy, auth, ARCH)
    return caught.value


async def test_present_image_is_not_pulled(cri: CriRuntime) -> None:
    for policy in (PullPolicy.NEVER, PullPolicy.IF_NOT_PRESENT):
        assert (await cri.ensure_image(HELLO, policy, None, ARCH)).startswith("sha256:")


async def test_absent_image_with_never(cri: CriRuntime) -> None:
    failure = await refused(cri, "polder.local/absent:1", PullPolicy.NEVER)
    assert failure.reason == "ImageNeverPull"


async def test_image_of_another_architecture(cri: CriRuntime) -> None:
    failure = await refused(cri, WRONG_ARCHITECTURE, PullPolicy.NEVER)
    assert failure.reason == "ImagePlatform"
    assert failure.message.endswith(f"built for s390x, this node is {ARCH}")


async def test_unreachable_registry_fails_fast(cri: CriRuntime) -> None:
    begun = time.monotonic()
    image = f"127.0.0.1:{free_port()}/absent:1"
    failure = await refused(cri, image, PullPolicy.IF_NOT_PRESENT)
    assert failure.reason == "ImageRegistry" and "connection refused" in failure.message
    assert time.monotonic() - begun < 5


async def test_malformed_reference(cri: CriRuntime) -> None:
    failure = await refused(cri, "Not//An:Image:", PullPolicy.IF_NOT_PRESENT)
    assert failure.reason == "ImageNotFound"


async def test_pull_then_run(cri: CriRuntime, pods: Pods, registry: Registry) -> None:
    image = registry.add("demo", build(hello_image()))
    resolved = await cri.ensure_image(image, PullPolicy.IF_NOT_PRESENT, None, ARCH)
    container_id, _ = await pods.shell("exit 6", image=resolved)
    assert (await pods.ended(container_id)).exit_code == 6


async def test_always_asks_the_registry_again(cri: CriRuntime, registry: Registry) -> None:
    image = registry.add("moving", build(hello_image()))
    first = await cri.ensure_image(image, PullPolicy.ALWAYS, None, ARCH)
    registry.add("moving", build(replace(hello_image(), environment=("A=B", "PATH=/bin"))))
    assert await cri.ensure_image(image, PullPolicy.IF_NOT_PRESENT, None, ARCH) == first
    assert await cri.ensure_image(image, PullPolicy.ALWAYS, None, ARCH) != first


async def test_always_uses_what_is_there_when_the_registry_is_away(
    cri: CriRuntime, registry: Registry
) -> None:
    image = registry.add("kept", build(hello_image()))
    first = await cri.ensure_image(image, PullPolicy.ALWAYS, None, ARCH)
    registry.status = 503
    assert await cri.ensure_image(image, PullPolicy.ALWAYS, None, ARCH) == first
    registry.status, registry.credentials = 0, "now:asked"
    assert (await refused(cri, image, PullPolicy.ALWAYS)).reason == "ImageAuth"
    registry.credentials = ""
    registry.manifests.clear()
    assert (await refused(cri, image, PullPolicy.ALWAYS)).reason == "ImageNotFound"


async def test_registry_does_not_have_it(cri: CriRuntime, registry: Registry) -> None:
    failure = await refused(cri, f"{registry.host}/nothing:1", PullPolicy.ALWAYS)
    assert failure.reason == "ImageNotFound"


async def test_registry_wants_credentials(cri: CriRuntime, registry: Registry) -> None:
    registry.credentials = "box:secret"
    image = registry.add("private", build(hello_image()))
    assert (await refused(cri, image, PullPolicy.ALWAYS)).reason == "ImageAuth"
    wrong = RegistryAuth("box", "guess")
    failure = await refused(cri, image, PullPolicy.ALWAYS, wrong)
    assert failure.reason == "ImageAuth" and "guess" not in failure.message
    right = RegistryAuth("box", "secret")
    assert (await cri.ensure_image(image, PullPolicy.ALWAYS, right, ARCH)).startswith("sha256:")


async def test_broken_registry(cri: CriRuntime, registry: Registry) -> None:
    registry.status = 503
    failure = await refused(cri, f"{registry.host}/demo:1", PullPolicy.ALWAYS)
    assert failure.reason == "ImageRegistry"


async def test_pulled_image_of_another_architecture(cri: CriRuntime, registry: Registry) -> None:
    image = registry.add("foreign", build(hello_image("s390x")))
    assert (await refused(cri, image, PullPolicy.IF_NOT_PRESENT)).reason == "ImagePlatform"


async def test_an_index_gives_each_node_the_image_of_its_own_architecture(
    cri: CriRuntime, pods: Pods, registry: Registry
) -> None:
    other = "arm64" if ARCH == "amd64" else "amd64"
    built = {
        arch: build(replace(hello_image(arch), environment=("PATH=/bin", f"FOR={arch}")))
        for arch in (other, ARCH)
    }
    image = registry.add_index("both", built)
    resolved = await cri.ensure_image(image, PullPolicy.IF_NOT_PRESENT, None, ARCH)
    assert resolved == built[ARCH].config.digest
    container_id, _ = await pods.shell(f'[ "$FOR" = {ARCH} ] && exit 7', image=resolved)
    assert (await pods.ended(container_id)).exit_code == 7


async def test_an_index_without_this_nodes_architecture_is_refused(
    cri: CriRuntime, registry: Registry
) -> None:
    image = registry.add_index("others", {"s390x": build(hello_image("s390x"))})
    assert (await refused(cri, image, PullPolicy.IF_NOT_PRESENT)).reason == "ImagePlatform"


async def test_silent_registry_is_given_up(containerd: PrivateContainerd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        runtime = CriRuntime(containerd.socket, pull_timeout_s=1.0)
        begun = time.monotonic()
        image = f"127.0.0.1:{mute.getsockname()[1]}/demo:1"
        failure = await refused(runtime, image, PullPolicy.ALWAYS)
        assert failure.reason == "ImageRegistry" and "in time" in failure.message
        assert time.monotonic() - begun < 5
        await runtime.close()
