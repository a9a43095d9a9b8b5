"""Volumes and rights on a real containerd, through the supervisor as an agent runs it."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import mounts
from agent.domain.plan import ParsedPlan
from devcluster.containerd import PrivateContainerd
from devcluster.image import HELLO
from polder.v1 import plan_pb2
from tests.integration.test_supervisor_containerd import FOREVER, Node
from tests.sim.agent_plans import assignment, stop, template

pytestmark = pytest.mark.containerd


class FilesNode(Node):
    """With paths of the box that it lets pods see, and a shell in its containers."""

    def __init__(self, containerd: PrivateContainerd, directory: Path) -> None:
        super().__init__(containerd, directory)
        self.box = directory / "box"
        self.box.mkdir()
        self.allow(str(self.box), "/dev/kmsg:ro")

    @property
    def state(self) -> Path:
        return self._config.state_dir

    def allow(self, *paths: str) -> None:
        self._config = replace(self._config, host_paths=paths, runtime_socket=Path(self._endpoint))

    async def sh(self, uid: str, script: str, container: str = "app") -> str:
        """Its output, whatever the exit code."""
        found = self.supervisor.find(uid, container)
        _, output = await self.runtime.exec_sync(found.container_id, ["sh", "-c", script], 10)
        return output.decode().strip()

    async def see(self, uid: str, script: str, text: str) -> None:
        last = ""
        for _ in range(400):
            last = await self.sh(uid, script)
            if last == text:
                return
        raise AssertionError((script, last, self.events[-5:]))


@pytest.fixture
async def node(containerd: PrivateContainerd, tmp_path: Path) -> AsyncIterator[FilesNode]:
    made = FilesNode(containerd, tmp_path)
    await made.start()
    yield made
    await made.clean()
    await made.kill()


def pod(*volumes: dict[str, Any], script: str = FOREVER, **fields: Any) -> dict[str, Any]:
    """One container that mounts every volume as /NAME."""
    mounts = [{"name": v["name"], "mountPath": f"/{v['name']}"} for v in volumes]
    return template(
        HELLO,
        command=["/bin/sh", "-c", script],
        imagePullPolicy="Never",
        stopGrace="1s",
        volumes=list(volumes),
        volumeMounts=mounts,
        **fields,
    )


def config(**data: str) -> plan_pb2.ConfigData:
    return plan_pb2.ConfigData(namespace="default", name="web", data=data)


def secret(**data: bytes) -> plan_pb2.SecretData:
    return plan_pb2.SecretData(namespace="default", name="tls", type="Opaque", data=data)


async def test_the_safe_defaults_hold_from_the_template_on(node: FilesNode) -> None:
    node.supervisor.submit_plan(node.plan([assignment("safe", pod())]))
    await node.until(lambda: node.ready("safe"))
    found = await node.sh("safe", "id -u; id -g; cat /proc/1/status")
    lines = found.splitlines()
    assert lines[:2] == ["65532", "65532"]
    status = dict(line.split(":", 1) for line in lines[2:] if ":" in line)
    for key in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"):
        assert int(status[key], 16) == 0
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    assert "Read-only file system" in await node.sh("safe", "touch /x 2>&1")
    assert await node.sh("safe", "touch /dev/shm/x && echo fine") == "fine"


async def test_files_are_there_and_follow_their_source(node: FilesNode) -> None:
    template_ = pod(
        {"name": "conf", "config": {"name": "web"}},
        {"name": "keys", "secret": {"name": "tls", "items": {"k": "server.key"}}},
        env=[{"name": "MODE", "config": {"name": "web", "key": "mode"}}],
    )

    def said(mode: str, key: bytes, **more: str) -> ParsedPlan:
        return node.plan(
            [assignment("files", template_)],
            configs=[config(mode=mode, **more)],
            secrets=[secret(k=key)],
        )

    node.supervisor.submit_plan(said("one", b"s1", gone="x"))
    await node.until(lambda: node.ready("files"))
    before = set(await node.containers())
    assert await node.sh("files", "cat /conf/mode /keys/server.key") == "ones1"
    assert await node.sh("files", "ls /conf") == "gone\nmode"
    assert "Read-only" in await node.sh("files", "echo x 2>&1 > /conf/y")
    node.supervisor.submit_plan(said("two", b"s2", new="y"))
    await node.see("files", "cat /conf/mode /keys/server.key; ls /conf", "twos2mode\nnew")
    assert await node.sh("files", "echo $MODE") == "one", "variables change with the next start"
    assert set(await node.containers()) == before and node.status["files"].restarts == 0
    # A Config that is gone takes no file away from what runs.
    node.supervisor.submit_plan(node.plan([assignment("files", template_)]))
    await node.until(lambda: any(e.reason == "ConfigMissing" for e in node.events))
    assert await node.sh("files", "cat /conf/mode") == "two"
    # An agent that starts again finds its files, and brings them up to date.
    await node.kill()
    await node.start(said("three", b"s3"))
    assert await node.supervisor.wait_settled(5)
    await node.see("files", "cat /conf/mode /keys/server.key", "threes3")
    assert set(await node.containers()) == before


@pytest.fixture
def small_disk(node: FilesNode) -> Iterator[Path]:
    """The agent's state lies on a disk of half a megabyte."""
    node.state.mkdir()
    mounts.mount_memory(node.state, 512 << 10)
    yield node.state
    mounts.unmount(node.state)


async def test_a_full_disk_keeps_the_old_files_and_says_so(
    node: FilesNode, small_disk: Path
) -> None:
    template_ = pod({"name": "conf", "config": {"name": "web"}})

    def wanted(letter: str) -> ParsedPlan:
        data = {"a": letter, "b": letter * 100_000}
        return node.plan([assignment("full", template_)], configs=[config(**data)])

    count = "cat /conf/a; wc -c < /conf/b; head -c 1 /conf/b; ls /conf"
    node.supervisor.submit_plan(wanted("x"))
    await node.until(lambda: node.ready("full"))
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    node.supervisor.submit_plan(wanted("y"))
    await node.until(lambda: any(e.reason == "DiskFull" for e in node.events))
    assert await node.sh("full", count) == "x100000\nxa\nb"
    filler.unlink()
    await node.until(lambda: any(e.reason == "FilesRenewed" for e in node.events), 30)
    assert await node.sh("full", count) == "y100000\nya\nb"
    assert node.status["full"].restarts == 0


async def test_what_ends_is_started_again_though_its_config_is_gone(node: FilesNode) -> None:
    template_ = pod({"name": "conf", "config": {"name": "web"}})
    node.supervisor.submit_plan(
        node.plan([assignment("again", template_)], configs=[config(a="1")])
    )
    await node.until(lambda: node.ready("again"))
    node.supervisor.submit_plan(node.plan([assignment("again", template_)]))
    await node.sh("again", "kill 1")
    await node.until(lambda: node.status["again"].restarts == 1 and node.ready("again"))
    assert await node.sh("again", "cat /conf/a") == "1"


async def test_a_missing_config_blocks_until_it_is_there(node: FilesNode) -> None:
    template_ = pod({"name": "conf", "config": {"name": "web"}})
    node.supervisor.submit_plan(node.plan([assignment("late", template_)]))
    await node.until(lambda: node.reason("late") == "ConfigMissing")
    assert "no config 'web'" in node.status["late"].message
    node.supervisor.submit_plan(node.plan([assignment("late", template_)], configs=[config(a="1")]))
    await node.until(lambda: node.ready("late"))


async def test_scratch_on_disk_and_in_memory(node: FilesNode) -> None:
    template_ = pod(
        {"name": "disk", "scratch": {}},
        {"name": "ram", "scratch": {"memory": True, "sizeMax": "4Mi"}},
        resources={"memory": "64Mi"},
    )
    node.supervisor.submit_plan(node.plan([assignment("scratch", template_)]))
    await node.until(lambda: node.ready("scratch"))
    assert await node.sh("scratch", "echo x > /disk/x && cat /disk/x") == "x"
    assert await node.sh("scratch", "stat -f -c %T /ram") == "tmpfs"
    big = await node.sh("scratch", "dd if=/dev/zero of=/ram/big bs=1M count=8 2>&1; ls -s /ram")
    assert "No space left on device" in big
    assert await node.sh("scratch", "stat -c %s /ram/big") == str(4 << 20)
    made = list((node.state / "pods").iterdir())
    assert len(made) == 1 and (made[0] / "ram").is_mount()
    node.supervisor.submit_plan(node.plan([], [stop("scratch")]))
    await node.until(lambda: "scratch" in node.gone)
    assert not list((node.state / "pods").iterdir()), "nothing is left, mounts included"


async def test_local_data_outlives_its_pod(node: FilesNode) -> None:
    def wanted(revision: str) -> dict[str, Any]:
        return pod({"name": "data", "local": {}}, script=f": {revision}; {FOREVER}")

    node.supervisor.submit_plan(node.plan([assignment("keep", wanted("a"))]))
    await node.until(lambda: node.ready("keep"))
    assert await node.sh("keep", "echo kept > /data/x; stat -c %u:%g /data") == "65532:65532"
    first = set(await node.containers())
    node.supervisor.submit_plan(node.plan([assignment("keep", wanted("b"), revision=2)]))
    await node.until(lambda: node.ready("keep") and node.status["keep"].revision == 2)
    assert not first & set(await node.containers()), "it is another pod"
    assert await node.sh("keep", "cat /data/x") == "kept"
    node.supervisor.submit_plan(node.plan([], [stop("keep")]))
    await node.until(lambda: "keep" in node.gone)
    kept = node.state / "volumes/default/keep-0/data/x"
    assert kept.read_text() == "kept\n"


async def test_host_paths_are_seen_only_where_the_box_allows_it(node: FilesNode) -> None:
    (node.box / "in").write_text("of the box")
    (node.box / "escape").symlink_to("/etc")

    def wanted(path: str) -> dict[str, Any]:
        return pod({"name": "h", "hostPath": {"path": path}}, security={"runAsUser": 0})

    node.supervisor.submit_plan(
        node.plan(
            [
                assignment("fine", wanted(str(node.box))),
                assignment("device", wanted("/dev/kmsg")),
                assignment("denied", wanted("/etc")),
                assignment("escape", wanted(str(node.box / "escape"))),
                assignment("absent", wanted(str(node.box / "none"))),
            ]
        )
    )
    await node.until(lambda: node.ready("fine") and node.ready("device"))
    assert await node.sh("fine", "cat /h/in; echo back > /h/out") == "of the box"
    assert (node.box / "out").read_text() == "back\n"
    assert (await node.sh("device", "ls -l /h")).startswith("c")
    assert "not permitted" in await node.sh("device", "echo x 2>&1 > /h")
    await node.until(lambda: node.reason("denied") == "HostPathNotAllowed")
    await node.until(lambda: node.reason("escape") == "HostPathNotAllowed")
    assert "leads to /etc" in node.status["escape"].message
    await node.until(lambda: node.reason("absent") == "HostPathMissing")
    for uid in ("escape", "absent", "denied"):
        assert not any(c.name == "app" and c.id for c in node.status[uid].containers)


async def test_what_needs_more_must_say_so(node: FilesNode) -> None:
    open_ = {"readOnlyRootFilesystem": False, "runAsUser": 0, "capabilities": ["CHOWN"]}
    node.supervisor.submit_plan(
        node.plan(
            [
                assignment("open", pod(security=open_)),
                assignment("shut", pod(script=f"touch /x || exit 3; {FOREVER}")),
            ]
        )
    )
    await node.until(lambda: node.ready("open"))
    assert await node.sh("open", "touch /x && chown 5 /x && stat -c %u /x") == "5"
    await node.until(lambda: node.reason("shut") == "CrashLoop")
    await node.until(lambda: any("Read-only file system" in e.message for e in node.events))
