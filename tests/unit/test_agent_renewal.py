"""Files of a pod that runs follow their source: the state machine's part, without a disk."""

from typing import Any

from agent.domain.compose import Settings
from agent.domain.instructions import (
    Done,
    Emit,
    Failed,
    Instruction,
    Outcome,
    PlanAccepted,
    PodsListed,
    StartContainer,
    Tick,
    UpdateFiles,
)
from agent.domain.plan import ParsedPlan
from agent.domain.reconcile import Reconciler
from agent.runtime.port import ContainerPhase, ContainerState, PodState
from polder.v1 import plan_pb2
from tests.sim.agent_plans import assignment, plan, template

POD = template(
    volumes=[{"name": "c", "config": {"name": "web"}}],
    volumeMounts=[{"name": "c", "mountPath": "/c"}],
)


class Machine:
    """One replica whose pod runs already, as after a restart of the agent."""

    def __init__(self) -> None:
        self.machine = Reconciler(Settings("box-1", "nl-utr-1", "/logs"))
        self.now = 100.0
        self.generation = 0

    def plan(self, value: str | None) -> ParsedPlan:
        self.generation += 1
        configs = []
        if value is not None:
            data = {"a": value}
            configs = [plan_pb2.ConfigData(namespace="default", name="web", data=data)]
        return plan(self.generation, [assignment("u", POD)], configs=configs)

    def hear(self, event: Any) -> list[Instruction]:
        return self.machine.handle(event, self.now)

    def adopt(self, wanted: ParsedPlan, *containers: ContainerState) -> list[Instruction]:
        self.hear(PlanAccepted(wanted))
        labels = {
            "polder.eu/replica-uid": "u",
            "polder.eu/replica": "u-0",
            "polder.eu/namespace": "default",
            "polder.eu/template-digest": wanted.assignments["u"].digest,
        }
        pod = PodState("p1", "u-0", "default", "u-1", True, labels, {}, 1.0, "10.0.0.2", containers)
        return self.hear(PodsListed([pod], self.machine.listing_token()))


RUNNING = ContainerState(
    "c1", "p1", "app", 0, ContainerPhase.RUNNING, "app:1", {}, {}, started_at=1.0
)


def updates(found: list[Instruction]) -> list[dict[str, Any]]:
    return [dict(i.files[0].files) for i in found if isinstance(i, UpdateFiles)]


def the_update(found: list[Instruction]) -> UpdateFiles:
    (made,) = (i for i in found if isinstance(i, UpdateFiles))
    return made


def warnings(found: list[Instruction]) -> list[str]:
    return [i.reason for i in found if isinstance(i, Emit) and i.warning]


def test_an_adopted_pod_is_brought_up_to_date_once() -> None:
    box = Machine()
    first = the_update(box.adopt(box.plan("1"), RUNNING))
    assert (first.pod_id, dict(first.files[0].files)) == ("p1", {"a": "1"})
    assert not updates(box.hear(Done(first)))
    assert not updates(box.hear(PlanAccepted(box.plan("1")))), "nothing has changed"
    second = the_update(box.hear(PlanAccepted(box.plan("2"))))
    assert dict(second.files[0].files) == {"a": "2"}
    # A change while an update is under way follows when that is done.
    assert not updates(box.hear(PlanAccepted(box.plan("3"))))
    assert updates(box.hear(Done(second))) == [{"a": "3"}]


def test_before_the_first_container_nothing_is_updated() -> None:
    box = Machine()
    found = box.adopt(box.plan("1"))
    assert not updates(found) and not any(isinstance(i, StartContainer) for i in found)


def test_what_fails_is_told_and_tried_again() -> None:
    box = Machine()
    tried = the_update(box.adopt(box.plan("1"), RUNNING))
    found = box.hear(Failed(tried, Outcome.FAILED, "DiskFull", "no space"))
    assert warnings(found) == ["DiskFull"] and not updates(found)
    assert not updates(box.hear(Tick()))
    due = box.machine.next_due()
    assert due is not None and 100 < due <= 103
    box.now = due
    tried = the_update(box.hear(Tick()))
    box.hear(Failed(tried, Outcome.FAILED, "DiskFull", "no space"))
    again = the_update(box.hear(PlanAccepted(box.plan("2"))))
    assert dict(again.files[0].files) == {"a": "2"}, "what is new need not wait"
    told = [i for i in box.hear(Done(again)) if isinstance(i, Emit)]
    assert [i.reason for i in told] == ["FilesRenewed"]


def test_a_config_that_goes_takes_no_files_along() -> None:
    box = Machine()
    box.hear(Done(the_update(box.adopt(box.plan("1"), RUNNING))))
    found = box.hear(PlanAccepted(box.plan(None)))
    assert warnings(found) == ["ConfigMissing"] and not updates(found)
    assert not warnings(box.hear(PlanAccepted(box.plan(None)))), "it is said once"
    assert not updates(box.hear(PlanAccepted(box.plan("1")))), "they hold that already"
