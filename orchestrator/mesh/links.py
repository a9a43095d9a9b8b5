"""This member's links to all others: who there is, who can be heard, and how to ask one of them.

`server.py` runs it. The members are those of the Store's records; one `Link` follows each
(`link.py`). Who is there by its lease and cannot be heard is told to the fleet, which then calls no
silent node lost.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.cache import Cache, Change
from orchestrator.events import Recorder
from orchestrator.identity.member import MemberIdentity
from orchestrator.mesh.link import Link, LinkStatus
from orchestrator.mesh.nodes_heard import NodesHeard
from orchestrator.mesh.telling import Words
from orchestrator.records import MemberRecord
from orchestrator.store import keys
from polder.v1 import common_pb2, member_pb2, member_pb2_grpc

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
TOLD_AFTER_S = 30.0
"""A member that dies keeps its lease for less."""


@dataclass(slots=True)
class _Kept:
    record: MemberRecord
    link: Link
    task: "asyncio.Task[None]"
    ending: bool = False

    def end(self) -> None:
        """Once: a second time would cut short what the first one makes it put in order.

        `Task.cancelling` does not tell whether it was: a pause of the link that runs out in this
        very moment counts there, too, and a link that is then left alone goes on for ever.
        """
        if not self.ending:
            self.ending = True
            self.task.cancel()


class Links:
    """One per member. `run` until cancelled; `use` gives it who hears the leader's words."""

    def __init__(
        self,
        cache: Cache,
        heard: NodesHeard,
        identity: MemberIdentity,
        events: Recorder,
        version: str,
        clock: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._heard = heard
        self._identity = identity
        self._events = events
        self._clock = clock
        me = identity.member_id
        self._request = member_pb2.FollowRequest(
            member=me.member, region=me.region, version=version
        )
        self._links: dict[str, _Kept] = {}
        self._words: Words | None = None
        self._unasked: dict[str, float] = {}  # by member: seconds of the loop's clock
        self._told: set[str] = set()
        self._wake = asyncio.Event()

    def use(self, words: Words) -> None:
        """Whose `heard` gets what a leader says; must be quick."""
        self._words = words

    def stub(self, member: str) -> member_pb2_grpc.MemberServiceStub | None:
        """On the link's connection; None while the member cannot be reached."""
        kept = self._links.get(member)
        return kept.link.stub if kept is not None else None

    def status(self) -> list[LinkStatus]:
        """Of every other member, by name."""
        return [
            self._links[name].link.status(present=self._cache.present(name) is not None)
            for name in sorted(self._links)
        ]

    async def run(self) -> None:
        """Follows every other member, until cancelled."""
        unsubscribe = self._cache.subscribe(self._on_changes)
        try:
            while True:
                self._wake.clear()
                self._adapt()
                self._look()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._wake.wait()
        finally:
            unsubscribe()
            for kept in self._links.values():
                kept.end()
            tasks = [kept.task for kept in self._links.values()]
            await asyncio.gather(*tasks, return_exceptions=True)
            self._links.clear()

    def _on_changes(self, changes: list[Change]) -> None:
        for change in changes:
            if change.key.startswith(keys.PRESENT) and change.value is not None:
                kept = self._links.get(change.key.removeprefix(keys.PRESENT))
                if kept is not None:
                    kept.link.try_now()
            if change.key.startswith((keys.PRESENT, keys.MEMBERS)):
                self._wake.set()

    def _adapt(self) -> None:
        """One link for each record of another member; a new one when the former has ended, which
        may not say afterwards that nobody is heard."""
        records = {
            record.name: record
            for record in self._cache.members()
            if record.name != self._request.member
        }
        for name, kept in list(self._links.items()):
            record = records.get(name)
            if record is None or record.peer_endpoint != kept.record.peer_endpoint:
                if kept.task.done():
                    del self._links[name]
                else:
                    kept.end()
        for name, record in records.items():
            if name not in self._links and record.peer_endpoint:
                link = Link(
                    record,
                    self._request,
                    self._identity,
                    self._heard,
                    self._on_words,
                    self._clock,
                    self._wake.set,
                )
                task = asyncio.create_task(link.run(), name=f"mesh-link-{name}")
                task.add_done_callback(lambda _: self._wake.set())
                self._links[name] = _Kept(record, link, task)

    def _on_words(self, member: str, said: member_pb2.LeaderSaid) -> None:
        if self._words is not None:
            self._words.heard(member, said)

    def _look(self) -> None:
        """Who is there and cannot be asked."""
        unasked = {}
        for name, kept in self._links.items():
            status = kept.link.status(present=self._cache.present(name) is not None)
            if status.present and not status.reachable:
                when = f"{datetime.fromtimestamp(status.since, UTC):%H:%M:%S} UTC"
                unasked[name] = f"cannot be reached since {when}"
            kept.link.look()
        self._heard.fleet.cannot_ask(unasked)
        self._tell(unasked)
        for name, kept in list(self._links.items()):
            if kept.task.done():
                if not kept.task.cancelled():  # a defect: nothing that another member does ends it
                    log.critical("a link ended", exc_info=kept.task.exception())
                del self._links[name]  # made again in the next round
                self._wake.set()

    def _tell(self, unasked: dict[str, str]) -> None:
        """Somebody must know: while it lasts, no node that dies anywhere is replaced."""
        now = asyncio.get_running_loop().time()
        self._unasked = {name: self._unasked.get(name, now) for name in unasked}
        for name in self._told - unasked.keys():
            self._told.discard(name)
            text = f"member {self._request.member} reaches it again, or it has ended"
            self._record(name, common_pb2.EVENT_TYPE_NORMAL, "MemberReached", text)
        for name, since in self._unasked.items():
            if name not in self._told and now - since >= TOLD_AFTER_S:
                self._told.add(name)
                text = (
                    f"is there, and member {self._request.member} cannot reach it at "
                    f"{self._links[name].record.peer_endpoint}: while that member leads, no node "
                    "is taken for lost. Is there a firewall between them?"
                )
                self._record(name, common_pb2.EVENT_TYPE_WARNING, "MemberUnreachable", text)

    def _record(self, member: str, severity: int, reason: str, text: str) -> None:
        source = f"mesh/{self._request.member}"
        self._events.record("Member", "", member, severity, reason, text, source)
