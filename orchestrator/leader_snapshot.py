"""Builds the scheduler's snapshot from the mirror of the Store and from what agents say.

Called by the leader before each plan. Records are decoded once and kept while they stay the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import is_not
from typing import TypeVar

from orchestrator.cache import Cache
from orchestrator.domain.fences import fenced_uids
from orchestrator.domain.images import lacks_in
from orchestrator.domain.inventory import from_stored, host_paths
from orchestrator.domain.liveness import DEFAULT_PERIODS, Liveness, NodeLiveness, Periods
from orchestrator.domain.maintenance import AT_WORK, Standing, cordons
from orchestrator.domain.overrides import NOTHING_DECIDED, SiteDecisions, decisions
from orchestrator.domain.reports import unable
from orchestrator.domain.stops import is_gone
from orchestrator.fleet import Fleet, NodeObservation
from orchestrator.gateway.roles import RoleBook
from orchestrator.leader_epochs import EpochCount
from orchestrator.leader_replicas import ReportedReplicas
from orchestrator.records import (
    KeptRecord,
    NodePlacement,
    NodeStatusRecord,
    StoredResource,
    TemplateRevision,
)
from orchestrator.scheduling.apply import GENERATION_LEAD_MAX
from orchestrator.scheduling.secrets import fact_names, secret_names
from orchestrator.scheduling.snapshot import (
    Mode,
    Namespace,
    Node,
    Quota,
    Resources,
    Site,
    Snapshot,
    Template,
    Workload,
)
from orchestrator.scheduling.tick import Stray
from orchestrator.store import keys
from polder.manifest import (
    InvalidManifest,
    NamespaceSpec,
    NodeSpec,
    PodTemplate,
    ProviderSpec,
    SiteSpec,
    WorkloadSpec,
)
from polder.manifest.pod import ResourceRequest
from polder.sovereignty import ProviderProfile, analyse_provider, site_facts
from polder.v1 import agent_pb2

T = TypeVar("T")

_LIVE = NodeLiveness(Liveness.LIVE, 0.0)
_Facts = tuple[
    StoredResource,
    NodeStatusRecord | None,
    StoredResource | None,
    Liveness,
    bool,
    Standing,
    bool,
    str,
    int,
]


class SnapshotBuilder:
    """`build` costs a walk over the mirror; what did not change is not decoded again."""

    def __init__(
        self,
        cache: Cache,
        fleet: Fleet,
        periods: Periods = DEFAULT_PERIODS,
        roles: RoleBook | None = None,
    ) -> None:
        self._roles = roles
        self._cache = cache
        self._fleet = fleet
        self._periods = periods
        self._nodes: dict[str, tuple[_Facts, Node]] = {}
        self._templates: dict[tuple[str, int], tuple[TemplateRevision, Template]] = {}
        self._profiles: dict[str, tuple[StoredResource, ProviderProfile | None]] = {}
        self._sites: dict[str, tuple[StoredResource, ProviderProfile | None, Site]] = {}
        self._replicas = ReportedReplicas(fleet)
        self._local: tuple[list[KeptRecord], SiteDecisions] = ([], NOTHING_DECIDED)
        self._led_since: float | None = None
        self._epochs = EpochCount(cache)

    def build(
        self,
        now: float,
        led_since: float,
        steady: float | None = None,
        strays: Iterable[Stray] = (),
    ) -> Snapshot:
        """`led_since`: seconds of the fleet's steady clock; silence from before does not count.

        `steady`: seconds of a clock that never jumps, by which it is counted how long replicas have
        been ready. None, for worlds that might be: those that are ready have been for long.
        `strays`: what runs besides.
        """
        placements = {placement.node: placement for placement in self._cache.placements()}
        if steady is not None and self._led_since != led_since:
            # Between two times of leading nobody watched.
            self._replicas.forget()
            self._led_since = led_since
        workloads = tuple(
            workload
            for resource in self._cache.resources("Workload")
            if (workload := _workload(resource)) is not None
        )
        ahead, using = self._generations(placements)
        reroled = self._roles.outdated() if self._roles else frozenset[str]()
        if self._roles and self._roles.pending:
            using = frozenset()  # of whom it holds is not known before all were looked at
        asked_s = max((workload.update.min_ready for workload in workloads), default=0.0)
        replicas = self._replicas
        observed = replicas.observed(placements.values(), steady, asked_s, self._cache.epoch)
        if steady is not None:
            self._epochs.surpass(replicas.highest_epoch, strays, ahead=bool(ahead))
        return Snapshot(
            revision=self._cache.epoch,
            nodes=self._all_nodes(now, led_since),
            workloads=workloads,
            placements=placements,
            templates=self._all_templates(now),
            observed=observed,
            foreign=replicas.foreign,
            gone=self._gone(placements, now),
            secrets=self._versions("Secret"),
            configs=self._versions("Config"),
            ahead=ahead,
            reroled=reroled,
            using=using - reroled,
            fenced=fenced_uids(self._cache.kept(keys.FENCES)),
            local=self._decided(),
            sites=self._all_sites(),
            namespaces={
                resource.name: _namespace(resource)
                for resource in self._cache.resources("Namespace")
            },
            volumes=_volumes(self._cache.resources("Volume")),
            complete=self._cache.synced_at > 0,
            lost_after_s=self._periods.lost_after_s,
        )

    def _decided(self) -> SiteDecisions:
        """By operators of sites; read again when a record is another."""
        records = self._cache.kept(keys.OVERRIDES)
        before, _ = self._local
        if len(records) != len(before) or any(map(is_not, records, before)):
            self._local = (records, decisions(records))
        return self._local[1]

    def _generations(
        self, placements: Mapping[str, NodePlacement]
    ) -> tuple[frozenset[str], frozenset[str]]:
        """Nodes that are ahead of the Store, and those that said that they use what is there."""
        ahead, using = [], []
        for node, placement in placements.items():
            seen = self._fleet.get(node)
            if seen is None or placement.generation <= 0:
                continue
            lead = seen.acked_generation - placement.generation
            if lead == 0:
                using.append(node)
            elif 0 < lead <= GENERATION_LEAD_MAX:
                ahead.append(node)
        return frozenset(ahead), frozenset(using)

    def _versions(self, kind: str) -> Mapping[tuple[str, str], str]:
        return {
            (found.namespace, found.name): f"{found.uid}:{found.generation}"
            for found in self._cache.resources(kind)
            if not found.deletion_requested_at_ms
        }

    def _all_sites(self) -> Mapping[str, Site]:
        """Sites with their facts; a graph of owners is worked through once per version of it."""
        profiles: dict[str, tuple[StoredResource, ProviderProfile | None]] = {}
        for resource in self._cache.resources("Provider"):
            analysed = self._profiles.get(resource.name)
            if analysed is None or analysed[0] is not resource:
                spec = _decoded(resource, ProviderSpec)
                profile = analyse_provider(resource.name, spec) if spec is not None else None
                analysed = (resource, profile)
            profiles[resource.name] = analysed
        self._profiles = profiles
        known: dict[str, tuple[StoredResource, ProviderProfile | None, Site]] = {}
        for resource in self._cache.resources("Site"):
            _, provider = profiles.get(str(resource.spec.get("provider", "")), (None, None))
            before = self._sites.get(resource.name)
            if before is None or before[0] is not resource or before[1] is not provider:
                before = (resource, provider, _site(resource, provider))
            known[resource.name] = before
        self._sites = known
        return {name: site for name, (_, _, site) in known.items()}

    def _all_nodes(self, now: float, led_since: float) -> tuple[Node, ...]:
        known = {}
        standings = self._standings(now)
        for resource in self._cache.resources("Node"):
            status = self._cache.node_status(resource.name)
            site = self._cache.resource("Site", "", str(resource.spec.get("site", "")))
            seen = self._fleet.get(resource.name)
            if self._fleet.is_live(resource.name, self._periods.silent_after_s):
                state = _LIVE  # as nearly always, at a fraction of the cost
            else:
                state = self._fleet.liveness(
                    resource.name, status is not None, self._periods, led_since
                )
            not_ready = seen is not None and bool(unable(seen.heartbeat))
            standing = standings.get(site.name, AT_WORK) if site is not None else AT_WORK
            overdue = _is_overdue(resource, now)
            suspect = self._suspect(resource.name, state.state)
            identity = self._cache.identity("node", resource.name)
            facts: _Facts = (
                resource, status, site, state.state, not_ready, standing, overdue, suspect,
                identity.joined_epoch if identity is not None else 0,
            )  # fmt: skip
            before = self._nodes.get(resource.name)
            # So that `now - since` is the silence, whatever the wall clock did meanwhile.
            quiet = state.state in (Liveness.SILENT, Liveness.LOST)
            since = now - state.silence_s if quiet else 0.0
            if before is None or not _same(before[0], facts):
                before = (facts, _node(facts, since))
            elif abs(before[1].since - since) > 1.0:  # the wall clock was set
                before = (facts, replace(before[1], since=since))
            known[resource.name] = before
        self._nodes = known
        return tuple(node for _, node in known.values())

    def _suspect(self, node: str, state: Liveness) -> str:
        """Why nothing leaves it although nobody hears it: who may hear it cannot be asked."""
        if state is not Liveness.SILENT:
            return ""
        if self._fleet.silence_s(node) <= self._periods.lost_after_s:
            return ""
        return self._fleet.doubt(node)

    def _standings(self, now: float) -> dict[str, Standing]:
        """Of the sites at which not everything is as usual. A window opens without any change."""
        found = {}
        for site in self._cache.resources("Site"):
            provider = self._cache.resource("Provider", "", str(site.spec.get("provider", "")))
            standing = cordons(
                site.name,
                _decoded(site, SiteSpec),
                provider.name if provider is not None else "",
                _decoded(provider, ProviderSpec) if provider is not None else None,
                now,
            )
            if standing != AT_WORK:
                found[site.name] = standing
        return found

    def _all_templates(self, now: float) -> Mapping[tuple[str, int], Template]:
        known = {}
        for revision in self._cache.revisions():
            key = (revision.workload_uid, revision.number)
            before = self._templates.get(key)
            if before is None or before[0] is not revision:
                try:
                    before = (revision, template_from(revision.decoded))
                except InvalidManifest:
                    continue  # as good as missing: nothing new runs it, nothing stops for it
            known[key] = before
        self._templates = known
        found = {key: template for key, (_, template) in known.items()}
        for key, lack in lacks_in(self._cache.kept(keys.IMAGES), now).items():
            if key in found:
                found[key] = replace(found[key], foreign_nodes=lack.nodes, foreign_archs=lack.archs)
        return found

    def _gone(
        self, placements: Mapping[str, NodePlacement], now: float
    ) -> frozenset[tuple[str, str]]:
        nobody = NodeObservation("")
        return frozenset(
            (node, stop.replica_uid)
            for node, placement in placements.items()
            for seen in (self._fleet.get(node) or nobody,)
            for stop in placement.stops
            if is_gone(
                stop,
                placement,
                said_gone=seen.gone,
                reported=seen.replicas,
                complete=seen.complete and seen.connected,
                acked_generation=seen.acked_generation,
                now=now,
            )
        )


def template_from(template: PodTemplate) -> Template:
    """What a pod asks of its node: the sum over its containers, which run side by side; or what
    its largest init container asks, since those run before, one at a time."""
    together = _sum([container.resources for container in template.containers])
    alone = [_sum([container.resources]) for container in template.init_containers]
    every = [together, *alone]
    devices = {name for request in every for name in request.devices}
    return Template(
        request=Resources(
            cpu_millis=max(request.cpu_millis for request in every),
            memory_bytes=max(request.memory_bytes for request in every),
            disk_bytes=max(request.disk_bytes for request in every),
            devices={
                name: max(request.devices.get(name, 0) for request in every)
                for name in sorted(devices)
            },
        ),
        host_ports=tuple(sorted((p.host_port, p.protocol) for p in template.host_ports())),
        secrets=secret_names(template),
        configs=template.named_configs(),
        facts=fact_names(template),
        host_paths=tuple(sorted(set(template.host_paths()))),
        local_volumes=template.local_volumes(),
        demands=template.demands(),
    )


def _sum(requests: Iterable[ResourceRequest]) -> Resources:
    total = Resources()
    for request in requests:
        devices = dict(total.devices)
        for name, count in request.devices.items():
            devices[name] = devices.get(name, 0) + count
        total = Resources(
            total.cpu_millis + request.cpu,
            total.memory_bytes + request.memory,
            total.disk_bytes + request.disk,
            devices,
        )
    return total


def _volumes(records: Iterable[StoredResource]) -> Mapping[tuple[str, str], str]:
    """The node that has a replica's data, by (namespace, replica)."""
    ordered = sorted(records, key=lambda record: record.name, reverse=True)
    return {
        (record.namespace, str(record.spec.get("replica", ""))): str(record.spec.get("node", ""))
        for record in ordered
    }


def _is_overdue(resource: StoredResource, now: float) -> bool:
    if not resource.spec.get("drainDeadline"):  # decoding every node's would cost more
        return False
    spec = _decoded(resource, NodeSpec)
    if spec is None or spec.drain_deadline is None:
        return False
    return spec.draining and now >= spec.drain_deadline


def _same(before: _Facts, now: _Facts) -> bool:
    if before[0] is not now[0] or before[1] is not now[1] or before[2] is not now[2]:
        return False
    return before[3:] == now[3:]


def _node(facts: _Facts, since: float) -> Node:
    resource, status, site, liveness, not_ready, standing, overdue, suspect, joined = facts
    inventory = from_stored(status.inventory) if status is not None else None
    spec = _decoded(resource, NodeSpec)
    site_spec = _decoded(site, SiteSpec) if site is not None else None
    return Node(
        name=resource.name,
        site=str(resource.spec.get("site", "")),
        country=site_spec.country if site_spec is not None else "",
        region=site_spec.region if site_spec is not None else "",
        provider=site_spec.provider if site_spec is not None else "",
        arch=inventory.arch if inventory is not None else "",
        labels=resource.labels,
        taints=spec.taints if spec is not None else (),
        # A spec that this version cannot read forbids everything that it might forbid.
        unschedulable=spec is None or spec.unschedulable,
        draining=(spec is not None and spec.draining) or standing.draining,
        deleting=bool(resource.deletion_requested_at_ms),
        not_ready=not_ready,
        allocatable=_resources(inventory.allocatable) if inventory is not None else None,
        devices=_devices(inventory) if inventory is not None else {},
        liveness=liveness,
        since=since,
        cordoned=standing.cordoned,
        drain_overdue=overdue,
        suspect=suspect,
        joined_epoch=joined,
        host_paths=host_paths(inventory) if inventory is not None else (),
        reachable=inventory is not None
        and bool(inventory.site_endpoints and inventory.site_certificate),
    )


def _devices(inventory: agent_pb2.NodeInventory) -> dict[str, tuple[Mapping[str, str], ...]]:
    found: dict[str, tuple[Mapping[str, str], ...]] = {}
    for device in inventory.accelerators:
        facts = {**device.attributes, "vendor": device.vendor}
        found[device.resource] = (*found.get(device.resource, ()), facts)
    return found


def _site(resource: StoredResource, provider: ProviderProfile | None) -> Site:
    """A spec that this version cannot read declares nothing: every demand of it fails."""
    spec = _decoded(resource, SiteSpec)
    where = spec.coordinates if spec is not None else None
    return Site(
        name=resource.name,
        facts=site_facts(resource.name, spec, provider),
        latitude=where.latitude if where is not None else None,
        longitude=where.longitude if where is not None else None,
    )


def _namespace(resource: StoredResource) -> Namespace:
    spec = _decoded(resource, NamespaceSpec)
    if spec is None:
        return Namespace(resource.name, readable=False)
    quota = Quota(
        replicas=spec.quota.replicas,
        cpu_millis=spec.quota.cpu,
        memory_bytes=spec.quota.memory,
        disk_bytes=spec.quota.disk,
        devices=spec.quota.devices,
    )
    return Namespace(
        resource.name,
        floor=spec.floor,
        quota=None if quota == Quota() else quota,
        pack=spec.packing == "pack",
        preemptible=spec.preemptible,
        allow=frozenset(spec.allow),
    )


def _workload(resource: StoredResource) -> Workload | None:
    """None when this version cannot read it: its replicas are then kept as they are."""
    spec = _decoded(resource, WorkloadSpec)
    if spec is None:
        return None
    mode, count = Mode.REPLICAS, 1 if spec.replicas is None else spec.replicas
    if spec.run == "once":
        count = spec.job_rules.completions
    if spec.per_site is not None:
        mode, count = Mode.PER_SITE, spec.per_site
    elif spec.per_node is not None:
        mode, count = Mode.PER_NODE, spec.per_node
    return Workload(
        uid=resource.uid,
        namespace=resource.namespace,
        name=resource.name,
        count=count,
        mode=mode,
        priority=spec.priority,
        placement=spec.placement,
        revision=resource.template_revision,
        created_at_ms=resource.created_at_ms,
        deleting=bool(resource.deletion_requested_at_ms),
        labels=resource.labels,
        sovereignty=spec.sovereignty,
        failover=spec.failover,
        update=spec.update,
        disruption=spec.disruption,
        once=spec.run == "once",
    )


def _decoded(resource: StoredResource, kind: type[T]) -> T | None:
    try:
        found = resource.decoded
    except InvalidManifest:
        return None
    return found if isinstance(found, kind) else None


def _resources(given: agent_pb2.Resources) -> Resources:
    return Resources(
        cpu_millis=given.cpu_millis,
        memory_bytes=given.memory_bytes,
        disk_bytes=given.disk_bytes,
        devices=dict(given.devices),
    )
