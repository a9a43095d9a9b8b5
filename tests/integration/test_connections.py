"""Whoever connects: bounded in all and for each address, and in nobody else's way."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from agent import connections
from agent.connections import EACH, Crowd, at_most
from tests.integration.agent_fakes import eventually

MAX = 40


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A server of ours, to which anybody may connect."""
    server = grpc.aio.server(options=at_most(MAX))
    bound = server.add_insecure_port("[::]:0")
    await server.start()
    yield bound
    await server.stop(None)


@pytest.fixture
def crowd() -> Iterator[list[socket.socket]]:
    made: list[socket.socket] = []
    yield made
    for one in made:
        one.close()


def connect(port: int, source: str, count: int) -> list[socket.socket]:
    """Who says nothing. `source`: any of 127.0.0.0/8 is this machine's own."""
    made = []
    for _ in range(count):
        one = socket.socket()
        one.bind((source, 0))
        one.connect(("127.0.0.1", port))
        one.setblocking(False)
        made.append(one)
    return made


def is_open(one: socket.socket) -> bool:
    """The other side has not ended it. What gRPC says first is read."""
    with contextlib.suppress(BlockingIOError):
        try:
            while one.recv(4_096):
                pass
        except ConnectionError:
            return False
        return False
    return True


def is_accepted(one: socket.socket) -> bool:
    """The server has it, and has said its first words."""
    with contextlib.suppress(BlockingIOError):
        return bool(one.recv(1, socket.MSG_PEEK))
    return False


async def test_of_one_address_the_latest_go_and_others_stay(
    port: int, crowd: list[socket.socket]
) -> None:
    limit = Crowd(port, of_network=MAX)
    first = connect(port, "127.0.0.2", 1)
    crowd += first
    await eventually(lambda: all(map(is_accepted, first)))  # before those that follow
    assert limit.thin_out() == 0
    others = connect(port, "127.0.0.3", EACH + 5)
    crowd += others

    def thinned() -> bool:
        limit.thin_out()
        return sum(map(is_open, others)) == EACH

    await eventually(thinned)
    assert all(map(is_open, first))
    again = connect(port, "127.0.0.2", 2)
    crowd += again
    await eventually(lambda: all(map(is_accepted, again)))
    assert limit.thin_out() == 0 and all(map(is_open, again))


async def test_all_together_are_no_more_than_so_many(port: int, crowd: list[socket.socket]) -> None:
    for number in range(6):
        crowd += connect(port, f"127.0.1.{number}", 10)
    await eventually(lambda: sum(map(is_open, crowd)) <= MAX)
    # Whoever leaves makes room.
    for one in crowd:
        one.close()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await asyncio.wait_for(channel.channel_ready(), 30)


async def test_it_looks_by_itself_once_there_are_many(
    port: int, crowd: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(connections, "FEW", 0)
    looking = asyncio.create_task(Crowd(port, of_network=MAX, each=2).run())
    crowd += connect(port, "127.0.0.4", 8)
    await eventually(lambda: sum(map(is_open, crowd)) == 2)
    looking.cancel()


@pytest.mark.parametrize(
    ("hosts", "kept"),
    [
        (["10.0.0.1"] * 4, 2),
        (["10.0.0.1", "10.0.0.2"] * 2, 4),
        ([f"2001:db8::{n}" for n in range(9)], 5),  # one host may have them all
        (["2001:db8::1", "2001:db8:0:1::1"] * 2, 4),
    ],
)
def test_of_a_network_more_than_of_an_address(hosts: list[str], kept: int) -> None:
    limit = Crowd(1, of_network=5, each=2)
    with socket.socket() as one:
        extra = limit._extra([(place, host, one) for place, host in enumerate(hosts)])
    assert len(hosts) - len(extra) == kept
    assert [host for host, _ in extra] == hosts[kept:]
