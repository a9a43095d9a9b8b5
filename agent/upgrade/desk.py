"""Upgrades of this agent: hears what it is to become, gets it ready, and lets the box install it.

`upgrades.py` makes one Desk once there is something to do, and hands in what an orchestrator says.
What follows from what is pure (`agent/domain/upgrade.py`). The installer is no part of the agent:
it ends it.
"""

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from dataclasses import asdict

import grpc

from agent import state_form
from agent.domain.upgrade import (
    Ended,
    Event,
    Failed,
    Fetched,
    Here,
    Phase,
    State,
    Telling,
    Told,
    Verified,
    Withdrawn,
    step,
)
from agent.identity_store import (
    CALL_TIMEOUT_S,
    CredentialsRefused,
    IdentityFailure,
    IdentityStore,
    from_pem,
)
from agent.upgrade.fetch import FetchFailed, FetchRefused, check_room, fetch
from agent.upgrade.files import ORDER, OUTCOME, TAKEN, UpgradeFiles
from agent.upgrade.order import UnreadableOrder, order_of, outcome_of, telling_of
from polder.release import InvalidRelease, Release, SignedRelease, read_release
from polder.v1 import agent_pb2

log = logging.getLogger(__name__)

RETRY_S, RETRY_MAX_S = 2.0, 60.0
POLL_S = 1.0
UNTAKEN_S = 120.0  # systemd starts the installer within a second


class Desk:
    """First `boot`, then `run`. `here` tells what runs on this box, `publish` that there is
    something to say."""

    def __init__(
        self,
        files: UpgradeFiles,
        store: IdentityStore,
        here: Callable[[], Here],
        *,
        poll_s: float = POLL_S,
        retry_s: float = RETRY_S,
        untaken_s: float = UNTAKEN_S,
    ) -> None:
        self.publish: Callable[[], None] = lambda: None
        self._files = files
        self._store = store
        self._here = here
        self._poll_s = poll_s
        self._retry_s = retry_s
        self._untaken_s = untaken_s
        self._state = State()
        self._trouble = ""  # why it does not get on
        self._since_ms = 0
        self._channel: grpc.aio.Channel | None = None
        self._changed = asyncio.Event()
        self._new_channel = asyncio.Event()

    # --- the session's side ---------------------------------------------------------------------

    def told(self, channel: grpc.aio.Channel, said: agent_pb2.AgentUpgrade) -> None:
        """Nothing here blocks. Packages come over the newest connection that told of them."""
        if said.withdrawn:
            self._feed(Withdrawn(said.id))
            return
        self._channel = channel
        self._new_channel.set()
        wanted, present = _signed(said.wanted), _signed(said.present)
        self._feed(Told(Telling(said.id, said.attempt, wanted, present, said.patience_s)))

    def status(self) -> agent_pb2.UpgradeStatus | None:
        """None: there was never anything."""
        state, outcome = self._state, self._state.outcome
        if outcome is not None:
            facts = asdict(outcome)
            return agent_pb2.UpgradeStatus(**facts)
        if state.telling is None or state.phase is Phase.VERIFYING:
            return None
        return agent_pb2.UpgradeStatus(
            id=state.telling.id,
            attempt=state.telling.attempt,
            version=state.version,
            phase=state.phase.capitalize(),
            message=self._trouble,
            at_ms=self._since_ms,
        )

    # --- the work ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. What goes wrong with an upgrade never ends the agent."""
        while True:
            self._changed.clear()
            if self._state.phase in (Phase.IDLE, Phase.ENDED):
                await self._settle()
                await self._changed.wait()
                continue
            state = self._state
            event = await self._event_of(state)
            if event is not None:
                self._feed(event)

    async def _event_of(self, state: State) -> Event | None:
        """Of the phase's work; None: something else has come in between."""
        work = asyncio.create_task(self._work(state))
        try:
            while self._is_at(state):
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait({work, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                self._changed.clear()
                if work.done() and self._is_at(state):
                    return work.result()
            return None
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def _is_at(self, state: State) -> bool:
        """What only waits for the end of it changes nothing."""
        return self._state.phase is state.phase and self._state.telling is state.telling

    async def boot(self) -> None:
        """As the disk has it: an order that is the installer's, or what became of the last one."""
        files = self._files
        outcome = outcome_of(files.read(OUTCOME))
        order = files.read(TAKEN) or files.read(ORDER)
        if outcome is not None:
            self._state = State(Phase.ENDED, version=outcome.version, outcome=outcome)
        if order is not None:
            try:
                telling = telling_of(order)
                version = read_release(telling.wanted.release).version
            except UnreadableOrder as error:
                log.warning("the order cannot be read", extra={"error": str(error)})
                return
            if outcome is None or outcome.key != telling.key:
                self._state = State(Phase.INSTALLING, telling, version)
                self._since_ms = _now_ms()

    def _feed(self, event: Event) -> None:
        before = self._state
        self._state = step(before, event, self._here(), _now_ms())
        if self._state == before:
            return
        self._trouble, self._since_ms = "", _now_ms()
        facts = {"phase": self._state.phase.value, "version": self._state.version}
        if self._state.outcome is not None:
            outcome = self._state.outcome
            facts |= {"outcome": outcome.phase, "reason": outcome.reason, "why": outcome.message}
        log.info("upgrade", extra=facts)
        self._changed.set()
        self.publish()

    async def _settle(self) -> None:
        """What has ended is on the disk; the state has our form unless we are on trial."""
        outcome = self._state.outcome
        on_trial = self._state.phase is Phase.INSTALLING
        try:
            if outcome is not None and outcome_of(self._files.read(OUTCOME)) != outcome:
                self._files.prepare()
                await asyncio.to_thread(self._files.write, OUTCOME, asdict(outcome))
            if not on_trial:
                state_form.raise_form(self._files.folder.parent)
        except OSError as error:
            log.warning("the upgrade's outcome is not saved", extra={"error": str(error)})

    async def _work(self, state: State) -> Event:
        """What the phase asks for, to its end."""
        try:
            if state.phase is Phase.VERIFYING:
                return await self._verify(state)
            if state.phase is Phase.DOWNLOADING:
                return await self._download(state)
            return await self._install(state)
        except OSError as error:
            full = error.errno == errno.ENOSPC
            text = f"{error.filename or self._files.folder}: {error.strerror or error}"
            return Failed("NoRoom" if full else "StateNotWritable", text)
        except Exception as error:  # a mistake of ours ends the upgrade, and not the agent
            log.exception("upgrade failed")
            return Failed("Internal", f"{type(error).__name__}: {error}")

    async def _verify(self, state: State) -> Event:
        assert state.telling is not None
        telling, wait_s = state.telling, self._retry_s
        while True:
            try:
                wanted = await verified(self._store, telling.wanted)
                present = await verified(self._store, telling.present)
                return Verified(wanted, present)
            except CredentialsRefused as error:
                return Failed(error.reason, str(error))
            except InvalidRelease as error:
                return Failed("BadRelease", str(error))
            except (IdentityFailure, ValueError) as error:
                log.warning("release not verified", extra={"error": str(error)})
            await asyncio.sleep(wait_s)
            wait_s = min(RETRY_MAX_S, 2 * wait_s)

    async def _download(self, state: State) -> Event:
        assert state.wanted is not None and state.present is not None
        packages, wait_s = (state.present, state.wanted), self._retry_s
        self._files.prepare()
        self._files.keep_packages(package.sha256 for package in packages)
        while True:
            self._new_channel.clear()
            try:
                check_room(self._files, packages)
                for package in packages:
                    if self._channel is None:
                        raise FetchFailed("there is no session")
                    await fetch(self._channel, self._files, package)
                return Fetched()
            except FetchRefused as error:
                return Failed(error.reason, str(error))
            except FetchFailed as error:
                self._complain(str(error))
            try:
                async with asyncio.timeout(wait_s):
                    await self._new_channel.wait()
            except TimeoutError:
                wait_s = min(RETRY_MAX_S, 2 * wait_s)
            else:
                wait_s = self._retry_s

    def _complain(self, message: str) -> None:
        if message != self._trouble:
            self._trouble = message
            log.warning("an upgrade does not get on", extra={"error": message})
            self.publish()

    async def _install(self, state: State) -> Event:
        """Order, and wait for what the installer says: it may well end this process first."""
        files = self._files
        assert state.telling is not None
        if not files.exists(ORDER) and not files.exists(TAKEN) and state.wanted is not None:
            await asyncio.to_thread(files.write, ORDER, order_of(state))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._untaken_s
        while True:
            # In this order: the outcome is there before the order goes.
            untaken = files.exists(ORDER)
            taken = files.read(TAKEN)
            gone = not untaken and not files.exists(TAKEN)
            outcome = outcome_of(files.read(OUTCOME))
            if outcome is not None and outcome.key == state.telling.key:
                return Ended(outcome)
            if taken is not None and taken.get("back_trouble"):
                self._complain(f"cannot go back: {taken['back_trouble']}")
            if gone:
                return Failed("NoInstaller", "the order is gone, and nobody said what became of it")
            if untaken and loop.time() >= deadline and files.take_back():
                text = "systemd did not start edge-upgrade.service: is edge-upgrade.path active?"
                return Failed("NoInstaller", text)
            await asyncio.sleep(self._poll_s)


async def verified(store: IdentityStore, signed: SignedRelease) -> Release:
    """What a release says, if our root signed it. Raises CredentialsRefused, IdentityFailure,
    InvalidRelease, and ValueError for an identity that cannot be read."""
    identity = store.load()
    roots = from_pem(identity.roots_pem)
    header: dict[str, object] = {"trust_domain": identity.id.trust_domain}
    parts = [signed.release, signed.signature, *roots]
    await store.credentials("verify-release", header, parts, timeout_s=CALL_TIMEOUT_S)
    return read_release(signed.release)


def _signed(said: agent_pb2.SignedRelease) -> SignedRelease:
    return SignedRelease(said.release, said.signature)


def _now_ms() -> int:
    return int(time.time() * 1000)
