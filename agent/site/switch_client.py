"""The agent's side of the dead-man's switch (`agent/switch.py`): arms it, and sees that it lives.

Made by `agent/site/loop.py`:

    client = SwitchClient(directory, table, config.cgroup_parent, on_change=...)
    await client.run()                until cancelled; starts a switch where none answers
    await client.arm(uid, deadline)   True: the switch has it and kills at the deadline, seconds of
                                      CLOCK_BOOTTIME, whatever becomes of this process
    await client.disarm(uid)          nothing of the stay is left, or it needs no lease any more
    await client.armed()              {uid: deadline} as the switch has it; None: no answer
    client.deadlines                  the same, as it said last
    client.alive                      `on_change(alive)` says when that changes
    supervisor.use_guard(client.objection)    why a stay must not start now

A stay that was armed stays so when the agent ends or a renewal gets lost: then it is killed by what
the switch heard last. Cancelling `run` leaves the switch alone, for the next agent to find.
"""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from agent import mounts
from agent.domain import cgroups
from agent.steady_clock import to_the_second

log = logging.getLogger(__name__)

PROGRAM = Path(__file__).parent.parent / "switch.py"
RUN = Path("/run")
VERSION = 2  # of the program that comes with this agent
ANSWER_S = 0.4
PING_S = 2.0  # that it ended is heard at once in any case
ASKED_S = 1.5  # who asked so lately need not ping: while a lease is held, each second arms
GREET_S = 10.0
SILENT_S = 3.0
START_S = 3.0  # for systemd's, if there is one, to come first
RETRY_S = 0.1
RESTART_S = 2.0  # at the least between two starts
LINGER_S = 60
# Past its deadline: then no runtime goes on any more with what an agent had asked for that died.
LEFT_S = 300.0
LIST_BYTES = 65_536


class NoAnswer(Exception):
    """The switch is not there, hangs, or refuses; the message says which."""


def places(state_dir: Path) -> tuple[Path, Path]:
    """Where an agent's switch has its socket and its table.

    The table changes each second: it is in memory, if there is a place for that.
    """
    directory = state_dir / "site"
    table = directory / "switch.table"
    if mounts.is_in_memory(RUN):
        own = sha256(str(state_dir.absolute()).encode()).hexdigest()[:12]
        table = RUN / f"polder-switch-{own}" / "table"
    return directory, table


def command(directory: Path, table: Path) -> list[str]:
    """What runs a switch: our interpreter, without what only larger programs need. Its places are
    made. Raises OSError."""
    for path in (directory, table.parent):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = ["-S", "-E", "-s", "-P"]
    return [sys.executable, *flags, str(PROGRAM), str(directory), str(table)]


class SwitchClient:
    """`directory` and `table` as in `places`, `cgroup_parent` as in the agent's settings.

    All methods belong to one event loop.
    """

    def __init__(
        self,
        directory: Path,
        table: Path,
        cgroup_parent: str = "",
        *,
        on_change: Callable[[bool], None] = lambda _alive: None,
    ) -> None:
        self.alive = False
        self.trouble = "it was not started yet"
        self._address = directory / "switch.sock"
        self._table = table
        self._parent = cgroup_parent
        self._on_change = on_change
        self._deadlines: dict[str, float] = {}  # as the switch said that it has them
        self._places: dict[str, tuple[str, ...]] = {}  # cgroups of those that are armed
        self._socket: socket.socket | None = None
        self._turn = asyncio.Lock()
        self._number = 0
        self._greet_due = asyncio.Event()
        self._pid = self._pidfd = -1
        self._child: subprocess.Popen[bytes] | None = None
        self._heard_at = self._begun_at = time.monotonic()
        self._child_at = -RESTART_S

    # ---- for the rest of the agent ----

    @property
    def deadlines(self) -> Mapping[str, float]:
        """Seconds of CLOCK_BOOTTIME by uid, as it said last."""
        return dict(self._deadlines)

    async def arm(self, uid: str, deadline: float) -> bool:
        """Whether the switch has it. If not, what it had of the stay before still holds."""
        if uid not in self._places:  # each renewal arms: not all mounts are read for each
            self._places[uid] = self._guarded(uid)
        words = ("arm", uid, str(int(deadline * 1e9)), *self._places[uid])
        try:
            await self._ask(*words)
        except NoAnswer as error:
            log.warning("not armed", extra={"replica": uid, "error": str(error)})
            return False
        self._deadlines[uid] = deadline
        return True

    async def disarm(self, uid: str) -> None:
        """Should it get lost, the switch kills what is gone."""
        self._deadlines.pop(uid, None)
        self._places.pop(uid, None)
        try:
            await self._ask("disarm", uid)
        except NoAnswer as error:
            log.warning("not disarmed", extra={"replica": uid, "error": str(error)})
            return
        self._tidy(uid)

    async def armed(self) -> Mapping[str, float] | None:
        """Seconds of CLOCK_BOOTTIME by uid, past ones too: those are kept shut."""
        try:
            await self._greet()
        except NoAnswer:
            return None
        return dict(self._deadlines)

    def objection(self, uid: str, pod_runs: bool) -> str:
        """Why nothing more of the stay may be started; empty: the switch would end it in time.

        `pod_runs`: its sandbox is there, so it must be where the switch looks.
        """
        if not self.alive:
            return f"the dead-man's switch is away: {self.trouble}"
        if self._deadlines.get(uid, 0.0) <= time.clock_gettime(time.CLOCK_BOOTTIME):
            return "the dead-man's switch is not armed for it"
        guarded = self._guarded(uid)
        if pod_runs and not any(_is_populated(Path(path)) for path in guarded):
            return f"the runtime did not put it into {' or '.join(guarded)}"
        return ""

    async def run(self) -> None:
        """Keep a switch alive and known. Ends only when it is cancelled."""
        try:
            while True:
                self._greet_due.clear()
                try:
                    await self._greet()
                    await self._clear_away()
                except NoAnswer:
                    self._bring_up()
                    await asyncio.sleep(RETRY_S)
                    continue
                await self._rest()
        finally:
            self._forget_process()
            self._hang_up()

    async def _rest(self) -> None:
        """Until it is to be greeted: it ended, was lost to who armed it, has said nothing for a
        while, or it is time to hear what it has."""
        loop, greeted_at = asyncio.get_running_loop(), time.monotonic()
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            now = time.monotonic()
            if now >= min(self._heard_at + ASKED_S, greeted_at + GREET_S):
                self._greet_due.set()
            else:
                timer = loop.call_later(to_the_second(PING_S), look)

        timer = loop.call_later(to_the_second(PING_S), look)
        try:
            await self._greet_due.wait()
        finally:
            timer.cancel()

    # ---- asking ----

    async def _greet(self) -> None:
        """Learn who it is and what it has. Raises NoAnswer."""
        pid, version, *there = await self._ask("list")
        if int(version) < VERSION:
            await self._ask("end")
            self._lost("it was of an older version")
        pairs = (item.partition("=") for item in there)
        self._deadlines = {uid: int(deadline) / 1e9 for uid, _, deadline in pairs}
        self._watch(int(pid))
        if not self.alive:
            self.alive, self.trouble = True, ""
            self._on_change(True)

    async def _ask(self, *words: str) -> list[str]:
        """What follows `ok`. Raises NoAnswer, with what follows `no`."""
        async with self._turn:
            try:
                try:
                    answer = await self._exchange(words)
                except TimeoutError:
                    # It may be us: to a loop that was busy, what came in time is late all the same.
                    answer = await self._exchange(words)
            except TimeoutError:
                self._lost("it does not answer")
            except OSError as error:
                self._lost(error.strerror or str(error))
        self._heard_at = time.monotonic()
        if answer[:1] != ["ok"]:
            raise NoAnswer(" ".join(answer))
        return answer[1:]

    async def _exchange(self, words: Sequence[str]) -> list[str]:
        """Raises OSError and TimeoutError. What is asked twice is done once: no request adds up."""
        self._number += 1
        number = str(self._number)
        request = " ".join((number, *words)).encode()
        try:
            self._line().send(request)
        except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
            self._hang_up()  # it was started anew: there is another one at the same address
            self._line().send(request)
        async with asyncio.timeout(ANSWER_S):
            while True:
                data = await asyncio.get_running_loop().sock_recv(self._line(), LIST_BYTES)
                first, *rest = data.decode().split(" ")
                if first == number:  # or else a late answer to what nobody waits for any more
                    return rest

    def _line(self) -> socket.socket:
        if self._socket is None:
            fresh = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                fresh.bind("")  # the kernel gives it a name, to which answers go
                fresh.connect(str(self._address))
            except OSError:
                fresh.close()
                raise
            self._socket = fresh
        return self._socket

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _lost(self, trouble: str) -> NoReturn:
        self._hang_up()
        self._places.clear()
        self.trouble = trouble
        self._greet_due.set()
        if self.alive:
            self.alive = False
            log.warning("the dead-man's switch is away", extra={"error": trouble})
            self._on_change(False)
        raise NoAnswer(trouble)

    # ---- the process ----

    def _watch(self, pid: int) -> None:
        """Hear at once of its end, whoever started it."""
        if pid == self._pid:
            return
        self._forget_process()
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno == errno.ESRCH:
                return  # the next ping finds out
            raise
        self._pid = pid
        asyncio.get_running_loop().add_reader(self._pidfd, self._greet_due.set)

    def _forget_process(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._pid = self._pidfd = -1

    def _bring_up(self) -> None:
        """Start one, unless one was just started; first end one that hangs."""
        now = time.monotonic()
        if self._pidfd >= 0 and now - self._heard_at > SILENT_S:
            log.error("the dead-man's switch hangs", extra={"pid": self._pid})
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._forget_process()
        code = self._child.poll() if self._child is not None else 0
        running = code is None
        if code:  # by a signal, or by the errno of what went wrong
            self.trouble = f"it ended: {os.strerror(code) if code > 0 else f'signal {-code}'}"
        under_systemd = "NOTIFY_SOCKET" in os.environ
        if running or now - self._child_at < RESTART_S:
            return
        if under_systemd and now - self._begun_at < START_S:
            return
        self._child_at = now
        try:
            self._child = subprocess.Popen(
                [*command(self._address.parent, self._table), "--linger", str(LINGER_S)],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # it would hold our log open when we end
                start_new_session=True,  # what is sent to the agent's terminal is not for it
            )
        except OSError as error:
            self.trouble = f"it cannot be started: {error}"

    # ---- cgroups ----

    async def _clear_away(self) -> None:
        """What an agent before us had armed, and did not live to disarm. Raises NoAnswer."""
        limit = time.clock_gettime(time.CLOCK_BOOTTIME) - LEFT_S
        for uid in [uid for uid, deadline in self._deadlines.items() if deadline < limit]:
            if not any(_is_populated(Path(path)) for path in self._guarded(uid)):
                await self._ask("disarm", uid)
                self._deadlines.pop(uid, None)
                self._tidy(uid)

    def _guarded(self, uid: str) -> tuple[str, ...]:
        return tuple(f"{root}/{self._below(uid)}" for root in _killable(_hierarchies()))

    def _below(self, uid: str) -> str:
        return cgroups.directory(cgroups.own_parent(self._parent, uid))

    def _tidy(self, uid: str) -> None:
        """The runtime removes what it made below; slices are systemd's."""
        if self._parent.endswith(cgroups.SLICE):
            return
        for root in _hierarchies():
            with contextlib.suppress(OSError):  # it is not there, or something is in it yet
                Path(root, self._below(uid)).rmdir()


def _hierarchies() -> dict[str, str]:
    """Mount points of the cgroup file systems, with their kind."""
    points = mounts.parse(mounts.MOUNTINFO.read_text())
    return {point.path: point.kind for point in points if point.kind in ("cgroup", "cgroup2")}


def _killable(hierarchies: Mapping[str, str]) -> list[str]:
    """Those that can stop or kill a whole tree; or else one in which all processes are seen."""
    found = [
        path
        for path, kind in hierarchies.items()
        if kind == "cgroup2" or "freezer" in Path(path).name.split(",")
    ]
    return sorted(found) or sorted(hierarchies)[:1]


def _is_populated(directory: Path) -> bool:
    try:
        return any(path.read_text().strip() for path in directory.rglob("cgroup.procs"))
    except OSError:
        return False
