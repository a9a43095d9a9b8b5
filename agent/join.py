"""`edge-agent join`: trade a token for an identity. Called by `agent/main.py`; runs once and ends.

The token pins the root certificate, so a box never talks to whoever answers first. The secret is
sent only after the server has proved itself.
"""

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from agent.channel import detail_of, open_join_channel
from agent.domain import clock
from agent.domain.site.lease_record import JOINED, NAME
from agent.identity_store import IdentityFailure, IdentityStore, NodeIdentity, NotJoined, to_pem
from agent.inventory import Box, machine_id
from agent.site import memory
from agent.site.switch_client import places
from polder.identity import NodeId
from polder.tokens import JoinToken
from polder.v1 import agent_pb2, agent_pb2_grpc

DEADLINE_S = 15.0
DIAL_S = 5.0  # a region that is cut off answers nothing: its addresses are in the token, too
_NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")
# Another endpoint may do what this one could not; everything else is an answer.
_TEMPORARY = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNIMPLEMENTED,
    )
)


class JoinFailed(Exception):
    """The box has not joined; the message says why and what to do. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Joined:
    """`already`: it had joined before, and nothing was done."""

    identity: NodeIdentity
    already: bool = False


def default_node_name(hostname: str) -> str:
    """The host name as a node name: lower case, without what a name may not hold.

    Raises JoinFailed when nothing is left.
    """
    name = re.sub(r"[^a-z0-9.-]+", "-", hostname.lower())[:63].strip("-.")
    if not _NODE_NAME.fullmatch(name):
        raise JoinFailed(f"the host name {hostname!r} makes no node name: give one with --node")
    return name


def already_joined(store: IdentityStore, token: JoinToken, node: str) -> Joined | None:
    """The identity in place if it is what the token would give. JoinFailed if it is another."""
    try:
        identity = store.load()
    except NotJoined:
        return None
    except IdentityFailure as error:
        raise JoinFailed(str(error)) from error
    held = identity.id
    wanted = node or token.node
    # `to_pem` of the pinned root is found verbatim in the bundle that the installation gave us.
    same_installation = to_pem([token.ca]) in identity.roots_pem
    if same_installation and held.site == token.site and wanted in ("", held.node):
        return Joined(identity, already=True)
    raise JoinFailed(
        f"this box has joined as {held}; to join again as {wanted or 'another node'} "
        f"(site {token.site}), stop the agent and use --force"
    )


async def join(
    store: IdentityStore,
    token: JoinToken,
    *,
    node: str,
    version: str,
    now: float | None = None,
    box: Box | None = None,
) -> Joined:
    """Get and store the identity. `box`: where its machine id is. Raises JoinFailed."""
    moment = time.time() if now is None else now
    name = node_to_be(token, node, moment)
    try:
        staged = await store.stage()
    except IdentityFailure as error:
        raise JoinFailed(str(error)) from error
    try:
        request = agent_pb2.JoinRequest(
            token_secret=token.secret,
            node=name,
            csr=staged.csr,
            agent_version=version,
            machine_id=machine_id(box or Box()),
        )
        answer = await _ask_any(token, request, moment)
        expected = NodeId(answer.trust_domain, answer.site, answer.node)
        identity = await staged.commit(
            answer.certificate_chain, answer.trust_bundle, answer.endpoints, expected=expected
        )
    except IdentityFailure as error:
        staged.discard()
        raise JoinFailed(f"{error} (the token is used up: make a new one)") from error
    except BaseException:
        staged.discard()
        raise
    return Joined(identity)


def node_to_be(token: JoinToken, node: str, now: float) -> str:
    """The name that the box would get, as far as the box itself can tell. Raises JoinFailed."""
    name = _chosen_name(token, node)
    if clock.is_impossible(now):
        raise JoinFailed(
            f"this box's clock says {_utc(now)}: no certificate is valid then; {clock.FIX}"
        )
    if token.expires_at_ms and now > token.expires_at_ms / 1000:
        late = int(now - token.expires_at_ms / 1000)
        raise JoinFailed(
            f"the token expired {late} s ago by this box's clock ({_utc(now)}); "
            "make a new one (edgectl token create), or set the clock if it is wrong"
        )
    if not token.endpoints:
        raise JoinFailed("the token names no orchestrator; make a new one (edgectl token create)")
    return name


def is_first(store: IdentityStore) -> bool:
    """Whether this box never had an identity."""
    try:
        store.load()
    except NotJoined:
        return True
    except IdentityFailure:
        return False
    return False


def begin_memory(state_dir: Path) -> None:
    """As what it joins, this node has voted on nothing yet. Without that word it would have to take
    an empty memory for one that was lost, and would grant no lease in its first twenty seconds."""
    directory, _ = places(state_dir)
    with contextlib.suppress(OSError):
        memory.begin(directory, {NAME: JOINED})


def _chosen_name(token: JoinToken, node: str) -> str:
    if node and token.node and node != token.node:
        raise JoinFailed(f"the token is for node {token.node!r}, not {node!r}")
    name = node or token.node or default_node_name(socket.gethostname())
    if not _NODE_NAME.fullmatch(name):
        raise JoinFailed(
            f"{name!r} is no node name: lower-case letters, digits, '-' and '.', at most 63"
        )
    return name


async def _ask_any(
    token: JoinToken, request: agent_pb2.JoinRequest, now: float
) -> agent_pb2.JoinResponse:
    troubles = []
    for endpoint in token.endpoints:
        try:
            return await _ask(endpoint, token, request)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _TEMPORARY:
                raise JoinFailed(_refusal(error)) from error
            troubles.append(_trouble(endpoint, error, now))
        except TimeoutError:
            troubles.append(f"{endpoint} did not answer within {DIAL_S:g} s")
    raise JoinFailed("\n".join(_distinct(troubles)))


async def _ask(
    endpoint: str, token: JoinToken, request: agent_pb2.JoinRequest
) -> agent_pb2.JoinResponse:
    """Raises AioRpcError, and TimeoutError when there is no connection."""
    channel = open_join_channel(endpoint, to_pem([token.ca]))
    loop = asyncio.get_running_loop()
    patience = asyncio.timeout(None)

    def check_dialled() -> None:
        if channel.get_state() is not grpc.ChannelConnectivity.READY:
            patience.reschedule(loop.time())

    check = loop.call_later(DIAL_S, check_dialled)
    try:
        async with patience:
            stub = agent_pb2_grpc.AgentServiceStub(channel)
            answer: agent_pb2.JoinResponse = await stub.Join(request, timeout=DEADLINE_S)
            return answer
    finally:
        check.cancel()
        await channel.close(None)


def _refusal(error: grpc.aio.AioRpcError) -> str:
    """What the server said, and what can be done about it."""
    detail = detail_of(error.trailing_metadata())
    said = error.details() or error.code().name
    hint = detail.hint if detail else ""
    reason = f" ({detail.reason})" if detail and detail.reason else ""
    return f"the orchestrator refused{reason}: {said}" + (f"\n{hint}" if hint else "")


def _trouble(endpoint: str, error: grpc.aio.AioRpcError, now: float) -> str:
    """One line on why an endpoint could not be asked."""
    said = error.details() or ""
    lower = said.lower()
    if "certificate has expired" in lower or "certificate is not yet valid" in lower:
        return (
            f"the certificate of the orchestrator at {endpoint} is not valid now; "
            f"this box's clock says {_utc(now)}: is it right? If not, {clock.FIX}"
        )
    if "certificate_verify_failed" in lower or "hostname" in lower:
        return (
            f"the orchestrator at {endpoint} is not signed by the CA that this token pins: "
            "the token is from another installation, or something else answers there"
        )
    if "handshake" in lower or "wrong_version_number" in lower:
        return f"{endpoint} does not speak TLS as an orchestrator's join port does: {said[:200]}"
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{endpoint} did not answer within {DEADLINE_S:g} s"
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return f"{endpoint} cannot be reached: {said[-200:]}"
    return f"{endpoint} failed: {error.code().name}: {said[:200]}"


def _distinct(lines: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
