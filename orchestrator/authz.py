"""Who may call what: one table, and the checks that handlers repeat for each resource.

The front door (`rpc.py`) looks the RPC up here before anything runs: an RPC without a row is
refused. A row says what kind of identity may call at all, and which level an operator needs
somewhere; the handler then asks `require` for the namespace that the request touches.
`tests/integration/test_identity_matrix.py` walks the proto descriptors and fails for an RPC
without a row.
"""

from dataclasses import dataclass
from enum import Enum

from orchestrator.refusals import forbidden, unauthenticated
from polder.identity import Identity, MemberId, NodeId, OperatorId
from polder.manifest import KINDS
from polder.roles import Level, Role, level_in


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is behind a call: from its certificate alone. `serial` is hex; empty without one."""

    identity: Identity | None
    serial: str = ""
    roles: tuple[Role, ...] = ()
    expires_at: float = 0.0  # unix seconds

    @property
    def node(self) -> NodeId:
        """Raises Refused when the caller is no node."""
        if not isinstance(self.identity, NodeId):
            raise forbidden(f"{self} is not a node")
        return self.identity

    @property
    def highest(self) -> Level:
        """The highest level that the caller has anywhere."""
        return max((role.level for role in self.roles), default=Level.NONE)

    @property
    def source(self) -> str:
        """As events name it."""
        return (
            f"operator/{self.identity.name}" if isinstance(self.identity, OperatorId) else str(self)
        )

    def __str__(self) -> str:
        return str(self.identity) if self.identity is not None else "a caller without certificate"


ANONYMOUS = Caller(None)


class Who(Enum):
    """The kind of identity that a row admits."""

    ANYONE = "anyone"
    NODE = "a node"
    OPERATOR = "an operator"
    MEMBER = "an orchestrator"


_WANTED: dict[Who, type[NodeId] | type[OperatorId] | type[MemberId]] = {
    Who.NODE: NodeId,
    Who.OPERATOR: OperatorId,
    Who.MEMBER: MemberId,
}


class Listener(Enum):
    """JOIN proves only the server; MTLS also the client."""

    JOIN = "join"
    MTLS = "mtls"


@dataclass(frozen=True, slots=True)
class Rule:
    """`level`: what an operator must have in some namespace at least; handlers ask further."""

    who: Who
    listeners: frozenset[Listener]
    level: Level = Level.NONE


_MTLS = frozenset({Listener.MTLS})
_JOIN = frozenset({Listener.JOIN})
_AGENT = "/polder.v1.AgentService/"
_OPERATOR = "/polder.v1.OperatorService/"
_MEMBER = "/polder.v1.MemberService/"
_HEALTH = "/grpc.health.v1.Health/"

RULES: dict[str, Rule] = {
    _AGENT + "Join": Rule(Who.ANYONE, _JOIN),
    _AGENT + "Session": Rule(Who.NODE, _MTLS),
    _AGENT + "Relay": Rule(Who.NODE, _MTLS),
    _AGENT + "Package": Rule(Who.NODE, _MTLS),
    _OPERATOR + "Apply": Rule(Who.OPERATOR, _MTLS, Level.OPERATOR),
    _OPERATOR + "Get": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "List": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "Watch": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "Delete": Rule(Who.OPERATOR, _MTLS, Level.OPERATOR),
    _OPERATOR + "Logs": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "Exec": Rule(Who.OPERATOR, _MTLS, Level.OPERATOR),
    _OPERATOR + "Events": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "CreateJoinToken": Rule(Who.OPERATOR, _MTLS, Level.ADMIN),
    _OPERATOR + "Revoke": Rule(Who.OPERATOR, _MTLS, Level.ADMIN),
    _OPERATOR + "IssueOperator": Rule(Who.OPERATOR, _MTLS, Level.ADMIN),
    _OPERATOR + "WhoAmI": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "Why": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "Plan": Rule(Who.OPERATOR, _MTLS, Level.OPERATOR),
    _OPERATOR + "Simulate": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "Concentration": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "Compliance": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "Rollout": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "UndoRollout": Rule(Who.OPERATOR, _MTLS, Level.OPERATOR),
    _OPERATOR + "Freeze": Rule(Who.OPERATOR, _MTLS, Level.OPERATOR),
    _OPERATOR + "Thaw": Rule(Who.OPERATOR, _MTLS, Level.OPERATOR),
    _OPERATOR + "Guards": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "Approve": Rule(Who.OPERATOR, _MTLS, Level.OPERATOR),
    _OPERATOR + "Fence": Rule(Who.OPERATOR, _MTLS, Level.OPERATOR),
    _OPERATOR + "Overrides": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "ResolveOverride": Rule(Who.OPERATOR, _MTLS, Level.OPERATOR),
    _OPERATOR + "Story": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "Regions": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "Drill": Rule(Who.OPERATOR, _MTLS, Level.ADMIN),
    _OPERATOR + "EndDrill": Rule(Who.OPERATOR, _MTLS, Level.ADMIN),
    _OPERATOR + "ForgetMember": Rule(Who.OPERATOR, _MTLS, Level.ADMIN),
    _OPERATOR + "PutRelease": Rule(Who.OPERATOR, _MTLS, Level.ADMIN),
    _OPERATOR + "Releases": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _OPERATOR + "DeleteRelease": Rule(Who.OPERATOR, _MTLS, Level.ADMIN),
    _OPERATOR + "UpgradeAgents": Rule(Who.OPERATOR, _MTLS, Level.ADMIN),
    _OPERATOR + "AgentUpgrades": Rule(Who.OPERATOR, _MTLS, Level.VIEWER),
    _MEMBER + "Follow": Rule(Who.MEMBER, _MTLS),
    _MEMBER + "Forward": Rule(Who.MEMBER, _MTLS),
    _HEALTH + "Check": Rule(Who.ANYONE, _MTLS | _JOIN),
    _HEALTH + "List": Rule(Who.ANYONE, _MTLS | _JOIN),
    _HEALTH + "Watch": Rule(Who.ANYONE, _MTLS | _JOIN),
}


def rule_for(method: str, listener: Listener) -> Rule:
    """The row of an RPC, by its full name. Raises Refused: what has no row is for nobody."""
    rule = RULES.get(method)
    if rule is None or listener not in rule.listeners:
        raise forbidden(f"{method} is not served here")
    return rule


def admit(rule: Rule, caller: Caller) -> None:
    """Raises Refused unless the row lets the caller in."""
    if rule.who is Who.ANYONE:
        return
    if caller.identity is None:
        raise unauthenticated("NoCertificate", "this call needs a certificate")
    if not isinstance(caller.identity, _WANTED[rule.who]):
        raise forbidden(f"{caller} is not {rule.who.value}")
    if caller.highest < rule.level:
        raise forbidden(
            f"{caller} would need to be {rule.level.name.lower()} for this",
            "ask an admin for a certificate with that role",
        )


def require(caller: Caller, level: Level, namespace: str, what: str) -> None:
    """Raises Refused unless an operator has `level` in `namespace` (empty: what has none)."""
    if level_in(caller.roles, namespace) < level:
        where = f"namespace {namespace}" if namespace else "what belongs to no namespace"
        raise forbidden(
            f"{caller} may not {what}: that needs {level.name.lower()} of {where}",
            "edgectl version shows who you are and your roles",
        )


def may_read(caller: Caller, kind: str, namespace: str, name: str) -> bool:
    """A tenant sees its own namespaces, and the nodes and sites that everybody shares."""
    if kind == "Operator":
        return level_in(caller.roles, "") is Level.ADMIN
    if kind == "Namespace":
        return level_in(caller.roles, name) >= Level.VIEWER
    return level_in(caller.roles, namespace) >= Level.VIEWER


def require_write(caller: Caller, kind: str, namespace: str, name: str) -> None:
    """Raises Refused: operators write in their namespaces, admins also what has none."""
    level = Level.OPERATOR if KINDS[kind].namespaced else Level.ADMIN
    require(caller, level, namespace, f"change {kind} {name}")


def sees_secrets(caller: Caller, namespace: str) -> bool:
    """Whether a Secret's values are shown; viewers see its keys only."""
    return level_in(caller.roles, namespace) >= Level.OPERATOR


# --- the caller of a running call ---------------------------------------------------------------

_callers: dict[int, Caller] = {}


def caller_of(context: object) -> Caller:
    """Who calls, in a handler. Raises KeyError outside a call that the front door let in."""
    return _callers[id(context)]


def attach(context: object, caller: Caller) -> None:
    """By the front door, before the handler runs (and by tests that call a handler directly)."""
    _callers[id(context)] = caller


def detach(context: object) -> None:
    """By the front door, when the handler is done."""
    _callers.pop(id(context), None)
