"""What a node's plan carries beside its templates: Secrets, Configs and facts, as one digest.

The leader stores it with the placement, so that a changed value makes a new generation of exactly
the plans that carry it. The gateway composes the values from the same names.
"""

import json
from collections.abc import Iterable
from functools import cached_property
from hashlib import sha256

from orchestrator.records import AssignmentRecord
from orchestrator.scheduling.snapshot import Node, Snapshot, Template
from polder.manifest import PodTemplate

_NODE_LABEL = "node.labels."
_OF_THE_AGENT = ("replica.", "node.name")
"""The agent knows these itself: no plan carries them."""


def secret_names(template: PodTemplate) -> tuple[str, ...]:
    """The Secrets that a template names, sorted: in variables, as files, and to pull images."""
    named = {
        variable.secret.name
        for container in (*template.containers, *template.init_containers)
        for variable in container.env
        if variable.secret is not None
    }
    named |= {volume.secret.name for volume in template.volumes if volume.secret is not None}
    return tuple(sorted(named | set(template.image_pull_secrets)))


def fact_names(template: PodTemplate) -> tuple[str, ...]:
    """The facts that a plan must bring for a template's variables, sorted."""
    named = {
        variable.fact
        for container in (*template.containers, *template.init_containers)
        for variable in container.env
        if variable.fact and not variable.fact.startswith(_OF_THE_AGENT)
    }
    return tuple(sorted(named))


def fact_of(node: Node, name: str) -> str | None:
    """A fact's value, such as that of `site.country`; None when it is not known."""
    if name.startswith(_NODE_LABEL):
        return node.labels.get(name.removeprefix(_NODE_LABEL))
    known = {
        "node.arch": node.arch,
        "site.name": node.site,
        "site.country": node.country,
        "site.region": node.region,
        "site.provider": node.provider,
    }
    return known.get(name) or None


class Carried:
    """Of one snapshot. A missing Secret, Config or fact has a version too."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._naming: dict[tuple[str, int], Template] = {
            key: template
            for key, template in snapshot.templates.items()
            if template.secrets or template.configs or template.facts
        }

    @cached_property
    def _nodes(self) -> dict[str, Node]:
        return {node.name: node for node in self._snapshot.nodes}

    def outdated(self) -> frozenset[str]:
        """Nodes whose assignments name something that changed since their plan was made."""
        return frozenset(
            name
            for name, placement in self._snapshot.placements.items()
            if (placement.secrets_digest or self._naming)
            and self.digest(name, placement.assignments) != placement.secrets_digest
        )

    def digest(self, node: str, assignments: Iterable[AssignmentRecord]) -> str:
        """Hex; empty when the assignments name nothing.

        With Secrets alone it is what it was before there was more to carry: an orchestrator that
        is upgraded must not send every node a new generation.
        """
        if not self._naming:
            return ""
        secrets: dict[tuple[str, str], str] = {}
        configs: dict[tuple[str, str], str] = {}
        facts: dict[str, str | None] = {}
        for item in assignments:
            template = self._naming.get((item.workload_uid, item.revision))
            if template is None:
                continue
            for name in template.secrets:
                key = (item.namespace, name)
                secrets[key] = self._snapshot.secrets.get(key, "")
            for name in template.configs:
                key = (item.namespace, name)
                configs[key] = self._snapshot.configs.get(key, "")
            for name in template.facts:
                facts[name] = fact_of(self._nodes[node], name) if node in self._nodes else None
        if not (secrets or configs or facts):
            return ""
        parts: object = sorted(secrets.items())
        if configs or facts:
            parts = [parts, sorted(configs.items()), sorted(facts.items())]
        return sha256(json.dumps(parts).encode()).hexdigest()[:32]
