"""Records of upgrades of the agents: what is wanted, who was told, what agents said. Pure.

Written by the operator API and by the leader; what becomes of them is decided in `upgrades.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from orchestrator.records import KeptRecord
from orchestrator.store import keys

WHOLE = 1000
"""Shares are in thousandths."""
PATIENCE_S = 300
"""For a new agent to be well, before its box goes back by itself."""
FAILURES_LIMIT = 1000
FAILURES_BY_SHARE = -1
""""How many may fail" that goes by the size of the fleet: see `upgrades.failures_allowed`."""


class Phase(StrEnum):
    """Of an upgrade."""

    RUNNING = "Running"
    PAUSED = "Paused"
    DONE = "Done"
    ABORTED = "Aborted"


ACTIVE = (Phase.RUNNING, Phase.PAUSED)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a box failed. `at_ms` by the leader's clock."""

    reason: str
    message: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Upgrade:
    """`waves`: rising, cumulative shares; `at_once` 0: as the wave. `wave` counts from 0.

    `settled_at_ms`: since when nobody of the wave is on the way; 0: somebody is. `attempt` grows
    with each resume. `ended`: how many boxes were in which standing when it ended.
    """

    number: int
    id: str
    version: str
    waves: tuple[int, ...]
    at_once: int
    soak_s: int
    patience_s: int
    failures_max: int
    by: str
    started_at_ms: int
    sites: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    phase: Phase = Phase.RUNNING
    reason: str = ""
    message: str = ""
    wave: int = 0
    wave_began_ms: int = 0
    settled_at_ms: int = 0
    attempt: int = 1
    failed: Mapping[str, Failure] = field(default_factory=dict)
    ended_at_ms: int = 0
    ended: Mapping[str, int] = field(default_factory=dict)
    store_revision: int = field(default=0, compare=False)  # not part of the value

    @property
    def is_active(self) -> bool:
        return self.phase in ACTIVE

    def chooses(self, node: str, site: str) -> bool:
        """Whether a box is one of those that it is for."""
        if not (self.sites or self.nodes):
            return True
        return node in self.nodes or site in self.sites

    def record(self) -> KeptRecord:
        """As it stands in the Store."""
        body = asdict(self)
        del body["number"], body["store_revision"]
        return KeptRecord(keys.upgrade(self.number), body, self.store_revision)

    def resumed(self, now: float) -> "Upgrade":
        """Goes on; failed boxes have one more try."""
        return replace(
            self,
            phase=Phase.RUNNING,
            reason="",
            message="",
            attempt=self.attempt + 1,
            failed={},
            wave_began_ms=int(now * 1000),
            settled_at_ms=0,
        )

    def paused(self, reason: str, message: str) -> "Upgrade":
        return replace(self, phase=Phase.PAUSED, reason=reason, message=message)


def read(record: KeptRecord) -> Upgrade | None:
    """None: it is not understood. Then nobody is told anything."""
    body: dict[str, Any] = record.body
    try:
        failed = {
            str(node): Failure(str(found["reason"]), str(found["message"]), int(found["at_ms"]))
            for node, found in body["failed"].items()
        }
        return Upgrade(
            number=int(record.key.removeprefix(keys.UPGRADES)),
            waves=tuple(int(share) for share in body["waves"]),
            sites=tuple(str(site) for site in body["sites"]),
            nodes=tuple(str(node) for node in body["nodes"]),
            phase=Phase(body["phase"]),
            failed=failed,
            ended={str(name): int(count) for name, count in body["ended"].items()},
            store_revision=record.store_revision,
            **_simple(body),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _simple(body: dict[str, Any]) -> dict[str, Any]:
    """Texts and numbers, checked."""
    texts = {name: str(body[name]) for name in _TEXTS}
    return texts | {name: int(body[name]) for name in _NUMBERS}


_TEXTS = ("id", "version", "by", "reason", "message")
_NUMBERS = (
    "at_once",
    "soak_s",
    "patience_s",
    "failures_max",
    "started_at_ms",
    "wave",
    "wave_began_ms",
    "settled_at_ms",
    "attempt",
    "ended_at_ms",
)


def upgrades_in(kept: Iterable[KeptRecord]) -> list[Upgrade]:
    """Newest first."""
    found = [read(record) for record in kept if record.key.startswith(keys.UPGRADES)]
    known = [upgrade for upgrade in found if upgrade is not None]
    return sorted(known, key=lambda upgrade: -upgrade.number)


@dataclass(frozen=True, slots=True)
class Told:
    """That a box was told to become the upgrade's version."""

    node: str
    upgrade: str
    attempt: int
    at_ms: int
    store_revision: int = field(default=0, compare=False)

    def record(self) -> KeptRecord:
        body = {"upgrade": self.upgrade, "attempt": self.attempt, "at_ms": self.at_ms}
        return KeptRecord(keys.agent_version(self.node), body, self.store_revision)


def told_in(record: KeptRecord) -> Told:
    """One that is not understood is of no upgrade, and is swept."""
    node = record.key.removeprefix(keys.AGENT_VERSIONS)
    body = record.body
    try:
        upgrade, attempt, at_ms = str(body["upgrade"]), int(body["attempt"]), int(body["at_ms"])
        return Told(node, upgrade, attempt, at_ms, record.store_revision)
    except (KeyError, TypeError, ValueError):
        return Told(node, "", 0, 0, record.store_revision)


@dataclass(frozen=True, slots=True)
class Said:
    """What an agent said last of an upgrade. `phase` as in the proto's UpgradeStatus."""

    upgrade: str
    attempt: int
    phase: str
    reason: str = ""
    message: str = ""
    at_ms: int = 0

    def is_of(self, upgrade: Upgrade) -> bool:
        return self.upgrade == upgrade.id


INSTALLING = "Installing"
BEGUN = ("Downloading", INSTALLING)
FAILED = ("RolledBack", "Refused")
