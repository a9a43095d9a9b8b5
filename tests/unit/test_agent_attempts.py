"""Which name the next attempt at a sandbox takes, after one that was refused or not answered."""

from agent.domain.answers import UNHEARD_S
from agent.domain.compose import Settings
from agent.domain.instructions import (
    Done,
    EnsureImage,
    Event,
    Failed,
    Outcome,
    PlanAccepted,
    PodsListed,
    RunPod,
    StartContainer,
    Tick,
)
from agent.domain.reconcile import Reconciler
from tests.sim.agent_plans import assignment, plan, template

BACKOFF_S = 400.0  # longer than any pause between two attempts


class Box:
    """A machine whose images are all there and whose sandboxes the test answers for."""

    def __init__(self) -> None:
        self.machine = Reconciler(Settings("box-1", "nl-utr-1", "/logs"))
        self.now = 1.0
        self.asked: list[RunPod] = []
        self.tell(PlanAccepted(plan(1, [assignment("u1", template(), epoch=1)])))
        self.listed()

    def tell(self, event: Event) -> None:
        events = [event]
        while events:
            for asked in self.machine.handle(events.pop(0), self.now):
                if isinstance(asked, EnsureImage):
                    events.append(Done(asked, "sha256:1"))
                if isinstance(asked, StartContainer):
                    events.append(Failed(asked, Outcome.UNKNOWN, "RuntimeError", "no answer"))
                if isinstance(asked, RunPod):
                    self.asked.append(asked)

    def listed(self) -> None:
        """The runtime has nothing."""
        self.tell(PodsListed([], self.machine.listing_token()))

    def fails(self, outcome: Outcome, after_s: float = 1.0) -> str:
        """The name of the attempt after this one, made when it may be."""
        before = len(self.asked)
        self.tell(Failed(self.asked[-1], outcome, "RuntimeError", "no"))
        self.now += after_s
        self.listed()
        while len(self.asked) == before:
            due = self.machine.next_due()
            assert due is not None and due < self.now + BACKOFF_S
            self.now = max(due, self.now)
            self.tell(Tick())
        return self.asked[-1].spec.uid


def test_an_attempt_without_an_answer_keeps_its_name() -> None:
    box = Box()
    first = box.asked[-1].spec.uid
    assert box.fails(Outcome.UNKNOWN) == first


def test_one_that_was_refused_leaves_its_name() -> None:
    box = Box()
    first = box.asked[-1].spec.uid
    assert box.fails(Outcome.FAILED) != first


def test_one_that_was_refused_keeps_the_name_of_one_that_may_yet_come() -> None:
    """Or the two would be two pods of one replica."""
    box = Box()
    first = box.asked[-1].spec.uid
    assert box.fails(Outcome.UNKNOWN) == first
    assert box.fails(Outcome.FAILED) == first
    assert box.fails(Outcome.FAILED, after_s=UNHEARD_S) == first, "it was asked for in time"
    assert box.fails(Outcome.FAILED) != first, "no runtime goes on for so long"


def test_the_name_of_one_that_came_is_kept_for_nothing_else() -> None:
    box = Box()
    first = box.asked[-1].spec.uid
    assert box.fails(Outcome.UNKNOWN) == first
    box.tell(Done(box.asked[-1], "pod-1"))
    box.now += 1.0
    box.listed()  # it was removed by another hand
    second = box.asked[-1].spec.uid
    assert second != first
    assert box.fails(Outcome.FAILED) not in (first, second)
