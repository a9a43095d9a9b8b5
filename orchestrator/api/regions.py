"""Regions and ForgetMember: who there is, who leads, and how the Store is. Any member answers.

Each fact has its source: who exists and is present stands in the Store's mirror, who leads in the
Store itself, and what the other members say of themselves comes over the links. What is not known
is said to be so.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.authz import Caller
from orchestrator.cache import Cache
from orchestrator.catching_up import catch_up
from orchestrator.domain.drill import drills_in
from orchestrator.events import Recorder
from orchestrator.records import MemberRecord, PresenceRecord
from orchestrator.refusals import in_use, not_found
from orchestrator.store import keys
from orchestrator.store.port import Compare, Delete, Store, StoreError
from polder.v1 import common_pb2, operator_pb2

_ASK_S = 2.0
_UNKNOWN = -1
_CLOCK_SKEW_S_MAX = 30.0
"""As for nodes (condition ClockSkew)."""


class Heard(Protocol):
    """The last that was heard of another member; `orchestrator.mesh.link.LinkStatus` is one."""

    @property
    def member(self) -> str: ...
    @property
    def reachable(self) -> bool: ...
    @property
    def pulse_at(self) -> float: ...
    @property
    def sessions(self) -> int: ...
    @property
    def store_healthy(self) -> bool: ...
    @property
    def store_revision(self) -> int: ...
    @property
    def store_age_ms(self) -> int: ...
    @property
    def clock_skew_s(self) -> float: ...
    @property
    def version(self) -> str: ...
    @property
    def error(self) -> str: ...


class StoreMember(Protocol):
    """What one member of the Store says of itself; `MemberStatus` of the etcd client is one."""

    @property
    def endpoint(self) -> str: ...
    @property
    def error(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def is_leader(self) -> bool: ...
    @property
    def revision(self) -> int: ...
    @property
    def raft_index(self) -> int: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def db_bytes(self) -> int: ...
    @property
    def alarms(self) -> tuple[str, ...]: ...


class HasMembers(Protocol):
    """A Store of several members: etcd."""

    async def members(self) -> Sequence[StoreMember]: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """What the Store said just now; `error` when it did not. `revision` -1: not known."""

    leader: str = ""
    revision: int = _UNKNOWN
    error: str = ""


@dataclass(frozen=True, slots=True)
class Regions:
    """Serves both RPCs. `links`: of all other members; `sessions`: of this one; `age_s`: since its
    mirror was last known to be current."""

    member: str
    store: Store
    several: HasMembers | None
    """The Store, when it has members of its own that can be asked."""
    cache: Cache
    links: Callable[[], Sequence[Heard]]
    sessions: Callable[[], int]
    age_s: Callable[[], float]
    events: Recorder
    clock: Callable[[], float]

    async def regions(self) -> operator_pb2.RegionsResponse:
        """What cannot be asked within two seconds is not known."""
        asked, store = await asyncio.gather(self._ask(), self._store_members())
        now_ms = int(self.clock() * 1000)
        response = operator_pb2.RegionsResponse(
            store=store,
            store_kind="etcd" if self.several is not None else "sqlite",
            now_ms=now_ms,
            member=self.member,
            leader=asked.leader,
            store_error=asked.error,
        )
        found: defaultdict[str, list[MemberRecord]] = defaultdict(list)
        for record in self.cache.members():
            found[record.region].append(record)
        heard = {link.member: link for link in self.links()}
        for name in sorted(found):
            members = [self._member(m, heard.get(m.name), asked, now_ms) for m in found[name]]
            response.regions.append(self._region(name, found[name], members))
        return response

    async def forget(
        self, caller: Caller, request: operator_pb2.ForgetMemberRequest
    ) -> operator_pb2.ForgetMemberResponse:
        """Raises Refused (NotFound, InUse) and StoreError."""
        name = request.member
        present = keys.present(name)
        entry = await self.store.get(keys.member(name))
        if entry is None:
            raise not_found(f"no member {name}", "edgectl get members lists them")
        compares = [Compare.absent(present), Compare.unchanged(entry)]
        result = await self.store.txn(compares, [Delete(entry.key)])
        await catch_up(self.cache, result.revision)
        if not result.committed:
            raise in_use(
                f"member {name} is present",
                "stop its process first; the record of one that runs comes back by itself",
            )
        text = "forgotten: agents are not told of its addresses any more"
        severity = common_pb2.EVENT_TYPE_NORMAL
        self.events.record("Member", "", name, severity, "Forgotten", text, caller.source)
        return operator_pb2.ForgetMemberResponse(message=text)

    # --- facts -----------------------------------------------------------------------------------

    async def _ask(self) -> Asked:
        try:
            async with asyncio.timeout(_ASK_S):
                entry = await self.store.get(keys.LEADER)
                revision = await self.store.revision()
        except TimeoutError:
            return Asked(error=f"the store did not answer within {_ASK_S:g} s")
        except StoreError as error:
            return Asked(error=str(error))
        return Asked(entry.value.decode(errors="replace") if entry is not None else "", revision)

    async def _store_members(self) -> list[operator_pb2.StoreMemberInfo]:
        if self.several is None:
            return []
        try:
            found = await self.several.members()
        except StoreError:
            return []  # it is being closed
        return [
            operator_pb2.StoreMemberInfo(
                endpoint=one.endpoint,
                error=one.error,
                version=one.version,
                leader=one.is_leader,
                revision=one.revision,
                lag_entries=max(0, one.raft_index - one.applied_index),
                db_bytes=one.db_bytes,
                alarms=one.alarms,
            )
            for one in found
        ]

    def _region(
        self, name: str, records: Sequence[MemberRecord], members: list[operator_pb2.MemberInfo]
    ) -> operator_pb2.RegionInfo:
        drill = drills_in(self.cache.kept(keys.DRILLS)).get(name)
        running = drill is not None and drill.runs and self.clock() < drill.over_at
        where = next((record.coordinates for record in records if record.coordinates), (0.0, 0.0))
        return operator_pb2.RegionInfo(
            name=name,
            members=members,
            drill_until_ms=int(drill.over_at * 1000) if drill is not None and running else 0,
            latitude=where[0],
            longitude=where[1],
        )

    def _member(
        self, record: MemberRecord, link: Heard | None, asked: Asked, now_ms: int
    ) -> operator_pb2.MemberInfo:
        presence = self.cache.present(record.name)
        info = operator_pb2.MemberInfo(
            name=record.name,
            region=record.region,
            version=presence.version if presence is not None else record.version,
            leader=record.name == asked.leader,
            present=presence is not None,
            sessions=_UNKNOWN,
            lag_revisions=_UNKNOWN,
            lag_ms=_UNKNOWN,
            endpoints=record.endpoints,
            started_at_ms=presence.started_at_ms if presence is not None else 0,
        )
        if record.name == self.member:
            self._add_own(info, asked, now_ms)
        elif link is not None:
            _add_heard(info, link, asked)
        info.message = self._message(info, presence, link)
        return info

    def _add_own(self, info: operator_pb2.MemberInfo, asked: Asked, now_ms: int) -> None:
        info.reachable = True
        info.sessions = self.sessions()
        lag_s = max(self.cache.age_s(), self.age_s() if asked.error else 0.0)
        info.lag_ms = int(lag_s * 1000)
        info.store_healthy = self.cache.healthy and not asked.error
        info.lag_revisions = _lag(asked, self.cache.revision)
        info.heard_at_ms = now_ms

    def _message(
        self, info: operator_pb2.MemberInfo, presence: PresenceRecord | None, link: Heard | None
    ) -> str:
        """What is wrong with it, the worst first."""
        if presence is None:
            return "not there: it ended, or its lease in the store ran out"
        if link is not None and not link.reachable:
            return f"cannot be reached: {link.error}" if link.error else "cannot be reached"
        if info.lag_ms != _UNKNOWN and not info.store_healthy:
            return "it cannot read the store"
        if info.name != self.member and link is None:
            return "nothing was heard of it yet"
        ahead_s = link.clock_skew_s if link is not None else 0.0
        if abs(ahead_s) > _CLOCK_SKEW_S_MAX:
            way = "ahead of" if ahead_s > 0 else "behind"
            return (
                f"its clock is {abs(ahead_s):.0f} s {way} that of member {self.member}: set the "
                "wrong one; what it dates and issues is as wrong"
            )
        return ""


def _add_heard(info: operator_pb2.MemberInfo, link: Heard, asked: Asked) -> None:
    """As it was when last heard; of one that cannot be reached only when that was."""
    info.reachable = link.reachable
    info.heard_at_ms = int(link.pulse_at * 1000)
    if not link.reachable or not link.pulse_at:
        return
    info.version = link.version or info.version
    info.sessions = link.sessions
    info.lag_ms = link.store_age_ms
    info.store_healthy = link.store_healthy
    info.lag_revisions = _lag(asked, link.store_revision)
    info.clock_skew_ms = int(link.clock_skew_s * 1000)


def _lag(asked: Asked, revision: int) -> int:
    return _UNKNOWN if asked.revision == _UNKNOWN else max(0, asked.revision - revision)
