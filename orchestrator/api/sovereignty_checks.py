"""What apply says of sovereignty: floors, demands that no site meets, facts that count no more.

Called by `apply.py` for documents that are otherwise in order. Refused is what can never work: a
new or changed workload that loosens its namespace's floor, or that no declared site could satisfy.
A floor or a fact that existing workloads contradict is written with a warning that names them: the
floor holds for them at once, and refusing it would keep the weaker protection (ADR 7).
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from orchestrator.cache import Cache
from orchestrator.fact_book import FactBook
from orchestrator.records import NodePlacement, StoredResource
from orchestrator.refusals import FieldViolation
from orchestrator.scheduling.reasons import NO_POLICY, merged
from polder.manifest import InvalidManifest, NamespaceSpec, ProviderSpec, SiteSpec, WorkloadSpec
from polder.manifest.identifiers import end_of_day
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty import Reason, evaluate, loosens

INLINE_MAX = 2_000
"""Judgements that the event loop makes itself; more are made in a thread."""

NAMED_MAX = 10
_COUNTED_MAX = 20  # workloads of a request of which it is counted why no site will do
_FACT_KINDS = ("Provider", "Site", "Namespace")

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Changing:
    """One document of a request. `changed`: its spec is not what is stored already."""

    number: int
    ref: Key
    spec: object
    changed: bool


@dataclass(slots=True)
class Findings:
    """`warnings` by number of the document."""

    violations: list[FieldViolation] = field(default_factory=list)
    warnings: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))


class SovereigntyChecks:
    """Reads the mirror; writes nothing."""

    def __init__(self, cache: Cache, clock: Callable[[], float]) -> None:
        self._cache = cache
        self._clock = clock

    async def check(self, changing: Sequence[Changing]) -> Findings:
        """Everything to be said of a request, as if all of it were written."""
        if not any(self._matters(item) for item in changing):
            return Findings()
        task = _Check(self._cache, changing, self._clock())
        if task.judgements > INLINE_MAX:
            return await asyncio.to_thread(task.run)
        return task.run()

    def _matters(self, item: Changing) -> bool:
        if isinstance(item.spec, WorkloadSpec):
            named = self._cache.resource("Namespace", "", item.ref[1]) is not None
            return named or item.spec.sovereignty != NO_POLICY
        return item.ref[0] in _FACT_KINDS and item.changed


class _Check:
    """Made on the event loop, which reads what changes under iteration; `run` may be elsewhere."""

    def __init__(self, cache: Cache, changing: Sequence[Changing], now: float) -> None:
        self._cache = cache
        self._changing = changing
        self._now = now
        self._before = FactBook(cache)
        self._after = FactBook(cache, {item.ref: item.spec for item in changing})
        self._sites = self._after.sites()
        self._facts = [item for item in changing if item.ref[0] in _FACT_KINDS and item.changed]
        moved = bool(self._facts)
        self._placements: list[NodePlacement] = cache.placements() if moved else []
        self._site_of = _sites_of_nodes(cache) if moved else {}
        self._others = self._workloads_of_changed_floors()
        self._verdicts: dict[SovereigntySpec, bool] = {}
        self.found = Findings()
        workloads = sum(item.ref[0] == "Workload" for item in changing) + len(self._others)
        self.judgements = workloads * len(self._sites) + sum(
            len(placement.assignments) for placement in self._placements
        )

    def _workloads_of_changed_floors(self) -> list[tuple[Changing, StoredResource]]:
        floors = {item.ref[2]: item for item in self._facts if item.ref[0] == "Namespace"}
        coming = {item.ref for item in self._changing}
        return [
            (floors[resource.namespace], resource)
            for resource in (self._cache.resources("Workload") if floors else ())
            if resource.namespace in floors
            and resource.ref not in coming
            and not resource.deletion_requested_at_ms
        ]

    def run(self) -> Findings:
        for item in self._changing:
            if isinstance(item.spec, WorkloadSpec):
                self._workload(item, item.spec)
            elif isinstance(item.spec, ProviderSpec | SiteSpec):
                self._certificates(item, item.spec)
        self._contradicted()
        self._no_longer_compliant()
        return self.found

    # --- a workload ------------------------------------------------------------------------------

    def _workload(self, item: Changing, spec: WorkloadSpec) -> None:
        try:
            floor = self._after.floor(item.ref[1])
        except InvalidManifest:
            text = "the record of its namespace cannot be read: nothing new of it is placed"
            self.found.warnings[item.number].append(text)
            return
        weaker = [
            (f"spec.sovereignty.{v.path}", v.message) for v in loosens(floor, spec.sovereignty)
        ]
        policy = merged(floor, spec.sovereignty)
        if not weaker and policy != NO_POLICY:
            if not self._sites:
                text = "no site is declared yet: nothing of it can be placed"
                self.found.warnings[item.number].append(text)
            elif not self._satisfiable(policy):
                weaker.append(("spec.sovereignty", self._why_nowhere(policy)))
        if item.changed:
            self.found.violations += [(item.number, path, text) for path, text in weaker]
        else:
            self.found.warnings[item.number] += [f"{path}: {text}" for path, text in weaker]

    def _satisfiable(self, policy: SovereigntySpec) -> bool:
        known = self._verdicts.get(policy)
        if known is None:
            known = any(not evaluate(policy, facts, self._now) for facts in self._sites)
            self._verdicts[policy] = known
        return known

    def _why_nowhere(self, policy: SovereigntySpec) -> str:
        total = len(self._sites)
        text = (
            f"none of the {total} declared sites meets it"
            if total > 1
            else (f"the only declared site, {self._sites[0].site}, does not meet it")
        )
        if len(self.found.violations) > _COUNTED_MAX:
            return text
        counts: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for facts in self._sites:
            for knob, reason in _by_knob(evaluate(policy, facts, self._now)).items():
                counts[knob] += 1
                examples.setdefault(knob, reason.message)
        told = [
            f"{knob} refuses {count} ({examples[knob]})"
            for knob, count in counts.most_common(NAMED_MAX)
        ]
        return f"{text}: {'; '.join(told)}"

    # --- facts -----------------------------------------------------------------------------------

    def _certificates(self, item: Changing, spec: ProviderSpec | SiteSpec) -> None:
        for index, found in enumerate(spec.certifications or ()):
            if self._now >= end_of_day(found.valid_until):
                self.found.warnings[item.number].append(
                    f"spec.certifications[{index}]: {found.scheme} ended with "
                    f"{found.valid_until} and counts for nothing"
                )

    def _contradicted(self) -> None:
        """Workloads that are there already and that a new floor contradicts."""
        weaker: defaultdict[int, list[str]] = defaultdict(list)
        nowhere: defaultdict[int, list[str]] = defaultdict(list)
        for item, resource in self._others:
            try:
                own = resource.decoded.sovereignty
            except InvalidManifest:
                continue
            assert isinstance(item.spec, NamespaceSpec)
            if found := loosens(item.spec.floor, own):
                weaker[item.number].append(f"{resource.name} ({found[0].path} {found[0].message})")
            policy = merged(item.spec.floor, own)
            if self._sites and policy != NO_POLICY and not self._satisfiable(policy):
                nowhere[item.number].append(resource.name)
        for number, names in weaker.items():
            text = f"the floor holds at once for workloads that say less: {_some(names)}"
            self.found.warnings[number].append(text)
        for number, names in nowhere.items():
            text = f"under this floor no declared site will do for: {_some(names)}"
            self.found.warnings[number].append(text)

    def _no_longer_compliant(self) -> None:
        """Replicas that comply now and will not: a company was sold, a floor was raised."""
        if not self._facts:
            return
        verdicts: dict[tuple[str, str, str], str] = {}
        names: list[str] = []
        count = 0
        for placement in self._placements:
            site = self._site_of.get(placement.node, "")
            for record in placement.assignments:
                key = (record.namespace, record.workload, site)
                if key not in verdicts:
                    verdicts[key] = self._turns(*key)
                if verdicts[key]:
                    count += 1
                    if len(names) <= NAMED_MAX:
                        names.append(f"{record.namespace}/{record.replica} ({verdicts[key]})")
        if count:
            many = f"{count} replica{'s' if count > 1 else ''} will no longer comply"
            text = f"{many}, and move as soon as there is a compliant place: {_some(names, count)}"
            self.found.warnings[self._facts[0].number].append(text)

    def _turns(self, namespace: str, workload: str, site: str) -> str:
        """The first reason against a place that was compliant; empty when nothing turns."""
        try:
            before = self._before.policy(namespace, workload)
            after = self._after.policy(namespace, workload)
        except InvalidManifest:
            return ""
        if evaluate(before, self._before.site(site), self._now):
            return ""
        against = evaluate(after, self._after.site(site), self._now)
        return against[0].message if against else ""


def _by_knob(reasons: Iterable[Reason]) -> dict[str, Reason]:
    """The first of each: a site counts once for a demand, however many facts fail it."""
    found: dict[str, Reason] = {}
    for reason in reasons:
        found.setdefault(reason.knob, reason)
    return found


def _sites_of_nodes(cache: Cache) -> dict[str, str]:
    return {item.name: str(item.spec.get("site", "")) for item in cache.resources("Node")}


def _some(names: Sequence[str], count: int = 0) -> str:
    more = max(count, len(names)) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
