"""The agents' own session code over real members: leaving, fleeing and coming back."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from agent.identity_store import IdentityStore, to_pem
from agent.relay import RelayHub
from agent.session import SessionClient
from orchestrator.records import MemberRecord
from orchestrator.store import keys
from orchestrator.store.port import Put
from polder.v1 import agent_pb2
from tests.integration.agent_fakes import key_pem
from tests.integration.gateway_harness import Agent, eventually, good_inventory
from tests.integration.mesh_harness import Member, members
from tests.integration.test_agent_session_client import FakeNode, NoSources

AGENTS = 9


class Node(FakeNode):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def hello(self) -> agent_pb2.Hello:
        return agent_pb2.Hello(
            agent_version="0", instance_id=f"i-{self._name}", inventory=good_inventory()
        )


class Box:
    """One joined box, and every state of its connection."""

    def __init__(self, state_dir: Path, joined: Agent, endpoint: str) -> None:
        self.name = joined.node
        _write(state_dir, joined, endpoint)
        self.store = IdentityStore(state_dir)
        self.gaps = 0
        self.client = SessionClient(
            self.store, Node(self.name), RelayHub(NoSources()), on_state=self._changed
        )

    def _changed(self, state: object) -> None:
        self.gaps += not getattr(state, "connected", False)

    @property
    def member(self) -> str:
        state = self.client.state
        return state.member if state.connected else ""


def _write(state_dir: Path, joined: Agent, endpoint: str) -> None:
    leaf = x509.load_der_x509_certificate(joined.chain[0])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    facts = {
        "identity": names.get_values_for_type(x509.UniformResourceIdentifier)[0],
        "serial": f"{leaf.serial_number:x}",
        "not_before": leaf.not_valid_before_utc.timestamp(),
        "not_after": leaf.not_valid_after_utc.timestamp(),
    }
    directory = state_dir / "identities" / "000001"
    directory.mkdir(parents=True)
    (directory / "key.pem").write_bytes(key_pem(joined.key))
    (directory / "chain.pem").write_bytes(to_pem(joined.chain))
    (directory / "roots.pem").write_bytes(to_pem(joined.region.roots_der))
    (directory / "endpoints.json").write_text(json.dumps([endpoint]))
    (directory / "node.json").write_text(json.dumps(facts))
    (state_dir / "identity").symlink_to("identities/000001")


class Fleet:
    """Three members and nine boxes that know one address each."""

    def __init__(self, group: list[Member], boxes: list[Box]) -> None:
        self.group = group
        self.boxes = boxes

    def spread(self) -> Counter[str]:
        return Counter(box.member for box in self.boxes)

    def known(self) -> bool:
        """Every member knows who holds which session."""
        return all(
            one.owner(box.name) == box.member != "" for one in self.group for box in self.boxes
        )

    def quarrels(self) -> list[str]:
        return [
            event.reason
            for one in self.group
            for event in one.events.list()
            if event.reason in ("SessionSuperseded", "ImpossibleAck")
        ]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(members(tmp_path, "m1", "m2", "m3", leads="m1"))
        for one in group:
            endpoint = f"127.0.0.1:{one.port}"
            assert one.proxy is not None
            record = MemberRecord(
                one.name, "eu", "1.0", (endpoint,), (), f"127.0.0.1:{one.proxy.port}"
            )
            await one.store.txn([], [Put(keys.member(one.name), record.to_bytes())])
        boxes = []
        for n in range(AGENTS):
            joined = await group[0].join(f"n{n}")
            box = Box(tmp_path / f"n{n}", joined, f"127.0.0.1:{group[0].port}")
            task = asyncio.create_task(box.client.run())
            stack.push_async_callback(asyncio.wait_for, task, 5)
            stack.push_async_callback(box.client.stop, 0.5)
            boxes.append(box)
        made = Fleet(group, boxes)
        await eventually(lambda: made.spread() == {"m1": AGENTS}, "all are in")
        yield made


async def test_agents_spread_by_age_and_leave_a_member_that_stops(fleet: Fleet) -> None:
    first = fleet.group[0]
    # They joined at one member, which told them of all. Old sessions go to the nearest.
    assert all(len(box.store.load().endpoints) == 3 for box in fleet.boxes)
    for one in fleet.group:
        one.gateway._settings = replace(one.gateway._settings, session_age_s=1.0)
    for session in first.gateway.sessions:
        session.close("Shutdown", "go")
    await eventually(
        lambda: all(
            box.member and box.client.state.endpoint == box.store.load().endpoints[0]
            for box in fleet.boxes
        ),
        "everybody is at its nearest",
        20,
    )
    spread = fleet.spread()
    assert len(spread) == 3, "each node has an order of its own"
    for one in fleet.group:
        one.gateway._settings = replace(one.gateway._settings, session_age_s=0.0)
    await eventually(fleet.known, "all members agree", 15)

    gaps = [box.gaps for box in fleet.boxes]
    leaver = fleet.group[2]
    await leaver.gateway.shutdown(3.0)
    await eventually(lambda: set(fleet.spread()) == {"m1", "m2"}, "the others have taken them", 10)
    await eventually(fleet.known, "and all members know", 10)
    stayed = [b for b, before in zip(fleet.boxes, gaps, strict=True) if b.gaps == before]
    assert len(stayed) >= AGENTS - spread["m3"], "nobody else noticed"
    assert fleet.quarrels() == []


async def test_agents_flee_a_member_that_dies(fleet: Fleet) -> None:
    first = fleet.group[0]
    await first.server.stop(0)
    await first.leave()
    others = fleet.group[1:]
    await eventually(lambda: set(fleet.spread()) == {"m2", "m3"}, "all are elsewhere", 15)
    await eventually(
        lambda: all(one.owner(box.name) == box.member for one in others for box in fleet.boxes),
        "the members that are left know",
        10,
    )
    assert len(set(fleet.spread().values()) - {0}) >= 1
    assert fleet.quarrels() == []
