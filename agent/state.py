"""The agent's durable memory: the plan in use and the one before it, as they were signed.

`agent/main.py` makes one PlanKeeper, calls `boot()` before anything else and `offer()` for every
plan that the session brings. A plan is verified, considered (`agent/domain/plan.py`), written, and
then used; so after a crash at any moment the box starts what an orchestrator signed.

    <state dir>/plan-current.pb     SignedNodePlan, mode 0600: it can hold secrets
    <state dir>/plan-previous.pb

A disk that refuses writes stops nothing: the plan is used from memory, and the condition
StateNotWritable says that a restart would go back to an older one.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import DecodeError

from agent.conditions import Conditions
from agent.domain.plan import Accepted, ParsedPlan, Refused, Unchanged, consider, issued_at
from agent.durable import sync_directory, write_synced
from agent.plan_verifier import PlanRejected, PlanVerifier
from polder.identity import NodeId
from polder.v1 import agent_pb2, plan_pb2

log = logging.getLogger(__name__)

DEFAULT_DIRECTORY = Path("/var/lib/polder-agent")
CURRENT = "plan-current.pb"
PREVIOUS = "plan-previous.pb"
MAX_PLAN_BYTES = 32 << 20
CONDITION = "StateNotWritable"
DISK_FULL = 28  # errno.ENOSPC


class UnreadableState(Exception):
    """A file of ours exists and is no plan."""


class PlanFiles:
    """Two files and the order in which they are written. Blocking; errors are OSError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self) -> None:
        """Make the directory, for us alone. Left-overs of a write that was cut short go."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self.directory.glob("plan-*.tmp"):
            with contextlib.suppress(OSError):
                leftover.unlink()

    def read(self, name: str) -> plan_pb2.SignedNodePlan | None:
        """None when there is none. Raises UnreadableState and OSError."""
        try:
            with (self.directory / name).open("rb") as stream:
                data = stream.read(MAX_PLAN_BYTES + 1)
        except FileNotFoundError:
            return None
        if not data or len(data) > MAX_PLAN_BYTES:
            raise UnreadableState(f"{name} has {len(data)} bytes")
        try:
            return plan_pb2.SignedNodePlan.FromString(data)
        except DecodeError as error:
            raise UnreadableState(f"{name}: {error}") from error

    def write(self, signed: plan_pb2.SignedNodePlan) -> None:
        """Make it the current plan, and the current one the previous. A crash leaves a good one.

        The new file is complete on disk before any name changes; the old current one keeps its
        name until the new one takes it over.
        """
        current = self.directory / CURRENT
        fresh = self.directory / "plan-current.tmp"
        kept = self.directory / "plan-previous.tmp"
        try:
            write_synced(fresh, signed.SerializeToString())
            kept.unlink(missing_ok=True)
            if current.exists():
                kept.hardlink_to(current)
                kept.replace(self.directory / PREVIOUS)
            fresh.replace(current)
            sync_directory(self.directory)
        except OSError:
            for leftover in (fresh, kept):
                with contextlib.suppress(OSError):
                    leftover.unlink()  # frees what a full disk can give back
            raise


class PlanKeeper:
    """The plan in use. `use(plan)` hears of every new one; `report(reason, message)` of trouble."""

    def __init__(
        self,
        directory: Path,
        identity: NodeId,
        verifier: PlanVerifier,
        conditions: Conditions,
        *,
        use: Callable[[ParsedPlan], None],
        report: Callable[[str, str], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._files = PlanFiles(directory)
        self._identity = identity
        self._verifier = verifier
        self._conditions = conditions
        self._use = use
        self._report = report
        self._now = now
        self._lock = asyncio.Lock()
        self._unsaved: plan_pb2.SignedNodePlan | None = None
        self.current: ParsedPlan | None = None

    @property
    def generation(self) -> int:
        """Of the plan in use; 0: none."""
        return self.current.generation if self.current is not None else 0

    async def boot(self) -> ParsedPlan | None:
        """Use the last good plan on disk: no orchestrator is needed for that."""
        async with self._lock:
            try:
                await asyncio.to_thread(self._files.prepare)
            except OSError as error:
                self._not_writable(error)
            for name in (CURRENT, PREVIOUS):
                plan = await self._load(name)
                if plan is not None:
                    self.current = plan
                    self._use(plan)
                    return plan
        return None

    async def _load(self, name: str) -> ParsedPlan | None:
        try:
            signed = await asyncio.to_thread(self._files.read, name)
            if signed is None:
                return None
            # Checked as of when it was issued: its signer's certificate may have expired since.
            at = issued_at(signed.node_plan)
            payload = await self._verifier.verify(signed, at=at)
        except (UnreadableState, OSError) as error:
            self._report("PlanUnreadable", f"the plan on disk is not used: {error}")
            return None
        except PlanRejected as refusal:
            self._report("PlanUnreadable", f"{name}: {refusal.reason}: {refusal.message}")
            return None
        answer = consider(None, self._identity, payload)
        if isinstance(answer, Accepted):
            return answer.plan
        if isinstance(answer, Refused):
            self._report("PlanUnreadable", f"{name}: {answer.reason}: {answer.message}")
        return None

    async def offer(self, signed: plan_pb2.SignedNodePlan) -> agent_pb2.PlanAck:
        """Verify, consider, write and use a plan that arrived; says what became of it."""
        async with self._lock:
            return await self._consider(signed)

    async def _consider(self, signed: plan_pb2.SignedNodePlan) -> agent_pb2.PlanAck:
        if self.current is not None:
            if signed.node_plan == self.current.payload:
                await self._save_again()
                return self._ack(self.current.generation)
            if signed.generation < self.current.generation:
                message = f"generation {signed.generation} is older than {self.generation}, in use"
                return self._refuse(signed, "Stale", message, loud=False)
        try:
            payload = await self._verifier.verify(signed, at=self._now())
        except PlanRejected as refusal:
            return self._refuse(signed, refusal.reason, refusal.message)
        match consider(self.current, self._identity, payload):
            case Refused(reason, message):
                return self._refuse(signed, reason, message, loud=reason != "Stale")
            case Unchanged():
                return self._ack(self.generation)
            case Accepted(plan, dropped):
                if dropped:
                    text = f"generation {plan.generation} no longer names {len(dropped)} replicas"
                    self._report("PlanDropsReplicas", f"{text}: {', '.join(dropped)[:300]}")
                await self._save(signed)
                self.current = plan
                self._use(plan)
                return self._ack(plan.generation)

    def _ack(self, generation: int) -> agent_pb2.PlanAck:
        return agent_pb2.PlanAck(generation=generation, accepted=True)

    def _refuse(
        self, signed: plan_pb2.SignedNodePlan, reason: str, message: str, *, loud: bool = True
    ) -> agent_pb2.PlanAck:
        log.warning("plan refused", extra={"reason": reason, "detail": message})
        if loud:
            self._report("PlanRefused", f"{reason}: {message}")
        return agent_pb2.PlanAck(
            generation=signed.generation, accepted=False, reason=reason, message=message
        )

    async def _save(self, signed: plan_pb2.SignedNodePlan) -> None:
        try:
            await asyncio.to_thread(self._files.write, signed)
        except OSError as error:
            self._unsaved = signed
            self._not_writable(error)
        else:
            self._unsaved = None
            self._conditions.clear(CONDITION)

    async def _save_again(self) -> None:
        if self._unsaved is not None:
            await self._save(self._unsaved)

    async def retry_save(self) -> None:
        """Call now and then: a plan that could not be written is written once the disk allows."""
        async with self._lock:
            await self._save_again()

    def _not_writable(self, error: OSError) -> None:
        reason = "DiskFull" if error.errno == DISK_FULL else "WriteFailed"
        message = (
            f"{self._files.directory}: {error.strerror or error}; a restart would lose the plan"
        )
        self._conditions.set(CONDITION, reason, message)
