"""Who was let in by LocalService, and what that caller may do: by role, or by a break-glass grant.

`door.py` makes a Caller of a credential that was proven; everybody else in this package asks it.
The levels are those of the orchestrator (`orchestrator/authz.py`), so that nobody can do more at a
site than elsewhere.
"""

from dataclasses import dataclass

from agent.local.moments import Moment
from polder.local_access import Grant
from polder.roles import Level, Role, level_in

READ = "read"
_LEVELS = {
    READ: Level.VIEWER,
    "exec": Level.OPERATOR,
    "stop": Level.OPERATOR,
    "start": Level.OPERATOR,
    "restart": Level.OPERATOR,
    "move": Level.OPERATOR,
    "freeze": Level.ADMIN,
    "unfreeze": Level.ADMIN,
}
VERBS = frozenset(_LEVELS) - {READ}


@dataclass(frozen=True, slots=True)
class Caller:
    """`by` as journals name it: "operator/ann" or "break-glass/SERIAL". `ends_at`: unix seconds,
    after which the credential itself is worth nothing. `grant`: of a break-glass token."""

    by: str
    serial: str
    ends_at: float
    roles: tuple[Role, ...] = ()
    grant: Grant | None = None

    @property
    def purpose(self) -> str:
        return self.grant.purpose if self.grant is not None else ""

    def left_s(self, at: float) -> float | None:
        """For how long the credential is good from `at` on. None: it expired before, and is let in
        all the same."""
        return self.ends_at - at if self.ends_at > at else None

    def good(self, moment: Moment) -> bool:
        """Whether it would still be let in: by certificate, also if that expired since an
        orchestrator was last heard."""
        if self.grant is not None:
            return self.ends_at > moment.at
        return self.ends_at >= moment.heard_at

    def may(self, action: str, namespace: str, workload: str) -> bool:
        """`action`: READ or one of VERBS. Without a namespace it is of the whole site."""
        if self.grant is not None:
            return self.grant.allows(action, namespace, workload)
        return level_in(self.roles, namespace) >= _LEVELS[action]

    def reads(self, namespace: str, workload: str = "") -> bool:
        """Whether anything of that may be shown. What belongs to no namespace is for everybody who
        was let in: a replica cannot be understood without its node."""
        return not namespace or self.may(READ, namespace, workload)

    def reads_in(self, namespace: str) -> bool:
        """Whether there is anything in the namespace that may be shown."""
        if self.grant is not None:
            return self.grant.namespace in ("", namespace)
        return self.reads(namespace)

    def objection(self, action: str, namespace: str, workload: str) -> tuple[str, str]:
        """Why it may not, and what would help; the first is empty when it may."""
        if self.may(action, namespace, workload):
            return "", ""
        where = f"in namespace {namespace}" if namespace else "at the whole site"
        if self.grant is not None:
            allowed = ", ".join(self.grant.allow)
            text = f"the break-glass token is not for {action} {where}"
            return text, f"it allows {allowed} of {self.grant.target}, for: {self.grant.purpose}"
        level = _LEVELS[action].name.lower()
        text = f"{self.by} may not {action} {where}: that needs {level}"
        return text, "enter with the certificate of somebody who has that role"

    def described(self) -> list[str]:
        """What it may do, in words, for the caller itself."""
        if self.grant is None:
            return [str(role) for role in self.roles]
        return [f"{', '.join(self.grant.allow)} of {self.grant.target}"]
