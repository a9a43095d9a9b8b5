"""Three etcd members and three orchestrators on this machine, with a wire between every two.

Built once for many runs: `heal` brings everything back between them.
"""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edgectl.config import Connection
from edgectl.config_file import connection, load
from orchestrator.store import keys
from tests.faults.wires import Wire, Wires
from tests.integration.etcd_server import EtcdCluster, EtcdMember
from tests.integration.members_rig import MemberProcess, etcd_settings, make_ca

MEMBERS = 3
HEAL_S = 40.0


class Orchestrator(MemberProcess):
    """Started through `member`, which may give it a defect."""

    defect = "-"

    def start(self, version: str = "-", *, settle_s: float = 1.0, wait: bool = True) -> None:
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in self.settings.items()]
        self._config.write_text("".join(lines))
        command = [sys.executable, "-m", "tests.faults.member", self.defect]
        with self.log.open("ab") as output:
            self._running = subprocess.Popen(
                [*command, "serve", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        if wait:
            self.wait_until_ready()

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)


@dataclass
class Station:
    """An orchestrator, the wire on which operators reach it, and its wires to etcd."""

    orchestrator: Orchestrator
    to_operators: Wire
    to_etcd: list[Wire]


class Cluster:
    """Use as a context manager. `folder` keeps every log."""

    def __init__(self, folder: Path, defect: str = "-") -> None:
        self.folder = folder
        self.etcd = EtcdCluster(folder / "etcd", MEMBERS)
        self.stations: list[Station] = []
        self.changing = threading.Lock()  # around starting, ending and pausing processes
        self._defect = defect
        self._wires = Wires()

    def __enter__(self) -> Self:
        (self.folder / "etcd").mkdir(parents=True, exist_ok=True)
        self._wires.__enter__()
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        self.etcd.start()
        ca = make_ca(self.folder / "ca", "eu")
        for number in range(1, MEMBERS + 1):
            self.stations.append(self._station(f"m{number}", ca))
        first, *others = (station.orchestrator for station in self.stations)
        first.start()  # it makes the admin
        for one in others:
            one.start(wait=False)
        for one in others:
            one.wait_until_ready()

    def _station(self, name: str, ca: Path) -> Station:
        wires = [self._wires.lay(f"{name}-{m.name}", m.client_port) for m in self.etcd.members]
        settings = {
            **etcd_settings(self.etcd, "/polder"),
            "store": "etcd:" + ",".join(wire.endpoint for wire in wires),
            "ca_dir": str(ca),
            "region": "eu",
        }
        orchestrator = Orchestrator(name, self.folder, settings)
        orchestrator.defect = self._defect
        port = int(orchestrator.listen.rpartition(":")[2])
        return Station(orchestrator, self._wires.lay(f"operators-{name}", port), wires)

    def _stop(self) -> None:
        for station in self.stations:
            station.orchestrator.clean_up()
        self.etcd.stop()
        self._wires.__exit__()

    @property
    def endpoints(self) -> list[str]:
        return [station.to_operators.endpoint for station in self.stations]

    def connection(self) -> Connection:
        """The first admin's."""
        path = self.stations[0].orchestrator.data / "admin.yaml"
        return connection(path, load(path), "")

    def etcd_leader(self) -> EtcdMember:
        """The one that says so; the first when nobody does."""
        for member in self.etcd.members:
            if _is_leader(member):
                return member
        return self.etcd.members[0]

    def leading_station(self) -> Station:
        """Of the orchestrator that leads, as etcd has it; the first when nobody does."""
        key = self.etcd.settings("/polder").root + keys.LEADER.encode()
        name = next((v for m in self.etcd.members if (v := m.value_of(key))), b"").decode()
        found = (s for s in self.stations if s.orchestrator.name == name)
        return next(found, self.stations[0])

    def heal(self) -> None:
        """Everything runs, and every orchestrator is ready. Raises AssertionError."""
        deadline = time.monotonic() + HEAL_S
        for member in self.etcd.members:
            if member.is_running:
                member.thaw()  # harmless to one that runs
            else:
                self.etcd.start_member(member)
        for station in self.stations:
            for wire in (station.to_operators, *station.to_etcd):
                wire.restore()
            if station.orchestrator.is_running:
                station.orchestrator.thaw()
            else:
                station.orchestrator.start(wait=False)
        for station in self.stations:
            while station.orchestrator.status("/readyz") != 200:
                assert time.monotonic() < deadline, station.orchestrator.said[-2000:]
                time.sleep(0.02)


def _is_leader(member: EtcdMember) -> bool:
    return member.is_running and member.says_it_leads()
