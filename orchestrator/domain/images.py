"""For which architectures an image does not exist, as nodes found out that tried to fetch it. Pure.

Nobody but a registry knows that beforehand, and the orchestrator asks none: it may not reach those
of sites. `placement.arch` declares it. Where it is not declared, a node that cannot start a replica
because no image is for it says so (ImagePlatform), and that is kept with the revision (ADR 32): the
replica goes elsewhere, and nothing of the revision is placed there again. A node speaks for itself;
of a whole architecture it is believed when AGREEING nodes say the same and none of it runs the
revision. A tag may be another image tomorrow: what is not pinned by digest is forgotten in a day.

The leader learns and sweeps by `learn`; `orchestrator/leader_snapshot.py` reads by `lacks_in`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.records import AssignmentRecord, KeptRecord, TemplateRevision
from orchestrator.scheduling.snapshot import IMAGE_PLATFORM, Snapshot
from orchestrator.scheduling.tick import Batch, Moment, Tell, World, Write
from orchestrator.store import keys
from polder.manifest import InvalidManifest

AGREEING = 2
FORGET_S = 86_400.0
NODES_MAX = 64
"""Told by so many, nothing more is to be learnt."""

Key = tuple[str, int]
"""Workload uid and number of the revision."""


@dataclass(frozen=True, slots=True)
class Lack:
    """Of one revision. `told`: by node, its architecture and when it said so, in unix ms."""

    workload_uid: str
    revision: int
    pinned: bool
    told: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    agreed: frozenset[str] = frozenset()
    store_revision: int = 0  # not part of the value

    @property
    def key(self) -> Key:
        return (self.workload_uid, self.revision)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Those that said it."""
        return tuple(sorted(self.told))

    @property
    def archs(self) -> tuple[str, ...]:
        """Those for which no image is believed to be."""
        return tuple(sorted(self.agreed))

    def record(self) -> KeptRecord:
        """As it stands in the Store."""
        told = {node: {"arch": arch, "at_ms": at_ms} for node, (arch, at_ms) in self.told.items()}
        body = {"pinned": self.pinned, "told": told, "agreed": sorted(self.agreed)}
        return KeptRecord(keys.images(*self.key), body, self.store_revision)

    def at(self, now: float) -> "Lack":
        """What of it still counts. `now`: unix seconds."""
        if self.pinned:
            return self
        since_ms = (now - FORGET_S) * 1000
        told = {node: said for node, said in self.told.items() if said[1] > since_ms}
        archs = {arch for arch, _ in told.values()}
        return replace(self, told=told, agreed=self.agreed & archs)


def lacks_in(kept: Iterable[KeptRecord], now: float) -> dict[Key, Lack]:
    """What counts. A record that is not understood bars nothing."""
    found = {}
    for record in kept:
        lack = _read(record)
        if lack is not None and (current := lack.at(now)).told:
            found[lack.key] = current
    return found


def learn(world: World, moment: Moment) -> tuple[Batch, ...]:
    """Records what nodes say now, and deletes what nobody needs any more."""
    kept = [record for key, record in world.kept.items() if key.startswith(keys.IMAGES)]
    known = {lack.key: lack for record in kept if (lack := _read(record)) is not None}
    found: dict[Key, Lack] = {}
    tells: defaultdict[Key, list[Tell]] = defaultdict(list)
    archs = _Architectures(world.snapshot)
    for node, stay in _saying(world.snapshot):
        key = (stay.workload_uid, stay.revision)
        if key not in world.revisions:
            continue
        before = found.get(key) or known.get(key) or Lack(*key, _pinned(world.revisions[key]))
        arch = archs.of(node)
        after = _with(before.at(moment.now), node, arch, moment.now)
        if after is None:
            continue
        if archs.agree(after, arch):
            after = replace(after, agreed=after.agreed | {arch})
        found[key] = after
        tells[key].append(_tell(stay, node, arch, arch in after.agreed))
    batches = [Batch((_write(lack),), tuple(tells[key])) for key, lack in found.items()]
    if world.snapshot.complete:
        batches += [
            Batch((Write(record.key, None, record.store_revision),))
            for record in kept
            if _is_over(_read(record), found, world, moment.now)
        ]
    return tuple(batches)


def _saying(snapshot: Snapshot) -> Iterator[tuple[str, AssignmentRecord]]:
    """(node, stay) of what cannot start for that reason."""
    for node, uid in sorted(snapshot.foreign):
        seen = snapshot.observed[node, uid]
        for stay in snapshot.placements[node].assignments:
            if stay.replica_uid == uid and stay.revision == seen.revision:
                yield node, stay


class _Architectures:
    """Looks when it is asked, which is seldom."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._by_node: dict[str, str] = {}

    def of(self, node: str) -> str:
        """Empty when it is not known."""
        if not self._by_node:
            self._by_node = {node.name: node.arch for node in self._snapshot.nodes}
        return self._by_node.get(node, "")

    def agree(self, lack: Lack, arch: str) -> bool:
        """Whether enough nodes say the same of an architecture, and none proves them wrong."""
        if sum(said == arch for said, _ in lack.told.values()) < AGREEING:
            return False
        return not any(self.of(node) == arch for node in self._running(lack.key))

    def _running(self, key: Key) -> Iterator[str]:
        for node, placement in self._snapshot.placements.items():
            for stay in placement.assignments:
                seen = self._snapshot.observed.get((node, stay.replica_uid))
                if seen is None or not seen.running:
                    continue
                if (stay.workload_uid, seen.revision) == key:
                    yield node


def _with(lack: Lack, node: str, arch: str, now: float) -> Lack | None:
    """None: nothing new."""
    if not arch or node in lack.told or arch in lack.agreed or len(lack.told) >= NODES_MAX:
        return None
    return replace(lack, told={**lack.told, node: (arch, int(now * 1000))})


def _tell(stay: AssignmentRecord, node: str, arch: str, agreed: bool) -> Tell:
    text = f"an image of revision {stay.revision} does not exist for {arch}, says node {node}: "
    text += f"nothing of it goes to {f'any node of {arch}' if agreed else 'it'} again"
    return Tell("Workload", stay.namespace, stay.workload, True, IMAGE_PLATFORM, text)


def _write(lack: Lack) -> Write:
    return Write(keys.images(*lack.key), lack.record().to_bytes(), lack.store_revision)


def _is_over(lack: Lack | None, found: Mapping[Key, Lack], world: World, now: float) -> bool:
    if lack is None or lack.key not in world.revisions:
        return True
    return lack.key not in found and not lack.at(now).told


def _pinned(revision: TemplateRevision) -> bool:
    """Whether every image is named by its digest: such a one never changes."""
    try:
        template = revision.decoded
    except InvalidManifest:
        return False
    return all("@sha256:" in one.image for one in (*template.init_containers, *template.containers))


def _read(record: KeptRecord) -> Lack | None:
    try:
        uid, _, number = record.key.removeprefix(keys.IMAGES).rpartition("/")
        told = {
            str(node): (str(said["arch"]), int(said["at_ms"]))
            for node, said in record.body["told"].items()
        }
        agreed = frozenset(str(arch) for arch in record.body["agreed"])
        pinned = bool(record.body["pinned"])
        return Lack(uid, int(number), pinned, told, agreed, record.store_revision)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
