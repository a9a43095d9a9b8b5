"""Readers that do not read: bounded memory, others served, and the newest state in the end."""

from pathlib import Path

from orchestrator.api import watching
from orchestrator.api.selectors import Selector
from orchestrator.api.watching import Scope, Watcher
from polder.v1 import operator_pb2
from tests.integration.orchestrator_rig import manifest, running

TURNS = 60


async def test_a_watch_that_is_not_read_gets_the_newest_state_only(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        # Large enough that flow control stops the server's writes after a few.
        names = [f"s{n}" for n in range(4)]

        def secret(name: str, turn: int) -> dict[str, object]:
            return manifest("Secret", name, spec={"data": {"v": f"{turn:03}" + "x" * 100_000}})

        stub = rig.admin()
        watch = stub.Watch(operator_pb2.WatchRequest(kind="Secret"))
        assert (await watch.read()).type == operator_pb2.WATCH_TYPE_SYNCED
        other = rig.admin()
        for turn in range(TURNS):
            await rig.apply(*(secret(name, turn) for name in names), stub=other)
        hub = rig.orchestrator.parts.hub
        assert hub.watchers == 1
        latest: dict[str, bytes] = {}
        received = 0
        while len(latest) < len(names) or any(b"059" not in v[:40] for v in latest.values()):
            message = await watch.read()
            received += 1
            latest[message.resource.metadata.name] = message.resource.spec_json
        assert received < TURNS * len(names) / 2


async def test_a_watcher_that_lags_beyond_its_bound_reads_everything_again() -> None:
    watcher = Watcher(Scope("Node", "", "", Selector()))
    for number in range(watching.PENDING_MAX + 10):
        watcher.mark(("", f"n{number}"))
    found, everything = await watcher.wait()
    assert everything and not found
    watcher.mark(("", "n1"))
    assert await watcher.wait() == ([("", "n1")], False)
