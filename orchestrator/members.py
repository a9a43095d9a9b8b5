"""This member among the others: where it is, that it is there, and whether its version may be.

Run by `server.py`. Two keys: /members/<name> says where the member is and stays while it is away;
/present/<name> hangs on a lease, which is all that a member's liveness costs the Store. Coming in
touches /floor, too, so that two whose versions do not work together cannot do so side by side.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from orchestrator.domain import skew
from orchestrator.instance import has_ended, new_instance_id
from orchestrator.notify import notify
from orchestrator.records import MemberRecord, PresenceRecord
from orchestrator.store import keys
from orchestrator.store.port import (
    Compacted,
    Compare,
    Delete,
    Entry,
    LeaseNotFound,
    Op,
    Put,
    Store,
    StoreError,
    StoreFull,
)
from polder.skew import minor_of

log = logging.getLogger(__name__)

TTL_S = 10.0
SETTLE_S = 30.0
_SLACK_S = 2.0
_LEAVE_S = 2.0
_ANNOUNCE_S = 2.0


class NotAdmitted(Exception):
    """This process may not be a member now; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Registry:
    """`claim` before anything is served, `run` until cancelled, `announce` when the listeners are
    there, then `leave`.

    `exclusive`: nobody else can have the Store open, so whoever is named in it is gone, and there
    is no group that an older version could not work with.
    `settle_s`: how long all present members must have a version before the floor rises to it.
    """

    def __init__(
        self,
        store: Store,
        record: MemberRecord,
        clock: Callable[[], float],
        *,
        exclusive: bool,
        ttl_s: float = TTL_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._store = store
        self.record = record
        self.instance_id = new_instance_id()
        self._presence = PresenceRecord(
            record.name, record.region, record.version, self.instance_id, int(clock() * 1000)
        )
        self._exclusive = exclusive
        self._ttl_s = ttl_s
        self._settle_s = settle_s
        self._lease = 0
        self._announced = False
        self._floor = ""
        self._ripe_since: float | None = None
        self._namesake: tuple[str, float] | None = None
        self._failing = False

    @property
    def is_present(self) -> bool:
        """As far as is known here."""
        return self._lease != 0

    # --- coming in -------------------------------------------------------------------------------

    async def claim(self) -> None:
        """Be present under our name. At the start: waits a lease's time for a former process of
        the name to be over. A Store that is full is no reason not to serve.

        Raises NotAdmitted, StoreError. Calling it again is safe.
        """
        while True:
            there, floor = await self._look()
            if there is not None and self._is_anothers(there):
                await self._wait_for_end_of(there)
                continue
            try:
                if await self._come_in(there, floor):
                    return
            except StoreFull as error:
                log.warning("cannot be registered yet: %s", error)
                return

    async def _look(self) -> tuple[Entry | None, Entry | None]:
        """Our name's presence and the floor. Raises NotAdmitted when our version may not be."""
        floor = await self._store.get(keys.FLOOR)
        entries = (await self._store.range(keys.PRESENT)).entries
        ours = keys.present(self.record.name)
        present = {
            other.name: other.version
            for other in (PresenceRecord.from_bytes(e.value) for e in entries if e.key != ours)
        }
        self._floor = floor.value.decode() if floor is not None and not self._exclusive else ""
        refusal = skew.why_not(self.record.version, self._floor, present)
        if refusal is not None and not self._exclusive:
            raise NotAdmitted(refusal.message, refusal.hint)
        return next((e for e in entries if e.key == ours), None), floor

    def _is_anothers(self, entry: Entry) -> bool:
        """Whether another process that may be alive has our name."""
        found = PresenceRecord.from_bytes(entry.value)
        if self._exclusive or found.instance_id == self.instance_id:
            return False
        return not has_ended(found.instance_id)

    async def _wait_for_end_of(self, entry: Entry) -> None:
        """Until that presence changes. Raises NotAdmitted when it outlives its lease."""
        found = PresenceRecord.from_bytes(entry.value)
        now = time.monotonic()
        if self._namesake is None or self._namesake[0] != found.instance_id:
            self._namesake = (found.instance_id, now)
            text = f"waits for the lease of a former process named {found.name} to run out"
            log.warning(text, extra={"instance": found.instance_id})
            notify(f"STATUS={text}")
        left_s = self._namesake[1] + self._ttl_s + _SLACK_S - now
        if left_s <= 0:
            raise NotAdmitted(
                f"a member named {found.name} runs already, in region {found.region} with version "
                f"{found.version}",
                "Each member needs a name of its own: set `member`, or end the other process.",
            )
        watch = self._store.watch(entry.key, from_revision=entry.mod_revision + 1)
        with contextlib.suppress(TimeoutError, Compacted):
            async with asyncio.timeout(left_s), contextlib.aclosing(watch):
                async for batch in watch:
                    if batch.events:
                        return

    async def _come_in(self, there: Entry | None, floor: Entry | None) -> bool:
        """Whether presence is written. False: something changed meanwhile."""
        name = self.record.name
        compares = [
            Compare.unchanged(there) if there else Compare.absent(keys.present(name)),
            Compare.unchanged(floor) if floor else Compare.absent(keys.FLOOR),
        ]
        self._floor = self._floor or skew.floor_of("", [self.record.version])
        lease = await self._store.grant_lease(self._ttl_s)
        ops: list[Op] = [
            Put(keys.present(name), self._presence.to_bytes(), lease),
            Put(keys.FLOOR, self._floor.encode()),
        ]
        result = await self._store.txn(compares, ops)
        if not result.committed:
            await self._end(lease)
            return False
        self._lease = lease
        log.info("is a member", extra={"member": name, "instance": self.instance_id})
        return True

    async def announce(self) -> None:
        """From now on others may be sent to our addresses. A Store that is away hears it later."""
        self._announced = True
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_ANNOUNCE_S):
                await self._write_record()

    async def _write_record(self) -> None:
        """If it is not there, or says something else."""
        if not self._announced:
            return
        ours, value = keys.member(self.record.name), self.record.to_bytes()
        found = await self._store.get(ours)
        ops: list[Op] = [] if found is not None and found.value == value else [Put(ours, value)]
        if self._exclusive:  # this member by a former name, or those of before a move to SQLite
            others = (await self._store.range(keys.MEMBERS)).entries
            ops += [Delete(entry.key) for entry in others if entry.key != ours]
        if ops:
            await self._store.txn([], ops)
            log.info("wrote where this member is", extra={"endpoints": self.record.endpoints})

    # --- staying ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Renews until cancelled; makes anew what was lost. Raises NotAdmitted when that cannot be:
        another process has our name, or the others have moved on to versions beyond ours."""
        while True:
            await asyncio.sleep(self._ttl_s / 4)
            try:
                await self._beat()
                if self._failing:
                    log.info("the member's lease is renewed again")
                self._failing = False
            except StoreError as error:
                if not self._failing:
                    log.warning("the member's lease was not renewed; trying again: %s", error)
                self._failing = True

    async def _beat(self) -> None:
        # At once: with a Store that answers late, one after the other would outlast the lease.
        renewed, entry, _ = await asyncio.gather(
            self._renew(),
            self._store.get(keys.present(self.record.name)),
            self._write_record(),  # if it was forgotten, or not heard of
        )
        if not renewed or entry is None or entry.lease != self._lease:
            await self._again()
            return
        await self._raise_floor()

    async def _renew(self) -> bool:
        """Whether our lease lives on."""
        try:
            if self._lease:
                await self._store.keep_alive(self._lease)
            return self._lease != 0
        except LeaseNotFound:
            return False

    async def _again(self) -> None:
        """After the lease was lost, as in a pause or while the Store was away."""
        lost, self._lease = self._lease, 0
        if lost:
            log.warning("the member's presence was lost; it is made again")
            await self._end(lost)
        there, floor = await self._look()
        if there is not None and self._is_anothers(there):
            raise NotAdmitted(
                f"another process took the name {self.record.name} while this one was away",
                "Each member needs a name of its own: set `member`.",
            )
        with contextlib.suppress(StoreFull):
            await self._come_in(there, floor)

    async def _raise_floor(self) -> None:
        """When all present members have been at a newer version for a while."""
        mine, least = minor_of(self.record.version), minor_of(self._floor)
        if mine is None or (least is not None and least >= mine):
            return
        floor = await self._store.get(keys.FLOOR)
        entries = (await self._store.range(keys.PRESENT)).entries
        self._floor = floor.value.decode() if floor is not None else ""
        versions = [PresenceRecord.from_bytes(entry.value).version for entry in entries]
        risen, now = skew.floor_of(self._floor, versions), time.monotonic()
        if risen == self._floor:
            self._ripe_since = None
            return
        self._ripe_since = now if self._ripe_since is None else self._ripe_since
        if now - self._ripe_since < self._settle_s:
            return
        compare = Compare.unchanged(floor) if floor else Compare.absent(keys.FLOOR)
        if (await self._store.txn([compare], [Put(keys.FLOOR, risen.encode())])).committed:
            log.info(
                "all members are at a newer version; older ones stay out from now on",
                extra={"floor": risen, "before": self._floor},
            )
            self._floor, self._ripe_since = risen, None

    # --- leaving ---------------------------------------------------------------------------------

    async def leave(self) -> None:
        """The others know at once. Failing to is harmless: the lease runs out. `run` has ended."""
        lease, self._lease = self._lease, 0
        if lease:
            await self._end(lease)

    async def _end(self, lease: int) -> None:
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await self._store.revoke_lease(lease)
