"""What an operator changes at the site: asked of this node, which does it or says why it cannot.

Called by `agent/local/server.py`. Whether it can be done is the site's machine to say, and what it
decides stands on the disk before it is answered (`SiteLoop.change`). Here it is put in its words,
done once for each id, and journaled. A restart is no decision that lasts: it is done by the node
that runs the replica.
"""

import asyncio
import time

from agent.local.callers import Caller
from agent.local.journal import NOWHERE, Journal, NotWritten, Target, named
from agent.local.refusals import Refused as CallRefused
from agent.local.refusals import invalid, not_allowed, not_found, not_now, unavailable
from agent.local.replicas import Replicas
from agent.site.deciding import Refused
from agent.site.loop import SiteLoop
from polder.overrides import (
    FROZEN,
    PLACED_ON,
    REASON_MAX,
    STOPPED,
    TRUE,
    BadOverride,
    Override,
    to_message,
)
from polder.v1 import local_pb2

RESTART = "restart"
_DECISIONS = {
    "stop": (STOPPED, TRUE),
    "start": (STOPPED, ""),
    "move": (PLACED_ON, None),
    "freeze": (FROZEN, TRUE),
    "unfreeze": (FROZEN, ""),
}
_SITE = ("freeze", "unfreeze")
_ELSEWHERE = ("UnknownReplica", "NotHere")
_DONE = {
    "stop": "{name} stops, wherever it runs at this site, and stays stopped",
    "start": "{name} may run again",
    "move": "{name} is taken over by {node}; it stops where it runs now",
    "freeze": "nothing is taken over, moved or resolved at this site until it is unfrozen",
    "unfreeze": "the site takes replicas over again",
    RESTART: "the containers of {name} are exchanged for new ones",
}
_WOULD = "nothing was done; it would be: "
ID_MAX = 100
ANSWERS_MAX = 128

_Key = tuple[str, bytes]
"""By whom, and all that was asked for: its id alone does not tell one change from another."""


class Changing:
    """Puts what `site` decides in words."""

    def __init__(self, site: SiteLoop, replicas: Replicas, journal: Journal) -> None:
        self._site = site
        self._replicas = replicas
        self._journal = journal
        self._answers: dict[_Key, asyncio.Task[local_pb2.ChangeResponse]] = {}

    async def change(
        self, caller: Caller, request: local_pb2.ChangeRequest
    ) -> local_pb2.ChangeResponse:
        """Raises Refused and NotWritten."""
        self._check(request)
        if request.dry_run:
            return await self._once(caller, request)
        key = (caller.by, request.SerializeToString(deterministic=True))
        known = self._answers.get(key)
        if known is None:
            # In a task of its own: what was begun is not left half done when its caller goes away.
            known = self._answers[key] = asyncio.create_task(self._once(caller, request))
            while len(self._answers) > ANSWERS_MAX:
                del self._answers[next(iter(self._answers))]
            known.add_done_callback(lambda task: self._forget(key, task))
        return await asyncio.shield(known)

    def _forget(self, key: "_Key", task: "asyncio.Task[local_pb2.ChangeResponse]") -> None:
        """What was refused may be tried again."""
        if task.cancelled() or task.exception() is not None:
            self._answers.pop(key, None)

    def _check(self, request: local_pb2.ChangeRequest) -> None:
        if request.verb not in _DONE:
            raise invalid(f"{request.verb[:40]!r} is none of {', '.join(_DONE)}")
        if not 0 < len(request.id) <= ID_MAX:
            raise invalid("a change needs an id, so that it is made once only")
        if len(request.reason) > REASON_MAX:
            raise invalid(f"the reason has more than {REASON_MAX} characters")
        if (request.verb == "move") != bool(request.to_node):
            raise invalid("move names the node to which, and no other change names one")
        of_site = request.verb in _SITE
        if of_site == bool(request.namespace or request.replica):
            what = "of the whole site" if of_site else "of one replica, with its namespace"
            raise invalid(f"{request.verb} is {what}")

    async def _once(
        self, caller: Caller, request: local_pb2.ChangeRequest
    ) -> local_pb2.ChangeResponse:
        target = NOWHERE
        try:
            target = self._target(caller, request)
            override = await self._do(caller, request, target)
        except (CallRefused, Refused) as error:
            refused = _refused(error)
            if not request.dry_run:
                await self._note_refusal(caller, request, target, refused)
            raise refused from error
        name = f"{request.namespace}/{request.replica}"
        message = _DONE[request.verb].format(name=name, node=request.to_node)
        if request.dry_run:
            return local_pb2.ChangeResponse(message=_WOULD + message)
        answer = local_pb2.ChangeResponse(message=message)
        if override is not None:
            answer.override.CopyFrom(to_message(override))
            try:
                await self._write(caller, request, target)
            except NotWritten as error:  # it is done, and the override itself says by whom
                answer.warnings.append(str(error))
        return answer

    def _target(self, caller: Caller, request: local_pb2.ChangeRequest) -> Target:
        if request.verb not in _SITE:
            return self._replicas.target(caller, request.verb, request.namespace, request.replica)
        message, hint = caller.objection(request.verb, "", "")
        if message:
            raise not_allowed(message, hint)
        return NOWHERE

    async def _do(
        self, caller: Caller, request: local_pb2.ChangeRequest, target: Target
    ) -> Override | None:
        """None for what does not last. Raises Refused of either kind, and NotWritten."""
        if request.verb == RESTART:
            await self._restart(caller, request, target)
            return None
        field, value = _DECISIONS[request.verb]
        try:
            wanted = Override(
                field=field,
                value=request.to_node if value is None else value,
                workload_uid=target.workload_uid,
                namespace=target.namespace,
                replica=target.replica,
                id=request.id,
                by=caller.by,
                reason=request.reason,
                at_ms=int(time.time() * 1000),
            )
        except BadOverride as error:
            raise invalid(str(error)) from error
        if request.dry_run:
            self._site.check(wanted)
            return None
        made = await self._site.change(wanted)
        if (made.register, made.value) != (wanted.register, wanted.value):
            raise invalid("another change was made with that id")
        return made

    async def _restart(
        self, caller: Caller, request: local_pb2.ChangeRequest, target: Target
    ) -> None:
        """Journaled before: nothing else will tell of it."""
        key = (target.workload_uid, target.replica)
        why = f"{caller.by} restarted it: {request.reason}".removesuffix(": ")
        await self._site.restart(key, request.id, why, dry_run=True)
        if not request.dry_run:
            await self._write(caller, request, target)
            await self._site.restart(key, request.id, why)

    async def _write(
        self, caller: Caller, request: local_pb2.ChangeRequest, target: Target
    ) -> None:
        await self._journal.write(
            caller, request.verb, target=target, detail=request.to_node, reason=request.reason
        )

    async def _note_refusal(
        self,
        caller: Caller,
        request: local_pb2.ChangeRequest,
        target: Target,
        refused: CallRefused,
    ) -> None:
        """Of what this node does not know the name that was given."""
        await self._journal.refuse(
            caller,
            request.verb,
            refused.message,
            target=target if target.replica else named(request.namespace, request.replica),
            detail=request.to_node,
            reason=request.reason,
        )


def _refused(error: CallRefused | Refused) -> CallRefused:
    """As callers are told it."""
    if isinstance(error, CallRefused):
        return error
    if error.reason in _ELSEWHERE:
        return not_found(error.reason, error.message, "ask the node that runs it")
    if error.reason in ("NotWritable", "Restarting"):
        return unavailable(error.reason, error.message)
    return not_now(error.reason, error.message)
