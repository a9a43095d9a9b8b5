"""What the reconciler makes of an effective plan: holds, risen epochs, stays of the site."""

from dataclasses import replace
from typing import Any

from agent.domain import labels
from agent.domain.compose import Settings
from agent.domain.instructions import (
    Done,
    EnsureImage,
    Instruction,
    PlanAccepted,
    PodsListed,
    Publish,
    PublishGone,
    RemovePod,
    RunPod,
    StartContainer,
    StopContainer,
    Tick,
)
from agent.domain.plan import ParsedPlan
from agent.domain.reconcile import Reconciler
from agent.domain.site.messages import Stay
from agent.domain.site.overlay import overlay
from agent.domain.view import Phase, ReplicaView
from agent.runtime.port import ContainerPhase, ContainerState, PodState
from agent.translate import replica_status
from tests.unit.site_lab import E1, KEY, group, planned

AB = group("a", "b")
MINE = planned("a", AB)
ROLE = planned("b", AB)
ACTS = (EnsureImage, RunPod, StartContainer, StopContainer, RemovePod)


class Bench:
    """One reconciler over a runtime that does everything at once."""

    def __init__(self, plan: ParsedPlan) -> None:
        self.machine = Reconciler(Settings("a", "s", "/logs"))
        self.plan = plan
        self.now = 100.0
        self.pods: dict[str, PodState] = {}
        self.log: list[Instruction] = []

    def decide(self, *stays: Stay) -> list[str]:
        return self.hear(PlanAccepted(overlay(self.plan, stays)))

    def look(self) -> list[str]:
        return self.hear(PodsListed(list(self.pods.values()), self.machine.listing_token()))

    def hear(self, event: Any) -> list[str]:
        """What it does because of the event, by name."""
        done: list[str] = []
        queue = self.machine.handle(event, self.now, self.now)
        while queue:
            instruction = queue.pop(0)
            self.log.append(instruction)
            if isinstance(instruction, ACTS):
                done.append(type(instruction).__name__)
                answer = Done(instruction, self._perform(instruction))
                queue += self.machine.handle(answer, self.now, self.now)
        return done

    def _perform(self, operation: Any) -> str:
        match operation:
            case EnsureImage():
                return "sha256:1"
            case RunPod(uid, spec):
                pod_id = f"pod-{uid}"
                made = PodState(
                    pod_id, spec.name, spec.namespace, spec.uid, True, spec.labels, {}, self.now,
                    "10.0.0.2", (),
                )  # fmt: skip
                self.pods[pod_id] = made
                return pod_id
            case StartContainer(_, pod_id, _, spec):
                run = ContainerState(
                    f"c-{spec.attempt}", pod_id, spec.name, spec.attempt, ContainerPhase.RUNNING,
                    spec.image, {}, {}, started_at=self.now,
                )  # fmt: skip
                self.pods[pod_id] = replace(self.pods[pod_id], containers=(run,))
                return run.id
            case StopContainer():
                for pod in self.pods.values():
                    if any(c.id == operation.container_id for c in pod.containers):
                        self.exit(pod.id)
            case RemovePod(_, pod_id):
                del self.pods[pod_id]
        return ""

    def exit(self, pod_id: str) -> None:
        pod = self.pods[pod_id]
        ended = tuple(
            replace(c, phase=ContainerPhase.EXITED, finished_at=self.now) for c in pod.containers
        )
        self.pods[pod_id] = replace(pod, containers=ended)

    def view(self, uid: str) -> ReplicaView:
        return next(v for v in self.machine.views() if v.uid == uid)


def running(plan: ParsedPlan, *stays: Stay) -> Bench:
    bench = Bench(plan)
    bench.decide(*stays)
    bench.look()
    bench.look()
    return bench


def test_a_risen_epoch_restarts_nothing_and_is_reported() -> None:
    bench = running(MINE)
    assert bench.view("p1").ready and bench.view("p1").epoch == E1
    assert bench.decide(Stay(KEY, "p1", E1 + 2)) == []
    assert bench.look() == [] and bench.view("p1").epoch == E1 + 2


def test_a_stay_of_the_site_runs_from_its_role_and_says_what_it_takes_over() -> None:
    bench = running(ROLE, Stay(KEY, "s1", E1 + 1, "p1"))
    view = bench.view("s1")
    assert view.ready and (view.epoch, view.takes_over) == (E1 + 1, "p1")
    (pod,) = bench.pods.values()
    assert pod.labels[labels.TAKES_OVER] == "p1"
    assert replica_status(view, 500.0, bench.now).takes_over == "p1"


def test_also_as_an_orphan_after_a_restart_of_the_agent() -> None:
    bench = running(ROLE, Stay(KEY, "s1", E1 + 1, "p1"))
    again = Bench(replace(ROLE, roles={}))
    again.pods = bench.pods
    again.decide()
    again.look()
    view = again.view("s1")
    assert (view.phase, view.takes_over) == (Phase.ORPHANED, "p1")


def test_once_the_plan_assigns_it_nothing_is_taken_over_any_more_and_nothing_restarts() -> None:
    bench = running(ROLE, Stay(KEY, "s1", E1 + 1, "p1"))
    bench.plan = planned("b", AB, primary="b", uid="s1", epoch=E1 + 1)
    assert bench.decide() == [] and bench.look() == []
    assert bench.view("s1").takes_over == "" and bench.view("s1").ready


def test_what_waits_does_not_start() -> None:
    bench = running(MINE, Stay(KEY, "p1", E1, "", "Listening", "who has it?", waits=True))
    view = bench.view("p1")
    assert not bench.pods and not view.present
    assert (view.phase, view.reason, view.message) == (Phase.PENDING, "Listening", "who has it?")
    assert bench.decide()[:2] == ["EnsureImage", "RunPod"], "until it is let"


def test_what_waits_and_runs_after_all_runs_on() -> None:
    """The agent began anew, and does not know yet what its peers run."""
    bench = running(MINE)
    again = Bench(MINE)
    again.pods = bench.pods
    again.decide(Stay(KEY, "p1", E1, "", "Listening", "who has it?", waits=True))
    assert again.look() == [] and again.view("p1").ready


def test_but_nothing_of_it_is_started_again() -> None:
    """Its lease may be over: the switch killed it, and that has to last."""
    bench = running(MINE)
    bench.decide(Stay(KEY, "p1", E1, "", "WaitingForLease", "", waits=True))
    bench.exit("pod-p1")
    bench.look()
    bench.now += 3600.0
    assert bench.hear(Tick()) == [] and bench.look() == []
    assert "StartContainer" in bench.decide() + bench.hear(Tick())


def test_what_another_node_runs_stops_gracefully_and_stays_visible() -> None:
    bench = running(MINE)
    bench.decide(Stay(KEY, "p1", E1, stop="Superseded", message="b runs it"))
    bench.look()
    (stop,) = [i for i in bench.log if isinstance(i, StopContainer)]
    assert stop.cause == "Superseded" and stop.grace_s > 0
    told = [i.view for i in bench.log if isinstance(i, Publish)]
    assert any(v.phase is Phase.STOPPING and v.present and not v.ready for v in told)
    view = bench.view("p1")
    assert not bench.pods and not view.present
    assert (view.phase, view.reason) == (Phase.PENDING, "Superseded")
    assert not [i for i in bench.log if isinstance(i, PublishGone)], "it is assigned still"


def test_a_stay_of_the_site_that_stopped_is_gone() -> None:
    bench = running(ROLE, Stay(KEY, "s1", E1 + 1, "p1"))
    bench.decide(Stay(KEY, "s1", E1 + 1, "p1", "Superseded", "a runs it"))
    bench.look()
    assert PublishGone("s1") in bench.log and not bench.pods


def test_readiness_has_a_beginning_that_does_not_move() -> None:
    bench = running(MINE)
    since = bench.view("p1").ready_since
    assert since == 100.0
    told = len(bench.log)
    bench.now += 50.0
    bench.look()
    assert bench.view("p1").ready_since == since and len(bench.log) == told
    status = replica_status(bench.view("p1"), 1_000_000.0, bench.now)
    assert status.ready_since_ms == 999_950_000, "by the clock of the box, as it is now"
    bench.exit("pod-p1")
    bench.look()
    assert bench.view("p1").ready_since == 0.0
    assert replica_status(bench.view("p1"), 1_000_000.0, bench.now).ready_since_ms == 0


def test_what_an_earlier_agent_made_counts_as_ready_since_it_started() -> None:
    bench = running(MINE)
    again = Bench(MINE)
    again.pods, again.now = bench.pods, 400.0
    again.decide()
    again.look()
    assert again.view("p1").ready_since == 100.0
