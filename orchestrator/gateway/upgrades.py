"""Tells agents what they are to become, and hears how it goes: AgentUpgrade and UpgradeStatus.

The service asks for it after each Welcome and runs it beside the plans. Whom to tell is decided by
the leader, one record per box (`domain/upgrades.py`); here the releases are put to it: the one that
is wanted, and that of the version that the box runs, its way back. What agents answer goes into the
fleet, and over the mesh to the leader.
"""

import asyncio

from orchestrator.cache import Cache, Change
from orchestrator.domain import releases
from orchestrator.domain.upgrade_state import (
    BEGUN,
    INSTALLING,
    Told,
    Upgrade,
    read,
    told_in,
)
from orchestrator.events import Recorder
from orchestrator.fleet import Fleet
from orchestrator.gateway.sessions import LiveSession, Sessions
from orchestrator.records import KeptRecord
from orchestrator.store import keys
from polder.release import SignedRelease
from polder.v1 import agent_pb2, common_pb2

ID_MAX = 64
VERSION_MAX = 64
WORD_MAX = 64
TEXT_MAX = 1_024
_COALESCE_S = 0.5
_BATCH = 50
_PAUSE_S = 0.1
_NORMAL, _WARNING = common_pb2.EVENT_TYPE_NORMAL, common_pb2.EVENT_TYPE_WARNING
_EVENTS = {
    INSTALLING: ("UpgradeBegan", _NORMAL, "installs {version}"),
    "Done": ("Upgraded", _NORMAL, "runs {version}"),
    "RolledBack": ("UpgradeRolledBack", _WARNING, "went back from {version}"),
    "Refused": ("UpgradeRefused", _WARNING, "refuses {version}"),
}


class Upgrades:
    """One per member."""

    def __init__(
        self, cache: Cache, sessions: Sessions, fleet: Fleet, events: Recorder, member: str
    ) -> None:
        self._cache = cache
        self._sessions = sessions
        self._fleet = fleet
        self._events = events
        self._source = f"gateway/{member}"
        self._changed: dict[str, str] = {}  # by node, the upgrade of which an order went
        self._heard: dict[str, tuple[str, int, str]] = {}  # by node, its last word
        self._wake = asyncio.Event()
        cache.subscribe(self._on_changes)

    def welcome(self, session: LiveSession) -> None:
        """A new session, of which the fleet knows already what it runs."""
        if self._told(session.node) is not None:
            self._tell(session)

    async def run(self) -> None:
        """Tells of changes until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(_COALESCE_S)
            self._wake.clear()
            changed, self._changed = self._changed, {}
            for count, (node, gone) in enumerate(changed.items(), start=1):
                session = self._sessions.get(node)
                if session is not None and not session.is_closed():
                    self._tell(session, gone)
                if count % _BATCH == 0:
                    await asyncio.sleep(_PAUSE_S)

    def report(self, session: LiveSession, status: agent_pb2.UpgradeStatus) -> None:
        """What an agent said: checked, cut, and no other node's business."""
        said = agent_pb2.UpgradeStatus(
            id=status.id[:ID_MAX],
            version=status.version[:VERSION_MAX],
            phase=status.phase[:WORD_MAX],
            reason=status.reason[:WORD_MAX],
            message=status.message[:TEXT_MAX],
            at_ms=max(0, status.at_ms),
            attempt=max(0, status.attempt),
        )
        seen = self._fleet.observe(session.node)
        is_first, seen.upgrade = seen.upgrade is None, said
        self._fleet.touch(session.node)
        news, known = (said.id, said.attempt, said.phase), self._heard.get(session.node)
        self._heard[session.node] = news
        if news != known and (not is_first or self._is_news(said, known)):
            self._record(session.node, said)
        if said.phase in BEGUN and said.phase != INSTALLING and not self._is_told(said, session):
            self._withdraw(session, said.id)

    def _is_news(self, said: agent_pb2.UpgradeStatus, known: tuple[str, int, str] | None) -> bool:
        """Of what an agent says first in a session. As a rule another member heard it long ago, or
        this one before it was restarted: of a fleet that changes its region that would be more
        events than are kept. Who comes through says so in the session that it is judged by."""
        if known is not None and known[0] == said.id:
            return True
        upgrade = self._upgrade(said.id)
        return said.phase != "Done" and upgrade is not None and upgrade.is_active

    # --- telling ---------------------------------------------------------------------------------

    def _told(self, node: str) -> Told | None:
        record = self._cache.kept_at(keys.agent_version(node))
        return told_in(record) if record is not None else None

    def _is_told(self, said: agent_pb2.UpgradeStatus, session: LiveSession) -> bool:
        told = self._told(session.node)
        return told is not None and told.upgrade == said.id

    def _upgrade(self, identifier: str) -> Upgrade | None:
        number = identifier.partition("-")[0]
        record = self._cache.kept_at(keys.upgrade(int(number))) if number.isdecimal() else None
        found = read(record) if record is not None else None
        return found if found is not None and found.id == identifier else None

    def _tell(self, session: LiveSession, gone: str = "") -> None:
        """What stands for its node now; nothing, when it runs that already. `gone`: the upgrade of
        which its order was taken away."""
        seen, told = self._fleet.get(session.node), self._told(session.node)
        upgrade = self._upgrade(told.upgrade if told is not None else gone)
        version = seen.agent_version if seen is not None else ""
        if upgrade is None or version == upgrade.version:
            return
        if told is None:
            self._withdraw(session, upgrade.id)
            return
        wanted, present = self._signed(upgrade.version), self._signed(version)
        if wanted is None or present is None:
            return  # deleted since; the leader sees that, too
        session.send(
            agent_pb2.SessionResponse(
                upgrade=agent_pb2.AgentUpgrade(
                    id=upgrade.id,
                    wanted=_message(wanted),
                    present=_message(present),
                    patience_s=upgrade.patience_s,
                    attempt=told.attempt,
                )
            )
        )

    def _signed(self, version: str) -> SignedRelease | None:
        record = self._cache.kept_at(keys.release(version))
        stored = releases.read(record) if record is not None else None
        return stored.signed if stored is not None else None

    def _withdraw(self, session: LiveSession, identifier: str) -> None:
        withdrawn = agent_pb2.AgentUpgrade(id=identifier, withdrawn=True)
        session.send(agent_pb2.SessionResponse(upgrade=withdrawn))

    # --- following -------------------------------------------------------------------------------

    def _on_changes(self, changes: list[Change]) -> None:
        for change in changes:
            if change.key.startswith(keys.AGENT_VERSIONS) and _differs(change):
                before = change.previous if change.value is None else None
                gone = told_in(before).upgrade if isinstance(before, KeptRecord) else ""
                self._changed[change.key.removeprefix(keys.AGENT_VERSIONS)] = gone
                self._wake.set()

    def _record(self, node: str, said: agent_pb2.UpgradeStatus) -> None:
        found = _EVENTS.get(said.phase)
        if found is None:
            return
        reason, severity, text = found
        message = text.format(version=said.version)
        why = ": ".join(part for part in (said.reason, said.message) if part)
        if why:
            message = f"{message}: {why}"
        self._events.record("Node", "", node, severity, reason, message, self._source)


def _message(signed: SignedRelease) -> agent_pb2.SignedRelease:
    return agent_pb2.SignedRelease(release=signed.release, signature=signed.signature)


def _differs(change: Change) -> bool:
    before, after = change.previous, change.value
    return not (
        isinstance(before, KeptRecord)
        and isinstance(after, KeptRecord)
        and before.body == after.body
    )
