"""Streams between the nodes of a site: real gRPC, real TLS, one process."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent.domain.roster import Peer
from agent.domain.site.messages import Beat, Goodbye, Said
from agent.identity_store import IdentityFailure, run_credentials
from agent.site.certificate import TRIES, SiteCertificate, load_or_make
from agent.site.links import Hears, Links
from agent.site.server import CannotListen, SiteServer
from agent.site.talk import Timing
from polder.identity import NodeId
from polder.v1 import site_pb2
from tests.integration.agent_fakes import DOMAIN, eventually

QUICK = Timing(silent_s=60.0, eager_pause_s=(0.02, 0.1), pause_s=(0.1, 0.2))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """One node's side of the site's network."""

    def __init__(
        self, name: str, certificate: SiteCertificate, site: str = "s1", timing: Timing = QUICK
    ) -> None:
        self.name = name
        self.certificate = certificate
        self.port = free_port()
        self.opened: list[tuple[str, str]] = []
        self.closed: list[str] = []
        self.heard: list[tuple[str, Said]] = []
        hello = site_pb2.PeerHello(node=name, site=site, instance_id=f"{name}-1")
        self.links = Links(
            hello,
            certificate,
            Hears(
                lambda node, instance: self.opened.append((node, instance)),
                self.closed.append,
                lambda node, said: self.heard.append((node, said)),
            ),
            timing=timing,
        )
        self.server = SiteServer(f"127.0.0.1:{self.port}", certificate, self.links.accept)

    @property
    def peer(self) -> Peer:
        return Peer(self.name, (f"127.0.0.1:{self.port}",), self.certificate.der)

    async def use(self, peers: Iterable[Peer]) -> None:
        roster = {peer.node: peer for peer in peers}
        await self.server.use(roster)
        self.links.use(roster)

    async def stop(self) -> None:
        await self.links.close()
        await self.server.stop()

    def hears(self, other: "Node") -> bool:
        return other.name in self.links.open


async def certificate(folder: Path, name: str) -> SiteCertificate:
    state = folder / name
    state.mkdir(exist_ok=True)
    return await certificate_of(state, name)


async def certificate_of(state: Path, name: str) -> SiteCertificate:
    return await load_or_make(state, NodeId(DOMAIN, "s1", name), run_credentials)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Node]]:
    made = [Node(name, await certificate(tmp_path, name)) for name in ("a", "b", "c")]
    yield made
    for node in made:
        await node.stop()


async def know_each_other(nodes: list[Node]) -> None:
    for node in nodes:
        await node.use(other.peer for other in nodes if other is not node)
    await eventually(lambda: all(len(n.links.open) == len(nodes) - 1 for n in nodes))


async def test_the_certificate_is_made_once_and_for_one_identity(tmp_path: Path) -> None:
    first = await certificate(tmp_path, "a")
    assert await certificate(tmp_path, "a") == first
    key = tmp_path / "a" / "site" / "certificate" / "key.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    moved = await load_or_make(tmp_path / "a", NodeId(DOMAIN, "s2", "a"), run_credentials)
    assert moved.der != first.der


async def test_a_box_too_busy_to_make_it_at_first_tries_again(tmp_path: Path) -> None:
    """Seen of three emulated agents that started at once: one was without peers for good."""
    calls = 0

    async def busy(
        name: str, header: dict[str, object], parts: Sequence[bytes] = (), *, timeout_s: float
    ) -> tuple[dict[str, object], list[bytes]]:
        nonlocal calls
        calls += 1
        if calls < TRIES:
            Path(str(header["path"])).write_bytes(b"half a k")
            raise IdentityFailure(f"{name}: no answer within {timeout_s:g} s")
        return await run_credentials(name, header, parts, timeout_s=timeout_s)

    made = await load_or_make(tmp_path, NodeId(DOMAIN, "s1", "a"), busy)
    assert calls == TRIES and made == await certificate_of(tmp_path, "a")

    async def never(*_: object, **__: object) -> tuple[dict[str, object], list[bytes]]:
        raise IdentityFailure("no answer")

    with pytest.raises(IdentityFailure, match="no answer"):
        await load_or_make(tmp_path, NodeId(DOMAIN, "s1", "b"), never)


async def test_each_pair_has_one_stream_and_what_is_said_arrives(nodes: list[Node]) -> None:
    await know_each_other(nodes)
    a, b, c = nodes
    for node in nodes:
        assert sorted(node.opened) == [(o.name, f"{o.name}-1") for o in nodes if o is not node]
    a.links.send("b", Beat(("c",), 1.5, 7))
    c.links.send("a", Beat())
    await eventually(lambda: b.heard and a.heard)
    assert b.heard == [("a", Beat(("c",), 1.5, 7))]
    assert a.heard == [("c", Beat())]
    b.links.send("nobody", Beat())


async def test_who_is_not_in_the_roster_is_refused_and_later_let_in(
    nodes: list[Node], tmp_path: Path
) -> None:
    await know_each_other(nodes)
    a, b, c = nodes
    intruder = Node("aa", await certificate(tmp_path, "aa"))
    await intruder.use([b.peer])
    impostor = Node("a", await certificate(tmp_path / "a", "a"))
    await impostor.use([c.peer])
    await asyncio.sleep(0.5)
    assert not intruder.opened and not impostor.opened
    assert {n for n, _ in b.opened} == {"a", "c"}
    await b.use([a.peer, c.peer, intruder.peer])
    await eventually(lambda: intruder.hears(b) and b.hears(intruder))
    assert not b.closed, "a change of the roster leaves those that stay alone"
    await intruder.stop()
    await impostor.stop()


async def test_a_name_or_a_site_that_is_not_the_certificates_is_refused(
    nodes: list[Node], tmp_path: Path
) -> None:
    _, b, _ = nodes
    liar = Node("0liar", nodes[0].certificate)
    await b.use([nodes[0].peer])
    await liar.use([b.peer])
    elsewhere = Node("b0", await certificate(tmp_path, "b0"), site="s2")
    await nodes[2].use([elsewhere.peer])
    await elsewhere.use([nodes[2].peer])
    await asyncio.sleep(0.5)
    assert not b.opened and not nodes[2].opened
    await liar.stop()
    await elsewhere.stop()


async def test_who_leaves_the_roster_is_cut_off_at_both_ends(nodes: list[Node]) -> None:
    await know_each_other(nodes)
    a, b, c = nodes
    await b.use([c.peer])
    await eventually(lambda: not a.hears(b) and not b.hears(a))
    assert "a" in b.closed and "b" in a.closed
    await asyncio.sleep(0.3)
    assert not b.hears(a) and b.hears(c)


async def test_a_new_certificate_of_a_peer_ends_the_stream_of_the_old_one(
    nodes: list[Node], tmp_path: Path
) -> None:
    await know_each_other(nodes)
    a, b, c = nodes
    again = Node("a", await certificate(tmp_path / "c", "a"))
    await b.use([again.peer, c.peer])
    await eventually(lambda: not b.hears(a))
    await again.use([b.peer])
    await eventually(lambda: b.hears(again) and again.hears(b))
    await again.stop()


async def test_a_peer_that_restarts_is_reached_again(nodes: list[Node]) -> None:
    await know_each_other(nodes)
    a, b, _ = nodes
    await b.server.stop()
    await eventually(lambda: not a.hears(b))
    a.opened.clear()
    await b.server.use({n.name: n.peer for n in nodes if n is not b})
    await eventually(lambda: a.hears(b))
    assert a.opened == [("b", "b-1")]


async def test_a_peer_that_says_nothing_for_long_loses_its_stream(tmp_path: Path) -> None:
    impatient = replace(QUICK, silent_s=0.5)
    a = Node("a", await certificate(tmp_path, "a"), timing=impatient)
    b = Node("b", await certificate(tmp_path, "b"))
    await know_each_other([a, b])
    await eventually(lambda: "b" in a.closed and "a" in b.closed)
    await eventually(lambda: len(a.opened) > 1)
    await a.stop()
    await b.stop()


async def test_a_stream_that_is_never_read_ends_instead_of_growing(nodes: list[Node]) -> None:
    await know_each_other(nodes)
    a, _, _ = nodes
    for _ in range(3000):  # in one turn of the loop: nothing can be written meanwhile
        a.links.send("b", Beat())
    await eventually(lambda: "b" in a.closed)


async def test_a_goodbye_arrives_before_the_end(nodes: list[Node]) -> None:
    await know_each_other(nodes)
    a, b, c = nodes
    for node in ("b", "c"):
        a.links.send(node, Goodbye("Restarting", 15.0))
    await a.links.close()
    await eventually(lambda: "a" in b.closed and "a" in c.closed)
    assert b.heard[-1] == c.heard[-1] == ("a", Goodbye("Restarting", 15.0))


async def test_other_endpoints_of_a_peer_are_tried_in_turn(nodes: list[Node]) -> None:
    a, b, _ = nodes
    dead = f"127.0.0.1:{free_port()}"
    await b.use([a.peer])
    await a.use([replace(b.peer, endpoints=(dead, *b.peer.endpoints))])
    await eventually(lambda: a.hears(b))


async def test_a_port_that_is_taken_is_said_and_can_be_tried_again(nodes: list[Node]) -> None:
    a, b, c = nodes
    holder = socket.socket()
    holder.bind(("127.0.0.1", b.port))
    holder.listen()
    with pytest.raises(CannotListen):
        await b.use([a.peer])
    assert not b.server.listens
    holder.close()
    await b.use([a.peer])
    await c.use([])
    assert b.server.listens and not c.server.listens
