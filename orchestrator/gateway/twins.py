"""Two boxes with one identity: the copy of a disk is refused while the first box is heard.

A disk that moved is let in once its former box is silent. `superseding.py` asks before a session
begins. Which it is `orchestrator/domain/twins.py` decides, from what the former box said of its
board: to this member, if it has its session, else as it stands in the Store, which every member
mirrors.
"""

import logging
import random
from collections import OrderedDict
from collections.abc import Sequence

from orchestrator.cache import Cache
from orchestrator.domain.twins import Former, Patience, Verdict, judge
from orchestrator.events import Recorder
from orchestrator.fleet import Fleet, NodeObservation
from orchestrator.gateway.node_status import said_last
from orchestrator.gateway.sessions import LiveSession, Sessions
from orchestrator.gateway.settings import GatewaySettings
from polder.manifest.quantity import format_duration
from polder.v1 import agent_pb2, common_pb2

log = logging.getLogger(__name__)

COPIED = "IdentityCopied"
CHANGED = "HardwareChanged"
_RETRY_S = 60.0
_RETRY_MIN_S = 1.0
_ADDRESSES_MAX = 3
_ADDRESS_MAX = 64
_KNOCKED_MAX = 1_000


class Twins:
    """One per member."""

    def __init__(
        self,
        cache: Cache,
        fleet: Fleet,
        sessions: Sessions,
        events: Recorder,
        settings: GatewaySettings,
    ) -> None:
        self._cache = cache
        self._fleet = fleet
        self._sessions = sessions
        self._events = events
        self._member = settings.member
        self._patience = Patience(
            settings.heartbeat_s * settings.heartbeats_former_max, settings.copy_patience_s
        )
        # When a box of another board first knocked, by (node, board): steady seconds.
        self._knocked: OrderedDict[tuple[str, str], float] = OrderedDict()

    def meet(self, session: LiveSession, addresses: Sequence[str]) -> agent_pb2.Goodbye | None:
        """What the newcomer is told because another box is the node; None: it comes in.

        `addresses` are its own, for those who look for it.
        """
        node, knocker = session.node, (session.node, session.hardware_id)
        seen = self._fleet.get(node)
        if seen is not None and seen.instance_id == session.instance_id != "":
            return None  # as nearly always
        silent_s = self._silent_s(node)
        former = Former(self._hardware_of(node), seen.instance_id if seen else "", silent_s)
        patience_s = self._patience.of(self._knocked_s(knocker), self._fleet.silence_s(node))
        verdict = judge(session.hardware_id, session.instance_id, former, patience_s)
        if verdict is Verdict.SAME:
            return None
        where = ", ".join(one[:_ADDRESS_MAX] for one in addresses[:_ADDRESSES_MAX])
        facts = {"node": node, "instance": session.instance_id, "addresses": where}
        box = f"another box ({where})" if where else "another box"
        if verdict is Verdict.MOVED:
            log.warning("a node is on another box", extra=facts)
            self._knocked.pop(knocker, None)
            self._tell(node, CHANGED, _moved(node, box))
            return None
        log.warning("a box with the identity of another one is refused", extra=facts)
        self._knocked.setdefault(knocker, self._fleet.steady())
        if len(self._knocked) > _KNOCKED_MAX:
            self._knocked.popitem(last=False)
        if not _is_connected(seen):
            return _not_yet(node, patience_s, patience_s - silent_s)
        self._tell(node, COPIED, _copied(node, box))
        return _refusal(node, patience_s)

    def _knocked_s(self, knocker: tuple[str, str]) -> float | None:
        at = self._knocked.get(knocker)
        return None if at is None else self._fleet.steady() - at

    def _hardware_of(self, node: str) -> str:
        """As its box said last; empty when it told none, or is not its box any more."""
        live, identity = self._sessions.get(node), self._cache.identity("node", node)
        if live is not None and not live.is_closed():
            # One that was revoked is about to end.
            counts = identity is None or identity.accepts(live.serial)
            return live.hardware_id if counts else ""
        said = said_last(self._cache, node)
        return str(said.inventory.get("hardwareId", "")) if said is not None else ""

    def _silent_s(self, node: str) -> float:
        """Silence from before this process listened says nothing."""
        fleet = self._fleet
        listened_s = fleet.steady() - max(fleet.listening_since, fleet.back_at)
        return max(0.0, min(fleet.silence_s(node), listened_s))

    def _tell(self, node: str, reason: str, message: str) -> None:
        warning, source = common_pb2.EVENT_TYPE_WARNING, f"gateway/{self._member}"
        self._events.record("Node", "", node, warning, reason, message, source)


def _is_connected(seen: NodeObservation | None) -> bool:
    """As far as this member can know."""
    return seen is not None and seen.connected and (seen.peer is None or seen.peer.reachable)


# --- what is said ---------------------------------------------------------------------------------


def _refusal(node: str, patience_s: float) -> agent_pb2.Goodbye:
    message = (
        f"node {node} is connected from another box. If this box has a copy of its disk, make it a "
        "node of its own: stop the agent, `rm -f /etc/machine-id /var/lib/dbus/machine-id && "
        "systemd-machine-id-setup`, then `edge-agent join --force` with a token for another node. "
        "If this box replaces the other one, switch that one off: this one is let in when it has "
        f"been silent for {format_duration(patience_s)}, or at once when it has joined anew "
        f"(edgectl revoke node/{node}, then `edge-agent join --force` here with a token for it)"
    )
    return _goodbye(message, _RETRY_S)


def _not_yet(node: str, patience_s: float, left_s: float) -> agent_pb2.Goodbye:
    message = (
        f"node {node} was on another box until now: this one is let in when nobody has heard that "
        f"one for {format_duration(patience_s)}"
    )
    return _goodbye(message, min(_RETRY_S, max(_RETRY_MIN_S, left_s)))


def _goodbye(message: str, retry_s: float) -> agent_pb2.Goodbye:
    retry_after_ms = int(1000 * retry_s * random.uniform(1.0, 1.5))
    return agent_pb2.Goodbye(reason=COPIED, message=message, retry_after_ms=retry_after_ms)


def _copied(node: str, box: str) -> str:
    return (
        f"{box} with this node's identity is refused while the first one is connected, which goes "
        "on undisturbed. If its disk is a copy, make it a node of its own: stop its agent, give it "
        "a machine id of its own, `edge-agent join --force` with a token for another node. If it "
        "replaces the first one, switch that one off. If nobody knows it, the key was stolen: "
        f"edgectl revoke node/{node}"
    )


def _moved(node: str, box: str) -> str:
    return (
        f"this node's disk is in {box} now; the former one is not heard any more. If nobody moved "
        f"it, its identity was copied: edgectl revoke node/{node}"
    )
