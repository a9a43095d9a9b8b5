"""Processes: a leader that is paused for longer than its lease, and then goes on undisturbed."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polder.v1 import operator_pb2
from tests.integration.etcd_server import EtcdCluster
from tests.integration.members_rig import Group, MemberProcess
from tests.integration.orchestrator_rig import apply_request, ref, workload

pytestmark = [pytest.mark.etcd, pytest.mark.long]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    made = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    made.start()
    yield made
    made.stop()


async def placed(stub: Any, name: str) -> dict[str, Any]:
    """Its condition Placed, as a member shows it."""
    found = await stub.Get(operator_pb2.GetRequest(ref=ref("Workload", name, "default")))
    conditions = json.loads(found.resource.status_json)["conditions"]
    return next(dict(item) for item in conditions if item["type"] == "Placed")


async def explained_by(stub: Any, name: str, member: str, within_s: float = 40.0) -> dict[str, Any]:
    """Once the leader there has said why a workload has no place."""
    said: dict[str, Any] = {}
    deadline = time.monotonic() + within_s
    while said.get("source") != f"leader/{member}" or said.get("reason") != "Unschedulable":
        assert time.monotonic() < deadline, said
        await asyncio.sleep(0.2)
        said = await placed(stub, name)
    return said


async def test_a_paused_leader_speaks_for_nobody_when_it_goes_on(
    tmp_path: Path, cluster: EtcdCluster
) -> None:
    group = Group(tmp_path, cluster, "/paused")
    try:
        members = {name: group.member(name) for name in ("a", "b", "c")}
        for member in members.values():
            member.start()
        former = await group.leader()
        others = [member for name, member in members.items() if name != former]
        asked: MemberProcess = others[0]
        ask = group.admin(asked)
        await ask.Apply(apply_request(workload("lost", replicas=1)))
        await explained_by(ask, "lost", former)
        await explained_by(group.admin(members[former]), "lost", former)

        members[former].send(signal.SIGSTOP)
        now, deadline = "", time.monotonic() + 40
        while now in ("", former):
            assert time.monotonic() < deadline, "nobody else leads"
            await asyncio.sleep(0.2)
            now = await group.leader()
        for member in others:
            await explained_by(group.admin(member), "lost", now)
        await ask.Apply(apply_request(workload("later", replicas=1)))
        await explained_by(ask, "later", now)

        members[former].send(signal.SIGCONT)
        await explained_by(group.admin(members[former]), "later", now)
        for member in others:
            assert (await placed(group.admin(member), "lost"))["source"] == f"leader/{now}"
    finally:
        await group.close()
