"""What the nodes of a site said when they were asked together, and which did not answer. Pure.

Every node speaks for itself; of one that did not answer the others tell what they last heard. Of
overrides the newest that any of them knows counts, by the same order as on the nodes. Times are
unix milliseconds by the clock of this machine (`clocks`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from edgectl.errors import CallError
from polder.overrides import BadOverride, Override, Register, Subject, from_message
from polder.v1 import agent_pb2, local_pb2

RUNS, STANDBY, WITNESS = "Runs", "Standby", "Witness"


@dataclass(frozen=True, slots=True)
class Silent:
    """A node of which there is no answer. `node` is empty where only an address is known."""

    node: str
    endpoints: tuple[str, ...]
    error: CallError

    @property
    def label(self) -> str:
        return self.node or " or ".join(self.endpoints)


@dataclass(frozen=True, slots=True)
class Role:
    """What one node said of one replica."""

    node: str
    shown: local_pb2.ShowResponse
    replica: local_pb2.LocalReplica

    @property
    def runs(self) -> bool:
        """Something of it is on the node; also of one that was stopped there."""
        return self.replica.role == RUNS


@dataclass(frozen=True, slots=True)
class ReplicaPicture:
    """One replica as all nodes that answered see it. `roles` by node."""

    namespace: str
    name: str
    roles: tuple[Role, ...]

    @property
    def status(self) -> agent_pb2.ReplicaStatus:
        return self.roles[0].replica.status

    @property
    def subject(self) -> Subject:
        """What overrides know it by: of a workload that was deleted they do not count."""
        return (self.status.workload_uid, self.name)

    @property
    def running(self) -> tuple[Role, ...]:
        return tuple(role for role in self.roles if role.runs)

    @property
    def members(self) -> tuple[str, ...]:
        """Primary first; as the node with the newest plan says."""
        newest = max(self.roles, key=lambda role: role.shown.plan_issued_at_ms)
        return tuple(newest.replica.members)

    def said_to_run(self, nodes: frozenset[str]) -> Role | None:
        """Who tells most of a stay on one of these nodes: by the highest epoch."""
        told = [role for role in self.roles if role.replica.holder in nodes]
        return max(told, key=lambda role: role.replica.holder_epoch, default=None)


@dataclass(frozen=True, slots=True)
class KnownOverride:
    """The newest of its subject and field, and the nodes that know it."""

    override: Override
    nodes: tuple[str, ...]

    @property
    def in_force(self) -> bool:
        """It was not taken back."""
        return self.override.stands

    def concerns(self, subject: Subject) -> bool:
        return self.override.subject == subject


@dataclass(frozen=True, slots=True)
class Picture:
    """`answers` by node; `silent` are those that are known to be there, or were named."""

    site: str
    now_ms: int
    answers: dict[str, local_pb2.ShowResponse]
    silent: tuple[Silent, ...] = ()
    _replicas: dict[tuple[str, str], ReplicaPicture] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found: dict[tuple[str, str], list[Role]] = {}
        for node, shown in sorted(self.answers.items()):
            for replica in shown.replicas:
                key = (replica.status.namespace, replica.status.replica)
                found.setdefault(key, []).append(Role(node, shown, replica))
        pictures = {key: ReplicaPicture(*key, tuple(roles)) for key, roles in sorted(found.items())}
        object.__setattr__(self, "_replicas", pictures)

    @property
    def silent_nodes(self) -> frozenset[str]:
        return frozenset(silent.node for silent in self.silent if silent.node)

    def replicas(self, namespace: str = "") -> Iterator[ReplicaPicture]:
        for replica in self._replicas.values():
            if namespace in ("", replica.namespace):
                yield replica

    def replica(self, namespace: str, name: str) -> ReplicaPicture | None:
        return self._replicas.get((namespace, name))

    def hearing(self, node: str) -> list[str]:
        """Nodes that answered and hear this one."""
        return [
            name
            for name, shown in sorted(self.answers.items())
            if any(peer.node == node and peer.heard for peer in shown.peers)
        ]

    def overrides(self) -> list[KnownOverride]:
        """By subject and field; those that were taken back, too."""
        best: dict[Register, Override] = {}
        knowing: dict[Register, list[str]] = {}
        for node, shown in sorted(self.answers.items()):
            for given in _readable(shown):
                held = best.get(given.register)
                if held is None or given.rank > held.rank:
                    best[given.register], knowing[given.register] = given, [node]
                elif given.rank == held.rank:
                    knowing[given.register].append(node)
        found = [KnownOverride(best[key], tuple(knowing[key])) for key in best]
        return sorted(found, key=lambda k: (k.override.namespace, *k.override.register[1:]))


def _readable(shown: local_pb2.ShowResponse) -> Iterator[Override]:
    """What a newer agent writes is left out: this edgectl could not say what it means."""
    for message in shown.overrides:
        try:
            yield from_message(message)
        except BadOverride:
            continue
