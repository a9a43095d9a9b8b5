"""What goes wrong in a way that edgectl can explain.

CliError            exit code 1
+- UsageError       exit code 2: the command line itself is wrong
+- CallError        a call to the orchestrator failed; carries the typed reason
+- InvalidFiles     manifests with violations; one line each
"""

from collections.abc import Sequence


class CliError(Exception):
    """`hints` are printed below the message: what the operator can do next."""

    exit_code = 1

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message)
        self.message = message
        self.hints = tuple(hint for hint in hints if hint)


class UsageError(CliError):
    """The command line is wrong."""

    exit_code = 2


class CallError(CliError):
    """`code` is the gRPC status name, `reason` the CamelCase word of the error detail.

    `violations` are (document, path, message). `unknown`: what was asked may have been done, or
    may still be.
    """

    def __init__(
        self,
        message: str,
        *hints: str,
        code: str,
        reason: str = "",
        violations: Sequence[tuple[int, str, str]] = (),
        unknown: bool = False,
    ) -> None:
        super().__init__(message, *hints)
        self.unknown = unknown
        self.code = code
        self.reason = reason
        self.violations = tuple(violations)

    @property
    def transient(self) -> bool:
        """Whether the same call may succeed a moment later or at another endpoint."""
        return self.code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")


class InvalidFiles(CliError):
    """`lines` are `file:line: path: message`."""

    def __init__(self, message: str, lines: Sequence[str]) -> None:
        super().__init__(message)
        self.lines = tuple(lines)
