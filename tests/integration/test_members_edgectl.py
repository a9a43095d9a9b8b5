"""`edgectl` as operators call it, at a member that neither leads nor has the box's session."""

import asyncio
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.etcd_server import EtcdCluster
from tests.integration.members_world import Member, World, world
from tests.integration.orchestrator_rig import apply_request, until, workload

pytestmark = pytest.mark.etcd
_prefixes = (f"/hands{n}" for n in itertools.count())
APP = {"name": "app", "image": "app:1", "resources": {"cpu": "3", "memory": "64Mi"}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    made = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def three(tmp_path: Path, cluster: EtcdCluster) -> AsyncIterator[World]:
    async with world(tmp_path, cluster, next(_prefixes)) as made:
        yield made


class Hands:
    """edgectl that knows one member alone."""

    def __init__(self, folder: Path, three: World, member: Member) -> None:
        admin = next(folder.glob("*/data/admin.yaml"))
        body = json.loads(admin.read_text())
        body["clusters"][0]["cluster"]["endpoints"] = [member.config.listen]
        path = folder / f"{member.name}.yaml"
        path.touch(mode=0o600)
        path.write_text(json.dumps(body))
        self._environment = {**os.environ, "EDGECTL_CONFIG": str(path)}

    async def begin(self, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edgectl", *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
        )

    async def say(self, *words: str, stdin: bytes = b"", code: int = 0) -> str:
        process = await self.begin(*words)
        async with asyncio.timeout(40):
            said, _ = await process.communicate(stdin)
        assert process.returncode == code, said.decode()
        return said.decode()

    async def until(self, word: str, *words: str) -> str:
        said = ""
        async with asyncio.timeout(40):
            while word not in said:
                said = await self.say(*words)
        return said


async def heard(process: asyncio.subprocess.Process, word: str) -> str:
    """What it says up to a line with the word."""
    assert process.stdout is not None
    said = ""
    async with asyncio.timeout(40):
        while word not in said:
            line = await process.stdout.readline()
            assert line, said
            said += line.decode()
    return said


async def test_a_member_in_between_answers_every_verb(three: World, tmp_path: Path) -> None:
    leader, (holder, asked) = three.leader, three.others
    hands = Hands(tmp_path, three, asked)
    watching = await hands.begin("get", "replicas", "-w")
    box = await three.box("n1", holder)
    await three.ask(asked).Apply(
        apply_request(workload("web", replicas=2, template={"containers": [APP]}))
    )
    await heard(watching, "Running")
    watching.terminate()
    await watching.communicate()

    await hands.until("0 of 1 node fits", "describe", "replica/web-1")
    why = await hands.say("why", "workload/web")
    assert "web-0" in why and "InsufficientCpu" in why
    described = await hands.say("describe", "workload/web")
    assert f"leader/{leader.name}" in described and "0 of 1 node fits" in described
    described = await hands.say("describe", "node/n1")
    assert "web-0" in described and "unknown" not in described
    assert "proving" in await hands.say("rollout", "status", "workload/web", "--watch=false")

    versions = await hands.say("version")
    assert all(member.name in versions for member in (leader, holder, asked))
    assert "agents:    test  1 node" in versions
    assert "1 at test (not a release's version)" in versions

    frozen = await hands.say("freeze", "--reason", "a test")
    assert "frozen" in frozen
    assert "a test" in await Hands(tmp_path, three, leader).say("guards")
    assert "a test" in await hands.say("guards")
    await hands.say("thaw")

    following = await hands.begin("logs", "-f", "web-0")
    await heard(following, "line 3")
    following.terminate()
    await following.communicate()
    await until(lambda: box.relays[-1].over.is_set(), "the box is told that nobody reads")
    said = await hands.say("exec", "-i", "web-0", "--", "sh", stdin=b"hello", code=7)
    assert "HELLO" in said
    await box.disconnect()


async def test_the_leader_changes_while_somebody_follows(three: World, tmp_path: Path) -> None:
    leader, (holder, asked) = three.leader, three.others
    hands = Hands(tmp_path, three, asked)
    box = await three.box("n1", holder)
    await three.ask(asked).Apply(
        apply_request(workload("web", replicas=2, template={"containers": [APP]}))
    )
    await hands.until("Running", "get", "replicas")
    following = await hands.begin("logs", "-f", "web-0")
    await heard(following, "line 3")
    watching = await hands.begin("get", "workloads", "-w")
    await heard(watching, "web")
    await three.stop(leader)
    await until(lambda: sum(m.leads for m in three.members.values()) == 1, "another leads", 30)
    await hands.until(f"leader/{three.leader.name}", "describe", "workload/web")
    # Neither noticed: the log goes on, and the watch tells what happens next.
    lines = box.relays[-1].lines
    await heard(following, f"line {lines + 20}")
    await three.ask(asked).Apply(
        apply_request(workload("web", replicas=1, template={"containers": [APP]}))
    )
    await heard(watching, "1/1")
    for process in (following, watching):
        process.terminate()
        await process.communicate()
    await box.disconnect()
