"""Brings watches to a revision whose changes are somebody else's.

Called by the adapter after it told a revision. etcd counts the writes of all its users in one row,
and tells a watch of those below its span alone: in an etcd that is shared, or restored, who waits
for a mirror to be at the told revision would wait for the next write of our own. Where an answer to
a progress request comes in order with the events, it is asked for. Before etcd 3.4.25 and 3.5.8 it
does not; there a mark of our own is written, which every watch of every member then sees. Nobody
pays for either who has an etcd alone: then the last revision is always an event below our root.
"""

import asyncio
import contextlib
import logging

import grpc

from orchestrator.store.etcd.client import EtcdClient, Follower
from orchestrator.store.etcd.errors import Broken, is_temporary
from orchestrator.store.etcd.link import REQUIRE_LEADER
from orchestrator.store.etcd.pb import rpc_pb2 as pb
from orchestrator.store.port import StoreUnavailable

log = logging.getLogger(__name__)

_PATIENCE_S = 0.03
"""An event of ours that is on its way comes within this: then nothing needs to be asked."""
_MARK_PATIENCE_S = 0.1
_PAUSE_S_MAX = 0.25
_WAIT_S_MAX = 3.0
_MARK_TIMEOUT_S = 1.0


class Progress:
    """`mark` is a key that every watch of all our keys sees."""

    def __init__(self, client: EtcdClient, mark: bytes) -> None:
        self._client = client
        self._mark = mark
        self._wanted = 0
        self._marked = 0
        self._task: asyncio.Task[None] | None = None

    def reach(self, revision: int) -> None:
        """See to it that watches of all our keys come to this revision. Returns at once."""
        self._wanted = max(self._wanted, revision)
        if (self._task is None or self._task.done()) and self._late():
            self._task = asyncio.create_task(self._go_on(), name="etcd-progress")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _late(self) -> list[Follower]:
        return [
            one
            for one in self._client.followers
            if one.covered < self._wanted and one.covers(self._mark)
        ]

    async def _go_on(self) -> None:
        clock = asyncio.get_running_loop().time
        begun = clock()
        pause_s = _PATIENCE_S
        while not self._client.closed.is_set() and clock() - begun < _WAIT_S_MAX:
            await asyncio.sleep(pause_s)
            late = self._late()
            if not late:
                return
            with contextlib.suppress(Broken, StoreUnavailable, grpc.RpcError, grpc.aio.UsageError):
                for one in late:  # those that broke are the watch's business
                    if one.link.in_order:
                        await one.ask_progress()
            old = any(not one.link.in_order for one in late)
            if old and clock() - begun >= _MARK_PATIENCE_S and self._marked < self._wanted:
                await self._write_mark()
            pause_s = min(_PAUSE_S_MAX, 2 * pause_s)

    async def _write_mark(self) -> None:
        """Whether it stands does not matter: the next question finds out."""
        put = pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(key=self._mark))])
        try:
            link = await self._client.link()
            answer = await link.kv.Txn(put, timeout=_MARK_TIMEOUT_S, metadata=REQUIRE_LEADER)
        except (StoreUnavailable, grpc.aio.UsageError) as error:
            log.debug("no mark was written: %s", error)
        except grpc.RpcError as error:
            log.log(
                logging.DEBUG if is_temporary(error) else logging.INFO,
                "no mark was written: %s",
                error,
            )
        else:
            self._marked = answer.header.revision
