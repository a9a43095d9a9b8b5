"""Two processes on one address, over etcd: agents spread over them, and find the one that stays."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent import connection_policy as policy
from devcluster.ports import free_port
from orchestrator.identity.pem import new_key
from polder.tokens import parse as parse_token
from polder.v1 import agent_pb2, agent_pb2_grpc, operator_pb2
from tests.integration.agent_fakes import eventually
from tests.integration.etcd_server import EtcdCluster
from tests.integration.members_rig import Group
from tests.integration.orchestrator_rig import (
    PROVIDER_SPEC,
    apply_request,
    certificate_request,
    manifest,
)
from tests.integration.test_agents_over_members import Box

pytestmark = pytest.mark.etcd
AGENTS = 8


async def join(group: Group, admin: object, stub: object, name: str, folder: Path) -> Box:
    request = operator_pb2.CreateJoinTokenRequest(site="ams-1", node=name)
    token = parse_token((await admin.CreateJoinToken(request)).token)  # type: ignore[attr-defined]
    key = new_key()
    joined = await stub.Join(  # type: ignore[attr-defined]
        agent_pb2.JoinRequest(token_secret=token.secret, node=name, csr=certificate_request(key))
    )
    roots = list(joined.trust_bundle)
    identity = SimpleNamespace(
        node=name, key=key, chain=list(joined.certificate_chain),
        region=SimpleNamespace(roots_der=roots),
    )  # fmt: skip
    return Box(folder / name, cast(Any, identity), joined.endpoints[0])


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Group]:
    async with AsyncExitStack() as stack:
        cluster = EtcdCluster(tmp_path / "etcd")
        cluster.start()
        stack.callback(cluster.stop)
        made = Group(tmp_path, cluster, "/shared")
        stack.push_async_callback(made.close)
        yield made


async def test_agents_of_one_address_find_the_process_that_stays(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "STABLE_S", 0.5)
    listen, joining = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    shared = {"share_port": True, "listen": listen, "join_listen": joining}
    for name in ("a", "b"):
        peer = f"127.0.0.1:{free_port()}"
        group.member(name, peer_listen=peer, session_age="2s", region="local", **shared)
    group.member("far", region="north")
    for member in group.members:
        await asyncio.to_thread(member.start)
    first, second, _ = group.members
    admin = group.admin(group.members[2])
    await admin.Apply(
        apply_request(
            manifest("Provider", "telco", spec=PROVIDER_SPEC),
            manifest(
                "Site", "ams-1", spec={"provider": "telco", "country": "NL", "region": "local"}
            ),
        )
    )
    async with AsyncExitStack() as stack:
        stub = agent_pb2_grpc.AgentServiceStub(group.joining(group.members[2]))
        boxes = [await join(group, admin, stub, f"n{n}", tmp_path) for n in range(AGENTS)]
        for box in boxes:
            assert box.store.load().endpoints == (listen,)
            task = asyncio.create_task(box.client.run())
            stack.push_async_callback(asyncio.wait_for, task, 5)
            stack.push_async_callback(box.client.stop, 0.5)

        def spread() -> Counter[str]:
            return Counter(box.member for box in boxes)

        await eventually(lambda: spread()["a"] and spread()["b"] and not spread()[""], 30)
        assert all(len(box.store.load().endpoints) == 2 for box in boxes), "the other region"
        await asyncio.sleep(0.6)  # sessions that lived shorter are no sessions yet
        assert await asyncio.to_thread(first.stop) == 0
        await eventually(lambda: spread() == {"b": AGENTS}, 20)
        # A process that is back gets its share as sessions grow old.
        await asyncio.to_thread(first.start)
        await eventually(lambda: spread()["a"] >= 1 and not spread()[""], 30)
        assert second.is_running
