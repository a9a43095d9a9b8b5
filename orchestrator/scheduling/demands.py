"""What a node's plan says of sovereignty, as a digest: policies, and the facts they rest on.

The leader stores it with the placement, so that a floor, a policy or a fact that changes makes a
new generation of exactly the plans that carry it. The gateway composes the same from its mirror.
"""

import json
from collections.abc import Iterable
from functools import cached_property, lru_cache
from hashlib import sha256

from orchestrator.records import AssignmentRecord
from orchestrator.scheduling.reasons import NO_POLICY, merged
from orchestrator.scheduling.snapshot import Snapshot, Workload
from polder.manifest.policy import SovereigntySpec
from polder.sovereignty import SiteFacts, facts_json, policy_json

REMEMBERED_MAX = 1 << 17


class Demands:
    """Of one snapshot. Made once per plan; what did not change since the last one is remembered."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._known: dict[tuple[str, str], str] = {}

    @cached_property
    def _policies(self) -> "dict[str, _Same]":
        found = ((workload.uid, self._policy(workload)) for workload in self._snapshot.workloads)
        return {uid: policy for uid, policy in found if policy is not None}

    @cached_property
    def _site_of(self) -> dict[str, str]:
        return {node.name: node.site for node in self._snapshot.nodes}

    def _policy(self, workload: Workload) -> "_Same | None":
        """As `effective_policy` merges it; the same object as long as its parts are the same."""
        namespace = self._snapshot.namespaces.get(workload.namespace)
        own = None if workload.sovereignty is NO_POLICY else _Same(workload.sovereignty)
        if namespace is None or namespace.floor is NO_POLICY:
            return own if own is not None and own.value != NO_POLICY else None
        return _merged(_Same(namespace.floor), own or _Same(NO_POLICY))

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
        parts = "".join([uid + self._one(uid, site) for uid in sorted(demanding)])
        return sha256(parts.encode()).hexdigest()[:32]

    def _one(self, uid: str, site: str) -> str:
        key = (uid, site)
        found = self._known.get(key)
        if found is None:
            known = self._snapshot.sites.get(site)
            facts = _Same(known.facts) if known is not None else None
            found = self._known[key] = _fingerprint(self._policies[uid], facts, site)
        return found


class _Same:
    """A value as a key by identity: its own hash would cost more than is saved."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


@lru_cache(maxsize=REMEMBERED_MAX)
def _merged(floor: _Same, own: _Same) -> _Same | None:
    assert isinstance(floor.value, SovereigntySpec) and isinstance(own.value, SovereigntySpec)
    found = merged(floor.value, own.value)
    return None if found == NO_POLICY else _Same(found)


@lru_cache(maxsize=REMEMBERED_MAX)
def _fingerprint(policy: _Same, facts: _Same | None, site: str) -> str:
    assert isinstance(policy.value, SovereigntySpec)
    known = facts.value if facts is not None else SiteFacts(site)
    assert isinstance(known, SiteFacts)
    demanded, given = said(policy.value, known)
    return sha256(demanded + b"\0" + given).hexdigest()


def said(policy: SovereigntySpec, facts: SiteFacts) -> tuple[bytes, bytes]:
    """A policy and the facts that it rests on as a plan carries them; twice empty for no policy."""
    if policy == NO_POLICY:
        return b"", b""
    demanded = policy_json(policy)
    if not demanded:
        return b"", b""
    return _encode(demanded).encode(), _encode(facts_json(policy, facts)).encode()


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode
