"""The dead-man's switch: kills an exclusive replica at its deadline unless the agent comes before.

A process of its own, so that it acts when the agent crashed, hangs or is stopped. systemd starts it
or else the agent does (`agent/site/switch_client.py`, which alone speaks to it):

    python -S -E -s -P agent/switch.py DIRECTORY TABLE [--linger SECONDS]

It listens for datagrams at DIRECTORY/switch.sock, one request each, words with blanks between:

    ID arm UID DEADLINE DIR...    ID ok             killed at DEADLINE, whatever comes
    ID disarm UID                 ID ok             forgotten
    ID list                       ID ok PID VERSION UID=DEADLINE...
    ID end                        ID ok             make room for another version
    anything else                 ID no REASON      and nothing changed

DEADLINE is in nanoseconds of CLOCK_BOOTTIME, DIR a cgroup of version 1 or 2 with all below it. What
is past its deadline stays shut until it is armed again or disarmed: its cgroup is left frozen, so
that what the runtime starts late never runs an instruction (or, with version 1 alone, hardly any).
An hour later it is forgotten, shut as it is.

What is armed stands in TABLE, a file of fixed size that is allocated once and then overwritten in
place: a full disk cannot stop that. A switch that is started again goes on where the last one
ended; a second one waits for the first to end. After a reboot nothing runs and the table is void.

Nothing here may wait: the disk is only touched in the page cache, the log only where there is room.
Words instead of JSON, and `_signal` and `_socket` without what wraps them, keep it small. What its
start has read stays in memory, although most is not needed again: a page that must come from a disk
that hangs is a deadline that is missed, and that is when the agent hangs as well.
"""

import _signal  # type: ignore[import-not-found]  # `signal` brings enums: 0.7 MB
import _socket
import ctypes
import errno
import fcntl
import os
import select
import sys
import time
import zlib

VERSION = 2
SLOTS, SLOT_BYTES = 256, 512
REQUEST_BYTES = 4096
UID_MAX = 64
AGAIN_S, WATCH_S = 0.01, 0.25  # between looks at what is not empty yet, and at what was once
THAW_S = 0.001
FORGET_S = 3600
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
TFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
TFD_TIMER_ABSTIME = 1
REAL_TIME_PRIORITY = 10
LIBC = ctypes.CDLL(None, use_errno=True)


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


# ---- cgroups ----


def read(path: str) -> str:
    """Empty when it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        parts = []
        while part := os.read(descriptor, 65536):
            parts.append(part)
        return b"".join(parts).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def write(path: str, text: str) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(descriptor, text.encode())
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def pids_below(directory: str) -> list[int]:
    """Of the cgroup and all below it. One of another pid namespace shows as 0 and is left out."""
    found = [int(word) for word in read(directory + "/cgroup.procs").split() if word.isdigit()]
    try:
        inner = [entry.path for entry in os.scandir(directory) if entry.is_dir()]
    except OSError:
        inner = []
    for path in inner:
        found += pids_below(path)
    return [pid for pid in found if pid > 1]


def shut(directory: str, late: bool) -> bool:
    """Kill all that is in the cgroup, and let nothing run there from now on. Whether it was empty.

    Version 2 lets a frozen process die. In version 1 it must be thawed to die: each has its SIGKILL
    by then, and none returns to its program. It is frozen again when none is left; or at once, when
    what was found came `late`: nobody waits for its end, and more like it may come.
    """
    write(directory + "/cgroup.freeze", "1")
    write(directory + "/freezer.state", "FROZEN")
    found = pids_below(directory)
    if not found:
        return True
    if not write(directory + "/cgroup.kill", "1"):  # version 1, or before Linux 5.14
        for pid in found:
            try:
                os.kill(pid, _signal.SIGKILL)
            except OSError:
                continue  # it is gone
        write(directory + "/freezer.state", "THAWED")
        if late:
            select.poll().poll(1000 * THAW_S)  # time.sleep fails where the wall clock is faked
            write(directory + "/freezer.state", "FROZEN")
    return False


def open_again(directory: str) -> None:
    write(directory + "/cgroup.freeze", "0")
    write(directory + "/freezer.state", "THAWED")


def objection(directory: str) -> str:
    """Why this cgroup must not be killed as a whole. It is made when it is not there."""
    if os.path.realpath(directory) != directory:
        return f"{directory} is not a plain path"
    above, _, name = directory.rpartition("/")
    missing = [name]
    while above and not os.path.exists(above):  # noqa: PTH110 - pathlib costs a megabyte
        above, _, name = above.rpartition("/")
        missing.append(name)
    if not os.path.exists(above + "/cgroup.procs"):  # noqa: PTH110
        return f"{directory} is not below a cgroup"
    try:
        for name in reversed(missing):
            above = f"{above}/{name}"
            if not os.path.exists(above):  # noqa: PTH110
                os.mkdir(above)  # noqa: PTH102
    except OSError as error:
        return f"{above}: {error.strerror}"
    if os.getpid() in pids_below(directory):
        return f"{directory} is the switch's own"
    return ""


# ---- what is armed ----


class Armed:
    """One replica. `kept_ns`: its deadline on file. `struck`: it was past its deadline and
    something of it ran; `over`: nothing was left."""

    __slots__ = ("deadline_ns", "directories", "kept_ns", "over", "slot", "struck")

    def __init__(self, slot: int, deadline_ns: int, directories: list[str]) -> None:
        self.slot = slot
        self.deadline_ns = self.kept_ns = deadline_ns
        self.directories = directories
        self.struck = self.over = False


class Table:
    """What is armed, on file. A slot is a line with its checksum and boot, written in one piece."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self._file, 0, SLOT_BYTES * SLOTS)
        self._boot = read("/proc/sys/kernel/random/boot_id").strip()
        self._free = set(range(SLOTS))

    def load(self) -> dict[str, Armed]:
        """What was armed since the box booted. A void or damaged line is room for another."""
        found = {}
        for slot in range(SLOTS):
            words = self._line(slot)
            if len(words) > 3 and words[0] == self._boot and words[2].isdecimal():
                found[words[1]] = Armed(slot, int(words[2]), words[3:])
        self._free -= {armed.slot for armed in found.values()}
        return found

    def take(self) -> int | None:
        """A slot; None when all are in use."""
        return self._free.pop() if self._free else None

    def save(self, uid: str, armed: Armed) -> None:
        """Raises OSError, and ValueError for what does not fit."""
        words = [self._boot, uid, str(armed.deadline_ns), *armed.directories]
        self._put(armed.slot, " ".join(words))

    def free(self, slot: int) -> None:
        self._free.add(slot)
        try:
            self._put(slot, "")
        except OSError:
            return  # after a restart it would kill what is long gone

    def _put(self, slot: int, text: str) -> None:
        line = f"{zlib.crc32(text.encode()):08x} {text}\n".encode()
        if len(line) > SLOT_BYTES:
            raise ValueError("the directories' names are too long")
        os.pwrite(self._file, line.ljust(SLOT_BYTES, b"\0"), slot * SLOT_BYTES)

    def _line(self, slot: int) -> list[str]:
        try:
            raw = os.pread(self._file, SLOT_BYTES, slot * SLOT_BYTES)
        except OSError:
            return []
        line = raw.partition(b"\n")[0].decode(errors="replace")
        check, _, text = line.partition(" ")
        return text.split() if check == f"{zlib.crc32(text.encode()):08x}" else []


class Switch:
    """Answers requests and keeps deadlines. `run` ends only when it is told to, or lingers."""

    def __init__(self, address: str, table: Table, linger_s: float = 0.0) -> None:
        self._table = table
        self._linger_ns = int(linger_s * 1e9)
        self._armed = table.load()
        self._heard_ns = now_ns()
        self._ending = False
        self._timer = boot_timer()
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK)
        fresh = f"{address}.{os.getpid()}"
        self._socket.bind(fresh)
        os.chmod(fresh, 0o600)  # noqa: PTH101
        os.replace(fresh, address)  # noqa: PTH105

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        poll.register(self._timer, select.POLLIN)
        while not self._ending:
            self._enforce()
            self._set_timer()
            poll.poll(self._pause_ms())
            self._answer_all()
            if self._linger_ns and self._idle():
                return

    def _enforce(self) -> None:
        now = now_ns()
        for uid, armed in self._armed.items():
            if armed.deadline_ns > now:
                continue
            left = [d for d in armed.directories if not shut(d, armed.over)]
            if left and not armed.struck:
                say(f"{uid}: past its deadline: killed in {left[0]}")
            armed.struck = armed.struck or bool(left)
            armed.over = armed.over or not left
        for uid, armed in list(self._armed.items()):
            if armed.over and armed.deadline_ns < now - FORGET_S * 1_000_000_000:
                del self._armed[uid]
                self._table.free(armed.slot)

    def _set_timer(self) -> None:
        """At the next deadline. A timer of the boot clock fires at once when a box wakes up."""
        now = now_ns()
        ahead = [a.deadline_ns for a in self._armed.values() if a.deadline_ns > now]
        set_timer(self._timer, min(ahead, default=0))

    def _pause_ms(self) -> int | None:
        now = now_ns()
        past = [a.over for a in self._armed.values() if a.deadline_ns <= now]
        if past:
            return int(1000 * (WATCH_S if all(past) else AGAIN_S))
        return int(self._linger_ns / 1e6) if self._linger_ns else None

    def _idle(self) -> bool:
        """The agent is gone for good, and nothing is left to be killed."""
        now = now_ns()
        done = all(a.over and a.deadline_ns <= now for a in self._armed.values())
        return done and now - self._heard_ns > self._linger_ns

    def _answer_all(self) -> None:
        for _ in range(SLOTS):  # then it is time to look at deadlines again
            try:
                data, sender = self._socket.recvfrom(REQUEST_BYTES)
            except OSError:
                return
            self._heard_ns = now_ns()
            words = data.decode(errors="replace").split()
            try:
                answer = "no room" if len(data) == REQUEST_BYTES else self._answer(words[1:])
            except Exception as error:  # one odd request must not cost the others their deadlines
                answer = f"no {error}"
            try:
                if sender:
                    self._socket.sendto(f"{words[0] if words else 0} {answer}".encode(), sender)
            except OSError:
                continue  # whoever asked is gone, or does not listen

    def _answer(self, words: list[str]) -> str:
        match words:
            case ["arm", uid, deadline, _, *_]:
                return self._arm(uid, max(0, int(deadline)), words[3:])
            case ["disarm", uid]:
                return self._disarm(uid)
            case ["list"]:
                there = [f"{uid}={armed.deadline_ns}" for uid, armed in self._armed.items()]
                return " ".join(["ok", str(os.getpid()), str(VERSION), *there])
            case ["end"]:
                self._ending = True
                return "ok"
        return "no such request"

    def _arm(self, uid: str, deadline_ns: int, directories: list[str]) -> str:
        known = self._armed.get(uid)
        was_shut = known is not None and known.deadline_ns <= now_ns()
        if known is None or was_shut or known.directories != directories:
            for directory in directories:
                if why := objection(directory):
                    return f"no {why}"
        if known is None:
            return self._arm_first(uid, deadline_ns, directories)
        before = known.deadline_ns, known.directories
        known.deadline_ns, known.directories = deadline_ns, directories
        try:
            self._table.save(uid, known)
            known.kept_ns = deadline_ns
        except OSError as error:  # a deadline on file that is an earlier one is safe
            if known.kept_ns > deadline_ns:
                known.deadline_ns, known.directories = before
                return f"no {error.strerror}"
            say(f"{uid}: the table cannot be written: {error.strerror}")
        known.struck = known.over = False
        if was_shut and deadline_ns > now_ns():
            for directory in directories:
                open_again(directory)
        return "ok"

    def _arm_first(self, uid: str, deadline_ns: int, directories: list[str]) -> str:
        if len(uid) > UID_MAX or "=" in uid:
            return "no uid of such form"
        slot = self._table.take()
        if slot is None:
            return "no room in the table"
        armed = Armed(slot, deadline_ns, directories)
        try:
            self._table.save(uid, armed)
        except (OSError, ValueError):
            self._table.free(slot)
            raise
        self._armed[uid] = armed
        if deadline_ns > now_ns():
            for directory in directories:  # an earlier switch may have left it shut
                open_again(directory)
        return "ok"

    def _disarm(self, uid: str) -> str:
        armed = self._armed.pop(uid, None)
        if armed is not None:
            self._table.free(armed.slot)
            for directory in armed.directories:
                open_again(directory)
        return "ok"


# ---- the process ----


def boot_timer() -> int:
    """A timerfd of CLOCK_BOOTTIME. Raises OSError."""
    descriptor: int = LIBC.timerfd_create(time.CLOCK_BOOTTIME, TFD_FLAGS)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    return descriptor


def set_timer(descriptor: int, at_ns: int) -> None:
    """0: never. Setting it also takes back that it went off."""
    when = (ctypes.c_int64 * 4)(0, 0, at_ns // 1_000_000_000, at_ns % 1_000_000_000)
    LIBC.timerfd_settime(descriptor, TFD_TIMER_ABSTIME, when, None)


def say(text: str) -> None:
    """To the log, if it takes it at once."""
    ready = select.poll()
    ready.register(2, select.POLLOUT)
    try:
        if any(event & select.POLLOUT for _, event in ready.poll(0)):
            os.write(2, f"switch: {text}\n".encode()[: select.PIPE_BUF])
    except OSError:
        return


def rehearse() -> None:
    """Touch what a deadline needs: so it is in memory, and stays there, whatever the disk does."""
    shut("/nowhere", late=False)
    open_again("/nowhere")
    os.kill(os.getpid(), 0)
    select.poll().poll(0)


def hold_on() -> None:
    """In memory, before others, and last to be killed for want of memory; as far as it may."""
    LIBC.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)
    rehearse()
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REAL_TIME_PRIORITY))
    except OSError as error:
        if error.errno != errno.EPERM:
            say(f"real-time priority: {error.strerror}")
    write("/proc/self/oom_score_adj", "-1000")
    write("/proc/self/comm", "polder-switch")
    for number in (_signal.SIGHUP, _signal.SIGINT, _signal.SIGPIPE):
        _signal.signal(number, _signal.SIG_IGN)


def main(arguments: list[str]) -> int:
    if len(arguments) not in (2, 4) or (len(arguments) == 4 and arguments[2] != "--linger"):
        say("usage: switch.py DIRECTORY TABLE [--linger SECONDS]")
        return 2
    linger_s = float(arguments[3]) if len(arguments) == 4 else 0.0
    hold_on()
    try:
        # Until it ends, another one for this directory waits here.
        fcntl.flock(os.open(arguments[0], os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_EX)
        Switch(arguments[0] + "/switch.sock", Table(arguments[1]), linger_s).run()
    except OSError as error:
        say(f"cannot run: {error}")
        return error.errno or 1  # the agent, which has no log of ours, finds it out by that
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
