"""One stream with every peer of the roster, kept open. `agent/site/loop.py` speaks through it.

Of two nodes the one whose name sorts first dials, all endpoints in turn. A peer is who shows the
certificate that the plan in use names, and only as long as it names it.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from agent.channel import NO_PROBES
from agent.domain.roster import Peer
from agent.domain.site.messages import Said
from agent.identity_store import to_pem
from agent.site.certificate import SERVER_NAME, SiteCertificate
from agent.site.server import MAX_MESSAGE_BYTES
from agent.site.talk import Conversation, TalkEnded, Timing
from polder.v1 import site_pb2, site_pb2_grpc

log = logging.getLogger(__name__)

ENDPOINTS_MAX = 16
FLUSH_S = 0.5

_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.default_authority", SERVER_NAME),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    *NO_PROBES,
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, slots=True)
class Hears:
    """What the links tell: a stream with `node` is open (with the process `instance`), is over, or
    brought a word."""

    opened: Callable[[str, str], None]
    closed: Callable[[str], None]
    said: Callable[[str, Said], None]


class Links:
    """All methods belong to one event loop. Ends when it is closed."""

    def __init__(
        self,
        hello: site_pb2.PeerHello,
        certificate: SiteCertificate,
        hears: Hears,
        *,
        timing: Timing | None = None,
        dice: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._hello = hello
        self._certificate = certificate
        self._hears = hears
        self._timing = timing or Timing()
        self._dice = dice
        self._peers: dict[str, Peer] = {}
        self._open: dict[str, Conversation] = {}
        self._dialling: dict[str, asyncio.Task[None]] = {}

    @property
    def open(self) -> frozenset[str]:
        """Peers with which a stream is open."""
        return frozenset(self._open)

    def use(self, peers: Mapping[str, Peer]) -> None:
        """Speak to these and to nobody else. Who is named as before is left alone."""
        for node, known in list(self._peers.items()):
            wanted = peers.get(node)
            if wanted is not None and wanted.certificate == known.certificate:
                continue  # other endpoints: from the next dial on
            self._drop(node, "the plan does not name it any more")
            task = self._dialling.pop(node, None)
            if task is not None:
                task.cancel()
        self._peers = dict(peers)
        for node in peers:
            if self._hello.node < node and node not in self._dialling:
                self._dialling[node] = asyncio.create_task(self._keep(node))

    def send(self, node: str, said: Said) -> None:
        """Lost when there is no stream."""
        conversation = self._open.get(node)
        if conversation is not None:
            conversation.send(said)

    async def close(self) -> None:
        """End, once what was said is on its way."""
        try:
            async with asyncio.timeout(FLUSH_S):
                await asyncio.gather(*(stream.flushed() for stream in self._open.values()))
        except TimeoutError:
            log.debug("not everybody was told")
        self.use({})
        await asyncio.sleep(0)

    def _drop(self, node: str, why: str) -> None:
        conversation = self._open.get(node)
        if conversation is not None:
            conversation.end(why)

    # ---- both sides ----

    async def accept(self, node: str, stream: Any) -> None:
        """A peer dialled. Returns when the conversation is over. See `server.Accept`."""
        if node > self._hello.node or node not in self._peers:
            text = f"{self._hello.node} dials {node}, not the other way around"
            await stream.abort(grpc.StatusCode.FAILED_PRECONDITION, text)
            return
        await self._converse(node, Conversation(node, stream, self._timing))

    async def _converse(self, node: str, conversation: Conversation) -> bool:
        """Whether it came to anything. A newer stream takes the place of an older one: its end may
        not have been noticed here yet."""
        try:
            hello = await conversation.open(self._hello)
        except TalkEnded as end:
            log.debug("no conversation", extra={"peer": node, "reason": str(end)})
            return False
        if node not in self._peers:
            return False
        self._drop(node, "a newer stream took its place")
        self._open[node] = conversation
        log.info("peer", extra={"peer": node, "instance": hello.instance_id})
        why = "cancelled"
        try:
            self._hears.opened(node, hello.instance_id)
            why = await conversation.serve(lambda said: self._hears.said(node, said))
        finally:
            if self._open.get(node) is conversation:
                del self._open[node]
                log.info("peer lost", extra={"peer": node, "reason": why})
                self._hears.closed(node)
        return True

    # ---- dialling ----

    async def _keep(self, node: str) -> None:
        """Dial whenever there is no stream, until cancelled."""
        loop = asyncio.get_running_loop()
        lost_at = loop.time()
        worked = ""
        while True:
            endpoints = self._peers[node].endpoints[:ENDPOINTS_MAX]
            for endpoint in sorted(endpoints, key=lambda known: known != worked):
                if await self._dial(node, endpoint):
                    lost_at = loop.time()
                    worked = endpoint
                    break
            eager = loop.time() - lost_at < self._timing.eager_s
            await asyncio.sleep(
                self._dice(*(self._timing.eager_pause_s if eager else self._timing.pause_s))
            )

    async def _dial(self, node: str, endpoint: str) -> bool:
        """Whether a conversation came about; then it is over again."""
        credentials = grpc.ssl_channel_credentials(
            to_pem([self._peers[node].certificate]),
            self._certificate.key_pem,
            self._certificate.pem,
        )
        channel = grpc.aio.secure_channel(endpoint, credentials, _OPTIONS)
        try:
            try:
                async with asyncio.timeout(self._timing.dial_s):
                    await channel.channel_ready()
            except TimeoutError:
                return False
            call = site_pb2_grpc.SiteServiceStub(channel).Talk(None)
            try:
                return await self._converse(node, Conversation(node, call, self._timing))
            finally:
                call.cancel()
        finally:
            await channel.close(None)
