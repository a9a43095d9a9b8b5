"""What the scenarios with regions share: who writes and visits all the while, and what must hold.

A scenario breaks something inside `unnoticed`: until it ends, a client writes without pause and
others visit every box. Afterwards no container has been restarted, no visit has failed, and every
write that was acknowledged can be read from every region.
"""

import contextlib
import http.client
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from agent import status_file
from devcluster.boxes import EDGECTL
from devcluster.client import apply_request, workload
from devcluster.continent import Continent
from devcluster.image import HELLO
from devcluster.region import Member
from polder.v1 import operator_pb2_grpc
from tests.e2e.support import edgectl, eventually

WEB_PORT = 18080
WRITES_BACK_S = 10.0
"""The budget of the issue: `edgectl apply` works within so long of the loss."""


def config(name: str, value: str = "x") -> dict[str, Any]:
    """The smallest thing that can be written."""
    return {
        "apiVersion": "polder.eu/v1",
        "kind": "Config",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"data": {"value": value}},
    }


def web_on_every_box() -> dict[str, Any]:
    manifest = workload("web", image=HELLO, host_port=WEB_PORT)
    del manifest["spec"]["replicas"]
    manifest["spec"]["perNode"] = 1
    return manifest


class Writer:
    """Applies one new Config after another; `acked` are those that were acknowledged.

    What was not is sent again, to the next endpoint, until it is.
    """

    PAUSE_S = 0.05
    ATTEMPT_S = 4.0

    def __init__(self, continent: Continent, prefix: str) -> None:
        self.acked: dict[str, float] = {}  # name -> monotonic time
        self.errors: list[str] = []
        self._context = continent.context()
        self._prefix = prefix
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(2 * self.ATTEMPT_S)

    def _run(self) -> None:
        at = number = 0
        while not self._over.is_set():
            name = f"{self._prefix}-{number}"
            endpoint = self._context.endpoints[at % len(self._context.endpoints)]
            options = [*self._context.options(own_connection=True), *_IMPATIENT]
            credentials = self._context.credentials()
            with grpc.secure_channel(endpoint, credentials, options) as channel:
                stub = operator_pb2_grpc.OperatorServiceStub(channel)
                try:
                    while not self._over.is_set():
                        stub.Apply(apply_request(config(name)), timeout=self.ATTEMPT_S)
                        self.acked[name] = time.monotonic()
                        number += 1
                        name = f"{self._prefix}-{number}"
                        self._over.wait(self.PAUSE_S)
                except grpc.RpcError as error:
                    code, words = error.code().name, error.details()
                    self.errors.append(f"{endpoint} {name}: {code} {words}"[:200])
                    at += 1
                    self._over.wait(self.PAUSE_S)

    def first_after(self, moment: float) -> float | None:
        """Seconds from the moment to the first acknowledgement after it."""
        later = [at for at in list(self.acked.values()) if at > moment]
        return min(later) - moment if later else None

    @property
    def longest_gap_s(self) -> float:
        times = list(self.acked.values())
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


_IMPATIENT = [("grpc.min_reconnect_backoff_ms", 1000), ("grpc.initial_reconnect_backoff_ms", 100)]


class Visitors:
    """Fetch a page from every box several times a second."""

    PAUSE_S = 0.2
    TIMEOUT_S = 5.0

    def __init__(self, continent: Continent) -> None:
        self.visits = 0
        self.failures: list[str] = []
        self._over = threading.Event()
        addresses = [continent.network.address(box) for box in continent.boxes]
        self._threads = [
            threading.Thread(target=self._visit, args=(address,), daemon=True)
            for address in addresses
        ]

    def __enter__(self) -> "Visitors":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * self.TIMEOUT_S)

    def _visit(self, address: str) -> None:
        while not self._over.wait(self.PAUSE_S):
            self.visits += 1
            why = fetch(address, self.TIMEOUT_S)
            if why:
                self.failures.append(f"{time.strftime('%H:%M:%S')} {address}: {why}")


def fetch(address: str, timeout_s: float = 2.0) -> str:
    """Why the page of the box cannot be had; empty when it can."""
    connection = http.client.HTTPConnection(address, WEB_PORT, timeout=timeout_s)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
        return "" if status == 200 else f"HTTP {status}"
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()


@contextlib.contextmanager
def unnoticed(continent: Continent, name: str, *, cut_off: Sequence[str] = ()) -> Iterator[Writer]:
    """See the module. `cut_off`: boxes that the scenario makes unreachable for visitors."""
    before = continent.containers()
    assert all(before.values()), before
    with Visitors(continent) as visitors, Writer(continent, name) as writer:
        eventually(lambda: len(writer.acked) > 2, "writes")
        yield writer
        now = continent.containers()
        restarted = {box: ids for box, ids in before.items() if not ids.items() <= now[box].items()}
        assert not restarted, (restarted, now)
    gone = [continent.network.address(box) for box in cut_off]
    failures = [one for one in visitors.failures if not any(address in one for address in gone)]
    assert not failures, failures
    assert visitors.visits > 10
    everywhere(continent, writer.acked)
    print(f"\n{name}: {len(writer.acked)} writes, longest gap {writer.longest_gap_s:.1f} s;"
          f" {visitors.visits} visits; errors: {writer.errors[:5]}")  # fmt: skip


def everywhere(continent: Continent, names: dict[str, float]) -> None:
    """All of these Configs can be read from every member."""
    for member in continent.members.values():
        done = edgectl(
            continent, "get", "configs", "-o", "json", "--endpoint", member.endpoint, timeout_s=60
        )
        assert done.returncode == 0, done.stderr
        found = {item["metadata"]["name"] for item in json.loads(done.stdout)["items"]}
        lost = sorted(set(names) - found)
        assert not lost, f"{member.name} does not know {len(lost)} acknowledged writes: {lost[:5]}"


def apply_works(continent: Continent, name: str, lost_at: float) -> float:
    """An operator types `edgectl apply` until it works; seconds since the loss, within budget."""
    while True:
        done = apply(continent, config(name))
        took_s = time.monotonic() - lost_at
        if done.returncode == 0 or took_s > WRITES_BACK_S:
            break
    assert done.returncode == 0, f"after {took_s:.1f} s: {done.stderr}"
    assert took_s <= WRITES_BACK_S
    print(f"\n{name}: apply worked {took_s:.1f} s after the loss")
    return took_s


def apply(continent: Continent, *manifests: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    text = "\n---\n".join(json.dumps(manifest) for manifest in manifests)
    return edgectl(continent, "apply", "-f", "-", stdin=text.encode())


def apply_to(
    continent: Continent, member: Member, manifest: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Through this member and no other."""
    text = json.dumps(manifest).encode()
    return edgectl(continent, "apply", "-f", "-", "--endpoint", member.endpoint, stdin=text)


def inside(
    continent: Continent, region: str, *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """edgectl of an operator who sits in the region, and asks its member."""
    endpoint = continent.regions[region].members[0].endpoint
    command = ["nsenter", f"--net={continent.network.netns(region)}", EDGECTL, *arguments]
    done = subprocess.run(
        [*command, "--endpoint", endpoint],
        input=stdin,
        capture_output=True,
        text=True,
        env=continent.environment(),
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def session(continent: Continent, box: str) -> dict[str, Any]:
    """What the agent itself says of its connection: connected, member, region, since."""
    return status_file.read(continent.agents[box].state_dir)


def regions_in_use(continent: Continent) -> dict[str, str]:
    """Box -> the region of its session; empty: it has none."""
    sessions = {box: session(continent, box) for box in continent.boxes}
    return {box: one["region"] if one["connected"] else "" for box, one in sessions.items()}


def nodes_ready(continent: Continent) -> bool:
    done = edgectl(continent, "get", "nodes", "-o", "json")
    if done.returncode != 0:
        return False
    items = json.loads(done.stdout)["items"]
    ready = {item["metadata"]["name"]: item["status"].get("ready") for item in items}
    return all(ready.get(box) for box in continent.boxes)


def placements(continent: Continent) -> dict[str, str]:
    """Replica -> its node."""
    done = edgectl(continent, "get", "replicas", "-o", "json")
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)["items"]
    return {item["metadata"]["name"]: item["status"].get("node", "") for item in items}


def settled(continent: Continent, timeout_s: float = 60.0) -> None:
    """All lines and processes are well, somebody leads, every box has a session and is Ready."""
    continent.heal()
    for region in continent.regions.values():
        region.etcd.start(continent.etcd_group, wait=False)
        for member in region.members:
            member.start(wait=False)
    members = continent.members.values()
    eventually(lambda: all(member.is_ready() for member in members), "members", timeout_s)
    eventually(lambda: continent.leader() in continent.members, "a leader", timeout_s)
    eventually(lambda: all(regions_in_use(continent).values()), "sessions", timeout_s)
    eventually(lambda: nodes_ready(continent), "nodes are Ready", timeout_s)


def new_leader(continent: Continent, former: str, timeout_s: float = 30.0) -> str:
    return eventually(
        lambda: leader if (leader := continent.leader()) not in ("", former) else "",
        f"another leader than {former}",
        timeout_s,
    )
