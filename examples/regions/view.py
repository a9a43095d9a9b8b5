"""What a person sees of three regions: a line each second, and what was counted at the end.

Three things go on beside it: visitors fetch the page of every box, a client writes something new
again and again, and an observer asks any member that answers who leads and who has which sessions.
"""

import http.client
import json
import threading
import time
from dataclasses import dataclass, field

import grpc

from agent import status_file
from devcluster.client import Context, apply_request
from devcluster.continent import Continent
from polder.v1 import common_pb2, operator_pb2, operator_pb2_grpc

PORT = 18080
VISIT_EVERY_S = 0.1
WRITE_EVERY_S = 0.25
VISIT_S = 5.0
CALL_S = 3.0
ERRORS_MAX = 10
_WEB = common_pb2.ResourceRef(kind="Workload", namespace="default", name="web")
_IMPATIENT = [("grpc.min_reconnect_backoff_ms", 1000)]


@dataclass(slots=True)
class Counted:
    """Visits of pages; writes and the longest time between two that were acknowledged."""

    visits: int = 0
    failed: int = 0
    writes: int = 0
    written_at: float = 0.0  # monotonic
    longest_gap_s: float = 0.0
    errors: list[str] = field(default_factory=list)


class AnyMember:
    """Calls the first endpoint that answers, and stays with it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._at = 0
        self._channel: grpc.Channel | None = None

    def stub(self) -> operator_pb2_grpc.OperatorServiceStub:
        if self._channel is None:
            endpoints = self._context.endpoints
            self._channel = grpc.secure_channel(
                endpoints[self._at % len(endpoints)],
                self._context.credentials(),
                [*self._context.options(own_connection=True), *_IMPATIENT],
            )
        return operator_pb2_grpc.OperatorServiceStub(self._channel)

    def move_on(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None
        self._at += 1


class View:
    """`with View(continent) as view: view.show(20)`."""

    def __init__(self, continent: Continent) -> None:
        self._continent = continent
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.counted = Counted()
        self.leader = "?"
        self.replicas = "?"
        addresses = [continent.network.address(box) for box in continent.boxes]
        self._threads = [threading.Thread(target=self._visit, args=(one,)) for one in addresses]
        self._threads += [threading.Thread(target=work) for work in (self._write, self._observe)]

    def __enter__(self) -> "View":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def show(self, seconds: float) -> None:
        """A line each second. Ctrl-C ends it early."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            print(self._line(), flush=True)
            time.sleep(1.0)

    def sessions(self) -> dict[str, str]:
        """Box -> region of its session, as its agent says; `-`: none."""
        found = {}
        for box in self._continent.boxes:
            told = status_file.read(self._continent.agents[box].state_dir)
            found[box] = told["region"] if told.get("connected") else "-"
        return found

    def _line(self) -> str:
        sessions = " ".join(f"{box}:{region}" for box, region in self.sessions().items())
        with self._lock:
            counted = self.counted
            age_s = time.monotonic() - counted.written_at if counted.written_at else 0.0
            return (
                f"{time.strftime('%H:%M:%S')}  leader {self.leader:<13} sessions {sessions:<32}"
                f" ready {self.replicas:<5} pages {counted.visits}, failed {counted.failed}"
                f"  last write {age_s:.1f} s ago"
            )

    # --- what goes on ----------------------------------------------------------------------------

    def _visit(self, address: str) -> None:
        while not self._over.wait(VISIT_EVERY_S):
            connection = http.client.HTTPConnection(address, PORT, timeout=VISIT_S)
            why = ""
            try:
                connection.request("GET", "/")
                status = connection.getresponse().status
                why = "" if status == 200 else f"HTTP {status}"
            except (OSError, http.client.HTTPException) as error:
                why = repr(error)
            finally:
                connection.close()
            with self._lock:
                self.counted.visits += 1
                self.counted.failed += bool(why)
                if why and len(self.counted.errors) < ERRORS_MAX:
                    self.counted.errors.append(f"{time.strftime('%H:%M:%S')} {address}: {why}")

    def _write(self) -> None:
        any_member, number = AnyMember(self._continent.context()), 0
        while not self._over.wait(WRITE_EVERY_S):
            note = {
                "apiVersion": "polder.eu/v1",
                "kind": "Config",
                "metadata": {"name": "note", "namespace": "default"},
                "spec": {"data": {"number": str(number)}},
            }
            try:
                any_member.stub().Apply(apply_request(note), timeout=CALL_S)
            except grpc.RpcError:
                any_member.move_on()
                continue
            number += 1
            now = time.monotonic()
            with self._lock:
                counted = self.counted
                gap_s = now - counted.written_at if counted.written_at else 0.0
                counted.longest_gap_s = max(counted.longest_gap_s, gap_s)
                counted.written_at = now
                counted.writes += 1

    def _observe(self) -> None:
        any_member = AnyMember(self._continent.context())
        while not self._over.wait(0.5):
            try:
                stub = any_member.stub()
                regions = stub.Regions(operator_pb2.RegionsRequest(), timeout=CALL_S).regions
                shown = stub.Get(operator_pb2.GetRequest(ref=_WEB), timeout=CALL_S).resource
            except grpc.RpcError:
                self.leader = self.replicas = "?"
                any_member.move_on()
                continue
            leaders = [m.name for region in regions for m in region.members if m.leader]
            self.leader = leaders[0] if leaders else "(none)"
            self.replicas = ready_of(shown.status_json)


def ready_of(status_json: bytes) -> str:
    """How many replicas of a workload are ready, such as 2/2."""
    status = json.loads(status_json or b"{}")
    return f"{status.get('ready', '?')}/{status.get('replicas', '?')}"
