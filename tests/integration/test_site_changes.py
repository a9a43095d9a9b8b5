"""What a local operator decides at a node, through the loop that runs its machine, and its disk."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent.domain.plan import STOPPED_LOCALLY, ParsedPlan
from agent.domain.roster import Peer
from agent.domain.site.messages import Overrides
from agent.identity_store import IdentityFailure
from agent.inventory import Amounts
from agent.runtime.simulated import SimulatedRuntime
from agent.site import deciding
from agent.site.abilities import Judge
from agent.site.deciding import COMPLAINTS, LOOKS, Refused
from agent.site.loop import SiteLoop
from agent.site.memory import Memory
from agent.site.network import Network
from agent.site.prefetch import Prefetch
from agent.site.surroundings import Surroundings
from agent.site.switch_client import SwitchClient
from agent.supervisor import Supervisor, SupervisorConfig
from polder.overrides import FROZEN, PLACED_ON, STOPPED, TRUE, Override, Proof
from polder.v1 import agent_pb2, common_pb2, site_pb2
from tests.integration.agent_fakes import eventually
from tests.sim.agent_plans import IDENTITY, assignment, plan

NODE = IDENTITY.node
KEY = ("w-a", "a-0")
PLAN = plan(1, [assignment("a")])


def stop(id: str, value: str = TRUE) -> Override:
    return Override(STOPPED, value, KEY[0], "default", KEY[1], id, by="operator/ann", reason="why")


class Signatures:
    """In the place of the node's key. `slow`: what happens while it signs."""

    def __init__(self) -> None:
        self.slow: Callable[[], None] = lambda: None
        self.trouble = ""

    async def sign(self, override: Override) -> Override:
        await asyncio.sleep(0)
        self.slow()
        if self.trouble:
            raise IdentityFailure(self.trouble)
        return replace(override, proof=Proof(override.node.encode(), ()))

    async def unproven(self, overrides: Sequence[Override]) -> Mapping[int, str]:
        await asyncio.sleep(0)
        if self.trouble:
            raise IdentityFailure(self.trouble)
        return {
            place: "it is forged"
            for place, one in enumerate(overrides)
            if one.proof is None or one.proof.signature != one.node.encode()
        }


class Agent:
    """One life of the part of an agent that decides; the box's runtime and its disk outlive it."""

    def __init__(self, directory: Path, runtime: SimulatedRuntime) -> None:
        self.directory = directory
        self.signatures = Signatures()
        config = SupervisorConfig(NODE, "nl-utr-1", "amd64", directory, directory / "logs")
        self.supervisor = Supervisor(runtime, config, list_every_s=0.1)
        self.heard: list[tuple[Override, ...]] = []
        around = Surroundings(
            allocatable=lambda: Amounts(4000, 1 << 33, 1 << 36),
            hears_orchestrator=lambda: False,
            publish=lambda _standbys: None,
            boot_id="boot",
        )
        self.loop = SiteLoop(
            NODE,
            self.supervisor,
            Memory(directory / "site", "boot"),
            Network(site_pb2.PeerHello(node=NODE), None, ""),
            Prefetch(runtime, "amd64"),
            Judge(self.supervisor.settings),
            SwitchClient(directory / "site", directory / "table"),
            around,
            self.signatures,
        )
        self.loop.on_overrides = self.heard.append
        self.events: list[common_pb2.Event] = []
        self.supervisor.on_event = self.events.append
        self.supervisor.on_status = lambda _changed, _gone: self.loop.replicas_changed()
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self, wanted: ParsedPlan | None = PLAN) -> "Agent":
        await self.loop.boot()
        if wanted is not None:
            self.loop.use_plan(wanted)
        self.tasks = [asyncio.create_task(part.run()) for part in (self.supervisor, self.loop)]
        return self

    async def kill(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def phase(self) -> int:
        return next((s.phase for s in self.supervisor.statuses()), 0)

    def container(self) -> str:
        (status,) = self.supervisor.statuses()
        return status.containers[0].id

    def ready(self) -> bool:
        return any(status.ready for status in self.supervisor.statuses())


@pytest.fixture
def runtime() -> SimulatedRuntime:
    return SimulatedRuntime()


@pytest.fixture
async def agent(tmp_path: Path, runtime: SimulatedRuntime) -> AsyncIterator[Agent]:
    made = await Agent(tmp_path, runtime).start()
    await eventually(made.ready)
    yield made
    await made.kill()


async def test_what_is_stopped_stops_and_stays_so_in_the_next_life(
    agent: Agent, runtime: SimulatedRuntime
) -> None:
    made = await agent.loop.change(stop("x"))
    assert (made.stamp, made.node, made.base_revision, made.base_epoch) == (1, NODE, 1, 1)
    assert "operator/ann" in (agent.directory / "site" / "memory").read_text()
    await eventually(lambda: agent.phase() == agent_pb2.REPLICA_PHASE_STOPPED)
    (status,) = agent.supervisor.statuses()
    assert status.reason == STOPPED_LOCALLY and "operator/ann stopped it" in status.message
    assert agent.heard == [(made,)] and agent.loop.overrides() == (made,)
    await agent.kill()
    again = await Agent(agent.directory, runtime).start()
    await eventually(lambda: again.phase() == agent_pb2.REPLICA_PHASE_STOPPED)
    assert again.loop.overrides() == (made,) and await runtime.list_pods() == []
    assert await again.loop.change(stop("x")) == made  # it was made already
    await again.loop.change(stop("y", ""))
    await eventually(again.ready)
    await again.kill()


async def test_one_that_is_sent_twice_at_once_is_one_change(agent: Agent) -> None:
    one, two = await asyncio.gather(agent.loop.change(stop("x")), agent.loop.change(stop("x")))
    assert one == two and len(agent.heard) == 1


async def test_a_caller_that_leaves_does_not_take_the_other_ones_answer_with_it(
    agent: Agent,
) -> None:
    leaving = asyncio.create_task(agent.loop.change(stop("x")))
    staying = asyncio.create_task(agent.loop.change(stop("x")))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).id == "x"


async def test_what_cannot_be_done_is_refused_and_nothing_is_written(agent: Agent) -> None:
    moved = replace(stop("m"), field=PLACED_ON, value="box-2")
    cases = {
        "NotStopped": stop("x", ""),
        "NoStandbys": moved,
        "UnknownReplica": replace(stop("x"), replica="zz-0"),
        "NotFrozen": Override(FROZEN, "", id="x"),
        "NoId": stop(""),
    }
    for reason, wanted in cases.items():
        with pytest.raises(Refused) as refused:
            await agent.loop.change(wanted)
        assert refused.value.reason == reason and refused.value.message
    with pytest.raises(Refused, match="nobody stopped"):
        agent.loop.check(stop("x", ""))
    agent.loop.check(stop("x"))
    other = replace(stop("x"), namespace="other")  # roles were checked for that one
    with pytest.raises(Refused, match="knows of no replica"):
        await agent.loop.change(other)
    assert agent.loop.overrides() == () and agent.ready() and not agent.heard


async def test_a_full_disk_is_told_and_changes_nothing(agent: Agent) -> None:
    site = agent.directory / "site"
    await agent.loop.change(Override(FROZEN, TRUE, id="f"))
    (site / "memory").unlink()
    (site / "memory").mkdir()  # neither to be appended to nor to be replaced
    with pytest.raises(Refused) as refused:
        await agent.loop.change(stop("x"))
    assert refused.value.reason == "NotWritable"
    assert agent.ready() and [o.field for o in agent.loop.overrides()] == [FROZEN]


async def test_without_a_plan_there_is_nothing_to_decide(
    tmp_path: Path, runtime: SimulatedRuntime
) -> None:
    fresh = await Agent(tmp_path, runtime).start(None)
    with pytest.raises(Refused) as refused:
        await fresh.loop.change(Override(FROZEN, TRUE, id="x"))
    assert refused.value.reason == "NoPlan"
    await fresh.kill()


async def test_a_frozen_site_is_a_condition_of_the_node(agent: Agent) -> None:
    await agent.loop.change(Override(FROZEN, TRUE, id="x", by="operator/ann"))
    found = {c.type: c.message for c in agent.supervisor.conditions.all()}
    assert "operator/ann froze the site" in found["Frozen"]
    await agent.loop.change(Override(FROZEN, "", id="y", by="operator/ann"))
    assert not agent.supervisor.conditions.is_set("Frozen")


async def test_a_restart_runs_the_same_in_another_container(agent: Agent) -> None:
    before = agent.container()
    assert agent.loop.find("default", "a-0") == KEY
    assert agent.loop.find("other", "a-0") is None
    await agent.loop.restart(KEY, "x", "operator/ann", dry_run=True)
    for _ in range(2):
        await agent.loop.restart(KEY, "x", "operator/ann")
    await eventually(lambda: agent.ready() and agent.container() != before)
    with pytest.raises(Refused) as refused:
        await agent.loop.restart(("w", "zz-0"), "y", "operator/ann")
    assert refused.value.reason == "NotHere"


# ---- what is signed, and what peers say ----


async def test_what_is_decided_is_signed_and_stays_so_on_the_disk(
    agent: Agent, runtime: SimulatedRuntime
) -> None:
    made = await agent.loop.change(stop("x"))
    assert made.proof == Proof(NODE.encode(), ())
    await agent.kill()
    again = await Agent(agent.directory, runtime).start()
    assert [one.proof for one in again.loop.overrides()] == [made.proof]
    await again.kill()


async def test_what_cannot_be_signed_is_not_decided(agent: Agent) -> None:
    agent.signatures.trouble = "no process"
    with pytest.raises(Refused, match="no process") as refused:
        await agent.loop.change(stop("x"))
    assert refused.value.reason == "NotWritable" and agent.loop.overrides() == ()
    agent.signatures.trouble = ""
    assert (await agent.loop.change(stop("x"))).stamp == 1


async def test_what_happens_while_it_is_signed_is_no_reason_to_refuse_it(agent: Agent) -> None:
    """Of another stamp by now: it is drafted and signed again."""
    frozen = Override(FROZEN, TRUE, id="f", stamp=9)

    def meanwhile() -> None:
        agent.signatures.slow = lambda: None
        agent.loop.use_plan(replace(PLAN, generation=PLAN.generation + 1, overrides=(frozen,)))

    agent.signatures.slow = meanwhile
    made = await agent.loop.change(stop("x"))
    assert made.stamp == 10 and made.proof == Proof(NODE.encode(), ())


async def test_several_at_once_are_all_made(agent: Agent) -> None:
    made = await asyncio.gather(
        agent.loop.change(stop("x")),
        agent.loop.change(Override(FROZEN, TRUE, id="f")),
        agent.loop.change(replace(stop("y"), value="")),
        return_exceptions=True,
    )
    refused = made[2]  # nothing was stopped yet when it was looked at, or it was
    assert isinstance(made[0], Override) and isinstance(made[1], Override), made
    assert isinstance(refused, Override) or (
        isinstance(refused, Refused) and refused.reason == "NotStopped"
    )


PEER = "box-2"
WITH_PEER = replace(
    PLAN, generation=PLAN.generation + 1, site=replace(PLAN.site, peers={PEER: Peer(PEER, (), b"")})
)


def said(*overrides: Override) -> Overrides:
    return Overrides(overrides)


def signed(by: str, override: Override, node: str = "") -> Override:
    return replace(override, node=node or by, proof=Proof(by.encode(), ()))


@pytest.fixture
async def among_peers(agent: Agent) -> Agent:
    agent.loop.use_plan(WITH_PEER)
    return agent


def hear(agent: Agent, *overrides: Override) -> None:
    """As the network hands it in."""
    agent.loop._said(PEER, said(*overrides))


async def test_what_a_peer_passes_on_counts_if_its_writer_signed_it(among_peers: Agent) -> None:
    agent = among_peers
    forged = signed(PEER, Override(FROZEN, TRUE, id="f", stamp=5), node="box-3")
    true = signed("box-3", replace(stop("x"), stamp=4, conflict="a peer cannot know"))
    hear(agent, forged, true)
    await eventually(lambda: agent.loop.overrides())
    (known,) = agent.loop.overrides()
    assert (known.id, known.node, known.conflict) == ("x", "box-3", "")
    await eventually(lambda: agent.phase() == agent_pb2.REPLICA_PHASE_STOPPED)
    (told,) = [e for e in agent.events if e.reason == "OverrideUnproven"]
    assert f"{PEER} says" in told.message and "it is forged" in told.message


async def test_a_peer_that_forges_without_end_costs_so_many_looks_a_minute(
    among_peers: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, looks = among_peers, 0
    unproven = agent.signatures.unproven

    async def counted(overrides: Sequence[Override]) -> Mapping[int, str]:
        nonlocal looks
        looks += 1
        return await unproven(overrides)

    monkeypatch.setattr(agent.signatures, "unproven", counted)
    for stamp in range(1, 200):
        hear(agent, signed(PEER, Override(FROZEN, TRUE, id="f", stamp=stamp), node="box-3"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert looks == LOOKS and agent.loop.overrides() == ()
    assert len([e for e in agent.events if e.reason == "OverrideUnproven"]) == COMPLAINTS


async def test_a_look_that_fails_is_taken_again(
    among_peers: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deciding, "RETRY_S", 0.05)
    agent = among_peers
    agent.signatures.trouble = "no process"
    hear(agent, signed("box-3", replace(stop("x"), stamp=4)))
    await asyncio.sleep(0.02)
    assert agent.loop.overrides() == ()
    agent.signatures.trouble = ""
    await eventually(lambda: agent.loop.overrides())
