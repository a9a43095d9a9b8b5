"""Upgrades as a part of the leader's tick: what is known becomes boxes, decisions become writes."""

from collections.abc import Iterable
from dataclasses import replace

from orchestrator.domain.freezes import Freeze
from orchestrator.domain.liveness import Liveness
from orchestrator.domain.overrides import SiteDecisions
from orchestrator.domain.releases import StoredRelease, obstacle, read, releases_in
from orchestrator.domain.upgrade_state import Phase, Said, Told, Upgrade, upgrades_in
from orchestrator.domain.upgrades import Box
from orchestrator.domain.upgrades_step import (
    WRITES_PER_STEP,
    Agent,
    at_work,
    boxes_of,
    upgrade_batches,
)
from orchestrator.records import KeptRecord
from orchestrator.scheduling.snapshot import Node, Snapshot
from orchestrator.scheduling.tick import Batch, Moment, World
from orchestrator.store import keys
from polder.release import SignedRelease, release_bytes
from tests.unit.test_release import RELEASE
from tests.unit.test_upgrades import NEW, NOW, OLD, UPGRADE

MOMENT = Moment(NOW + 10, 0.0)
WIDE = replace(UPGRADE, waves=(1000,), at_once=1000)


def stored(version: str, *complete: str, **facts: object) -> StoredRelease:
    """With the packages for these architectures here."""
    release = replace(RELEASE, version=version, **facts)  # type: ignore[arg-type]
    here = frozenset(p.sha256 for p in release.packages if p.arch in complete)
    signed = SignedRelease(release_bytes(release), b"signature")
    return StoredRelease(release, signed, "operator/ada", here)


def world(
    nodes: Iterable[Node], upgrade: Upgrade = WIDE, *records: KeptRecord, local: object = None
) -> World:
    found = [stored(OLD, "amd64").record(), stored(NEW, "amd64").record()]
    kept = {record.key: record for record in (*found, upgrade.record(), *records)}
    snapshot = Snapshot(1, nodes=tuple(nodes))
    if local is not None:
        snapshot = replace(snapshot, local=local)  # type: ignore[arg-type]
    return World(snapshot, kept=kept)


def node(name: str, **facts: object) -> Node:
    return replace(Node(name, site=f"site-of-{name}", arch="amd64"), **facts)  # type: ignore[arg-type]


def orders(batches: Iterable[Batch]) -> dict[str, bool]:
    """By node: whether its order is written, or goes."""
    prefix = keys.AGENT_VERSIONS
    return {
        write.key.removeprefix(prefix): write.value is not None
        for batch in batches
        for write in batch.writes
        if write.key.startswith(prefix)
    }


def written(batches: Iterable[Batch]) -> Upgrade | None:
    for batch in batches:
        for write in batch.writes:
            if write.key.startswith(keys.UPGRADES) and write.value is not None:
                return upgrades_in([KeptRecord.from_bytes(write.key, write.value, 0)])[0]
    return None


AGENTS = {name: Agent(OLD) for name in "abcdefgh"}


def test_a_release_reads_back_as_it_was() -> None:
    one = stored(NEW, "arm64")
    record = one.record()
    assert read(KeptRecord.from_bytes(record.key, record.to_bytes(), 0)) == one
    assert releases_in([record]) == {NEW: one}
    assert one.package_for("arm64") is not None and one.package_for("amd64") is None
    assert read(KeptRecord(keys.release(NEW), {"signed": "x"})) is None


def test_what_stands_in_the_way_of_a_box() -> None:
    known = {OLD: stored(OLD, "amd64"), NEW: stored(NEW, "amd64", "arm64")}
    assert obstacle(known, NEW, OLD, "amd64") is None
    for version, arch, reason in (
        ("", "amd64", "NotReported"),
        (OLD, "", "NotReported"),
        (OLD, "arm64", "NoWayBack"),
        ("0.0.9", "amd64", "NoWayBack"),
        (OLD, "riscv64", "NoPackage"),
    ):
        found = obstacle(known, NEW, version, arch)
        assert found is not None and found[0] == reason


def test_nobody_is_told_to_go_back_unless_the_root_signed_that() -> None:
    """Boxes would refuse it one after the other."""
    known = {OLD: stored(OLD, "amd64"), NEW: stored(NEW, "amd64")}
    found = obstacle(known, OLD, NEW, "amd64")
    assert (
        found is not None and found[0] == "OlderRelease" and "not signed as a downgrade" in found[1]
    )
    signed_ms = RELEASE.issued_at_ms
    for at_ms, refused in ((signed_ms, True), (signed_ms + 1, False)):
        known[OLD] = stored(OLD, "amd64", downgrade=True, issued_at_ms=at_ms)
        assert (obstacle(known, OLD, NEW, "amd64") is not None) is refused


def test_the_order_and_the_record_are_one_transaction() -> None:
    (batch,) = upgrade_batches(world([node("a"), node("b")]), AGENTS, MOMENT)
    assert orders([batch]) == {"a": True, "b": True}
    assert batch.writes[-1].key == keys.upgrade(UPGRADE.number)


def test_who_cannot_be_told_is_not() -> None:
    nodes = [
        node("a"),
        node("b", liveness=Liveness.SILENT, since=NOW),
        node("c", not_ready=True),
        node("d"),
        node("e", arch="arm64"),
        node("f", deleting=True),
        node("g", arch=""),
    ]
    decisions = SiteDecisions(frozen={"site-of-d": "frozen by ada"})  # type: ignore[dict-item]
    found = world(nodes, WIDE, local=decisions)
    assert orders(upgrade_batches(found, AGENTS, MOMENT)) == {"a": True}
    boxes = {box.name: box for box in boxes_of(found, NEW, AGENTS, {}, MOMENT)}
    assert "f" not in boxes
    assert boxes["b"].quiet_s == 10.0 and boxes["a"].quiet_s is None
    reasons = {name: box.obstacle[0] for name, box in boxes.items() if box.obstacle}
    assert reasons == {"c": "NotReady", "d": "SiteFrozen", "e": "NoPackage", "g": "NotReported"}


def test_a_freeze_of_everything_holds_it_and_one_of_a_namespace_does_not() -> None:
    for namespace, told in (("", {}), ("city", {"a": True})):
        freeze = Freeze(namespace, "operator/ada", "", 1).record()
        assert orders(upgrade_batches(world([node("a")], WIDE, freeze), AGENTS, MOMENT)) == told


def test_a_world_that_could_not_be_read_changes_nothing() -> None:
    found = world([node("a")])
    partly = replace(found, snapshot=replace(found.snapshot, complete=False))
    assert upgrade_batches(partly, AGENTS, MOMENT) == ()


def test_what_an_agent_says_becomes_a_failure_with_an_event() -> None:
    order = Told("a", WIDE.id, 1, int(NOW * 1000)).record()
    agents = {"a": Agent(OLD, Said(WIDE.id, 1, "RolledBack", "NotWell", "it exits"))}
    batches = upgrade_batches(world([node("a")], WIDE, order), agents, MOMENT)
    after = written(batches)
    assert after is not None and after.phase is Phase.PAUSED
    tells = [tell for batch in batches for tell in batch.tells]
    assert [(t.kind, t.name, t.reason, t.warning) for t in tells] == [
        ("Node", "a", "UpgradeFailed", True),
        ("Installation", "everything", "UpgradePaused", True),
    ]
    assert "NotWell: it exits" in tells[0].message


def test_a_step_fits_into_one_transaction() -> None:
    nodes = [node(f"n{i}") for i in range(500)]
    agents = {f"n{i}": Agent(OLD) for i in range(500)}
    (batch,) = upgrade_batches(world(nodes), agents, MOMENT)
    assert len(batch.writes) == WRITES_PER_STEP + 1


def test_orders_of_an_upgrade_that_ended_are_swept() -> None:
    ended = replace(WIDE, phase=Phase.DONE)
    order = Told("a", WIDE.id, 1, 5).record()
    found = world([node("a")], ended, order)
    assert orders(upgrade_batches(found, AGENTS, MOMENT)) == {"a": False}
    assert written(upgrade_batches(found, AGENTS, MOMENT)) is None
    assert at_work([ended.record()], [order]) and not at_work([ended.record()], [])
    assert at_work([WIDE.record()], [])


def test_an_order_of_another_upgrade_goes_also_while_one_runs() -> None:
    order = Told("z", "2-gone", 1, 5).record()
    found = upgrade_batches(world([node("a")], WIDE, order), AGENTS, MOMENT)
    assert orders(found) == {"a": True, "z": False}


def test_nothing_is_written_while_nothing_happens() -> None:
    order = Told("a", WIDE.id, 1, int(NOW * 1000)).record()
    assert upgrade_batches(world([node("a")], WIDE, order), AGENTS, MOMENT) == ()


def test_a_box_that_said_nothing_has_no_version() -> None:
    (box,) = boxes_of(world([node("x")]), NEW, {}, {}, MOMENT)
    assert box == Box("x", "site-of-x", obstacle=box.obstacle)
