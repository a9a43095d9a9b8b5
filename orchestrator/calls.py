"""Streams that are open, by identity: closed when the identity is revoked or its time is up.

The front door (rpc.py) registers every streaming call; a subscription to the mirror and a sweep
each second end those whose certificate counts no more.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.authz import Caller
from orchestrator.cache import Cache, Change
from orchestrator.identity.peers import check_expiry, check_record, record_name
from orchestrator.records import IdentityRecord
from orchestrator.refusals import Refused, exhausted
from orchestrator.store import keys
from polder.identity import MemberId, NodeId

STREAMS_PER_IDENTITY_MAX = 128
STREAMS_PER_MEMBER_MAX = 256
"""Another member forwards the logs and execs of many operators, over one connection."""
_SWEEP_EVERY_S = 1.0


@dataclass(eq=False, slots=True)
class LiveCall:
    """One running stream. `refusal` is why it is being closed; its task is then cancelled.

    joined_at_ms: of the node's identity that admitted it; 0 until the mirror knows it.
    """

    caller: Caller
    task: "asyncio.Task[object]"
    refusal: Refused | None = None
    joined_at_ms: int = 0

    def close(self, refusal: Refused) -> None:
        self.refusal = self.refusal or refusal
        self.task.cancel()


class LiveCalls:
    """Every open stream of this member."""

    def __init__(self, cache: Cache, clock: Callable[[], float]) -> None:
        self._cache = cache
        self._clock = clock
        self._calls: defaultdict[tuple[str, str], set[LiveCall]] = defaultdict(set)
        self._refusal: Callable[[], Refused] | None = None
        cache.subscribe(self._on_changes)

    def refuse(self, refusal: Callable[[], Refused] | None) -> None:
        """From now on nobody is served, whoever calls: streams end at once, without a goodbye.
        None: everybody is served again."""
        self._refusal = refusal
        if refusal is not None:
            for calls in list(self._calls.values()):
                for call in list(calls):
                    call.close(refusal())

    def check_open(self) -> None:
        """Before a call is served. Raises Refused."""
        if self._refusal is not None:
            raise self._refusal()

    @contextmanager
    def registered(self, caller: Caller) -> Iterator[LiveCall]:
        """Around a stream's handler, in its task. Raises Refused (TooManyStreams)."""
        task = asyncio.current_task()
        assert task is not None
        if caller.identity is None:
            yield LiveCall(caller, task)
            return
        name = record_name(caller.identity)
        is_member = isinstance(caller.identity, MemberId)
        streams_max = STREAMS_PER_MEMBER_MAX if is_member else STREAMS_PER_IDENTITY_MAX
        if len(self._calls[name]) >= streams_max:
            raise exhausted("TooManyStreams", f"{caller} has too many open streams", "close some")
        call = LiveCall(caller, task)
        record = self._cache.identity(*name)
        if record is not None and record.accepts(caller.serial):
            call.joined_at_ms = record.joined_at_ms
        self._calls[name].add(call)
        try:
            yield call
        finally:
            self._calls[name].discard(call)
            if not self._calls[name]:
                del self._calls[name]

    def count(self, kind: str, name: str) -> int:
        """Open streams of one identity."""
        return len(self._calls.get((kind, name), ()))

    def close_all(self, kind: str, refusal: Refused) -> None:
        """Ends every stream of one kind of identity: `node` or `operator`."""
        for (found, _), calls in list(self._calls.items()):
            if found == kind:
                for call in list(calls):
                    call.close(refusal)

    @property
    def total(self) -> int:
        return sum(len(calls) for calls in self._calls.values())

    async def run(self) -> None:
        """Closes streams whose certificate ran out, until it is cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            now = self._clock()
            for name, calls in list(self._calls.items()):
                if all(call.joined_at_ms and now < call.caller.expires_at for call in calls):
                    continue  # its record was seen, and tells of its changes itself
                record = self._cache.identity(*name)
                self._check(name, record, known=record is not None)

    def _on_changes(self, changes: list[Change]) -> None:
        for change in changes:
            if not change.key.startswith(keys.IDENTITIES):
                continue
            kind, _, name = change.key.removeprefix(keys.IDENTITIES).partition("/")
            record = change.value if isinstance(change.value, IdentityRecord) else None
            self._check((kind, name), record, known=True)

    def _check(self, name: tuple[str, str], record: IdentityRecord | None, *, known: bool) -> None:
        """`known`: the record says something. It does not while the mirror is behind a join."""
        for call in list(self._calls.get(name, ())):
            try:
                if known and not isinstance(call.caller.identity, MemberId):
                    _check_record(call, record)
                check_expiry(call.caller, record, self._clock())
            except Refused as refusal:
                call.close(refusal)


def _check_record(call: LiveCall, record: IdentityRecord | None) -> None:
    """Raises Refused when the stream must end.

    Logs and execs of a node outlive the certificate that opened them when the node moves on to a
    newer one; they end when it is revoked, or when its name has joined anew.
    """
    if isinstance(call.caller.identity, NodeId) and record is not None:
        renewed = 0 < call.joined_at_ms == record.joined_at_ms
        if renewed and not record.revoked_at_ms:
            return
    check_record(call.caller, record)
    if record is not None:
        call.joined_at_ms = record.joined_at_ms
