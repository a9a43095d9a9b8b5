"""What operators decide, on its way into the machine: signed here, and checked if peers say it.

`agent/site/loop.py` has one and gives it what its operators want and what its peers say. A decision
goes from node to node by detours, so each bears the signature of the node that it was made at
(`proofs.py`); the machine hears of none that does not. It signs nothing itself: it drafts, and is
asked again with what was signed. Signing takes a tenth of a second, in which something may happen
that the draft did not know of; then it is drafted anew.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from agent.domain.site.machine import SiteMachine
from agent.domain.site.messages import (
    Answer,
    Event,
    OperatorDecided,
    Overrides,
    PeerSaid,
    Refusal,
)
from agent.domain.site.overrides import OVERTAKEN
from agent.identity_store import IdentityFailure
from agent.local.tries import Tries
from agent.site.proofs import Proofs
from agent.steady_clock import boottime
from polder.overrides import Override, newer, words

log = logging.getLogger(__name__)

DRAFTS_MAX = 5
LOOKS = 20  # at what one peer said, in a minute: each costs a process
COMPLAINTS = 2  # of one peer, likewise
RETRY_S = 5.0


class Refused(Exception):
    """What a local operator wants is not done. `reason`: CamelCase, see `refusing.py`."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.reason, self.message = refusal.reason, refusal.message


class Deciding:
    """`handle` gives an event to the machine; False: that has failed. `report`: (reason, message),
    an event of the node."""

    def __init__(
        self,
        machine: SiteMachine,
        proofs: Proofs,
        handle: Callable[[Event], bool],
        report: Callable[[str, str], None],
    ) -> None:
        self._machine = machine
        self._proofs = proofs
        self._handle = handle
        self._report = report
        self._turn = asyncio.Lock()
        self._changes: dict[str, asyncio.Task[Answer]] = {}
        self._answers: dict[str, asyncio.Future[Answer]] = {}
        self._heard: dict[str, Overrides] = {}
        self._wake = asyncio.Event()
        self._looks, self._complaints = Tries(LOOKS), Tries(COMPLAINTS)

    # ---- operators at this node ----

    def check(self, wanted: Override) -> None:
        """Raises Refused if `change` would. Changes nothing."""
        draft = self._machine.draft(wanted, boottime())
        if isinstance(draft, Refusal):
            raise Refused(draft)

    async def change(self, wanted: Override) -> Override:
        """As it stands on the disk. With the id of a change that was made: that one. Raises
        Refused."""
        if not wanted.id:
            raise Refused(Refusal("NoId", "a change needs an id, so that it is made once only"))
        making = self._changes.get(wanted.id)
        if making is None:
            # In a task of its own: it goes on when its caller goes away.
            making = self._changes[wanted.id] = asyncio.create_task(self._make(wanted))
            making.add_done_callback(lambda _task: self._changes.pop(wanted.id, None))
        answer = await asyncio.shield(making)
        if answer.override is None:
            raise Refused(answer.refusal or Refusal("Unknown", "it was not made"))
        return answer.override

    def answered(self, answer: Answer) -> None:
        """The machine says what became of it."""
        waiting = self._answers.pop(answer.id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def _make(self, wanted: Override) -> Answer:
        answer = Answer(wanted.id, None, OVERTAKEN)
        for _ in range(DRAFTS_MAX):
            if answer.refusal != OVERTAKEN:
                break
            answer = await self._attempt(wanted)
        return answer

    async def _attempt(self, wanted: Override) -> Answer:
        async with self._turn:
            draft = self._machine.draft(wanted, boottime())
            if isinstance(draft, Refusal):
                return Answer(wanted.id, None, draft)
            try:
                signed = await self._proofs.sign(draft)
            except IdentityFailure as error:
                text = f"this node cannot sign it: {error}"
                return Answer(wanted.id, None, Refusal("NotWritable", text))
            waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._answers[wanted.id] = waiting
            if not self._handle(OperatorDecided(signed)):
                return Answer(
                    wanted.id, None, Refusal("Restarting", "this agent is about to begin anew")
                )
        return await waiting

    # ---- peers ----

    def hear(self, node: str, told: Overrides) -> None:
        """A peer tells all that it knows: of several words that wait the last one counts."""
        self._heard[node] = told
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            waits = [self._looks.wait_s(node, clock()) for node in self._heard]
            if not waits or min(waits) > 0:
                self._wake.clear()
                try:
                    async with asyncio.timeout(min(waits, default=None)):
                        await self._wake.wait()
                except TimeoutError:
                    pass
            for node in list(self._heard):
                if self._looks.wait_s(node, clock()) <= 0:
                    await self._look(node, self._heard.pop(node))

    async def _look(self, node: str, told: Overrides) -> None:
        """Takes up what is new, and was written by whom it names. A conflict is for an orchestrator
        to say."""
        known = {override.register: override for override in self._machine.overrides()}
        fresh = newer(told.overrides, known)
        if not fresh:
            return
        self._looks.note(node, asyncio.get_running_loop().time())
        try:
            unproven = await self._proofs.unproven(fresh)
        except IdentityFailure as error:
            log.warning("what a peer decided is not taken yet: %s", error, extra={"peer": node})
            self._heard.setdefault(node, told)
            await asyncio.sleep(RETRY_S)
            return
        if unproven:
            self._complain(node, [(fresh[place], why) for place, why in unproven.items()])
        proven = [one for place, one in enumerate(fresh) if place not in unproven]
        if proven:
            said = Overrides(tuple(replace(one, conflict="") for one in proven))
            self._handle(PeerSaid(node, said))

    def _complain(self, node: str, found: list[tuple[Override, str]]) -> None:
        now = asyncio.get_running_loop().time()
        if self._complaints.wait_s(node, now) > 0:
            return
        self._complaints.note(node, now)
        override, why = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        text = f"{node} says of {override.replica or 'the site'}: {words(override)}{more}; {why}"
        self._report("OverrideUnproven", text)
