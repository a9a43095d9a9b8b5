"""What the state machine remembers of a replica between events.

Facts only: desired (`assignment`, `stop`), actual (`pods`, as the runtime last said), and memory
that neither holds (retries, exits, probes, operations under way). What to do follows from them each
time anew, in `situation.py`; so an agent that restarts with an empty memory takes the same
decisions.
"""

from dataclasses import dataclass, field

from agent.domain import backoff, labels
from agent.domain.backoff import Retry
from agent.domain.files import Projected
from agent.domain.instructions import Key, Operation
from agent.domain.plan import Assignment, Hold
from agent.domain.probes import ProbeKind, ProbeState
from agent.domain.situation import Situation
from agent.domain.sovereign import Standing
from agent.domain.view import Exit, ReplicaView
from agent.runtime.port import ContainerState, PodState
from polder.manifest import Container, PodTemplate


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something is stopped: CamelCase for programs, a sentence for people.

    `at_once`: nobody can be using it, so nobody has to be told first.
    """

    reason: str
    message: str = ""
    at_once: bool = False


@dataclass(slots=True)
class ImageMemory:
    """`ref` is what to start; empty until the runtime has the image."""

    ref: str = ""
    retry: Retry = field(default_factory=lambda: Retry(backoff.IMAGE))


@dataclass(slots=True)
class ContainerMemory:
    """Of all runs of one container of the template."""

    restarts: int = 0
    attempt_next: int = 0  # never used twice for one replica: it names log files
    crash: Retry = field(default_factory=lambda: Retry(backoff.CRASH))
    counted: str = ""  # id of the run whose end is in `crash`
    last_exit: Exit | None = None
    stopped: dict[str, Cause] = field(default_factory=dict)  # runs that we ended, by id
    probed: str = ""  # id of the run that `probes` are of
    probes: dict[ProbeKind, ProbeState] = field(default_factory=dict)
    problem: Cause | None = None  # why it cannot be started now


@dataclass(slots=True)
class FilesMemory:
    """Of what a pod's files from Configs and Secrets hold. `missing`: why they are not renewed."""

    pod_id: str = ""
    written: tuple[Projected, ...] = ()
    retry: Retry = field(default_factory=lambda: Retry(backoff.FILES))
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a replica that is to run once ended. `running`: what is still to be stopped then."""

    succeeded: bool
    cause: Cause
    running: tuple[ContainerState, ...] = ()


@dataclass(slots=True)
class Record:
    """One replica on this node."""

    uid: str
    namespace: str
    replica: str
    assignment: Assignment | None = None  # the last that a plan gave
    assigned: bool = False  # the plan in use gives it
    stop: Cause | None = None  # the plan in use wants it stopped
    hold: Hold | None = None  # the site's own word against the assignment
    restart: Cause | None = None  # an operator wants its main pod exchanged for the same again
    runs: Assignment | None = None  # what the main pod was made from, when that is known
    pods: dict[str, PodState] = field(default_factory=dict)
    doomed: dict[str, Cause] = field(default_factory=dict)  # pods that must go, by id
    images: dict[str, ImageMemory] = field(default_factory=dict)
    containers: dict[str, ContainerMemory] = field(default_factory=dict)
    remembers: str = ""  # digest of the template that `containers` is about
    files: FilesMemory = field(default_factory=FilesMemory)
    pod_uid: str = ""  # of the sandbox under construction
    pod_unheard_until: float = 0.0  # an attempt of that name had no answer: until then it may come
    pod_retry: Retry = field(default_factory=lambda: Retry(backoff.SANDBOX))
    pod_since: float = 0.0  # when the main pod was made or adopted
    unready_since: float | None = None  # since when it is reported as not ready; None: it is ready
    inflight: dict[Key, Operation] = field(default_factory=dict)
    fresh_after: int = 0  # listings with a lower token are too old to believe
    blind: bool = False  # an operation's outcome is unknown: look before the next one
    hold_until: float = 0.0
    block: Cause | None = None
    ran: str = ""  # digest of the wanted template, once a pod of it was here
    ready_since: float = 0.0  # as it was published; 0: it is not ready
    standing: Standing = field(default_factory=Standing)
    noncompliant: str = ""  # why its policy forbids what runs here
    trouble: Cause | None = None  # an operation failed and will be repeated
    verdict: Verdict | None = None
    situation: Situation | None = None
    due: float | None = None
    published: ReplicaView | None = None

    @property
    def forbidden(self) -> Cause | None:
        """Why nothing of it may run here, by the plan or by the site's own decision."""
        hold = self.hold
        if self.stop is not None or hold is None or hold.waits:
            return self.stop
        return Cause(hold.cause, hold.message)

    @property
    def once(self) -> bool:
        """Whether its containers run to their end and are not started again."""
        return self.assignment is not None and self.assignment.run_once

    def main_pod(self) -> PodState | None:
        """The pod that counts: of several the oldest that runs the wanted template.

        The oldest, because the younger came from an answer that got lost.
        """
        candidates = [p for p in self.pods.values() if p.id not in self.doomed]
        if len(candidates) == 1:
            return candidates[0]
        wanted = self.assignment.digest if self.assignment is not None else ""
        return min(
            candidates,
            key=lambda p: (
                not p.ready,
                p.labels.get(labels.TEMPLATE_DIGEST) != wanted,
                not p.containers,
                p.created_at,
                p.id,
            ),
            default=None,
        )

    def memory(self, name: str) -> ContainerMemory:
        return self.containers.setdefault(name, ContainerMemory())

    def image(self, image: str) -> ImageMemory:
        return self.images.setdefault(image, ImageMemory())

    def busy(self, *kinds: str) -> bool:
        """Whether an operation whose key is of one of these kinds is under way."""
        return any(key[0] in kinds for key in self.inflight)

    def attend(self, at: float) -> None:
        """Look at this replica again at that time, at the latest."""
        if self.due is None or at < self.due:
            self.due = at


def runs_of(pod: PodState, name: str) -> list[ContainerState]:
    """All runs of a container in a pod, newest first."""
    found = [c for c in pod.containers if c.name == name]
    if len(found) > 1:
        found.sort(key=lambda c: (c.attempt, c.created_at), reverse=True)
    return found


def containers_of(template: PodTemplate) -> tuple[Container, ...]:
    """All of them, in the order in which they start."""
    return (*template.init_containers, *template.containers)


def is_ready(memory: ContainerMemory, container: Container, run: ContainerState | None) -> bool:
    """Whether a run serves: it runs, nobody is stopping it, and its readiness probe, if it has
    one, succeeds."""
    if run is None or run.phase.value != "running" or run.id in memory.stopped:
        return False
    if container.readiness_probe is None:
        return True
    state = memory.probes.get(ProbeKind.READINESS)
    return memory.probed == run.id and state is not None and state.passing is True
