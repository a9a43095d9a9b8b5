"""edgectl as a process: terminal, signals, pipes, and what it imports."""

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgectl import config_file
from tests.integration.edgectl_server import FakeInstallation

EDGECTL = [sys.executable, "-m", "edgectl"]
DEADLINE_S = 20


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeInstallation]:
    installation = FakeInstallation()
    status = {"phase": "Running", "ready": True, "containers": [{"name": "web", "ready": True}]}
    installation.api.put("Replica", "hello-0", {"workload": "hello", "node": "edge-1"}, status)
    installation.api.put("Node", "edge-1", {"site": "s"}, {"ready": True})
    installation.api.logs["hello-0"] = b"line\n" * 30_000
    yield installation
    installation.stop()


@pytest.fixture
def environment(fake: FakeInstallation, tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "config.yaml"
    config_file.write_private(path, config_file.render(fake.context()), overwrite=True)
    return {**os.environ, "EDGECTL_CONFIG": str(path), "TERM": "xterm"}


@contextlib.contextmanager
def on_terminal(
    words: list[str], environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """(process, our side, its side) of a pseudo-terminal of 100 by 30."""
    ours, its = pty.openpty()
    resize(its, 100, 30)
    # setsid makes the terminal its controlling one. Doing that in a forked child of ours would hang
    # now and then: gRPC's threads, which the fake server runs on, do not survive a fork.
    process = subprocess.Popen(
        ["setsid", "--ctty", *EDGECTL, *words], stdin=its, stdout=its, stderr=its, env=environment
    )
    try:
        yield process, ours, its
    finally:
        process.kill()
        process.wait(DEADLINE_S)
        os.close(ours)
        os.close(its)


def resize(terminal: int, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def is_raw(terminal: int) -> bool:
    return not termios.tcgetattr(terminal)[3] & (termios.ICANON | termios.ECHO)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition did not come about"
        time.sleep(0.01)


def test_exec_on_a_terminal(fake: FakeInstallation, environment: dict[str, str]) -> None:
    words = ["exec", "-it", "hello-0", "--", "cat"]
    with on_terminal(words, environment) as (process, ours, its):
        before = termios.tcgetattr(its)
        wait_until(lambda: is_raw(its) and bool(fake.api.called("Exec")))
        start = fake.api.called("Exec")[-1].options
        assert (start.tty, start.stdin) == (True, True)
        assert (start.size.columns, start.size.rows) == (100, 30)
        os.write(ours, b"\x03abc")  # an interrupt goes to the container, not to edgectl
        assert read_until(ours, b"\x03abc")
        resize(its, 77, 22)
        assert fake.api.resizes.get(timeout=DEADLINE_S) == (77, 22)
        os.write(ours, b"\x04")
        assert process.wait(DEADLINE_S) == 0
        assert termios.tcgetattr(its) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminal_is_restored_when_a_signal_ends_it(
    fake: FakeInstallation, environment: dict[str, str], number: int
) -> None:
    words = ["exec", "-it", "hello-0", "--", "cat"]
    with on_terminal(words, environment) as (process, _, its):
        before = termios.tcgetattr(its)
        wait_until(lambda: is_raw(its))
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == -number
        assert termios.tcgetattr(its) == before


def test_terminal_is_restored_when_the_server_goes(environment: dict[str, str]) -> None:
    other = FakeInstallation()
    other.api.put("Replica", "hello-0", {"workload": "hello"}, {})
    words = ["--endpoint", other.endpoint, "exec", "-it", "hello-0", "--", "cat"]
    config_file.write_private(
        Path(environment["EDGECTL_CONFIG"]), config_file.render(other.context()), overwrite=True
    )
    with on_terminal(words, environment) as (process, _, its):
        before = termios.tcgetattr(its)
        wait_until(lambda: is_raw(its))
        other.stop()
        assert process.wait(DEADLINE_S) == 1
        assert termios.tcgetattr(its) == before


def read_until(descriptor: int, wanted: bytes) -> bool:
    found = b""
    while wanted not in found:
        found += os.read(descriptor, 4096)
    return True


def test_exec_pipes_large_input_through(
    fake: FakeInstallation, environment: dict[str, str]
) -> None:
    data = os.urandom(3 << 20)
    words = ["exec", "-i", "hello-0", "--", "cat"]
    done = subprocess.run(
        [*EDGECTL, *words], input=data, capture_output=True, env=environment, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data


def test_exec_t_without_a_terminal_warns(
    fake: FakeInstallation, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [*EDGECTL, "exec", "-it", "hello-0", "--", "exit", "3"],
        input=b"", capture_output=True, env=environment, timeout=60,
    )  # fmt: skip
    assert done.returncode == 3
    assert b"no terminal" in done.stderr
    assert fake.api.called("Exec")[-1].options.tty is False


@pytest.mark.parametrize(
    "words", [["get", "nodes", "-w"], ["wait", "node/x", "--for=ready"], ["events", "-w"]]
)
def test_interrupt_is_quiet(
    fake: FakeInstallation, environment: dict[str, str], words: list[str]
) -> None:
    streams = len(fake.api.watchers) + len(fake.api.event_streams)
    process = subprocess.Popen(
        [*EDGECTL, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    wait_until(lambda: len(fake.api.watchers) + len(fake.api.event_streams) > streams)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"error" not in err


@pytest.mark.parametrize("words", [["logs", "hello-0"], ["completion", "bash"]])
def test_a_closed_pipe_is_quiet(
    fake: FakeInstallation, environment: dict[str, str], words: list[str]
) -> None:
    command = " ".join([*EDGECTL, *words, "| head -n 1"])
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=environment, timeout=60)
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 1


def test_manifest_from_standard_input(fake: FakeInstallation, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [*EDGECTL, "apply", "-f", "-"],
        input=b"kind: x\n", capture_output=True, env=environment, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(b"<stdin>:1: ")


HEAVY = ("grpc", "google.protobuf", "yaml", "cryptography", "asyncio", "ssl")


@pytest.mark.parametrize(
    ("words", "forbidden"),
    [
        (["--help"], (*HEAVY, "polder.manifest")),
        (["get", "--help"], (*HEAVY, "polder.manifest")),
        (["explain", "workload"], HEAVY),
        (["config", "path"], HEAVY),
        (["get", "nodes"], ("cryptography", "shtab", "edgectl.manifests")),
    ],
)
def test_imports_come_late(
    fake: FakeInstallation,
    environment: dict[str, str],
    words: list[str],
    forbidden: tuple[str, ...],
) -> None:
    """Time is measured by `python -m bench cli`; what costs the time is kept out by this."""
    code = (
        "import sys\nfrom edgectl.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(','.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, env=environment, timeout=60
    )
    assert done.stdout
    loaded = set(done.stderr.decode().strip().split(","))
    assert loaded & set(forbidden) == set()
