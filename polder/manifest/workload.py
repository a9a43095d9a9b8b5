"""The kind Workload: what runs, how often, where, and how it changes.

The template is in `pod.py`. Field sentences are what `edgectl explain` prints; checks of more than
one field are in `violations()` of their class.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from polder.manifest.job import Job, Schedule
from polder.manifest.placement import Failover, Placement
from polder.manifest.pod import PodTemplate
from polder.manifest.policy import SovereigntySpec
from polder.manifest.schema import Violation, spec
from polder.manifest.update import Disruption, Update

MAX_REPLICAS = 1_000_000


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """Containers that run somewhere, and how many. One of replicas, perSite and perNode."""

    template: PodTemplate = spec("What every replica runs.")
    replicas: int | None = spec(
        "How many. Default: 1.", default=None, minimum=0, maximum=MAX_REPLICAS
    )
    per_site: int | None = spec(
        "So many at every site that qualifies.", default=None, minimum=0, maximum=1000
    )
    per_node: int | None = spec(
        "So many on every node that qualifies.", default=None, minimum=0, maximum=100
    )
    priority: int = spec(
        "Placed before workloads of lower priority.",
        default=0,
        minimum=-1_000_000,
        maximum=1_000_000,
    )
    placement: Placement = spec("Where replicas may run.", default=Placement())
    failover: Failover = spec("Who takes over.", default=Failover())
    update: Update = spec("How a changed template reaches the replicas.", default=Update())
    disruption: Disruption = spec("What maintenance may take away.", default=Disruption())
    run: str = spec(
        "always: started again whenever it ends. once: a job, each replica to its end.",
        default="always",
        choices=("always", "once"),
    )
    job: Job | None = spec("With run: once, how often and how long.", default=None)
    schedule: Schedule | None = spec("With run: once, when it is started.", default=None)
    sovereignty: SovereigntySpec = spec(
        "What it demands of sites and their providers. The namespace's floor holds beside it.",
        default=SovereigntySpec(),
    )

    def violations(self) -> Iterator[Violation]:
        given = [
            key
            for key, value in (
                ("replicas", self.replicas),
                ("perSite", self.per_site),
                ("perNode", self.per_node),
            )
            if value is not None
        ]
        if len(given) > 1:
            yield Violation("", f"has {' and '.join(given)}; give one of them")
        if self.run == "once":
            for key in given:
                yield Violation(key, "is for run: always; job.completions says how many replicas")
        else:
            for key, value in (("job", self.job), ("schedule", self.schedule)):
                if value is not None:
                    yield Violation(key, "needs run: once")
        if self.failover.exclusive and (self.run == "once" or self.per_node is not None):
            what = "a job's replica" if self.run == "once" else "a node's own replica"
            yield Violation("failover.exclusive", f"{what} is never run by another node")
        if self.run == "once" and self.template.local_volumes():
            yield Violation("template.volumes", "a job cannot have local volumes")

    @property
    def job_rules(self) -> Job:
        """Of a workload with run: once, with the defaults where it says nothing."""
        return self.job if self.job is not None else Job()
