"""Upgrades of the fleet's agents as a part of the leader's tick: what to write, and to tell. Pure.

Called by `orchestrator/leader_upgrades.py` while an upgrade is under way or orders of one are left.
The decisions are those of `upgrades.py`. What is decided in one step is one transaction with the
upgrade's record, so that nobody is told by one that was paused at the same moment.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.domain.freezes import freezes_in
from orchestrator.domain.liveness import Liveness
from orchestrator.domain.releases import obstacle, releases_in
from orchestrator.domain.upgrade_state import (
    ACTIVE,
    Phase,
    Said,
    Told,
    Upgrade,
    told_in,
    upgrades_in,
)
from orchestrator.domain.upgrades import SITE_FROZEN, Box, Decision, step
from orchestrator.records import KeptRecord
from orchestrator.scheduling.snapshot import Node
from orchestrator.scheduling.tick import Batch, Moment, Tell, World, Write
from orchestrator.store import keys

WRITES_PER_STEP = 100
TELLS_PER_STEP = 20


@dataclass(frozen=True, slots=True)
class Agent:
    """What a node's agent says of itself: its version, and how it is with an upgrade."""

    version: str
    said: Said | None = None


def at_work(upgrades: Iterable[KeptRecord], orders: Sequence[KeptRecord]) -> bool:
    """Whether there is anything to do; cheap, since as a rule there is not."""
    return bool(orders) or any(record.body.get("phase") in ACTIVE for record in upgrades)


def upgrade_batches(world: World, agents: Mapping[str, Agent], moment: Moment) -> tuple[Batch, ...]:
    """At most one step of the one upgrade that is active, and orders swept that are of none."""
    if not world.snapshot.complete:
        return ()
    records = world.kept.values()
    told = {
        record.key.removeprefix(keys.AGENT_VERSIONS): told_in(record)
        for record in records
        if record.key.startswith(keys.AGENT_VERSIONS)
    }
    active = next((found for found in upgrades_in(records) if found.is_active), None)
    if active is None:
        return _swept(told.values())
    boxes = boxes_of(world, active.version, agents, told, moment)
    frozen = "" in freezes_in(records)
    batches = _written(active, step(active, boxes, moment.now, frozen=frozen), moment)
    stale = [item for item in told.values() if item.upgrade != active.id]
    return (*batches, *_swept(stale))


def boxes_of(
    world: World,
    wanted: str,
    agents: Mapping[str, Agent],
    told: Mapping[str, Told],
    moment: Moment,
) -> Iterator[Box]:
    """Every node that is not about to go."""
    releases = releases_in(world.kept.values())
    obstacles: dict[tuple[str, str], tuple[str, str] | None] = {}
    for node in world.snapshot.nodes:
        if node.deleting:
            continue
        agent = agents.get(node.name, _UNKNOWN)
        pair = (agent.version, node.arch)
        if pair not in obstacles:
            obstacles[pair] = obstacle(releases, wanted, *pair)
        heard = node.liveness is Liveness.LIVE
        yield Box(
            node.name,
            node.site,
            agent.version,
            quiet_s=None if heard else max(0.0, moment.now - node.since),
            ready=not node.not_ready,
            doubted=bool(node.suspect),
            obstacle=_of_node(node, world) or obstacles[pair],
            said=agent.said,
            told=told.get(node.name),
        )


_UNKNOWN = Agent("")


def _of_node(node: Node, world: World) -> tuple[str, str] | None:
    """Why it is not to be touched now."""
    freeze = world.snapshot.local.frozen.get(node.site)
    if freeze is not None:
        return SITE_FROZEN, f"site {node.site} is {freeze}"
    if node.not_ready:
        return "NotReady", "says that it cannot start anything"
    return None


def _written(before: Upgrade, decided: Decision, moment: Moment) -> tuple[Batch, ...]:
    upgrade, now_ms = decided.upgrade, int(moment.now * 1000)
    writes: list[Write] = []
    for told in decided.withdraw[:WRITES_PER_STEP]:
        writes.append(_gone(told))
    for box in decided.tell[: WRITES_PER_STEP - len(writes)]:
        order = Told(box.name, upgrade.id, upgrade.attempt, now_ms)
        expected = box.told.store_revision if box.told is not None else 0
        record = order.record()
        writes.append(Write(record.key, record.to_bytes(), expected))
    if not writes and upgrade == before:
        return ()
    record = replace(upgrade, store_revision=before.store_revision).record()
    writes.append(Write(record.key, record.to_bytes(), before.store_revision))
    return (Batch(tuple(writes), tuple(_tells(before, decided))),)


def _tells(before: Upgrade, decided: Decision) -> Iterator[Tell]:
    upgrade = decided.upgrade
    for node, failure in decided.lost[:TELLS_PER_STEP]:
        why = ": ".join(part for part in (failure.reason, failure.message) if part)
        text = f"upgrade {upgrade.id} to {upgrade.version}: {why}"
        yield Tell("Node", "", node, True, "UpgradeFailed", text)
    reason = "UpgradeWave"
    if upgrade.phase is not before.phase:
        reason = f"Upgrade{upgrade.phase}"
    for news in decided.news:
        text = f"upgrade {upgrade.id} to {upgrade.version}: {news}"
        warning = upgrade.phase is Phase.PAUSED or bool(upgrade.ended and upgrade.failed)
        yield Tell("Installation", "", "everything", warning, reason, text)


def _gone(told: Told) -> Write:
    return Write(keys.agent_version(told.node), None, told.store_revision)


def _swept(told: Iterable[Told]) -> tuple[Batch, ...]:
    """Orders that are of no active upgrade any more."""
    writes = [_gone(item) for item in told][:WRITES_PER_STEP]
    return (Batch(tuple(writes)),) if writes else ()
