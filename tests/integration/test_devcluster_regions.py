"""The network of `devcluster.continent`: lines are cut and mended, and nothing is left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import continent as continents
from devcluster import network
from devcluster.backbone import HOST, Backbone
from devcluster.containerd import RUN_DIRECTORY
from devcluster.continent import Continent
from tests.e2e.support import eventually

pytestmark = [pytest.mark.netns]

PORT = "8099"


@pytest.fixture
def backbone(tmp_path: Path) -> Iterator[Backbone]:
    made = Backbone(f"pdt{os.getpid() % 100_000}", tmp_path / "network.json", ("a", "b", "c"))
    try:
        made.start()
        (tmp_path / "ok").write_text("ok")
        for place in made.places:
            listen = f"{made.address(place)}:{PORT}"
            command = ["busybox", "httpd", "-f", "-p", listen, "-h", str(tmp_path)]
            subprocess.Popen(["nsenter", f"--net={made.netns(place)}", *command])
        pairs = [(place, place) for place in made.places]
        eventually(lambda: all(reached(made, *pair) for pair in pairs), "they listen")
        yield made
    finally:
        made.stop()


def reached(backbone: Backbone, source: str, target: str) -> bool:
    """Whether a page can be fetched, of one place by another."""
    url = f"http://{backbone.address(target)}:{PORT}/ok"
    command = ["busybox", "timeout", "0.5", "busybox", "wget", "-qO-", url]
    return (
        network.run(command, backbone.netns(source) if source != HOST else "", check=False) == "ok"
    )


_LISTEN = """
import socket
listener = socket.socket(type=socket.SOCK_DGRAM)
listener.bind(("", 8098))
listener.settimeout(0.5)
print("listens", flush=True)
try:
    print(listener.recv(9).decode())
except TimeoutError:
    pass
"""
_SAY = (
    "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(b'ok', (sys.argv[1], 8098))"
)


def arrives(backbone: Backbone, source: str, target: str) -> bool:
    """Whether one packet gets there; no answer is needed."""
    inside = ["nsenter", f"--net={backbone.netns(target)}", sys.executable, "-c", _LISTEN]
    with subprocess.Popen(inside, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None and listener.stdout.readline() == "listens\n"
        command = [sys.executable, "-c", _SAY, backbone.address(target)]
        network.run(command, backbone.netns(source))
        return listener.stdout.read() == "ok\n"


def test_lines_are_cut_and_mended(backbone: Backbone) -> None:
    ways = [(one, other) for one in ("a", "b", HOST) for other in "abc" if one != other]
    assert all(reached(backbone, *way) for way in ways)
    backbone.block([("a", "b")])
    assert backbone.blocked() == {("a", "b")}
    assert [way for way in ways if not reached(backbone, *way)] == [("a", "b"), ("b", "a")]
    backbone.deafen("b", "c")
    assert backbone.blocked() == {("a", "b"), ("b", "c")}
    assert not arrives(backbone, "c", "b") and arrives(backbone, "b", "c")
    backbone.isolate(["c"])
    assert not any(reached(backbone, one, "c") for one in ("a", "b", HOST))
    backbone.heal("c")
    assert backbone.blocked() == {("a", "b")}
    backbone.switch("c", on=False)
    backbone.heal()
    assert [way for way in ways if not reached(backbone, *way)] == [w for w in ways if "c" in w]
    backbone.switch("c", on=True)
    assert all(reached(backbone, *way) for way in ways)


def test_nothing_is_left(backbone: Backbone) -> None:
    assert backbone.name in left()
    pids = network.run(["ip", "netns", "pids", f"{backbone.name}-a"], "").split()
    backbone.stop()
    assert backbone.name not in left()
    assert pids and not any(Path(f"/proc/{pid}/ns").exists() and alive(pid) for pid in pids)
    backbone.stop()  # in any state


def alive(pid: str) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def left() -> str:
    commands = ["ip", "netns", "list"], ["ip", "-brief", "link"], ["ip", "route"]
    return "\n".join(network.run(command, "") for command in commands)


_OWNER = """
import os, sys, time
from pathlib import Path
from devcluster.continent import Continent
made = Continent(Path(sys.argv[1]), boxes={}, owner=os.getpid())
made._register()
made.network.start()
made._make_authorities()
made._know()
made.start_etcd()
print("up", flush=True)
time.sleep(600)
"""


@pytest.mark.etcd
def test_what_an_owner_left_behind_is_swept(tmp_path: Path) -> None:
    """Killed without a word in the middle of it, as a test run that is interrupted for good."""
    directory = tmp_path / "continent"
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(directory)], stdout=subprocess.PIPE, text=True
    )
    made = Continent(directory, boxes={})
    try:
        assert owner.stdout is not None and owner.stdout.readline() == "up\n"
        made = Continent(directory, boxes={})
        pids = [region.etcd.daemon.pid for region in made.regions.values()]
        assert all(pids) and (RUN_DIRECTORY / f"{made.name}.continent").exists()
        assert directory not in continents.sweep(), "its owner lives"
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert directory in continents.sweep()
        assert made.name not in left()
        assert not any(Path(f"/proc/{pid}/ns").exists() and alive(str(pid)) for pid in pids)
        assert not directory.exists() and not (RUN_DIRECTORY / f"{made.name}.continent").exists()
    finally:
        owner.kill()
        owner.communicate()
        made.stop()
