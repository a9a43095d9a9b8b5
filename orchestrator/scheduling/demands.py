"""What a node's plan says of sovereignty, as a digest: policies, and the facts they rest on.

The leader stores it with the placement, so that a floor, a policy or a fact that changes makes a
new generation of exactly the plans that carry it. The gateway composes the same from its mirror.
"""

import json
from collections.abc import Iterable
from functools import cached_property
from hashlib import sha256

from orchestrator.records import AssignmentRecord
from orchestrator.scheduling.reasons import NO_POLICY, effective_policy
from orchestrator.scheduling.snapshot import Snapshot
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty import SiteFacts, facts_json, policy_json


class Demands:
    """Of one snapshot. Make one per plan: what workloads share is worked out once."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._known: dict[tuple[str, str], str] = {}

    @cached_property
    def _policies(self) -> dict[str, SovereigntySpec]:
        return {
            workload.uid: policy
            for workload in self._snapshot.workloads
            if (policy := effective_policy(self._snapshot, workload)) != NO_POLICY
        }

    @cached_property
    def _site_of(self) -> dict[str, str]:
        return {node.name: node.site for node in self._snapshot.nodes}

    def outdated(self) -> frozenset[str]:
        """Nodes whose plan says something else than what holds now."""
        return frozenset(
            name
            for name, placement in self._snapshot.placements.items()
            if (placement.assignments or placement.demands_digest)
            and self.digest(name, placement.assignments) != placement.demands_digest
        )

    def digest(self, node: str, assignments: Iterable[AssignmentRecord]) -> str:
        """Hex; empty when nothing is demanded of the node's site."""
        if not self._policies:
            return ""
        site = self._site_of.get(node, "")
        demanding = {
            item.workload_uid for item in assignments if item.workload_uid in self._policies
        }
        if not demanding:
            return ""
        parts = sorted((uid, self._one(uid, site)) for uid in demanding)
        return sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def _one(self, uid: str, site: str) -> str:
        key = (uid, site)
        found = self._known.get(key)
        if found is None:
            known = self._snapshot.sites.get(site)
            policy, facts = said(self._policies[uid], known.facts if known else SiteFacts(site))
            found = sha256(policy + b"\0" + facts).hexdigest()
            self._known[key] = found
        return found


def said(policy: SovereigntySpec, facts: SiteFacts) -> tuple[bytes, bytes]:
    """A policy and the facts that it rests on as a plan carries them; twice empty for no policy."""
    demanded = policy_json(policy)
    if not demanded:
        return b"", b""
    return _encode(demanded).encode(), _encode(facts_json(policy, facts)).encode()


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode
