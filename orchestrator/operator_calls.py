"""What the front door does for every call of an operator, beyond asking who it is.

Before a call runs the mirror is made current; a call that writes is refused when that cannot be,
one that reads is told how old its answer may be. Every answer names the member that gave it.
Called by `rpc.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.freshness import Freshness
from orchestrator.refusals import not_writable
from orchestrator.settling import request as settled_request
from polder.metadata import AGE_KEY, MEMBER_KEY, REPEATED_KEY, REQUEST_KEY

OPERATOR_SERVICE = "/polder.v1.OperatorService/"

WRITES = frozenset(
    (
        "Apply",
        "Delete",
        "CreateJoinToken",
        "Revoke",
        "IssueOperator",
        "UndoRollout",
        "Freeze",
        "Thaw",
        "Approve",
        "Fence",
        "ResolveOverride",
        "EndDrill",
        "ForgetMember",
        "PutRelease",
        "DeleteRelease",
        "UpgradeAgents",
    )
)
UNASKED = frozenset(("WhoAmI",))
"""What needs no record: it finds out whether a member answers."""

Metadata = tuple[tuple[str, str], ...]


class OperatorCalls:
    """One per process. `member` is its name."""

    def __init__(self, freshness: Freshness, member: str) -> None:
        self._freshness = freshness
        self._member = (MEMBER_KEY, member)

    @property
    def signed(self) -> Metadata:
        """For the trailers of a refusal."""
        return (self._member,)

    async def metadata(self, name: str, request: Any) -> Metadata:
        """For an answer to the call `name`. Raises Refused (StoreUnavailable) when it writes and
        the mirror is not current."""
        if name in UNASKED:
            return self.signed
        writes = name in WRITES and not getattr(request, "dry_run", False)
        age_s = await (self._freshness.to_write() if writes else self._freshness.to_read())
        if not age_s:
            return self.signed
        if writes:
            raise not_writable(f"member {self._member[1]} cannot read its store")
        return (self._member, (AGE_KEY, str(max(1, round(age_s * 1000)))))

    @contextmanager
    def request(self, name: str, context: Any) -> Iterator[None]:
        """Around the handling of the call."""
        if name not in WRITES:
            yield
            return
        sent = dict(context.invocation_metadata() or ())
        identifier, repeated = _text(sent, REQUEST_KEY), _text(sent, REPEATED_KEY) == "1"
        with settled_request(identifier, repeated=repeated, left_s=context.time_remaining()):
            yield


def operation(method: str) -> str:
    """The short name of an operator's RPC; empty for every other."""
    return method.removeprefix(OPERATOR_SERVICE) if method.startswith(OPERATOR_SERVICE) else ""


def _text(sent: dict[str, Any], key: str) -> str:
    value = sent.get(key, "")
    return value if isinstance(value, str) else ""
