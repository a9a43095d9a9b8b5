"""The package in a Debian of its own: a real systemd, a real orchestrator; and on arm64, emulated.

Takes minutes, most of them for debootstrap: with POLDER_DEBIAN_ROOTS=DIR it uses what is there.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from devcluster.emulation import arm64_programs, debian
from polder.v1 import operator_pb2
from tests.debian_root import DebianRoot, install
from tests.integration.orchestrator_rig import Rig, ref, running
from tests.integration.test_package import build, builder

pytestmark = [pytest.mark.long, pytest.mark.emulation, pytest.mark.timeout(1800)]

PREPARE = Path(__file__).resolve().parents[2] / "hardware" / "prepare"
JOURNAL = "/etc/systemd/journald.conf.d/60-polder.conf"
DEADLINE_S = 600.0  # an emulated box on a busy machine starts its agent in minutes


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


@pytest.fixture(scope="module")
def emulated() -> Iterator[None]:
    """arm64 programs run."""
    with arm64_programs():
        yield


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    wheels, out = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("packages")
    for arch in builder.PLATFORMS:
        builder.fetch_wheels(arch, wheels)
    return {arch: build(wheels, out, arch) for arch in builder.PLATFORMS}


async def token_for(rig: Rig, node: str) -> str:
    request = operator_pb2.CreateJoinTokenRequest(site="ams-1", node=node)
    return (await rig.admin().CreateJoinToken(request)).token


@asynccontextmanager
async def lived(
    life: Callable[[DebianRoot, Path, str], None],
    package: Path,
    folder: Path,
    *,
    node: str = "box-1",
    arch: str = "amd64",
) -> AsyncIterator[Rig]:
    """The orchestrator of a box that went through its life in a Debian of its own. A life gets the
    Debian, the agent's package and a join token."""
    lower = debian(arch, folder)
    async with running(folder / "orchestrator") as rig:
        await rig.site()
        token = await token_for(rig, node)
        with DebianRoot(str(lower)) as root:
            await asyncio.to_thread(life, root, package, token)
        yield rig


def status(root: DebianRoot) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        root.run("edge-agent", "status", "-o", "json", code=None).stdout
    )
    return found


def is_connected(root: DebianRoot) -> bool:
    session = status(root)["session"]
    return isinstance(session, dict) and bool(session.get("connected"))


def main_pid(root: DebianRoot, unit: str) -> int:
    return int(root.run("systemctl", "show", "-p", "MainPID", "--value", unit).stdout)


async def test_under_systemd_it_joins_by_its_token_and_comes_back(
    packages: dict[str, Path], tmp_path: Path
) -> None:
    async with lived(_life_of_a_box, packages["amd64"], tmp_path) as rig:
        node = (await rig.admin().Get(operator_pb2.GetRequest(ref=ref("Node", "box-1")))).resource
        inventory = json.loads(node.status_json)["inventory"]
        assert inventory["hardwareProfile"] == "raspberry-pi-5"
        assert inventory["reserved"]["memoryBytes"] == 384 << 20


def _life_of_a_box(root: DebianRoot, package: Path, token: str) -> None:
    install(root, package)
    root.put("/etc/polder/join-token", token, 0o600)  # as cloud-init or the installer leave it
    root.put("/etc/polder/profile", "raspberry-pi-5\n")  # as `prepare --profile` leaves it
    root.boot()
    eventually(lambda: is_connected(root), "the box joins by itself")
    assert not root.exists("/etc/polder/join-token")
    assert root.run("systemctl", "is-active", "edge-tune").stdout == "active\n"
    assert "Storage=volatile" in root.run("cat", JOURNAL).stdout
    agent, switch = main_pid(root, "edge-agent"), main_pid(root, "edge-switch")
    assert agent and switch
    # The hardening holds, and mounts of the agent are seen by everybody.
    process = root.run("cat", f"/proc/{agent}/status").stdout
    assert "NoNewPrivs:\t1" in process and "Seccomp:\t2" in process
    here = root.run("readlink", "/proc/1/ns/mnt").stdout
    assert root.run("readlink", f"/proc/{agent}/ns/mnt").stdout == here
    assert root.run("readlink", f"/proc/{switch}/ns/mnt").stdout != here
    report = json.loads(root.run("edge-agent", "doctor", "-o", "json", code=None).stdout)
    levels = {finding["check"]: finding["level"] for finding in report["findings"]}
    assert levels["certificates"] == levels["orchestrators"] == levels["switch"] == "ok"

    # An agent that hangs is replaced by systemd's watchdog.
    root.run("sh", "-c", f"kill -STOP {agent}")
    eventually(lambda: main_pid(root, "edge-agent") not in (0, agent), "the watchdog strikes")
    eventually(lambda: is_connected(root), "it is back after that")
    assert main_pid(root, "edge-switch") == switch

    # The same package again is an upgrade to the scripts; then it goes.
    before = main_pid(root, "edge-agent")
    install(root, package)
    assert main_pid(root, "edge-agent") != before
    eventually(lambda: is_connected(root), "it is back after the upgrade")
    root.run("dpkg", "--purge", "polder-agent")
    left = root.run("systemctl", "is-active", "edge-agent", "edge-switch", code=None).stdout
    assert "active" not in left.split()
    assert not root.exists("/var/lib/polder-agent")


async def test_a_fresh_debian_becomes_a_ready_box(
    packages: dict[str, Path], tmp_path: Path
) -> None:
    """By `prepare` and what Debian's archive has; the smallest Debian lacks even sysctl and ip."""
    async with lived(_life_of_a_fresh_box, packages["amd64"], tmp_path):
        pass


def _life_of_a_fresh_box(root: DebianRoot, package: Path, token: str) -> None:
    root.put("/agent.deb", package.read_bytes())
    root.put("/prepare", PREPARE.read_bytes(), 0o755)
    checked = root.run("/prepare", "--check", "--deb", "/agent.deb", code=3).stdout
    assert "would    Debian packages containerd runc containernetworking-plugins" in checked
    root.run("/prepare", "--deb", "/agent.deb")
    assert root.run("/prepare", "--check", "--deb", "/agent.deb").stdout == ""
    root.run("rm", "/agent.deb")
    root.boot()
    own = "/opt/polder-agent/share/polder/prepare"
    said = root.run("sh", "-c", f"{own} 2>/dev/null").stdout
    assert said == "", "only a runtime that does not run could be left to do"
    root.run("edge-agent", "join", "--token", token)
    eventually(lambda: is_connected(root), "the box has joined")
    levels = {
        (finding["check"], finding["level"])
        for finding in json.loads(root.run("edge-agent", "doctor", "-o", "json", code=None).stdout)[
            "findings"
        ]
    }
    for check in ("runtime", "cni", "certificates", "orchestrators", "switch", "upgrades"):
        assert (check, "ok") in levels and (check, "failure") not in levels


async def test_on_arm64_it_is_installed_examined_and_joins(
    packages: dict[str, Path], tmp_path: Path, emulated: None
) -> None:
    board = lived(_life_of_a_board, packages["arm64"], tmp_path, node="pi-1", arch="arm64")
    async with board as rig:
        events = rig.orchestrator.parts.events.list(kind="Node", name="pi-1")
        assert "Joined" in [event.reason for event in events]


def _life_of_a_board(root: DebianRoot, package: Path, token: str) -> None:
    root.put(f"/{package.name}", package.read_bytes())
    said = root.run("sh", "-c", "apt-get update -qq && apt install -y ./polder-agent_*.deb").stdout
    assert "Setting up containerd" in said, "what is recommended comes along"
    assert "polder-agent: " not in said, "the package's scripts have nothing to complain of"
    assert root.run("dpkg", "--print-architecture").stdout == "arm64\n"
    assert root.run("edge-agent", "version").stdout == "edge-agent 0.1.0-1\n"
    report = json.loads(root.run("edge-agent", "doctor", "-o", "json", code=None).stdout)
    assert report["profile"] == "generic" and len(report["findings"]) > 8
    joined = root.run("edge-agent", "join", "--token", token).stdout
    assert "pi-1 joined" in joined
    assert status(root)["node"] == "pi-1"
    root.run("dpkg", "--purge", "polder-agent")
