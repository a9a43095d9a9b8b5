"""What the site's machine must not forget stands on the disk, whatever happens to the file."""

import asyncio
import os
from pathlib import Path

import pytest

from agent.domain.site.lease_record import JOINED
from agent.domain.site.lease_record import NAME as LEASE
from agent.join import begin_memory
from agent.site.memory import GROWN_BYTES, NAME, Kept, Memory, begin


async def saved(folder: Path, *items: tuple[str, dict[str, object]], boot: str = "b1") -> Memory:
    memory = Memory(folder, boot)
    memory.load()
    for name, body in items:
        assert await memory.save(name, body) == ""
    return memory


def read(folder: Path, boot: str = "b1") -> Kept:
    return Memory(folder, boot).load()


async def test_the_last_word_of_each_name_counts(tmp_path: Path) -> None:
    await saved(tmp_path, ("a", {"x": 1}), ("b", {"y": [1, 2]}), ("a", {"x": 2}))
    assert read(tmp_path) == Kept({"a": {"x": 2}, "b": {"y": [1, 2]}}, same_boot=True)


async def test_an_empty_body_forgets(tmp_path: Path) -> None:
    await saved(tmp_path, ("a", {"x": 1}), ("b", {"y": 1}), ("a", {}))
    assert read(tmp_path).bodies == {"b": {"y": 1}}


async def test_another_boot_is_noticed_and_nothing_is_lost(tmp_path: Path) -> None:
    await saved(tmp_path, ("a", {"x": 1}))
    assert not read(tmp_path, "b2").same_boot
    await saved(tmp_path, ("b", {"y": 1}), boot="b2")
    kept = read(tmp_path, "b2")
    assert kept.same_boot and set(kept.bodies) == {"a", "b"}


def test_nothing_there_is_no_memory_and_no_damage(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == Kept()


@pytest.mark.parametrize("cut", range(1, 30))
async def test_a_line_that_was_cut_short_was_never_answered_for(tmp_path: Path, cut: int) -> None:
    await saved(tmp_path, ("a", {"x": 1}), ("b", {"y": 1}))
    path = tmp_path / NAME
    os.truncate(path, path.stat().st_size - cut)
    kept = read(tmp_path)
    assert kept.bodies == {"a": {"x": 1}} and not kept.damaged
    await saved(tmp_path, ("c", {"z": 1}))
    assert set(read(tmp_path).bodies) == {"a", "c"}


async def test_damage_in_the_middle_is_said(tmp_path: Path) -> None:
    await saved(tmp_path, ("a", {"x": 1}), ("b", {"y": 1}), ("c", {"z": 1}))
    path = tmp_path / NAME
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"y", b"q")
    path.write_bytes(b"\n".join(lines))
    kept = read(tmp_path)
    assert kept.bodies == {"a": {"x": 1}} and "line 3" in kept.damaged


async def test_a_disk_that_refuses_is_said_and_the_next_write_holds_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = await saved(tmp_path, ("a", {"x": 1}))

    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", refuse)
        assert "No space" in await memory.save("a", {"x": 2})
    assert await memory.save("b", {"y": 1}) == ""
    assert read(tmp_path).bodies == {"a": {"x": 1}, "b": {"y": 1}}


async def test_what_waits_goes_with_one_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = await saved(tmp_path, ("a", {"x": 1}))
    syncs = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (syncs.append(fd), real(fd)))
    done = await asyncio.gather(*(memory.save(f"n{i}", {"i": i}) for i in range(50)))
    assert done == [""] * 50 and len(syncs) <= 2
    assert len(read(tmp_path).bodies) == 51


async def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    memory = await saved(tmp_path)
    for turn in range(40):
        await memory.save("a", {"x": str(turn) * 10_000})
    assert (tmp_path / NAME).stat().st_size <= GROWN_BYTES
    assert read(tmp_path).bodies == {"a": {"x": "39" * 10_000}}


async def test_a_node_that_joins_begins_with_a_memory_unless_it_has_one(tmp_path: Path) -> None:
    begin(tmp_path / "site", {"lease": {"starts": 0}})
    kept = read(tmp_path / "site")
    assert kept.bodies == {"lease": {"starts": 0}} and not kept.damaged and not kept.same_boot
    memory = Memory(tmp_path / "site", "boot-1")
    memory.load()
    assert await memory.save("lease", {"starts": 1}) == ""
    begin(tmp_path / "site", {"lease": {"starts": 0}})
    assert read(tmp_path / "site").bodies == {"lease": {"starts": 1}}, "it has voted since"


async def test_a_join_says_that_nothing_was_ever_granted(tmp_path: Path) -> None:
    begin_memory(tmp_path)
    assert read(tmp_path / "site").bodies == {LEASE: JOINED}
    (tmp_path / "file").write_text("")
    begin_memory(tmp_path / "file")  # no directory can be made there: it joined all the same
