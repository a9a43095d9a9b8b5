"""Restarts that an operator at the box asks for, and what is shown of what one stopped."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.domain.plan import STOPPED_LOCALLY, Hold
from agent.domain.site.messages import Refusal
from agent.runtime.port import ImageFailure
from agent.site.memory import Memory
from agent.site.restarts import KEPT_MAX, NAME, Restarts
from polder.v1 import agent_pb2
from tests.sim import virtual_time
from tests.sim.agent_plans import assignment, plan, template
from tests.unit.test_supervisor import Box, box_in

KEY = ("w-a", "a-0")
WHY = "operator/ann restarted it at box-1"
Play = Callable[[Callable[[Box], Awaitable[None]]], None]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    def start(scene: Callable[[Box], Awaitable[None]]) -> None:
        async def main() -> None:
            async with box_in(tmp_path) as box:
                await scene(box)
                assert "UnexpectedTransition" not in box.reasons()

        virtual_time.run(main())

    return start


async def pod_ids(box: Box) -> list[str]:
    return [pod.id for pod in await box.pods()]


def test_it_runs_again_as_the_same_in_another_pod(play: Play) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [assignment("a"), assignment("b")]))
        await box.until(lambda: box.ready("a") and box.ready("b"))
        before = await pod_ids(box)
        assert box.supervisor.restartable(KEY)
        box.supervisor.restart(KEY, WHY)
        await box.until(lambda: not box.ready("a"))
        await box.until(lambda: box.ready("a"))
        after = await pod_ids(box)
        assert len(after) == 2 and len(set(before) & set(after)) == 1
        stops = [e.message for e in box.events if e.reason == "Stopping"]
        assert len(stops) == 1 and WHY in stops[0] and "RestartedLocally" in stops[0]
        await asyncio.sleep(120)
        assert await pod_ids(box) == after  # once
        assert "a" not in box.gone

    play(scene)


def test_what_serves_is_not_given_up_for_an_image_that_cannot_be_had(play: Play) -> None:
    async def scene(box: Box) -> None:
        box.supervisor.submit_plan(plan(1, [assignment("a", template(imagePullPolicy="Always"))]))
        await box.until(lambda: box.ready("a"))
        before = await pod_ids(box)
        await box.stop_agent()
        box.status.clear()
        box.start_agent()
        box.supervisor.submit_plan(plan(1, [assignment("a", template(imagePullPolicy="Always"))]))
        await box.until(lambda: box.ready("a"))
        box.runtime.images["app:1"] = ImageFailure("ImagePull", "no route to the registry")
        box.supervisor.restart(KEY, WHY)
        await asyncio.sleep(30)
        assert await pod_ids(box) == before and box.ready("a")
        assert "no route" in box.status["a"].message
        del box.runtime.images["app:1"]
        await asyncio.sleep(600)
        assert await pod_ids(box) != before and box.ready("a")

    play(scene)


def test_what_cannot_be_made_again_is_not_restarted(play: Play) -> None:
    async def scene(box: Box) -> None:
        once = assignment("a", run_once=True)
        box.supervisor.submit_plan(plan(1, [once, assignment("b")]))
        await box.until(lambda: box.ready("a") and box.ready("b"))
        before = await pod_ids(box)
        assert not box.supervisor.restartable(KEY)
        assert not box.supervisor.restartable(("w-zz", "zz-0"))
        box.supervisor.submit_plan(plan(2, [once]))  # b is an orphan now
        assert not box.supervisor.restartable(("w-b", "b-0"))
        for key in (KEY, ("w-b", "b-0"), ("w-zz", "zz-0")):
            box.supervisor.restart(key, WHY)
        await asyncio.sleep(30)
        assert await pod_ids(box) == before

    play(scene)


def test_what_an_operator_stopped_is_shown_as_stopped_and_starts_again(play: Play) -> None:
    async def scene(box: Box) -> None:
        wanted = plan(1, [assignment("a")])
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: box.ready("a"))
        hold = Hold(STOPPED_LOCALLY, "operator/ann stopped it")
        box.supervisor.submit_plan(replace(wanted, held={"a": hold}))
        await box.until(lambda: box.status["a"].phase == agent_pb2.REPLICA_PHASE_STOPPED)
        status = box.status["a"]
        assert (status.reason, status.ready) == (STOPPED_LOCALLY, False)
        assert status.message == "operator/ann stopped it" and "a" not in box.gone
        assert not box.supervisor.restartable(KEY)
        box.supervisor.submit_plan(wanted)
        await box.until(lambda: box.ready("a"))

    play(scene)


async def test_one_that_is_sent_again_is_done_once_also_after_a_restart_of_the_agent(
    tmp_path: Path,
) -> None:
    done: list[str] = []

    class Supervisor:
        def restartable(self, key: object) -> bool:
            return key == KEY

        def restart(self, key: object, why: str) -> None:
            done.append(why)

    def begin() -> Restarts:
        memory = Memory(tmp_path, "boot")
        found = Restarts(memory, Supervisor())  # type: ignore[arg-type]
        found.read(memory.load().bodies.get(NAME, {}))
        return found

    restarts = begin()
    assert await restarts.restart(KEY, "x", WHY) is None
    assert await restarts.restart(KEY, "x", WHY) is None
    assert await begin().restart(KEY, "x", WHY) is None
    assert done == [WHY]
    assert isinstance(await restarts.restart(("w", "elsewhere-0"), "y", WHY), Refusal)
    for number in range(KEPT_MAX + 5):
        await restarts.restart(KEY, f"z{number}", WHY)
    assert len(Memory(tmp_path, "boot").load().bodies[NAME]["ids"]) == KEPT_MAX


async def test_what_cannot_be_written_down_is_not_done(tmp_path: Path) -> None:
    done: list[str] = []

    class Supervisor:
        def restartable(self, key: object) -> bool:
            return True

        def restart(self, key: object, why: str) -> None:
            done.append(why)

    (tmp_path / "file").write_text("")
    memory = Memory(tmp_path / "file" / "site", "boot")
    memory.load()
    refused = await Restarts(memory, Supervisor()).restart(KEY, "x", WHY)  # type: ignore[arg-type]
    assert refused is not None and refused.reason == "NotWritable" and not done
