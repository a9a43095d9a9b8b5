"""Two boxes whose certificates live for seconds: renewal, draining, terminals, registries.

Certificates are renewed all through these tests, so each of them also shows that nobody notices.
"""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from devcluster.client import workload
from devcluster.image import HELLO, build, hello_image
from devcluster.installation import EDGECTL, Installation
from tests.e2e.support import container_ids, edgectl, eventually, get, ready, replica
from tests.registry import running_registry

pytestmark = pytest.mark.containerd

NODES = ("box-1", "box-2")
LIFE_S = 15


@pytest.fixture(scope="module")
def polder(directory: Path) -> Iterator[Installation]:
    """An orchestrator and two agents, each with a containerd, that all renew every few seconds."""
    made = Installation(directory)
    with pytest.MonkeyPatch.context() as environment:
        for key in ("NODE", "MEMBER"):
            environment.setenv(f"POLDER_{key}_CERTIFICATE_LIFE", f"{LIFE_S}s")
        try:
            made.start_orchestrator()
            made.apply_site()
            for name in NODES:
                made.add_agent(name)
            applied(made, workload("pair", image=HELLO, replicas=2))
            eventually(lambda: all(ready(made, f"pair-{n}") for n in (0, 1)), "ready")
            yield made
        finally:
            made.stop()


def applied(polder: Installation, *manifests: Mapping[str, Any]) -> None:
    text = "\n---\n".join(json.dumps(manifest) for manifest in manifests)
    done = edgectl(polder, "apply", "-f", "-", stdin=text.encode())
    assert done.returncode == 0, done.stderr


def serial(polder: Installation, node: str) -> str:
    """Of the certificate that the agent holds."""
    state = polder.agents[node].state_dir
    facts: dict[str, str] = json.loads((state / "identity" / "node.json").read_text())
    return facts["serial"]


def lose_power(polder: Installation, node: str) -> None:
    """Nothing on the box survives but its disks; it comes back at once."""
    agent = polder.agents[node]
    assert agent.containerd is not None
    agent.daemon.stop(signal.SIGKILL)
    agent.containerd.stop()
    agent.containerd.start()
    polder.start_agent(node)


def start_edgectl(polder: Installation, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [EDGECTL, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=polder.environment(),
        text=True,
    )


def test_renewed_certificates_cut_no_stream_and_stop_no_container(polder: Installation) -> None:
    before = {node: container_ids(polder, node) for node in NODES}
    node = replica(polder, "pair-0")["node"]
    opened = get(polder, f"node/{node}")["status"]["session"]
    script = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.2; done"
    streams = [
        start_edgectl(polder, "exec", "replica/pair-0", "--", "sh", "-c", script),
        start_edgectl(polder, "logs", "-f", "replica/pair-0"),
        start_edgectl(polder, "get", "nodes", "-w"),
    ]
    try:
        assert opened
        counting = streams[0].stdout
        assert counting is not None and counting.readline() == "1\n"
        seen = {serial(polder, node)}

        def renewed_twice() -> bool:
            seen.add(serial(polder, node))
            status = get(polder, f"node/{node}")["status"]
            assert status["ready"] is True and status["session"]
            return len(seen) > 2

        eventually(renewed_twice, "two renewals", 2.0 * LIFE_S)
        assert [stream.poll() for stream in streams] == [None] * 3
        numbers = [int(counting.readline()) for _ in range(20)]
        assert numbers == list(range(2, 22))
    finally:
        for stream in streams:
            stream.kill()
            stream.communicate()
    assert {node: container_ids(polder, node) for node in NODES} == before
    log = polder.agents[node].daemon.log.read_text()
    assert 'message="no session"' not in log


def test_a_drained_nodes_replicas_move_and_stay_away(polder: Installation) -> None:
    done = edgectl(polder, "drain", "node/box-1", "--timeout", "30s")
    assert done.returncode == 0, done.stderr
    eventually(lambda: all(ready(polder, f"pair-{n}") for n in (0, 1)), "both ready again")
    assert [replica(polder, f"pair-{n}")["node"] for n in (0, 1)] == ["box-2", "box-2"]
    assert container_ids(polder, "box-1") == {}
    assert "draining" in edgectl(polder, "get", "nodes").stdout
    assert edgectl(polder, "uncordon", "node/box-1").returncode == 0
    tainted = edgectl(polder, "taint", "node/box-2", "fire=true:NoExecute")
    assert tainted.returncode == 0, tainted.stderr
    eventually(
        lambda: all(replica(polder, f"pair-{n}").get("node") == "box-1" for n in (0, 1)),
        "they flee",
    )
    eventually(lambda: all(ready(polder, f"pair-{n}") for n in (0, 1)), "both ready again")
    assert edgectl(polder, "taint", "node/box-2", "fire-").returncode == 0


class Terminal:
    """A shell on a terminal of its own, in which edgectl is typed."""

    def __init__(self, polder: Installation) -> None:
        environment = {**polder.environment(), "PS1": "", "PATH": os.environ["PATH"]}
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe("/bin/sh", ["/bin/sh"], environment)
        self.shown = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, pattern: str, timeout_s: float = 10.0) -> str:
        """What the terminal showed up to the pattern; what follows is for the next call."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.shown)):
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.shown!r}"
            if select.select([self.fd], [], [], left)[0]:
                self.shown += os.read(self.fd, 65536).decode(errors="replace")
        self.shown = self.shown[found.end() :]
        return found.group()

    def close(self) -> None:
        os.close(self.fd)
        os.waitpid(self.pid, 0)


def test_exec_with_a_terminal(polder: Installation) -> None:
    """Size, Ctrl-C, Ctrl-D and exit codes get through, and the terminal is as it was after."""
    terminal = Terminal(polder)
    try:
        terminal.resize(33, 101)
        terminal.type("stty -g | sed s/^/before=/\n")
        before = terminal.until(r"before=[0-9a-f:]+")
        # Values are computed inside, so that the echo of what was typed is not taken for them.
        then = "echo code=$?; stty -g | sed s/^/after=/"
        terminal.type(f"{EDGECTL} exec -it replica/pair-0 -- sh; {then}\n")
        terminal.until(r"(/|~) [#$] ")
        terminal.type("stty size; echo $((40+1)) lines\n")
        terminal.until(r"33 101\s+41 lines")
        terminal.resize(44, 122)
        terminal.type("stty size; echo $((40+2)) lines\n")
        terminal.until(r"44 122\s+42 lines")
        terminal.type("sh -c 'echo $((40+3)) sleeps; sleep 1000'\n")
        terminal.until("43 sleeps")
        terminal.type("\x03")
        terminal.type("sh -c 'echo $((40+4)) reads; cat'; echo $((40+5)) after\n")
        terminal.until("44 reads")
        terminal.type("h\u00e9llo\n\x04")
        terminal.until("(h\u00e9llo\\s+){2}45 after")
        terminal.type("exit 42\n")
        terminal.until("code=42")
        after = terminal.until(r"after=[0-9a-f:]+")
        assert after.removeprefix("after=") == before.removeprefix("before=")
        terminal.type("exit\n")
    finally:
        terminal.close()


def test_a_private_registry_needs_its_secret(polder: Installation) -> None:
    """Refused without, pulled with; Always runs what is there when the registry is away."""
    with running_registry() as registry:
        registry.credentials = "box:sesame"
        image = registry.add("ward/app", build(hello_image()))
        private = workload("private", image=image, imagePullPolicy="Always")
        applied(polder, private)
        eventually(
            lambda: replica(polder, "private-0").get("reason") == "ImageAuth",
            "refused without credentials",
        )
        assert replica(polder, "private-0")["phase"] == "Pending"
        assert "ImageAuth" in edgectl(polder, "events", "--for", "replica/private-0").stdout
        data = {"server": registry.host, "username": "box", "password": "sesame"}
        secret = {
            "apiVersion": "polder.eu/v1",
            "kind": "Secret",
            "metadata": {"name": "pull"},
            "spec": {"type": "Registry", "data": data},
        }
        private["spec"]["template"]["imagePullSecrets"] = ["pull"]
        applied(polder, secret, private)
        eventually(lambda: ready(polder, "private-0"), "pulled with the secret")
        for shown in ("-o", "json"), ("-o", "yaml"), ("-o", "wide"):
            assert "sesame" not in edgectl(polder, "get", "replica/private-0", *shown).stdout
    first = replica(polder, "private-0")["containers"][0]["id"]
    lose_power(polder, replica(polder, "private-0")["node"])
    eventually(
        lambda: (
            ready(polder, "private-0")
            and replica(polder, "private-0")["containers"][0]["id"] != first
        ),
        "it starts again without the registry",
    )
    assert edgectl(polder, "delete", "workload/private", "secret/pull").returncode == 0
