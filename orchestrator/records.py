"""What stands in the Store, as values: JSON in, frozen dataclasses out.

Written by the operator API (specs, revisions), identity (identities, tokens), the gateway (node
status) and the leader (placements). Everything reads them through `orchestrator/cache.py`.
"""

import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from polder.manifest import KINDS, PodTemplate, decode


def fields_of(record: Any) -> dict[str, Any]:
    """A dataclass's, in their order. Not `asdict`, which copies what they hold, at ten times the
    cost: encoders ask for what is nested when they come to it."""
    return {name: getattr(record, name) for name in record.__match_args__}


# One encoder for all: json.dumps makes a new one per call when its arguments are not the defaults.
_encode = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=False, sort_keys=True, default=fields_of
).encode
encode_in_order = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=False, default=fields_of
).encode


def _dump(body: Mapping[str, Any]) -> bytes:
    return _encode(body).encode()


def known_fields(record: type, body: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that a newer version wrote: during a rolling upgrade both read it."""
    names = _FIELDS.get(record)
    if names is None:
        names = _FIELDS[record] = frozenset(inspect.signature(record).parameters)
    if body.keys() <= names:
        return body
    return {name: value for name, value in body.items() if name in names}


_FIELDS: dict[type, frozenset[str]] = {}


@dataclass(frozen=True)
class StoredResource:
    """One resource. `spec` is raw, as the operator wrote it; `decoded` is the manifest model's.

    `store_revision` is the Store's revision of the last change and is not part of the value.
    `template_revision` counts a Workload's templates, from 1; 0 for other kinds.
    """

    kind: str
    namespace: str
    name: str
    uid: str
    spec: dict[str, Any]
    generation: int = 1
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    created_at_ms: int = 0
    deletion_requested_at_ms: int = 0
    template_revision: int = 0
    changed_by: str = ""  # as in Event.source, such as operator/ann
    changed_at_ms: int = 0
    store_revision: int = 0

    @cached_property
    def decoded(self) -> Any:
        """The spec as its class in `polder.manifest`. Raises InvalidManifest."""
        return decode(KINDS[self.kind].spec_class, self.spec, "spec")

    @property
    def ref(self) -> tuple[str, str, str]:
        return (self.kind, self.namespace, self.name)

    def known(self, decoded: Any, store_revision: int) -> "StoredResource":
        """The same at another revision, with its decoded spec, which nobody need decode again."""
        made = object.__new__(StoredResource)  # `replace` sets each field by a call of its own
        made.__dict__.update(self.__dict__, store_revision=store_revision, decoded=decoded)
        return made

    def to_bytes(self) -> bytes:
        body = {name: getattr(self, name) for name in _RESOURCE_FIELDS}
        return _dump(body)

    @staticmethod
    def from_bytes(raw: bytes, store_revision: int) -> "StoredResource":
        body = json.loads(raw)
        known = {name: body[name] for name in _RESOURCE_FIELDS if name in body}
        return StoredResource(**known, store_revision=store_revision)


_RESOURCE_FIELDS = (
    "kind",
    "namespace",
    "name",
    "uid",
    "spec",
    "generation",
    "labels",
    "annotations",
    "created_at_ms",
    "deletion_requested_at_ms",
    "template_revision",
    "changed_by",
    "changed_at_ms",
)


@dataclass(frozen=True)
class TemplateRevision:
    """One immutable template of a workload: raw JSON and its digest."""

    workload_uid: str
    number: int
    template: dict[str, Any]
    digest: str
    created_at_ms: int
    created_by: str = ""

    @cached_property
    def decoded(self) -> PodTemplate:
        return decode(PodTemplate, self.template, "template")

    @cached_property
    def template_json(self) -> bytes:
        return _dump(self.template)

    def to_bytes(self) -> bytes:
        return _dump(
            {
                "workload_uid": self.workload_uid,
                "number": self.number,
                "template": self.template,
                "digest": self.digest,
                "created_at_ms": self.created_at_ms,
                "created_by": self.created_by,
            }
        )

    @staticmethod
    def from_bytes(raw: bytes) -> "TemplateRevision":
        return TemplateRevision(**known_fields(TemplateRevision, json.loads(raw)))


@dataclass(frozen=True, slots=True)
class ElectorateRecord:
    """Who voted in an earlier group of a replica."""

    number: int
    voters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """Who may hold a replica; see FailoverGroup in plan.proto. `members`: the primary first."""

    number: int
    members: tuple[str, ...]
    witnesses: tuple[str, ...] = ()
    exclusive: bool = False
    on_return: str = "older"
    stop_after_s: float = 0.0
    forced: bool = False
    before: tuple[ElectorateRecord, ...] = ()

    @property
    def voters(self) -> tuple[str, ...]:
        return (*self.members, *self.witnesses)

    @property
    def majority(self) -> int:
        return len(self.voters) // 2 + 1

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> "GroupRecord":
        known = known_fields(GroupRecord, dict(body))
        for name in ("members", "witnesses"):
            known[name] = tuple(known.get(name, ()))
        known["before"] = tuple(
            ElectorateRecord(item["number"], tuple(item["voters"]))
            for item in known.get("before", ())
        )
        return GroupRecord(**known)


@dataclass(frozen=True, slots=True)
class AssignmentRecord:
    """A replica on its node. `epoch`: see `polder/epochs.py`; the leader decides it.

    Every later holder of the replica has a higher epoch. `replaces` is the
    uid of the stay that ends when this one is ready, and `because` the cause of that (a `Cause`).
    """

    namespace: str
    workload: str
    workload_uid: str
    replica: str
    replica_uid: str
    epoch: int
    revision: int
    standbys: tuple[str, ...] = ()
    replaces: str = ""
    because: str = ""
    # When it was placed here, unix ms. 0: before this was recorded.
    placed_at_ms: int = 0
    # A job's: its containers run to their end, and are not started again.
    once: bool = False
    # Who may take it over. None: nobody.
    group: GroupRecord | None = None
    # The node from which its site took it over; empty: it was placed here.
    took_over: str = ""

    @staticmethod
    def from_json(body: dict[str, Any]) -> "AssignmentRecord":
        known = known_fields(AssignmentRecord, body)
        known["standbys"] = tuple(known.get("standbys", ()))
        if known.get("group"):
            known["group"] = GroupRecord.from_json(known["group"])
        return AssignmentRecord(**known)


@dataclass(frozen=True, slots=True)
class StopRecord:
    """A replica that must leave its node, and why. Kept until the agent says that it is gone."""

    namespace: str
    workload: str
    replica: str
    replica_uid: str
    cause: str  # a `orchestrator.scheduling.decisions.Cause`, such as WorkloadDeleted
    message: str
    requested_at_ms: int
    # What it holds until it is gone, so that nobody else is promised it: the workload's template.
    workload_uid: str = ""
    revision: int = 0
    # Of an exclusive replica: who else may hold it until all of them know that it has stopped.
    group: GroupRecord | None = None

    @staticmethod
    def from_json(body: dict[str, Any]) -> "StopRecord":
        known = known_fields(StopRecord, body)
        if known.get("group"):
            known["group"] = GroupRecord.from_json(known["group"])
        return StopRecord(**known)


@dataclass(frozen=True, slots=True)
class NodePlacement:
    """All that one node must do. `generation` becomes the NodePlan's."""

    node: str
    generation: int = 0
    assignments: tuple[AssignmentRecord, ...] = ()
    stops: tuple[StopRecord, ...] = ()
    decided_at_ms: int = 0
    # Of the Secrets that the assignments name: a changed Secret is a changed plan.
    secrets_digest: str = ""
    # Of policies and facts that the plan carries; see scheduling/demands.py.
    demands_digest: str = ""
    # Of the roster and the standby roles that the plan carries; see gateway/roles.py.
    roles_digest: str = ""
    store_revision: int = 0  # not part of the value; 0: does not exist yet

    @property
    def highest_epoch(self) -> int:
        """Of stays and groups alike: both are numbered by the revision of a decision."""
        groups = [item.group for item in self.assignments] + [stop.group for stop in self.stops]
        numbers = (group.number for group in groups if group is not None)
        return max((*(item.epoch for item in self.assignments), *numbers), default=0)

    def to_bytes(self) -> bytes:
        body = fields_of(self)
        del body["store_revision"]
        return _dump(body)

    @staticmethod
    def from_bytes(raw: bytes, store_revision: int) -> "NodePlacement":
        body = json.loads(raw)
        assignments = tuple(AssignmentRecord.from_json(item) for item in body["assignments"])
        stops = tuple(StopRecord.from_json(item) for item in body["stops"])
        return NodePlacement(
            node=body["node"],
            generation=body["generation"],
            assignments=assignments,
            stops=stops,
            decided_at_ms=body.get("decided_at_ms", 0),
            secrets_digest=body.get("secrets_digest", ""),
            demands_digest=body.get("demands_digest", ""),
            roles_digest=body.get("roles_digest", ""),
            store_revision=store_revision,
        )


@dataclass(frozen=True, slots=True)
class IdentityRecord:
    """Which certificates of an identity count. A serial that is not listed is refused.

    `serials` maps hex serial -> expiry (unix ms), in order of issue. For a node: the one in use,
    and those that renewals issued since; the older go when a newer is first used. `former` are
    those that were revoked before it was issued another. `joined_epoch`: the number of a decision
    (`polder/epochs.py`) at the moment when a node joined; groups of before know it without what its
    disk knows now. 0: it joined before that was recorded.
    """

    kind: str  # node, operator, break-glass
    name: str
    site: str = ""
    serials: dict[str, int] = field(default_factory=dict)
    roles: tuple[str, ...] = ()
    machine_id: str = ""
    joined_at_ms: int = 0
    revoked_at_ms: int = 0
    revoked_reason: str = ""
    former: dict[str, int] = field(default_factory=dict)
    joined_epoch: int = 0
    store_revision: int = 0  # not part of the value

    def to_bytes(self) -> bytes:
        body = fields_of(self)
        del body["store_revision"]
        # Not `_dump`: it sorts, and the order of the serials is the order of issue.
        return encode_in_order(body).encode()

    @staticmethod
    def from_bytes(raw: bytes, store_revision: int) -> "IdentityRecord":
        body = json.loads(raw)
        body["roles"] = tuple(body["roles"])
        body = known_fields(IdentityRecord, body)
        return IdentityRecord(**body, store_revision=store_revision)

    def accepts(self, serial: str) -> bool:
        return not self.revoked_at_ms and serial in self.serials

    @property
    def refused_serials(self) -> dict[str, int]:
        """What was issued and revoked: for those who cannot ask which serials count."""
        return {**self.former, **self.serials} if self.revoked_at_ms else self.former

    def without(self, serial: str) -> "IdentityRecord":
        return replace(self, serials={s: x for s, x in self.serials.items() if s != serial})


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A join token by its hash. Consumed exactly once: deleted in the joining transaction."""

    site: str
    node: str
    created_by: str
    created_at_ms: int
    expires_at_ms: int

    def to_bytes(self) -> bytes:
        return _dump(fields_of(self))

    @staticmethod
    def from_bytes(raw: bytes) -> "TokenRecord":
        return TokenRecord(**known_fields(TokenRecord, json.loads(raw)))


@dataclass(frozen=True, slots=True, init=False)
class NodeStatusRecord:
    """What a node last said of itself; written only when it changed, so that it costs nothing.

    The inventory is seldom looked at, and every member has that of every node: it is kept as the
    text that it is in the Store, of a sixth of the memory.
    """

    node: str
    agent_version: str
    boot_id: str
    inventory_text: str
    reported_at_ms: int

    def __init__(
        self,
        node: str,
        agent_version: str,
        boot_id: str,
        inventory: Mapping[str, Any],
        reported_at_ms: int,
    ) -> None:
        put = object.__setattr__
        put(self, "node", node)
        put(self, "agent_version", sys.intern(agent_version))
        put(self, "boot_id", boot_id)
        put(self, "inventory_text", _encode(inventory))
        put(self, "reported_at_ms", reported_at_ms)

    @property
    def inventory(self) -> dict[str, Any]:
        """JSON form of polder.v1.NodeInventory, camelCase; read anew each time."""
        found: dict[str, Any] = json.loads(self.inventory_text)
        return found

    def to_bytes(self) -> bytes:
        body = {
            "node": self.node,
            "agent_version": self.agent_version,
            "boot_id": self.boot_id,
            "inventory": self.inventory,
            "reported_at_ms": self.reported_at_ms,
        }
        return _dump(body)

    @staticmethod
    def from_bytes(raw: bytes) -> "NodeStatusRecord":
        return NodeStatusRecord(**known_fields(NodeStatusRecord, json.loads(raw)))


@dataclass(frozen=True, slots=True)
class KeptRecord:
    """State of a rollout, a job, a freeze or a hold: `body` is read by the module that owns it."""

    key: str
    body: dict[str, Any]
    store_revision: int = 0  # not part of the value

    def to_bytes(self) -> bytes:
        return _dump(self.body)

    @staticmethod
    def from_bytes(key: str, raw: bytes, store_revision: int) -> "KeptRecord":
        return KeptRecord(key, json.loads(raw), store_revision)


@dataclass(frozen=True)
class MemberRecord:
    """Where a member is, written by itself when it starts; stays while it is away.

    `endpoints`, `join_endpoints` and `peer_endpoint` (for other members) are host:port.
    `coordinates` are those of its region: (latitude, longitude) in degrees, or None.
    """

    name: str
    region: str
    version: str
    endpoints: tuple[str, ...]
    join_endpoints: tuple[str, ...]
    peer_endpoint: str
    coordinates: tuple[float, float] | None = None

    def to_bytes(self) -> bytes:
        return _dump(fields_of(self))

    @staticmethod
    def from_bytes(raw: bytes) -> "MemberRecord":
        body = json.loads(raw)
        coordinates = body.get("coordinates")
        return MemberRecord(
            name=body["name"],
            region=body["region"],
            version=body["version"],
            endpoints=tuple(body["endpoints"]),
            join_endpoints=tuple(body["join_endpoints"]),
            peer_endpoint=body["peer_endpoint"],
            coordinates=(coordinates[0], coordinates[1]) if coordinates else None,
        )


@dataclass(frozen=True)
class PresenceRecord:
    """A member's process is there. `instance_id` differs for every start."""

    name: str
    region: str
    version: str
    instance_id: str
    started_at_ms: int

    def to_bytes(self) -> bytes:
        return _dump(fields_of(self))

    @staticmethod
    def from_bytes(raw: bytes) -> "PresenceRecord":
        body = json.loads(raw)
        known = ("name", "region", "version", "instance_id", "started_at_ms")
        return PresenceRecord(**{name: body[name] for name in known})
