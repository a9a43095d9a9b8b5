"""Plans on disk: atomic, verified, falling back; a full disk stops nothing."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.conditions import Conditions
from agent.domain.plan import ParsedPlan
from agent.plan_verifier import PlanRejected
from agent.state import CURRENT, PREVIOUS, PlanFiles, PlanKeeper
from polder.v1 import plan_pb2
from tests.sim.agent_plans import IDENTITY, assignment, node_plan


class Verifier:
    """Accepts what is signed `good`; remembers as of when it was asked."""

    def __init__(self) -> None:
        self.asked_at: list[float] = []

    async def verify(self, signed: plan_pb2.SignedNodePlan, *, at: float) -> bytes:
        self.asked_at.append(at)
        if signed.signature != b"good":
            raise PlanRejected("BadSignature", "the signature does not fit the plan")
        return signed.node_plan


def signed(generation: int, *uids: str, signature: bytes = b"good") -> plan_pb2.SignedNodePlan:
    payload = node_plan(generation, [assignment(uid) for uid in uids]).SerializeToString()
    return plan_pb2.SignedNodePlan(node_plan=payload, signature=signature, generation=generation)


class Keeping:
    def __init__(self, directory: Path) -> None:
        self.used: list[ParsedPlan] = []
        self.reports: list[tuple[str, str]] = []
        self.verifier = Verifier()
        self.conditions = Conditions(lambda: 1000.0)
        self.keeper = PlanKeeper(
            directory,
            IDENTITY,
            self.verifier,
            self.conditions,
            use=self.used.append,
            report=lambda reason, message: self.reports.append((reason, message)),
            now=lambda: 2_000_000_000.0,
        )


async def test_a_plan_survives_a_restart(tmp_path: Path) -> None:
    first = Keeping(tmp_path / "state")
    assert await first.keeper.boot() is None
    ack = await first.keeper.offer(signed(3, "a"))
    assert (ack.accepted, ack.generation) == (True, 3)
    assert first.verifier.asked_at == [2_000_000_000.0]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / CURRENT).stat().st_mode & 0o777 == 0o600
    second = Keeping(tmp_path / "state")
    plan = await second.keeper.boot()
    assert plan is not None and plan.generation == 3 and second.used == [plan]
    assert second.verifier.asked_at == [plan.issued_at], "as of when it was issued"


async def test_a_damaged_current_plan_falls_back_to_the_previous(tmp_path: Path) -> None:
    first = Keeping(tmp_path)
    await first.keeper.offer(signed(1, "a"))
    await first.keeper.offer(signed(2, "a", "b"))
    data = (tmp_path / CURRENT).read_bytes()
    for damage in (b"", b"\xff" * 50, data[:-10], data[: len(data) // 2]):
        (tmp_path / CURRENT).write_bytes(damage)
        again = Keeping(tmp_path)
        plan = await again.keeper.boot()
        assert plan is not None and plan.generation == 1, damage
        assert [reason for reason, _ in again.reports] == ["PlanUnreadable"]
    (tmp_path / PREVIOUS).unlink()
    nothing = Keeping(tmp_path)
    assert await nothing.keeper.boot() is None and len(nothing.reports) == 1


async def test_refusals_are_acknowledged_with_their_reason(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    await keeping.keeper.offer(signed(5, "a"))
    for offered, reason in (
        (signed(4, "a"), "Stale"),
        (signed(6, "a", signature=b"forged"), "BadSignature"),
        (plan_pb2.SignedNodePlan(node_plan=b"\xff", signature=b"good", generation=9), "Unreadable"),
    ):
        ack = await keeping.keeper.offer(offered)
        assert (ack.accepted, ack.reason) == (False, reason)
    assert keeping.keeper.generation == 5 and len(keeping.used) == 1


async def test_the_unsigned_generation_cannot_roll_back(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    await keeping.keeper.offer(signed(5, "a"))
    lying = signed(4)
    lying.generation = 99
    assert (await keeping.keeper.offer(lying)).reason == "Stale"


async def test_the_same_plan_again_is_not_verified_again(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    for _ in range(3):
        assert (await keeping.keeper.offer(signed(5, "a"))).accepted
    assert len(keeping.verifier.asked_at) == len(keeping.used) == 1


async def test_a_plan_that_drops_replicas_raises_an_alert(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    await keeping.keeper.offer(signed(5, "a", "b"))
    assert (await keeping.keeper.offer(signed(6, "a"))).accepted
    assert keeping.reports == [("PlanDropsReplicas", "generation 6 no longer names 1 replicas: b")]


async def test_a_disk_that_refuses_writes_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = Keeping(tmp_path)
    await keeping.keeper.offer(signed(1, "a"))

    def full(_self: PlanFiles, _signed: plan_pb2.SignedNodePlan) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PlanFiles, "write", full)
        assert (await keeping.keeper.offer(signed(2, "a", "b"))).accepted
    assert keeping.keeper.generation == 2 and len(keeping.used) == 2
    condition = keeping.conditions.all()[0]
    assert (condition.type, condition.reason) == ("StateNotWritable", "DiskFull")
    await keeping.keeper.retry_save()
    assert not keeping.conditions.all()
    plan = await Keeping(tmp_path).keeper.boot()
    assert plan is not None and plan.generation == 2


async def test_a_write_that_fails_half_way_leaves_the_old_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = Keeping(tmp_path)
    await keeping.keeper.offer(signed(1, "a"))
    real = Path.replace
    for failing in (CURRENT, PREVIOUS):

        def replace(self: Path, target: Path, failing: str = failing) -> Path:
            if target.name == failing:
                raise OSError(errno.EIO, "Input/output error")
            return real(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            await keeping.keeper.offer(signed(keeping.keeper.generation + 1, "a"))
        plan = await Keeping(tmp_path).keeper.boot()
        assert plan is not None and plan.generation == 1
        assert not list(tmp_path.glob("*.tmp"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("a tiny file system of its own needs root")
    disk = tmp_path / "tiny"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


async def test_a_disk_that_is_really_full(tiny_disk: Path) -> None:
    keeping = Keeping(tiny_disk)
    await keeping.keeper.offer(signed(1, "a"))
    filler = tiny_disk / "filler"
    with contextlib.suppress(OSError):
        filler.write_bytes(b"x" * (64 << 10))
    ack = await keeping.keeper.offer(signed(2, *(f"r{n}" for n in range(50))))
    assert ack.accepted and keeping.keeper.generation == 2
    assert keeping.conditions.all()[0].reason == "DiskFull"
    on_disk = await Keeping(tiny_disk).keeper.boot()
    assert on_disk is not None and on_disk.generation == 1
    filler.unlink()
    await keeping.keeper.retry_save()
    assert not keeping.conditions.all()
    on_disk = await Keeping(tiny_disk).keeper.boot()
    assert on_disk is not None and on_disk.generation == 2
