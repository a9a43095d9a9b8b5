"""The dead-man's switch on real cgroups of both versions, as a process of its own."""

import ast
import asyncio
import contextlib
import errno
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import mounts
from agent.site.switch_client import PROGRAM, SwitchClient, places
from tests.cri_support import eventually
from tests.emulated import EMULATED, patience

V1, V2 = Path("/sys/fs/cgroup/freezer"), Path("/sys/fs/cgroup/unified")
DEADLINE_S = 20.0
BUSY = 3.0
"""Times as late as the test itself may be on a busy machine whoever it waits for."""


def usable_roots() -> list[Path]:
    found = [V1, V2, Path("/sys/fs/cgroup")]
    return [p for p in found if (p / "cgroup.procs").is_file() and os.access(p, os.W_OK)]


pytestmark = pytest.mark.skipif(not usable_roots(), reason="needs root and cgroups to write to")


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wait_until(condition: Callable[[], object], timeout_s: float = DEADLINE_S) -> float:
    """How late it may have been seen at most: the longest time between two looks."""
    looked_at, late_s = time.monotonic(), 0.0
    deadline = looked_at + patience(timeout_s)
    while not condition():
        assert looked_at < deadline, "it did not come to be"
        time.sleep(0.005)
        now = time.monotonic()
        looked_at, late_s = now, max(late_s, now - looked_at)
    return max(late_s, time.monotonic() - looked_at)


def removed(cgroup: Path) -> bool:
    """Not while something in it is dying yet."""
    with contextlib.suppress(OSError):
        cgroup.rmdir()
    return not cgroup.exists()


class Box:
    """A directory for a switch, cgroups for replicas, and what was started in them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.table = directory / "table"
        self.parent = f"/polder-test-{uuid.uuid4().hex[:8]}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(DEADLINE_S)
        self._socket.bind("")

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """A switch; returns when it answers."""
        process = self.start_silent(*options)
        wait_until(lambda: self.pid() == process.pid)
        return process

    def start_silent(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-S", "-E", "-s", "-P", str(PROGRAM)]
        process = subprocess.Popen([*command, str(self.directory), str(self.table), *options])
        self.processes.append(process)
        return process

    def ask(self, *words: object) -> list[str]:
        request = " ".join(["7", *map(str, words)])
        self._socket.sendto(request.encode(), str(self.directory / "switch.sock"))
        number, *answer = self._socket.recv(65536).decode().split(" ")
        assert number == "7"
        return answer

    def pid(self) -> int:
        try:
            return int(self.ask("list")[1])
        except OSError:
            return 0

    def armed(self) -> dict[str, int]:
        return {u: int(d) for u, d in (word.split("=") for word in self.ask("list")[3:])}

    def arm(self, uid: str, seconds: float, *roots: Path) -> list[str]:
        """`seconds` from now; in the cgroups that `guarded` gives."""
        at = int((boottime() + seconds) * 1e9)
        return self.ask("arm", uid, at, *(self.guarded(root, uid) for root in roots))

    def guarded(self, root: Path, uid: str) -> Path:
        return root / self.parent.strip("/") / uid

    def victim(self, cgroup: Path, script: str = "sleep 1000") -> subprocess.Popen[bytes]:
        """A shell that puts itself into the cgroup before it does anything."""
        cgroup.mkdir(parents=True, exist_ok=True)
        enter = f"echo $$ > {cgroup}/cgroup.procs && "
        process = subprocess.Popen(["sh", "-c", enter + script])
        self.processes.append(process)
        return process

    def clean(self) -> None:
        self._socket.close()
        for process in self.processes:
            process.kill()
        for root in usable_roots():
            top = root / self.parent.strip("/")
            cgroups = [*sorted(top.rglob("*/"), reverse=True), top] if top.is_dir() else []
            for cgroup in cgroups:
                for pid in (cgroup / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
                for file, text in (("cgroup.freeze", "0"), ("freezer.state", "THAWED")):
                    if (cgroup / file).exists():
                        (cgroup / file).write_text(text)
            for cgroup in cgroups:
                wait_until(lambda cgroup=cgroup: removed(cgroup))
        for process in self.processes:
            process.wait(DEADLINE_S)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.clean()


@pytest.fixture(params=usable_roots(), ids=lambda root: root.name)
def root(request: pytest.FixtureRequest) -> Path:
    """Each kind of hierarchy that this machine has."""
    return Path(request.param)


# ---- deadlines ----


def test_at_its_deadline_all_of_a_replica_is_killed_and_nothing_else(box: Box, root: Path) -> None:
    box.start()
    assert box.arm("doomed", 1.0, root) == ["ok"]
    assert box.arm("other", 60.0, root) == ["ok"]
    deadline = box.armed()["doomed"] / 1e9
    # Containers are cgroups below the pod's; processes have children, and some ignore signals.
    inner = box.guarded(root, "doomed") / "container"
    tree = "trap '' TERM HUP INT; (while :; do sleep 0.01; done) & (sleep 999; :) & wait"
    doomed = [box.victim(inner, tree), box.victim(box.guarded(root, "doomed"))]
    spared = box.victim(box.guarded(root, "other"))
    wait_until(lambda: len((inner / "cgroup.procs").read_text().split()) >= 3)
    late_s = wait_until(lambda: all(process.poll() is not None for process in doomed))
    assert 0.0 <= boottime() - deadline < 0.5 + BUSY * late_s
    assert [process.returncode for process in doomed] == [-signal.SIGKILL] * 2
    wait_until(lambda: not (inner / "cgroup.procs").read_text())
    assert spared.poll() is None
    assert set(box.armed()) == {"doomed", "other"}, "until somebody says that it is over"


WRITES_TIME = """
import mmap, struct, sys, time
file = open(sys.argv[1], "r+b")
page = mmap.mmap(file.fileno(), 8)
while True:
    page[:] = struct.pack("d", time.clock_gettime(time.CLOCK_BOOTTIME))
"""


def test_its_last_instruction_is_at_the_deadline(box: Box, root: Path, tmp_path: Path) -> None:
    """It may take long to be gone on a busy machine; until then it does nothing any more."""
    box.start()
    page = tmp_path / "page"
    page.write_bytes(bytes(8))
    box.arm("u", 60.0, root)
    program = f"exec {sys.executable} -S -E -c '{WRITES_TIME}' {page}"
    victim = box.victim(box.guarded(root, "u"), program)

    def written() -> float:
        (at,) = struct.unpack("d", page.read_bytes())
        return float(at)

    wait_until(written)
    deadline = boottime() + 0.5
    box.ask("arm", "u", int(deadline * 1e9), box.guarded(root, "u"))
    late_s = wait_until(lambda: victim.poll() is not None)
    assert deadline - 0.5 < written() < deadline + 0.01 + BUSY * late_s


def test_who_is_armed_again_in_time_lives(box: Box, root: Path) -> None:
    box.start()
    box.arm("u", 2.0, root)
    victim = box.victim(box.guarded(root, "u"))
    began = boottime()
    while boottime() < began + 3.0:
        box.arm("u", 2.0, root)
        time.sleep(0.05)
        assert victim.poll() is None
    wait_until(lambda: victim.poll() is not None)


def test_who_is_disarmed_is_forgotten(box: Box, root: Path) -> None:
    box.start()
    box.arm("u", 2.0, root)
    box.arm("mark", 2.3, root)
    free, mark = box.victim(box.guarded(root, "u")), box.victim(box.guarded(root, "mark"))
    assert box.ask("disarm", "u") == ["ok"] == box.ask("disarm", "unheard-of")
    wait_until(lambda: mark.poll() is not None)
    assert free.poll() is None and set(box.armed()) == {"mark"}


def test_what_starts_late_runs_no_instruction(box: Box, root: Path, tmp_path: Path) -> None:
    """A runtime may go on with what a dead agent had asked for."""
    box.start()
    box.arm("u", 0.0, root)
    wait_until(lambda: box.guarded(root, "u").is_dir())
    time.sleep(0.05)  # the first look is over: what comes now comes late
    at_once = 1 if root == V1 else 10  # version 1 is open for a millisecond, to let one die
    for n in range(0, 10, at_once):
        cgroup = box.guarded(root, "u")
        late = [box.victim(cgroup, f"touch {tmp_path}/ran-{n}-{m}") for m in range(at_once)]
        wait_until(lambda late=late: all(process.poll() is not None for process in late))
    assert not list(tmp_path.glob("ran-*"))
    # A new tenure opens it again.
    assert box.arm("u", 60.0, root) == ["ok"]
    box.victim(box.guarded(root, "u"), f"touch {tmp_path}/ran")
    wait_until((tmp_path / "ran").exists)


def test_what_is_long_over_is_forgotten_and_stays_shut(box: Box, root: Path) -> None:
    box.start()
    box.arm("u", -3700.0, root)
    wait_until(lambda: box.armed() == {})
    victim = box.victim(box.guarded(root, "u"), f"touch {box.directory}/ran")
    frozen = {"cgroup.events": "frozen 1", "freezer.state": "FROZEN"}
    there = [root / box.guarded(root, "u") / file for file in frozen]
    wait_until(lambda: any(frozen[f.name] in f.read_text() for f in there if f.exists()))
    assert box.arm("u", 60.0, root) == ["ok"]
    assert victim.wait(DEADLINE_S) == 0 and (box.directory / "ran").exists()


def test_a_cgroup_that_somebody_removed_is_there_again_with_the_next_tenure(
    box: Box, root: Path
) -> None:
    box.start()
    box.arm("u", 0.0, root)
    directory = box.guarded(root, "u")
    wait_until(lambda: removed(directory))
    assert box.arm("u", 60.0, root) == ["ok"]
    assert directory.is_dir()


def test_a_replica_is_looked_for_in_all_its_cgroups(box: Box) -> None:
    box.start()
    roots = usable_roots()
    box.arm("u", 0.5, *roots)
    victims = [box.victim(box.guarded(root, "u")) for root in roots]
    wait_until(lambda: all(victim.poll() is not None for victim in victims))


# ---- the agent ----

AGENT = """
import asyncio, sys, time
from pathlib import Path
from agent.site.switch_client import SwitchClient
async def main(directory, table, parent):
    client = SwitchClient(Path(directory), Path(table), parent)
    keeping = asyncio.create_task(client.run())
    while True:
        if client.alive and await client.arm("u", time.clock_gettime(time.CLOCK_BOOTTIME) + 1.0):
            print("armed", flush=True)
        await asyncio.sleep(0.1)
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_an_agent_that_is_killed_or_frozen_costs_its_replica(box: Box, how: signal.Signals) -> None:
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(box.directory), str(box.table), box.parent],
        stdout=subprocess.PIPE,
    )
    box.processes.append(agent)
    assert agent.stdout is not None and agent.stdout.readline() == b"armed\n"
    victim = box.victim(box.guarded(usable_roots()[0], "u"))
    for _ in range(20):
        assert agent.stdout.readline() == b"armed\n"
    assert victim.poll() is None
    agent.send_signal(how)
    deadline = box.armed()["u"] / 1e9
    late_s = wait_until(lambda: victim.poll() is not None)
    assert 0.0 <= boottime() - deadline < 0.6 + BUSY * late_s
    assert box.ask("end") == ["ok"]


# ---- itself ----


def test_after_its_own_death_it_goes_on_where_it_was(box: Box, root: Path) -> None:
    first = box.start()
    box.arm("soon", 1.0, root)
    box.arm("later", 60.0, root)
    armed = box.armed()
    soon, later = (box.victim(box.guarded(root, uid)) for uid in ("soon", "later"))
    first.kill()
    first.wait()
    box.start()
    assert box.armed() == armed
    wait_until(lambda: soon.poll() is not None)
    assert later.poll() is None


def test_a_deadline_that_passes_while_it_is_away_is_kept_late(box: Box, root: Path) -> None:
    first = box.start()
    victim = box.victim(box.guarded(root, "u"))
    box.arm("u", 2.0, root)
    past = boottime() + 2.0
    first.kill()
    first.wait()
    wait_until(lambda: boottime() > past)
    assert victim.poll() is None
    box.start()
    wait_until(lambda: victim.poll() is not None)


def test_a_second_one_waits_and_takes_its_place(box: Box, root: Path) -> None:
    first = box.start()
    box.arm("u", 1.0, root)
    victim = box.victim(box.guarded(root, "u"))
    second = box.start_silent()
    time.sleep(0.3)
    assert box.pid() == first.pid and second.poll() is None
    first.kill()
    wait_until(lambda: victim.poll() is not None)
    assert box.pid() == second.pid


def test_it_makes_room_when_it_is_told(box: Box, root: Path) -> None:
    first = box.start()
    box.arm("u", 60.0, root)
    assert box.ask("end") == ["ok"]
    assert first.wait(DEADLINE_S) == 0
    box.start()
    assert set(box.armed()) == {"u"}


def test_one_that_an_agent_left_ends_when_all_is_over(box: Box, root: Path) -> None:
    switch = box.start("--linger", "0.5")
    box.arm("u", 1.0, root)
    victim = box.victim(box.guarded(root, "u"))
    assert switch.wait(DEADLINE_S) == 0
    assert victim.wait(DEADLINE_S) == -signal.SIGKILL, "and no earlier"


def test_after_a_reboot_the_table_is_void(box: Box, root: Path) -> None:
    first = box.start()
    box.arm("u", 0.2, root)
    first.kill()
    first.wait()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kept = box.table.read_bytes()
    for now in (boot, "0" * len(boot)):
        line = re.sub(rb"\w{8} " + boot.encode(), b"", kept.partition(b"\n")[0].strip(b"\0"))
        text = now.encode() + line
        box.table.write_bytes(f"{zlib.crc32(text):08x} ".encode() + text + b"\n")
        switch = box.start()
        assert set(box.armed()) == ({"u"} if now == boot else set())
        switch.kill()
        switch.wait()


def test_a_damaged_line_costs_no_other(box: Box, root: Path) -> None:
    first = box.start()
    for uid in ("one", "two"):
        box.arm(uid, 60.0, root)
    first.kill()
    first.wait()
    content = box.table.read_bytes()
    assert b" one " in content
    box.table.write_bytes(content.replace(b" one ", b" onE "))
    box.start()
    assert set(box.armed()) == {"two"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mounts.mount_memory(disk, 256 << 10)
    except OSError as error:
        pytest.skip(f"cannot mount: {error}")
    yield disk
    mounts.unmount(disk)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(OSError, match="No space"):
        (disk / "more").write_bytes(b"x" * 4096)


def test_a_full_disk_stops_neither_deadlines_nor_a_new_start(
    box: Box, root: Path, small_disk: Path
) -> None:
    box.table = small_disk / "table"
    first = box.start()
    box.arm("old", 60.0, root)
    fill(small_disk)
    for n in range(50):
        assert box.arm(f"new-{n}", 60.0, root) == ["ok"]
    assert box.arm("soon", 1.0, root) == ["ok"]
    armed = box.armed()
    victim = box.victim(box.guarded(root, "soon"))
    first.kill()
    first.wait()
    box.start()
    assert box.armed() == armed and len(armed) == 52
    wait_until(lambda: victim.poll() is not None)


def test_without_room_for_its_table_it_does_not_pretend(box: Box, small_disk: Path) -> None:
    fill(small_disk)
    box.table = small_disk / "table"
    assert box.start_silent().wait(DEADLINE_S) == errno.ENOSPC


def test_the_table_has_an_end(box: Box, root: Path) -> None:
    box.start()
    directory = box.guarded(root, "u")
    at = int((boottime() + 60) * 1e9)
    for n in range(256):
        assert box.ask("arm", f"u{n}", at, directory) == ["ok"]
    assert box.ask("arm", "u256", at, directory) == ["no", "room", "in", "the", "table"]
    assert box.ask("arm", "u3", at + 1, directory) == ["ok"], "what is in it is renewed"
    box.ask("disarm", "u3")
    assert box.ask("arm", "u256", at, directory) == ["ok"]


def test_garbage_changes_nothing(box: Box, root: Path) -> None:
    switch = box.start()
    box.arm("u", 60.0, root)
    before = box.armed()
    directory = str(box.guarded(root, "u"))
    dice = random.Random(6)
    words = ["arm", "disarm", "list", "u", "x", "12", "-1", "1e9", "99" * 40, directory, "\0", "é"]
    requests = [dice.randbytes(dice.randrange(0, 300)) for _ in range(200)]
    requests += [" ".join(dice.choices(words, k=5)).encode() for _ in range(200)]
    requests += [b"", b"\n", b"7", b"7 arm", f"7 arm u 5 {directory}".ljust(9000).encode()]
    harmful = (b" arm u ", b" arm x ", b" arm 12 ", b" disarm u", b" end")
    target = str(box.directory / "switch.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nobody:  # cannot even be answered
        for request in requests:
            if not any(word in b" " + request for word in harmful) or len(request) > 4096:
                nobody.sendto(request, target)
    wait_until(lambda: box.pid() == switch.pid)
    assert {u: d for u, d in box.armed().items() if u == "u"} == before


def test_what_is_no_cgroup_of_a_replica_is_refused(box: Box, tmp_path: Path) -> None:
    box.start()
    roots = usable_roots()
    strange = ["/", "relative/path", str(tmp_path / "x"), "/sys/fs/cgroup-not", "/proc/1"]
    strange += [str(root) for root in roots]
    strange += [f"{roots[0]}/../freezer/x", f"{roots[0]}//x", f"{roots[0]}/x/"]
    for directory in strange:
        answer = box.ask("arm", "u", int(1e18), directory)
        assert answer[0] == "no", directory
        assert box.ask("arm", "u", int(1e18), box.guarded(roots[0], "u"), directory)[0] == "no"
    assert box.armed() == {} and not (tmp_path / "x").exists()


def test_it_never_kills_itself(box: Box, root: Path) -> None:
    switch = box.start()
    cgroup = box.guarded(root, "own")
    cgroup.mkdir(parents=True)
    (cgroup / "cgroup.procs").write_text(str(switch.pid))
    assert box.arm("own", 0.0, root)[0] == "no"
    (root / "cgroup.procs").write_text(str(switch.pid))


@pytest.mark.skipif(EMULATED, reason="memory of an emulated program is the emulator's")
def test_it_is_small_and_stays_in_memory(box: Box, root: Path) -> None:
    switch = box.start()
    for n in range(50):
        for _ in range(20):
            box.arm(f"u{n}", 60.0, root)
    rollup = Path(f"/proc/{switch.pid}/smaps_rollup").read_text()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
    assert sizes["Private_Clean"] + sizes["Private_Dirty"] < 5.5 * 1024, sizes
    assert sizes["Rss"] < 11 * 1024, sizes  # with the code that it runs, and not all of its start
    status = Path(f"/proc/{switch.pid}/status").read_text()
    locked = int(next(x for x in status.splitlines() if x.startswith("VmLck")).split()[1])
    assert locked > 0 or os.geteuid() != 0


def test_it_imports_little() -> None:
    """Nothing of ours, and nothing that costs memory: see its own words on that."""
    tree = ast.parse(PROGRAM.read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    found = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert found <= sys.stdlib_module_names
    assert not found & {"asyncio", "json", "logging", "pathlib", "re", "socket", "typing"}


def test_edge_agent_switch_becomes_one(box: Box, tmp_path: Path) -> None:
    agent = [sys.executable, "-m", "agent", "switch", "--state-dir", str(tmp_path / "state")]
    process = subprocess.Popen(agent)
    box.processes.append(process)
    box.directory, table = places(tmp_path / "state")
    wait_until(lambda: box.pid() == process.pid)
    assert table.is_file()


# ---- the agent's side ----


@contextlib.asynccontextmanager
async def client_of(box: Box):  # type: ignore[no-untyped-def]
    changes: list[bool] = []
    client = SwitchClient(box.directory, box.table, box.parent, on_change=changes.append)
    keeping = asyncio.create_task(client.run())
    try:
        yield client, changes
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        with contextlib.suppress(OSError):
            box.ask("end")


async def becomes(condition: Callable[[], bool]) -> None:
    async def look() -> bool:
        return condition()

    await eventually(look, bool, DEADLINE_S)


async def test_the_agent_starts_one_where_none_is(box: Box) -> None:
    async with client_of(box) as (client, changes):
        assert "not started" in client.objection("u", False)
        await becomes(lambda: client.alive)
        assert changes == [True]
        assert "not armed" in client.objection("u", False)
        at = boottime() + 60
        assert await client.arm("u", at)
        assert client.objection("u", False) == ""
        assert "did not put it into" in client.objection("u", True)
        victim = box.victim(box.guarded(usable_roots()[0], "u"))
        await becomes(lambda: client.objection("u", True) == "")
        assert await client.armed() == {"u": pytest.approx(at, abs=1e-3)}
        assert await client.arm("u", boottime() - 1)
        assert "not armed" in client.objection("u", False)
        await becomes(lambda: victim.poll() is not None)
        await client.disarm("u")
        assert await client.armed() == {}


async def test_cgroups_go_with_the_stay(box: Box) -> None:
    async with client_of(box) as (client, _):
        await becomes(lambda: client.alive)
        assert await client.arm("u", boottime() + 60)
        made = [box.guarded(root, "u") for root in usable_roots()]
        assert any(path.is_dir() for path in made)
        await client.disarm("u")
        assert not any(path.exists() for path in made)


async def test_what_a_dead_agent_had_armed_is_cleared_away(box: Box) -> None:
    """Once no runtime can still be starting it."""
    box.start()
    box.arm("longover", -301.0, *usable_roots())
    box.arm("over", -1.0, *usable_roots())
    async with client_of(box):
        await becomes(lambda: set(box.armed()) == {"over"})
        away = [box.guarded(root, "longover") for root in usable_roots()]
        await becomes(lambda: not any(path.exists() for path in away))
        assert any(box.guarded(root, "over").exists() for root in usable_roots())


async def test_the_next_agent_finds_the_same_switch(box: Box) -> None:
    box.start()
    async with client_of(box) as (client, _):
        await becomes(lambda: client.alive)
        assert await client.arm("u", boottime() + 60)
        pid = box.pid()
        second = SwitchClient(box.directory, box.table, box.parent)
        found = await second.armed()
        assert found is not None and set(found) == {"u"}
        assert second.alive and second.objection("u", False) == ""
        assert box.pid() == pid


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_one_that_dies_or_hangs_is_replaced(box: Box, how: signal.Signals) -> None:
    async with client_of(box) as (client, changes):
        await becomes(lambda: client.alive)
        assert await client.arm("u", boottime() + 60)
        pid = box.pid()
        os.kill(pid, how)
        await becomes(lambda: changes[:2] == [True, False])
        assert client.objection("u", False)
        await becomes(lambda: changes == [True, False, True])
        assert box.pid() not in (0, pid)
        assert client.objection("u", False) == ""
        assert not await asyncio.to_thread(Path(f"/proc/{pid}/cmdline").exists) or not (
            Path(f"/proc/{pid}/cmdline").read_bytes()
        )


async def test_a_renewal_that_is_lost_leaves_the_deadline(box: Box) -> None:
    async with client_of(box) as (client, _):
        await becomes(lambda: client.alive)
        assert await client.arm("u", boottime() + 2.5)
        victim = box.victim(box.guarded(usable_roots()[0], "u"))
        os.kill(box.pid(), signal.SIGSTOP)
        began = boottime()
        assert not await client.arm("u", boottime() + 60), "nobody has heard of it"
        assert boottime() - began < 2
        await becomes(lambda: victim.poll() is not None)


async def test_a_renewal_reads_no_mounts(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are as many lines as containers, and a renewal each second of each replica."""
    async with client_of(box) as (client, _):
        await becomes(lambda: client.alive)
        assert await client.arm("u", boottime() + 60)
        monkeypatch.setattr(mounts, "MOUNTINFO", Path("/nothing/here"))
        at = boottime() + 90
        assert await client.arm("u", at)
        assert await client.armed() == {"u": pytest.approx(at, abs=1e-3)}
        monkeypatch.undo()
        await client.disarm("u")
        assert not any(box.guarded(root, "u").exists() for root in usable_roots())


async def test_an_agent_that_was_busy_does_not_take_the_switch_for_dead(box: Box) -> None:
    async with client_of(box) as (client, changes):
        await becomes(lambda: client.alive)
        pid = box.pid()
        for _ in range(5):
            os.kill(pid, signal.SIGSTOP)
            arming = asyncio.create_task(client.arm("u", boottime() + 60))
            await asyncio.sleep(0.05)  # it is asked, and waited for
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.6)  # noqa: ASYNC251 - a loop that stands still is what this is about
            assert await arming
        assert changes == [True]


async def test_an_agent_says_why_there_is_no_switch(box: Box, small_disk: Path) -> None:
    fill(small_disk)
    box.table = small_disk / "table"
    async with client_of(box) as (client, changes):
        await becomes(lambda: "No space left" in client.objection("u", False))
        assert not client.alive and changes == []
        assert not await client.arm("u", boottime() + 60)
