"""The site's network as the loop sees it: who is in the roster, what is said, and by whom.

Puts the server, to which some peers dial, and the links together. A node whose configuration does
not want it, or that could not make its certificate, has a network with nobody in it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from agent.conditions import Conditions
from agent.domain.roster import Peer
from agent.domain.site.messages import Said
from agent.site.certificate import SiteCertificate
from agent.site.links import Hears, Links
from agent.site.server import CannotListen, SiteServer
from agent.site.talk import Timing
from polder.v1 import site_pb2

log = logging.getLogger(__name__)

CONDITION = "SitePortUnavailable"


def endpoints(listen: str, advertise: Sequence[str], addresses: Sequence[str]) -> tuple[str, ...]:
    """host:port at which peers reach this node: what is configured, or else all its addresses.

    A host without a port has that of `listen`.
    """
    if not listen:
        return ()
    port = listen.rpartition(":")[2]
    found = []
    for host in advertise or addresses:
        bare_ipv6 = host.count(":") > 1 and not host.startswith("[")
        if bare_ipv6:
            found.append(f"[{host}]:{port}")
        else:
            named = ":" in host.rpartition("]")[2]
            found.append(host if named else f"{host}:{port}")
    return tuple(found)


class Network:
    """`listen`: HOST:PORT. Use `hears` once, then `use` whenever the roster changes.

    `trouble`: why this node does not hear all who would speak to it; empty when it does.
    """

    def __init__(
        self,
        hello: site_pb2.PeerHello,
        certificate: SiteCertificate | None,
        listen: str,
        timing: Timing | None = None,
    ) -> None:
        self._hello = hello
        self._certificate = certificate
        self._listen = listen
        self._timing = timing or Timing()
        self._links: Links | None = None
        self._server: SiteServer | None = None
        self._peers: Mapping[str, Peer] = {}
        self._changed = asyncio.Event()
        self._on_trouble: Callable[[], None] = lambda: None
        self.trouble = "" if certificate is not None and listen else "it has no site_listen"
        if listen and certificate is None:
            self.trouble = "it has no site certificate"

    def hears(
        self,
        opened: Callable[[str, str], None],
        closed: Callable[[str], None],
        said: Callable[[str, Said], None],
        trouble: Callable[[], None],
    ) -> None:
        """To whom it tells: a stream with a peer is open, is over, brought a word; `trouble`, why
        peers cannot reach this node by a fault of its own, is another one."""
        self._on_trouble = trouble
        if self._certificate is not None and self._listen:
            hears = Hears(opened, closed, said)
            self._links = Links(self._hello, self._certificate, hears, timing=self._timing)
            self._server = SiteServer(self._listen, self._certificate, self._links.accept)

    @property
    def open(self) -> frozenset[str]:
        """Peers with which a stream is open."""
        return self._links.open if self._links is not None else frozenset()

    def use(self, peers: Mapping[str, Peer]) -> None:
        """Speak to these, and to nobody else."""
        self._peers = peers
        self._changed.set()

    def send(self, node: str, said: Said) -> None:
        """Lost when there is no stream."""
        if self._links is not None:
            self._links.send(node, said)

    async def run(self, conditions: Conditions) -> None:
        """Until cancelled: listen while there is anybody who may call. A port that is taken is
        tried again."""
        try:
            while self._links is not None and self._server is not None:
                self._changed.clear()
                retry_s: float | None = None
                self._links.use(self._peers)
                try:
                    await self._server.use(self._peers)
                    conditions.clear(CONDITION)
                    self._say("")
                except CannotListen as error:
                    text = f"the nodes of the site cannot reach this one: {error}"
                    conditions.set(CONDITION, "CannotListen", text)
                    self._say(text)
                    retry_s = self._timing.listen_retry_s
                try:
                    async with asyncio.timeout(retry_s):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            await self.close()

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self._on_trouble()

    async def close(self) -> None:
        """Once what was said is on its way."""
        if self._links is not None and self._server is not None:
            await self._links.close()
            await self._server.stop()
