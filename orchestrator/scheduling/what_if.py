"""Worlds that might be: a manifest more or less, a region, provider, country or law lost.

Used for `edgectl plan` and `edgectl simulate`: make the other snapshot here, give it to `plan()`,
and compare. Nothing here is ever committed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from orchestrator.domain.liveness import Liveness
from orchestrator.scheduling.snapshot import Namespace, Site, Snapshot, Template, Workload
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty import SiteFacts, evaluate

LOSSES = ("region", "provider", "country", "law", "site", "node")


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that goes dark at once. `kind` is one of LOSSES."""

    kind: str
    name: str


def with_workload(snapshot: Snapshot, workload: Workload, template: Template) -> Snapshot:
    """The workload added, or put in the place of the one with its namespace and name.

    A change of the template needs a revision of its own, as an apply would give it.
    """
    others = [
        item
        for item in snapshot.workloads
        if (item.namespace, item.name) != (workload.namespace, workload.name)
    ]
    templates = {**snapshot.templates, (workload.uid, workload.revision): template}
    return replace(snapshot, workloads=(*others, workload), templates=templates)


def without_workload(snapshot: Snapshot, namespace: str, name: str) -> Snapshot:
    """As after its deletion was asked for."""
    workloads = tuple(
        replace(item, deleting=True) if (item.namespace, item.name) == (namespace, name) else item
        for item in snapshot.workloads
    )
    return replace(snapshot, workloads=workloads)


def with_namespace(snapshot: Snapshot, namespace: Namespace) -> Snapshot:
    """The namespace's rules added or changed."""
    return replace(snapshot, namespaces={**snapshot.namespaces, namespace.name: namespace})


def with_sites(snapshot: Snapshot, sites: Iterable[Site]) -> Snapshot:
    """The sites' facts added or changed; what nodes say of their country and provider follows."""
    changed = {site.name: site for site in sites}
    nodes = tuple(
        replace(
            node,
            country=changed[node.site].facts.country,
            provider=changed[node.site].facts.provider_name,
        )
        if node.site in changed
        else node
        for node in snapshot.nodes
    )
    return replace(snapshot, sites={**snapshot.sites, **changed}, nodes=nodes)


def lost_nodes(snapshot: Snapshot, loss: Loss, now: float) -> frozenset[str]:
    """The nodes that a loss takes.

    A law takes every site that it reaches or, for want of a fact, might reach. Raises ValueError
    for a kind that is none of LOSSES.
    """
    if loss.kind not in LOSSES:
        raise ValueError(f"{loss.kind!r} is none of {', '.join(LOSSES)}")
    if loss.kind == "law":
        policy = SovereigntySpec(forbid_laws=(loss.name,))
        names = {node.site for node in snapshot.nodes}
        facts = {
            name: snapshot.sites[name].facts if name in snapshot.sites else SiteFacts(name)
            for name in names
        }
        dark = {name for name in names if evaluate(policy, facts[name], now)}
        return frozenset(node.name for node in snapshot.nodes if node.site in dark)
    attribute = "name" if loss.kind == "node" else loss.kind
    return frozenset(n.name for n in snapshot.nodes if getattr(n, attribute) == loss.name)


def without(snapshot: Snapshot, losses: Iterable[Loss], now: float) -> Snapshot:
    """The world some time after the losses: their nodes count as lost."""
    gone = frozenset(name for loss in losses for name in lost_nodes(snapshot, loss, now))
    nodes = tuple(
        replace(node, liveness=Liveness.LOST) if node.name in gone else node
        for node in snapshot.nodes
    )
    return replace(snapshot, nodes=nodes)
