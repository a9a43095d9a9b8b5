"""The mesh of one member, put together: what it tells the others, and what it hears of them.

Made by `server.py` (and by tests) from the gateway and from the leader's voice; `run` beside them.
"""

import asyncio
from collections.abc import Callable

from orchestrator.cache import Cache
from orchestrator.events import Recorder
from orchestrator.fleet import Fleet
from orchestrator.gateway.relays import RelayBroker
from orchestrator.gateway.sessions import Sessions
from orchestrator.gateway.superseding import Superseding
from orchestrator.identity.member import MemberIdentity
from orchestrator.mesh.forward import Forwarding
from orchestrator.mesh.links import Links
from orchestrator.mesh.nodes_heard import NodesHeard
from orchestrator.mesh.service import MemberService
from orchestrator.mesh.telling import StoreState, Telling
from orchestrator.mesh.voice import Voice
from polder.v1 import member_pb2


class Mesh:
    """`service` is for the listener, `forwarding` for logs and execs, `links` says who is heard.

    `behind_s`: how long ago the Store last answered, when it does not now; 0 when it does. A watch
    may stay silent for half a minute before it is known to be broken.
    """

    def __init__(
        self,
        fleet: Fleet,
        cache: Cache,
        identity: MemberIdentity,
        sessions: Sessions,
        superseding: Superseding,
        relays: RelayBroker,
        voice: Voice,
        events: Recorder,
        clock: Callable[[], float],
        *,
        version: str,
        instance_id: str,
        heartbeat_s: float,
        behind_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        me = identity.member_id
        self._voice = voice
        hello = member_pb2.MemberHello(
            member=me.member, region=me.region, version=version, instance_id=instance_id
        )
        self.telling = Telling(
            fleet,
            sessions,
            hello,
            lambda: _store_state(cache, behind_s()),
            clock,
            heartbeat_s,
        )
        self.telling.use(voice)
        heard = NodesHeard(fleet, cache, superseding, clock)
        self.links = Links(cache, heard, identity, events, version, clock)
        self.links.use(voice)
        self.forwarding = Forwarding(me.member, relays, fleet, self.links.stub)
        self.service = MemberService(me.member, self.telling, self.forwarding)

    async def run(self) -> None:
        """Until cancelled; may then be run again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.telling.run(), name="mesh-telling")
            group.create_task(self.links.run(), name="mesh-links")
            group.create_task(
                self._voice.run(self.telling.say, lambda: bool(self.telling.followers)),
                name="mesh-voice",
            )


def _store_state(cache: Cache, behind_s: float) -> StoreState:
    return StoreState(cache.healthy and not behind_s, cache.revision, max(cache.age_s(), behind_s))
