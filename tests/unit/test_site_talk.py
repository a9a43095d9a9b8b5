"""What goes into one message of a stream between two nodes."""

import asyncio

import pytest

from agent.domain.site.messages import (
    Beat,
    Claims,
    Goodbye,
    LeaseAnswer,
    LeaseRequest,
    Propose,
    Said,
)
from agent.site.codec import TOGETHER_MAX, decode, encode
from agent.site.talk import Conversation, Timing
from polder.v1 import site_pb2

HELLO = site_pb2.PeerHello(node="a", site="s1")


def asked(number: int) -> LeaseRequest:
    return LeaseRequest(number, ("w", f"r-{number}"), 7, 8, Propose(3.0))


def granted(number: int) -> LeaseAnswer:
    return LeaseAnswer(number, ("w", f"r-{number}"), 7, granted=True)


class Stream:
    """The other side: what it says is put into `says`, what it hears is in `heard`."""

    def __init__(self) -> None:
        self.heard: list[site_pb2.PeerMessage] = []
        self.says: asyncio.Queue[site_pb2.PeerMessage | None] = asyncio.Queue()
        theirs = site_pb2.PeerHello(node="b", site="s1")
        self.says.put_nowait(site_pb2.PeerMessage(hello=theirs))

    async def read(self) -> site_pb2.PeerMessage | None:
        return await self.says.get()

    async def write(self, message: site_pb2.PeerMessage) -> None:
        await asyncio.sleep(0)
        self.heard.append(message)


async def said_to(stream: Stream, *words: Said) -> list[site_pb2.PeerMessage]:
    """What the stream hears of them after the hello, when they are said in one breath."""
    conversation = Conversation("b", stream, Timing())
    await conversation.open(HELLO)
    serving = asyncio.create_task(conversation.serve(lambda _said: None))
    for word in words:
        conversation.send(word)
    await conversation.flushed()
    conversation.end("done")
    assert await serving == "done"
    assert stream.heard[0].hello == HELLO
    return stream.heard[1:]


async def test_what_is_said_of_leases_in_one_breath_is_one_message() -> None:
    words: list[Said] = [*map(asked, range(20)), *map(granted, range(20))]
    (message,) = await said_to(Stream(), *words)
    assert decode(message) == words


async def test_a_beat_goes_with_them_and_is_neither_lost_nor_passed() -> None:
    words: list[Said] = [asked(1), granted(2), Beat(), asked(3), Beat(("c",))]
    messages = await said_to(Stream(), *words)
    assert [decode(message) for message in messages] == [words[:3], words[3:]]
    assert [message.beat.sequence for message in messages] == [1, 2]


async def test_what_lists_all_of_something_is_said_alone() -> None:
    words: list[Said] = [Beat(), Claims((), ()), asked(1), Goodbye("Restarting", 15.0)]
    messages = await said_to(Stream(), *words)
    assert [decode(message) for message in messages] == [[word] for word in words]


async def test_a_message_has_an_end() -> None:
    words = [asked(number) for number in range(TOGETHER_MAX + 1)]
    first, second = await said_to(Stream(), *words)
    assert [*decode(first), *decode(second)] == words


@pytest.mark.parametrize("count", [1, 30])
async def test_all_of_a_message_is_heard(count: int) -> None:
    stream = Stream()
    heard: list[Said] = []
    conversation = Conversation("b", stream, Timing())
    await conversation.open(HELLO)
    words: list[Said] = [*(granted(number) for number in range(count)), Beat()]
    stream.says.put_nowait(encode(*words))
    stream.says.put_nowait(None)
    assert await conversation.serve(heard.append) == "b closed it"
    assert heard == words
