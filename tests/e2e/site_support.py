"""What the scenarios of a site share: two replicas that fail over, and an observer outside.

A fault is made inside `no_overlap`: afterwards the register has seen no two containers of the
exclusive replica at once and no write with an old epoch, and the site is whole again.
"""

import contextlib
import json
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster.register import Register, Tenure
from devcluster.site import LocalSite
from devcluster.site_watch import answering, exclusive, first_answer, lacking, shared
from tests.e2e.support import edgectl, eventually

SHARED, EXCLUSIVE = 18080, 18081
PORTS = (SHARED, EXCLUSIVE)
TAKEOVER_S = 10.0
"""Far above what `bench takeover` asks for: tests run beside each other on a busy machine."""
WHOLE_S = 90.0


@dataclass(frozen=True, slots=True)
class Scene:
    """Replicas `page-0` (SHARED) and `one-0` (EXCLUSIVE), each with two standbys."""

    site: LocalSite
    register: Register

    def deploy(self, *, deaf: bool = False, **failover: Any) -> None:
        one = exclusive("one", EXCLUSIVE, self.register.endpoint, deaf=deaf, **failover)
        text = "\n---\n".join(json.dumps(m) for m in (one, shared("page", SHARED)))
        done = edgectl(self.site, "apply", "-f", "-", stdin=text.encode())
        assert done.returncode == 0, done.stderr

    def whole(self, timeout_s: float = WHOLE_S) -> None:
        """Lines and agents are well, each port has one answer."""
        missing: list[str] = ["not looked yet"]

        def look() -> bool:
            missing[:] = lacking(self.site, PORTS)
            return not missing

        try:
            eventually(look, "the site is whole", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {missing}") from error

    def holder(self) -> str:
        """The node where the exclusive replica answers."""
        (node,) = eventually(
            lambda: f if len(f := answering(self.site, EXCLUSIVE)) == 1 else [], "one holder"
        )
        return node

    def others(self, node: str) -> list[str]:
        return [other for other in self.site.nodes if other != node]

    def taken_over(
        self, nodes: Collection[str], since: float, *ports: int, within_s: float = TAKEOVER_S
    ) -> None:
        """Each of the ports (default: the exclusive one) answers on one of the nodes."""
        wanted = ports or (EXCLUSIVE,)
        found = first_answer(self.site, wanted, nodes, since, 4 * within_s)
        assert set(found) == set(wanted), f"not taken over: {set(wanted) - set(found)}"
        took_s = max(found.values())
        print(f"\ntaken over after {took_s:.2f} s")
        assert took_s <= within_s

    def last(self) -> Tenure:
        """What the register saw of the latest container of the exclusive replica."""
        return self.register.of("one-0")[-1]

    @contextlib.contextmanager
    def no_overlap(self) -> Iterator[None]:
        self.whole()
        overlaps, refused = self.register.overlaps(), self.register.refused("one-0")
        try:
            yield
        finally:
            mend(self.site)
        self.whole()
        assert self.register.overlaps() == overlaps
        assert self.register.refused("one-0") == refused
        epochs = [tenure.epoch for tenure in self.register.of("one-0")]
        assert epochs == sorted(epochs)


def mend(site: LocalSite) -> None:
    """All lines, all power, all agents."""
    site.heal()
    for node in site.nodes:
        agent = site.agents[node]
        assert agent.containerd is not None
        if not agent.containerd.pid:
            site.power_on(node)
        elif not agent.pid:
            site.start_agent(node)
        else:
            site.thaw_agent(node)


@contextlib.contextmanager
def scene_in(directory: Path, *, deaf: bool = False, **start: Any) -> Iterator[Scene]:
    """A site of three nodes with both replicas, and the register; `start` goes to the site's."""
    site = LocalSite(directory)
    try:
        site.start(**start)
        with Register(site.observer) as register:
            made = Scene(site, register)
            made.deploy(deaf=deaf)
            made.whole()
            yield made
    finally:
        site.stop(keep_logs=True)


def keeps(scene: Scene, port: int, nodes: list[str], seconds: float) -> None:
    """These and no others answer there, whenever it is looked in that time: nothing happens can
    only be seen by waiting."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert answering(scene.site, port) == nodes
        time.sleep(0.2)


def stays_so(scene: Scene, holder: str, seconds: float) -> None:
    """Nothing happens: the holder holds, by the same container, all the while."""
    before = scene.last().stay
    keeps(scene, EXCLUSIVE, [holder], seconds)
    assert scene.last().stay == before
