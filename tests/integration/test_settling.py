"""Writes whose answer is lost: made once, told truly. On SQLite, with answers that get lost."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator import settling
from orchestrator.identity.authority import create_region, create_root, load_authority
from orchestrator.identity.operators import OperatorIdentities
from orchestrator.identity.pem import new_key
from orchestrator.records import IdentityRecord
from orchestrator.refusals import Refused
from orchestrator.settling import SettlingStore
from orchestrator.store import keys
from orchestrator.store.port import (
    Compare,
    Delete,
    NothingWritten,
    Op,
    Put,
    Store,
    StoreFull,
    StoreUnavailable,
    TxnResult,
)
from orchestrator.store.sqlite import open_sqlite


class Lossy:
    """As etcd can be: what is sent stands or does not, and nobody says which."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.faults: list[str] = []
        self.late: list[tuple[Sequence[Compare], Sequence[Op]]] = []
        self.sent = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def known_revision(self) -> int:
        return 0

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        self.sent += 1
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "never":
            raise StoreUnavailable("unknown")
        if fault == "refused":
            raise NothingWritten("nothing was written")
        if fault == "full":
            raise StoreFull("no space")
        if fault == "late":
            self.late.append((compares, ops))
            raise StoreUnavailable("unknown")
        result = await self.inner.txn(compares, ops)
        if fault == "filled":
            raise StoreFull("no space")
        if fault == "lost":
            raise StoreUnavailable("unknown")
        return result


@pytest.fixture
async def lossy(tmp_path: Path) -> AsyncIterator[Lossy]:
    opened = await open_sqlite(tmp_path / "polder.db")
    yield Lossy(opened)
    await opened.close()


@pytest.fixture
def writes(lossy: Lossy, monkeypatch: pytest.MonkeyPatch) -> SettlingStore:
    monkeypatch.setattr(settling, "_PAUSE_S", 0.001)
    return SettlingStore(lossy)  # type: ignore[arg-type]


async def test_a_lost_answer_is_found_again(lossy: Lossy, writes: SettlingStore) -> None:
    lossy.faults = ["lost"]
    with settling.request("", repeated=False):
        result = await writes.txn([Compare.absent("/a")], [Put("/a", b"1")])
    assert result.committed, "a retried create is not 'exists already'"
    entry = await lossy.inner.get("/a")
    assert entry is not None and entry.version == 1 and entry.mod_revision == result.revision


async def test_what_was_not_made_is_made_then(lossy: Lossy, writes: SettlingStore) -> None:
    lossy.faults = ["never", "refused", "never"]
    with settling.request("", repeated=False):
        assert (await writes.txn([Compare.absent("/a")], [Put("/a", b"1")])).committed
    assert lossy.sent == 4


async def test_a_late_first_try_changes_nothing_more(lossy: Lossy, writes: SettlingStore) -> None:
    """It waited in etcd, and comes after the second one and after another operator's write."""
    lossy.faults = ["late"]
    with settling.request("", repeated=False):
        await writes.txn([], [Put("/a", b"ours")])
    await lossy.inner.txn([], [Put("/a", b"another's")])
    (late,) = lossy.late
    assert not (await lossy.inner.txn(*late)).committed
    entry = await lossy.inner.get("/a")
    assert entry is not None and entry.value == b"another's"


async def test_a_race_that_was_lost_is_told_as_such(lossy: Lossy, writes: SettlingStore) -> None:
    await lossy.inner.txn([], [Put("/a", b"another's")])
    lossy.faults = ["never"]
    with settling.request("", repeated=False):
        result = await writes.txn([Compare.absent("/a")], [Put("/a", b"1")])
    assert not result.committed and result.failed == (Compare.absent("/a"),)


async def test_the_operator_is_told_what_nobody_knows(
    lossy: Lossy, writes: SettlingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "WRITE_S", 0.05)
    monkeypatch.setattr(settling, "_PAUSE_S", 0.01)
    lossy.faults = ["never"] + ["refused"] * 1000
    with settling.request("", repeated=False), pytest.raises(Refused) as refused:
        await writes.txn([], [Put("/a", b"1")])
    assert refused.value.reason == "OutcomeUnknown"
    lossy.faults = ["refused"] * 1000
    with settling.request("", repeated=False), pytest.raises(NothingWritten):
        await writes.txn([], [Put("/a", b"1")])


async def test_another_member_finds_what_the_first_one_made(lossy: Lossy) -> None:
    first, second = SettlingStore(lossy), SettlingStore(lossy)  # type: ignore[arg-type]
    with settling.request("call-1", repeated=False):
        await first.step("apply-0", [Compare.absent("/a")], [Put("/a", b"1")], b"created")
    await lossy.inner.txn([], [Put("/a", b"another's")])
    with settling.request("call-1", repeated=True):
        told = await second.told("apply-0")
        assert told is not None and told.value == b"created"
        result, mark = await second.step("apply-0", [], [Put("/a", b"1")], b"configured")
        assert result.committed and mark is not None and mark.value == b"created"
    entry = await lossy.inner.get("/a")
    assert entry is not None and entry.value == b"another's"


async def test_what_one_try_left_alone_no_other_does_later(lossy: Lossy) -> None:
    """The first try was paused before it wrote anything; the second found nothing to do."""
    paused, second = SettlingStore(lossy), SettlingStore(lossy)  # type: ignore[arg-type]
    with settling.request("call-1", repeated=True):
        assert await second.told("apply-0") is None
        assert await second.leave_alone("apply-0") is None
    with settling.request("call-1", repeated=False), pytest.raises(Refused) as refused:
        await paused.step("apply-0", [], [Put("/a", b"1")])
    assert refused.value.reason == "Conflict"
    assert await lossy.inner.get("/a") is None


async def test_leaving_alone_finds_what_came_before(lossy: Lossy) -> None:
    writes = SettlingStore(lossy)  # type: ignore[arg-type]
    with settling.request("call-1", repeated=False):
        await writes.step("remove", [], [Put("/a", b"1")], b"done")
    with settling.request("call-1", repeated=True):
        mark = await writes.leave_alone("remove")
    assert mark is not None and mark.value == b"done"


async def test_a_full_store_still_takes_deletions(lossy: Lossy, writes: SettlingStore) -> None:
    await lossy.inner.txn([], [Put("/a", b"1")])
    lossy.faults = ["full"]
    with settling.request("", repeated=False):
        assert (await writes.txn([], [Delete("/a")])).committed
    lossy.faults = ["full"]
    with settling.request("", repeated=False), pytest.raises(StoreFull):
        await writes.txn([], [Put("/a", b"1")])


async def test_the_write_that_fills_the_store_is_not_called_refused(
    lossy: Lossy, writes: SettlingStore
) -> None:
    """etcd looks at its quota again when it applies a transaction, applies it all the same, and
    answers that there is no space (`quotaApplierV3` in its server/apply.go)."""
    lossy.faults = ["filled"]
    with settling.request("", repeated=False):
        assert (await writes.txn([], [Put("/a", b"1")])).committed
    entry = await lossy.inner.get("/a")
    assert entry is not None and entry.value == b"1" and lossy.sent == 1


async def test_marks_hang_on_a_lease_and_cost_nobody_else(lossy: Lossy, tmp_path: Path) -> None:
    writes = SettlingStore(lossy)  # type: ignore[arg-type]
    with settling.request("call-1", repeated=False):
        await writes.txn([], [Put("/a", b"1")])
        await writes.txn([], [Put("/b", b"1")])
    marks = (await lossy.inner.range(keys.REQUESTS)).entries
    assert len(marks) == 2 and {mark.lease for mark in marks} != {0}
    await writes.txn([], [Put("/leaders", b"1")])
    alone = SettlingStore(lossy.inner)
    with settling.request("", repeated=False):
        await alone.txn([], [Put("/c", b"1")])
    assert len((await lossy.inner.range(keys.REQUESTS)).entries) == 2


async def test_an_expired_lease_is_replaced(lossy: Lossy, writes: SettlingStore) -> None:
    with settling.request("call-1", repeated=False):
        await writes.txn([], [Put("/a", b"1")])
        await lossy.inner.revoke_lease(writes._lease)
        assert (await writes.txn([], [Put("/b", b"1")])).committed


async def test_each_try_lists_the_certificate_that_it_answers_with(
    lossy: Lossy, tmp_path: Path
) -> None:
    """A mark of the first try must not vouch for the certificate of the second."""
    create_root(tmp_path / "ca", "polder.test", time.time())
    create_region(tmp_path / "ca", "eu", time.time())
    authority = load_authority(tmp_path / "ca", "eu")
    serials = []
    for repeated in (False, True):
        store = SettlingStore(lossy)  # type: ignore[arg-type]
        operators = OperatorIdentities(store, authority, time.time)
        with settling.request("call-1", repeated=repeated):
            issued, _ = await operators.issue("ann", ("admin",), new_key().public_key())
        serials.append(issued.serial)
    entry = await lossy.inner.get(keys.identity("operator", "ann"))
    assert entry is not None
    assert list(IdentityRecord.from_bytes(entry.value, entry.mod_revision).serials) == serials


async def test_requests_of_two_callers_do_not_meet(lossy: Lossy, writes: SettlingStore) -> None:
    async def one(name: str) -> None:
        with settling.request(name, repeated=False):
            await asyncio.sleep(0)
            assert (await writes.txn([], [Put("/same", name.encode())])).committed

    await asyncio.gather(one("x"), one("y"))
    assert len((await lossy.inner.range(keys.REQUESTS)).entries) == 2
