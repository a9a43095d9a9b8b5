"""Whom a node may speak to at its site, and which replicas of others it may take over: plan values.

Read by `plan.py` from the signed plan, used by `agent/domain/site/`. A roster or a role that cannot
be used is left out and said in `complaints`: it must not cost what runs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from polder.identity import NodeId
from polder.v1 import plan_pb2

ON_RETURN = ("older", "newer")
AUTONOMY_S = 7 * 86_400.0

Key = tuple[str, str]
"""Of a replica, wherever it runs: (workload uid, replica name)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node of the site. `certificate`: the one that it shows, DER, and no other."""

    node: str
    endpoints: tuple[str, ...]
    certificate: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Electorate:
    """Who votes, or voted, in one group."""

    number: int
    voters: tuple[str, ...]

    @property
    def majority(self) -> int:
        return len(self.voters) // 2 + 1


@dataclass(frozen=True, slots=True)
class Group:
    """Who may hold a replica: `members`, the primary first. `witnesses` vote and never hold.

    `before`: the groups to seal before this one votes; see FailoverGroup in plan.proto.
    """

    number: int
    members: tuple[str, ...]
    witnesses: tuple[str, ...] = ()
    exclusive: bool = False
    on_return: str = "older"
    stop_after_s: float = 0.0
    forced: bool = False
    before: tuple[Electorate, ...] = ()

    @property
    def voters(self) -> tuple[str, ...]:
        return (*self.members, *self.witnesses)

    @property
    def majority(self) -> int:
        return len(self.voters) // 2 + 1


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What a plan says of the site. Empty: this node is alone there."""

    peers: Mapping[str, Peer] = field(default_factory=dict)
    autonomy_s: float = AUTONOMY_S
    complaints: tuple[str, ...] = ()


def group_of(message: plan_pb2.FailoverGroup) -> Group | None:
    """None for one that is unset, or that names a node twice."""
    group = Group(
        number=message.number,
        members=tuple(message.members),
        witnesses=tuple(message.witnesses),
        exclusive=message.exclusive,
        on_return=message.on_return if message.on_return in ON_RETURN else ON_RETURN[0],
        stop_after_s=message.stop_after_ms / 1000,
        forced=message.forced,
        before=tuple(Electorate(e.number, tuple(e.voters)) for e in message.before),
    )
    usable = bool(group.members) and len(set(group.voters)) == len(group.voters)
    return group if usable else None


def neighbourhood_of(
    roster: Iterable[plan_pb2.SitePeer], autonomy_ms: int, identity: NodeId
) -> Neighbourhood:
    """A node that is named twice is left out: which of its keys is meant is not known."""
    peers: dict[str, Peer] = {}
    twice: set[str] = set()
    complaints = []
    for message in roster:
        if message.node in peers or message.node in twice:
            twice.add(message.node)
        elif message.node == identity.node:
            complaints.append("the roster names this node itself")
        elif not message.certificate or not message.endpoints:
            complaints.append(f"the roster does not say how to reach {message.node}")
        else:
            peers[message.node] = Peer(message.node, tuple(message.endpoints), message.certificate)
    for node in sorted(twice):
        peers.pop(node, None)
        complaints.append(f"the roster names {node} twice: it is left out")
    return Neighbourhood(peers, autonomy_ms / 1000 or AUTONOMY_S, tuple(complaints))
