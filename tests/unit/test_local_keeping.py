"""What a node keeps of local operators over its restarts: the journal and the directory; and by
what time it judges credentials."""

from pathlib import Path
from typing import Any

import pytest

from agent.local import journal as journals
from agent.local.callers import Caller
from agent.local.directory import REVOKED_MAX, Directory
from agent.local.journal import ENTER, Journal, NotWritten, Target
from agent.local.moments import Moments
from agent.site.memory import Memory
from polder.v1 import agent_pb2

ANN = Caller("operator/ann", "1", 0.0)


def reopened(folder: Path) -> tuple[Journal, Directory]:
    """As the next process of the agent finds them."""
    memory = Memory(folder, "boot")
    kept = memory.load()
    assert not kept.damaged
    return Journal(memory, kept.bodies), Directory(memory, kept.bodies)


async def write(journal: Journal, count: int = 1) -> None:
    for _ in range(count):
        await journal.write(ANN, "stop", target=Target("umc", "triage", "w", "triage-0"))


def numbers(journal: Journal) -> list[int]:
    return [entry.sequence for entry in journal]


async def test_entries_count_on_after_a_restart(tmp_path: Path) -> None:
    journal, _ = reopened(tmp_path)
    await write(journal, 2)
    again, _ = reopened(tmp_path)
    assert list(again) == list(journal)
    await write(again)
    assert numbers(again) == [1, 2, 3]
    entry = list(again)[-1]
    assert (entry.by, entry.verb) == ("operator/ann", "stop") and entry.at_ms
    assert (entry.namespace, entry.replica, entry.workload_uid) == ("umc", "triage-0", "w")


async def test_numbers_go_on_when_all_was_taken_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "KEPT", 0)
    journal, _ = reopened(tmp_path)
    await write(journal, 3)
    await journal.taken(3)
    assert numbers(journal) == []
    again, _ = reopened(tmp_path)
    await write(again)
    assert numbers(again) == [4]


async def test_what_was_taken_does_not_wait_any_more(tmp_path: Path) -> None:
    journal, _ = reopened(tmp_path)
    told: list[int] = []
    journal.on_change = lambda: told.append(len(journal.waiting()[0]))
    await write(journal, 3)
    assert told == [1, 2, 3]
    await journal.taken(2)
    assert told[-1] == 1  # there is more to carry up
    await journal.taken(1)  # a late one
    again, _ = reopened(tmp_path)
    assert [entry.sequence for entry in again.waiting()[0]] == [3]


async def test_a_number_that_was_never_written_here_says_nothing(tmp_path: Path) -> None:
    """The box lost its disk: the orchestrator knows more entries than there are."""
    journal, _ = reopened(tmp_path)
    await write(journal)
    await journal.taken(500)
    assert len(journal.waiting()[0]) == 1


async def test_a_full_journal_loses_its_oldest_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "ENTRIES_MAX", 3)
    journal, _ = reopened(tmp_path)
    await write(journal, 5)
    assert numbers(journal) == [3, 4, 5]
    again, _ = reopened(tmp_path)
    assert numbers(again) == [3, 4, 5]
    assert again.waiting()[1] == 2
    await again.taken(5)
    assert again.waiting() == ([], 0)
    assert reopened(tmp_path)[0].waiting() == ([], 0)


async def test_nobody_pushes_out_what_others_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "ENTRIES_MAX", 10)
    journal, _ = reopened(tmp_path)
    await write(journal, 3)  # of ann
    eve = Caller("operator/eve", "2", 0.0)
    await journal.write(eve, "exec", detail="rm -r /data")
    for _ in range(100):
        await journal.write(eve, ENTER)
    again, _ = reopened(tmp_path)
    found = [(entry.by, entry.verb) for entry in again]
    assert found.count(("operator/ann", "stop")) == 3
    assert found.count(("operator/eve", "exec")) == 1  # not even one's own deed by entering
    assert len(found) == 10 and again.waiting()[1] == 94
    for _ in range(20):
        await journal.write(eve, "exec", detail="true")
    left = [entry for entry in journal if entry.by == "operator/ann"]
    assert len(left) == 3 and [e.sequence for e in journal][-1] == 124
    assert journal.waiting()[1] == 114
    await journal.taken(124)
    assert journal.waiting() == ([], 0)


async def test_of_what_was_taken_the_latest_are_kept_for_those_who_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "KEPT", 2)
    journal, _ = reopened(tmp_path)
    await write(journal, 5)
    await journal.taken(4)
    assert numbers(journal) == [4, 5] and journal.waiting()[1] == 0


async def test_what_the_disk_refuses_is_no_entry(tmp_path: Path) -> None:
    journal, _ = reopened(tmp_path)
    await write(journal)

    async def full(_name: str, _body: object) -> str:
        return "No space left on device"

    save, journal._memory.save = journal._memory.save, full  # type: ignore[method-assign]
    with pytest.raises(NotWritten, match="No space"):
        await write(journal)
    journal._memory.save = save  # type: ignore[method-assign]
    await write(journal)
    assert numbers(journal) == [1, 2]


async def test_long_words_are_cut(tmp_path: Path) -> None:
    journal, _ = reopened(tmp_path)
    await journal.write(ANN, "exec", detail="x" * 9_999, refused="y" * 9_999)
    (entry,) = journal
    assert len(entry.detail) == len(entry.refused) == journals.TEXT_MAX


def test_a_memory_of_another_version_is_no_obstacle(tmp_path: Path) -> None:
    memory = Memory(tmp_path, "boot")
    bodies: dict[str, Any] = {
        "entry/1": {"sequence": 1, "mood": "good"},
        "entry/2": {"sequence": "two"},
        "entry/3": {"sequence": 3},
        "taken": {"m": 1},
        "directory": {"nodes": [1], "revoked": 5},
    }
    journal, directory = Journal(memory, bodies), Directory(memory, bodies)
    assert numbers(journal) == [3] and not directory.revoked("1")


# --- the directory --------------------------------------------------------------------------------


def said(*revoked: str, **nodes: str) -> agent_pb2.SiteDirectory:
    return agent_pb2.SiteDirectory(
        nodes=[agent_pb2.SiteNode(node=n, local_endpoints=[e]) for n, e in nodes.items()],
        revoked_serials=revoked,
    )


async def test_the_directory_is_there_after_a_restart(tmp_path: Path) -> None:
    _, directory = reopened(tmp_path)
    await directory.use(said("0Ab3", a="10.0.0.1:7446"))
    _, again = reopened(tmp_path)
    assert again.nodes == {"a": ("10.0.0.1:7446",)}
    assert again.revoked("ab3") and again.revoked("00AB3") and not again.revoked("ab")


async def test_who_was_revoked_stays_so(tmp_path: Path) -> None:
    _, directory = reopened(tmp_path)
    await directory.use(said("a1", a="h:1"))
    await directory.use(said("b2"))
    assert directory.revoked("a1") and directory.revoked("b2") and not directory.nodes


async def test_the_list_is_bounded_and_the_newest_count(tmp_path: Path) -> None:
    _, directory = reopened(tmp_path)
    await directory.use(said("a1"))
    await directory.use(said(*(f"{number:x}f" for number in range(1, REVOKED_MAX + 1))))
    assert directory.revoked("1f") and not directory.revoked("a1")


# --- what time it is ------------------------------------------------------------------------------


class Clocks:
    """`wall` may be wrong, `boot` goes on."""

    def __init__(self) -> None:
        self.wall, self.boot, self.plan, self.alone = 10_000.0, 50.0, 9_000.0, 0.0
        self.moments = Moments(
            lambda: self.alone, lambda: 100.0, lambda: self.plan, lambda: self.boot,
            lambda: self.wall,
        )  # fmt: skip


def test_time_is_never_before_the_plan() -> None:
    clocks = Clocks()
    assert clocks.moments().at == 10_000.0
    clocks.wall = 5.0
    assert clocks.moments().at == 9_000.0


def test_time_is_never_before_what_was_proven_and_goes_on_from_there() -> None:
    clocks = Clocks()
    clocks.moments.prove(20_000.0)
    assert clocks.moments().at == 20_000.0
    clocks.boot += 30.0
    clocks.moments.prove(20_010.0)  # no news
    assert clocks.moments().at == 20_030.0
    clocks.wall = 30_000.0
    assert clocks.moments().at == 30_000.0


def test_the_last_orchestrator_counts_within_the_autonomy() -> None:
    clocks = Clocks()
    clocks.alone = 80.0
    assert clocks.moments().heard_at == 10_000.0 - 80.0
    clocks.alone = 101.0
    assert clocks.moments().heard_at == 10_000.0
