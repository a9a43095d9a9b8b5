"""Operators at a site of several nodes: real agent processes, each asked by itself, none vouching
for a caller to another."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from polder.override_proofs import signed
from polder.overrides import FROZEN, TRUE, Override, to_message
from polder.v1 import local_pb2, plan_pb2
from tests.emulated import patience
from tests.integration.agent_fakes import Ca, Orchestrator, eventually
from tests.integration.local_rig import Client, Person, Refusal, token
from tests.integration.site_rig import SLOW_S, Box, Rig

pytestmark = pytest.mark.slow

APP = "app-0"


class Site(Rig):
    """With those who come to it."""

    def __init__(self, folder: Path, ca: Ca, orchestrator: Orchestrator) -> None:
        super().__init__(folder, ca, orchestrator)
        self.clients: list[Client] = []

    async def enter(self) -> dict[str, Client]:
        """Somebody who may do everything, in at every node."""
        person = Person(self.ca, "ann", "admin")
        found = {}
        for name, box in self.boxes.items():
            found[name] = client = self.client(box)
            await client.enter(person)
        return found

    def client(self, box: Box) -> Client:
        assert box.visit is not None
        certificate = box.visit.hello.inventory.site_certificate
        made = Client(f"127.0.0.1:{box.local_port}", certificate, self.ca)
        self.clients.append(made)
        return made


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    ca = Ca()
    made = Site(tmp_path, ca, await Orchestrator(ca).start())
    yield made
    for client in made.clients:
        await client.close()
    await made.stop()


Seen = Callable[[local_pb2.LocalReplica], object]


async def sees(client: Client, wanted: Seen) -> local_pb2.LocalReplica:
    """What the node says of the replica, once it is as it should be."""
    deadline = time.monotonic() + patience(SLOW_S)
    while True:
        shown = await client.show()
        found = [r for r in shown.replicas if r.status.replica == APP]
        if found and wanted(found[0]):
            return found[0]
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)


def verbs(box: Box) -> list[str]:
    """Of what its agent told the orchestrator."""
    said = box.visit.of("local_changes") if box.visit is not None else []
    return [entry.verb for message in said for entry in message.entries]  # type: ignore[attr-defined]


@pytest.mark.skipif(os.geteuid() != 0, reason="the switch needs root")
async def test_each_node_tells_its_part_of_an_exclusive_replica(site: Site) -> None:
    a, b, _ = await site.start("a", "b", "c")
    await site.use(site.assignment(APP, ["a", "b"], exclusive=True, witnesses=["c"]))
    await eventually(lambda: a.ready(APP) and b.able(APP), SLOW_S)
    in_ = await site.enter()
    held = await sees(in_["a"], lambda r: r.holder_ready)
    assert (held.role, held.holder, list(held.members)) == ("Runs", "a", ["a", "b"])
    assert held.exclusive and 0 < held.lease_left_ms <= 3_000
    stood = await sees(in_["b"], lambda r: r.holder == "a" and r.holder_ready)
    assert (stood.role, stood.lease_left_ms) == ("Standby", -1)
    assert stood.holder_epoch == held.holder_epoch and stood.standby.able
    assert stood.template_json == held.template_json
    voted = await sees(in_["c"], lambda r: r.role == "Witness")
    assert not voted.template_json and not voted.status.replica_uid
    peers = {p.node: (p.shares, p.heard) for p in (await in_["c"].show()).peers}
    assert peers == {"a": (True, True), "b": (True, True)}
    said = await in_["a"].change("move", f"default/{APP}", to_node="b", reason="fan is loud")
    assert said.override.value == "b"
    await sees(in_["b"], lambda r: r.role == "Runs" and r.status.ready)
    gone = await sees(in_["a"], lambda r: r.holder == "b")
    assert gone.lease_left_ms == -1


async def test_what_is_decided_at_one_node_holds_at_all(site: Site) -> None:
    a, b = await site.start("a", "b")
    await site.use(site.assignment(APP, ["a", "b"]))
    await eventually(lambda: a.ready(APP) and b.able(APP), SLOW_S)
    await site.settled()
    in_ = await site.enter()
    said = await in_["b"].change("stop", f"default/{APP}", reason="leaks")  # b only stands by
    assert (said.override.node, said.override.by) == ("b", "operator/ann")
    stopped = await sees(in_["a"], lambda r: r.status.reason == "StoppedLocally")
    assert not stopped.status.ready
    assert [o.id for o in (await in_["a"].show()).overrides] == [said.override.id]
    with pytest.raises(Refusal) as refused:
        await in_["b"].change("restart", f"default/{APP}")
    assert refused.value.reason == "NotHere"
    await in_["a"].change("start", f"default/{APP}")
    await sees(in_["a"], lambda r: r.status.ready)
    await eventually(lambda: "stop" in verbs(b), SLOW_S)


async def test_a_proof_for_one_node_is_worth_nothing_at_another(site: Site) -> None:
    a, b = await site.start("a", "b")
    first, second = site.client(a), site.client(b)
    person = Person(site.ca, "ann", "admin")
    await first.introduce()
    await second.introduce()
    proof = first.proof(person)
    proof.challenge = second.challenge
    with pytest.raises(Refusal) as refused:
        await second.try_with(local_pb2.EnterRequest(operator=proof))
    assert refused.value.reason == "BadCredential"
    await second.introduce()
    with pytest.raises(Refusal) as refused:  # the challenge of another node
        await second.try_with(local_pb2.EnterRequest(operator=first.proof(person)))
    assert refused.value.reason == "BadChallenge"
    await first.enter(person)
    second.session = first.session
    with pytest.raises(Refusal) as refused:
        await second.show()
    assert refused.value.reason == "UnknownSession"
    await second.enter(token(site.ca, "read", "default"))  # of the site, so at each of its nodes


async def test_a_decision_comes_by_detours_and_its_writers_signature_with_it(site: Site) -> None:
    """Whoever was away hears of it from a node that heard it, though who decided it is gone."""
    a, b, c = await site.start("a", "b", "c")
    await site.use(site.assignment(APP, ["b", "a", "c"]))
    await eventually(lambda: b.ready(APP) and c.able(APP), SLOW_S)
    await site.settled()
    in_ = await site.enter()
    await c.end()
    said = await in_["a"].change("stop", f"default/{APP}", reason="leaks")
    await sees(in_["b"], lambda r: r.status.reason == "StoppedLocally")
    await a.end()
    c.start()
    await eventually(lambda: c.visit is not None and overrides(c), SLOW_S)
    (heard,) = overrides(c)
    assert (heard.id, heard.node, heard.reason) == (said.override.id, "a", "leaks")
    assert heard.proof == said.override.proof and heard.proof.signature


@pytest.mark.parametrize("signs", [True, False])
async def test_what_an_orchestrator_decided_is_passed_on_if_it_signed_it(
    site: Site, signs: bool
) -> None:
    """A plan is believed for what it says; a peer that says what stood in its plan is not."""
    a, b = await site.start("a", "b")
    item = site.assignment(APP, ["a", "b"])
    await site.use(item)
    await eventually(lambda: a.ready(APP) and b.able(APP), SLOW_S)
    await site.settled()
    freeze = Override(FROZEN, TRUE, id="f", stamp=3, by="operator/eve", reason="storm")
    if signs:
        freeze = signed(freeze, "s1", site.orchestrator.key, site.orchestrator.chain)
    roster = [site.peer(name) for name in site.boxes]
    assert b.visit is not None
    b.visit.say(plan=site.plan("b", roster, [item], overrides=[to_message(freeze)]))
    await eventually(lambda: b.condition("Frozen"), SLOW_S)
    if signs:
        await eventually(lambda: a.condition("Frozen"), SLOW_S)
    else:
        await eventually(lambda: a.events("OverrideUnproven"), SLOW_S)
        assert "nobody signed it" in a.events("OverrideUnproven")[0]
        assert not a.condition("Frozen")


def overrides(box: Box) -> list[plan_pb2.Override]:
    """As its agent told the orchestrator last."""
    said = box.visit.of("local_changes") if box.visit is not None else []
    return list(said[-1].overrides) if said else []  # type: ignore[attr-defined]
