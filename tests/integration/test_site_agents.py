"""Agents of one site, each a process, kill -9 and all: what they do without being told."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.domain.roster import Peer
from agent.identity_store import run_credentials
from agent.site.alone import NAME as ALONE
from agent.site.certificate import SERVER_NAME, SiteCertificate, load_or_make
from agent.site.memory import Memory
from agent.steady_clock import boottime
from polder.identity import NodeId
from polder.v1 import plan_pb2
from tests.integration.agent_fakes import DOMAIN, Ca, Orchestrator, eventually, key_pem
from tests.integration.site_rig import EPOCH, SLOW_S, Box, Rig
from tests.integration.test_site_links import Node

pytestmark = pytest.mark.slow

APP = "app-0"
EXPIRED = "the certificate ran out"
SHORT_S = 30.0
LATE_S = 20.0  # of takeovers on a machine with much else to do; bench takeover has the true times


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    ca = Ca()
    made = Rig(tmp_path, ca, await Orchestrator(ca).start())
    yield made
    await made.stop()


async def three(rig: Rig) -> tuple[Box, Box, Box]:
    """a runs app-0, b and c stand by for it, in this order, and all hear each other."""
    a, b, c = await rig.start("a", "b", "c")
    await rig.use(rig.assignment(APP, ["a", "b", "c"]))
    await eventually(lambda: a.ready(APP), SLOW_S)
    await eventually(lambda: b.able(APP) and c.able(APP), SLOW_S)
    await rig.settled()
    return a, b, c


async def test_the_standby_takes_over_what_a_dead_node_had(rig: Rig) -> None:
    a, b, c = await three(rig)
    await a.end()
    await eventually(lambda: b.ready(APP), LATE_S)
    stay = b.ready(APP)
    assert stay is not None
    assert stay.takes_over == "uid-app-0" and stay.epoch > EPOCH and stay.ready_since_ms > 0
    await eventually(lambda: b.events("TakenOver"))
    assert not c.ready(APP)


async def test_it_does_so_with_no_orchestrator_anywhere_and_tells_the_next_one(rig: Rig) -> None:
    a, b, c = await three(rig)
    port = rig.orchestrator.port
    await rig.orchestrator.stop()
    await a.end()
    await eventually(lambda: "TakenOver" in b.log(), LATE_S)
    visits = len(rig.orchestrator.visits)
    await rig.orchestrator.start(port)
    await eventually(lambda: len(rig.orchestrator.visits) >= visits + 2, SLOW_S)
    await eventually(lambda: b.ready(APP), SLOW_S)
    stay = b.ready(APP)
    assert stay is not None and stay.takes_over == "uid-app-0"
    assert not c.ready(APP)


async def test_one_that_was_frozen_comes_back_and_one_of_the_two_stays(rig: Rig) -> None:
    """Ready for longer is the one that stays: the frozen one, whose replica ran all the time."""
    a, b, _ = await three(rig)
    a.kill(signal.SIGSTOP)
    await eventually(lambda: b.ready(APP), LATE_S)
    a.kill(signal.SIGCONT)
    await eventually(lambda: not b.ready(APP) and a.ready(APP), LATE_S)

    def outbids() -> bool:
        """Of one whose session has to begin anew an older status is known at first."""
        kept = a.ready(APP)
        return kept is not None and kept.replica_uid == "uid-app-0" and kept.epoch > EPOCH + 1

    await eventually(outbids, LATE_S)


async def test_an_agent_that_restarts_is_waited_for(rig: Rig) -> None:
    a, b, c = await three(rig)
    await a.end(signal.SIGTERM)
    assert 'reason="a closed it"' in b.log() or "peer lost" in b.log()
    await asyncio.sleep(4.0)  # longer than a silent node is waited for
    assert not b.ready(APP) and not c.ready(APP)
    a.start()
    await eventually(lambda: rig.hears(a, 2), SLOW_S)
    await eventually(lambda: a.ready(APP), SLOW_S)
    await asyncio.sleep(1.0)
    assert not b.ready(APP) and not c.ready(APP)


@pytest.mark.long
async def test_what_was_taken_over_is_remembered_over_a_restart(rig: Rig) -> None:
    a, b, _ = await three(rig)
    await a.end()
    await eventually(lambda: b.ready(APP), LATE_S)
    before, visit = b.ready(APP), b.visit
    await b.end(signal.SIGTERM)
    b.start()
    await eventually(lambda: b.visit is not visit, SLOW_S)
    await eventually(lambda: b.ready(APP), LATE_S)
    after = b.ready(APP)
    assert before is not None and after is not None
    assert (after.replica_uid, after.epoch) == (before.replica_uid, before.epoch)
    assert after.takes_over == "uid-app-0"


async def test_a_standby_that_is_unable_says_why_and_the_next_one_takes_over(rig: Rig) -> None:
    a, b, c = await rig.start("a", "b", "c")
    wanted = rig.assignment(APP, ["a", "b", "c"])
    wanted.policy_json = b"{"  # admits no place
    plain = rig.assignment(APP, ["a", "b", "c"])
    await rig.use(plain, only={"b": [wanted]})
    await eventually(lambda: c.able(APP) and APP in b.standbys(), SLOW_S)
    assert b.standbys()[APP].reason == "SovereigntyViolation" and b.standbys()[APP].message
    await eventually(lambda: a.ready(APP), SLOW_S)
    await rig.settled()
    await a.end()
    await eventually(lambda: c.ready(APP), LATE_S)
    assert not b.ready(APP)


async def test_a_node_with_too_little_room_is_no_standby(rig: Rig) -> None:
    _, b = await rig.start("a", "b")
    huge = json.dumps(
        {"containers": [{"name": "app", "image": "app:1", "resources": {"memory": "900Ti"}}]}
    ).encode()
    await rig.use(rig.assignment(APP, ["a", "b"], template=huge))
    await eventually(lambda: APP in b.standbys(), SLOW_S)
    assert b.standbys()[APP].reason == "NoRoom"


@pytest.mark.long
async def test_past_the_promised_time_alone_nothing_is_taken_over_until_one_is_heard(
    rig: Rig,
) -> None:
    a, b = await rig.start("a", "b")
    await rig.use(rig.assignment(APP, ["a", "b"]))
    await eventually(lambda: a.ready(APP) and b.able(APP) and rig.hears(b, 1), SLOW_S)
    port = rig.orchestrator.port
    await rig.orchestrator.stop()
    await a.end()
    await b.end()
    await _was_alone(b, 8 * 86_400.0)
    b.start()
    await eventually(lambda: "message=AutonomyOver" in b.log(), SLOW_S)
    await eventually(lambda: "message=PeerSilent" in b.log(), LATE_S)
    await asyncio.sleep(4.0)  # longer than a takeover takes
    assert "message=TakenOver" not in b.log()
    await rig.orchestrator.start(port)
    await eventually(lambda: "message=TakenOver" in b.log(), SLOW_S)


async def _was_alone(box: Box, seconds: float) -> None:
    """As if it had counted that before its agent ended."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    memory = Memory(box.state / "site", boot_id)
    memory.load()
    body = {"alone_s": seconds, "boot_id": boot_id, "at": boottime(), "wall": time.time()}
    assert await memory.save(ALONE, body) == ""


@pytest.mark.parametrize("issued", [False, True], ids=["made", "issued"])
async def test_a_foreign_certificate_gets_no_word_in(
    rig: Rig, tmp_path: Path, issued: bool
) -> None:
    """Neither one that somebody made with a peer's name, nor one of another site that the
    orchestrator's own CA issued: it is not the one that the plan names."""
    a, b, _ = await three(rig)
    state = tmp_path / "foreign"
    state.mkdir()
    if issued:
        foreign = _of_another_site(rig)
    else:
        foreign = await load_or_make(state, NodeId(DOMAIN, "s1", "a"), run_credentials)
    intruder = Node("a", foreign)
    theirs = rig.peer("b")
    await intruder.use([Peer("b", tuple(theirs.endpoints), theirs.certificate)])
    mine = replace(intruder.peer, endpoints=tuple(rig.peer("a").endpoints))
    other = Node("0", foreign)
    await other.use([replace(mine, node="a", certificate=rig.peer("a").certificate)])
    await asyncio.sleep(2.0)
    assert not intruder.opened and not other.opened
    assert a.ready(APP) and b.able(APP)
    await intruder.stop()
    await other.stop()


def _ran_out(box: Box) -> bool:
    facts = json.loads((box.state / "identity" / "node.json").read_text())
    return bool(facts["not_after"] < time.time())


def _of_another_site(rig: Rig) -> SiteCertificate:
    key = ec.generate_private_key(ec.SECP256R1())
    uri = f"spiffe://{DOMAIN}/site/s2/node/a"
    return SiteCertificate(key_pem(key), rig.ca.issue(key.public_key(), uri, dns=SERVER_NAME))


@pytest.mark.long
async def test_certificates_that_ran_out_part_no_peers(tmp_path: Path) -> None:
    """Those that orchestrators ask for: while a site is alone, nobody there needs them."""
    ca = Ca()
    rig = Rig(tmp_path, ca, await Orchestrator(ca).start(), life_s=SHORT_S)
    rig.orchestrator.renewed_life_s = SHORT_S
    try:
        a, b, c = await three(rig)
        await rig.orchestrator.stop()
        await eventually(lambda: all(_ran_out(box) for box in (a, b, c)), SLOW_S)
        for box in (b, c):  # they meet anew
            await box.end(signal.SIGTERM)
            box.start()
        await eventually(lambda: all(EXPIRED in box.log() for box in (b, c)), SLOW_S)
        await eventually(lambda: rig.hears(b, 2) and rig.hears(c, 2), SLOW_S)
        await a.end()
        await eventually(lambda: "TakenOver" in b.log(), LATE_S)
    finally:
        await rig.stop()


@pytest.mark.long
async def test_a_node_that_joins_the_roster_is_heard_and_one_that_leaves_is_not(rig: Rig) -> None:
    a, b, c = await three(rig)
    (d,) = await rig.start("d")
    await rig.use(rig.assignment(APP, ["a", "d", "b"]))
    await rig.settled()
    await eventually(lambda: d.able(APP), SLOW_S)
    roster = [rig.peer(name) for name in ("a", "b", "d")]
    for box in (a, b, d):
        assert box.visit is not None
        box.visit.say(plan=rig.plan(box.name, roster, [rig.assignment(APP, ["a", "d", "b"])]))
    await eventually(lambda: all("peer=c" in _lost(x) for x in (a, b, d)), SLOW_S)
    await a.end()
    await eventually(lambda: d.ready(APP), LATE_S)
    assert not b.ready(APP) and not c.ready(APP)


def _lost(box: Box) -> str:
    return "\n".join(line for line in box.log().splitlines() if "peer lost" in line)


async def test_a_port_that_is_taken_is_said_and_used_once_it_is_free(rig: Rig) -> None:
    a, b = await rig.start("a", "b")
    held = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", b.port)
    await rig.use(rig.assignment(APP, ["a", "b"]))
    await eventually(lambda: b.condition("SitePortUnavailable"), SLOW_S)
    await eventually(lambda: APP in b.standbys() and not b.able(APP), SLOW_S)
    assert b.standbys()[APP].reason == "SitePortUnavailable", "deaf, it takes nobody for dead"
    held.close()
    await held.wait_closed()
    await eventually(lambda: rig.hears(a, 1) and not b.condition("SitePortUnavailable"), SLOW_S)
    await eventually(lambda: b.able(APP), SLOW_S)


async def test_a_roster_that_names_a_node_twice_leaves_it_out_and_is_said(rig: Rig) -> None:
    a, b = await rig.start("a", "b")
    roster = [rig.peer("b"), plan_pb2.SitePeer(node="b", endpoints=["x:1"], certificate=b"x")]
    assert a.visit is not None
    a.visit.say(plan=rig.plan("a", roster, [rig.assignment(APP, ["a", "b"])]))
    await eventually(lambda: a.events("RosterFaulty"), SLOW_S)
    await eventually(lambda: a.ready(APP), SLOW_S)
    assert "b twice" in a.events("RosterFaulty")[0]
    assert b.visit is not None
