"""What the doctor says of one thing, and what the exit code is. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

OK, NOTE, WARNING, FAILURE = "ok", "note", "warning", "failure"
LEVELS = (OK, NOTE, WARNING, FAILURE)
# Where the package puts `hardware/prepare`.
PREPARE = "/opt/polder-agent/share/polder/prepare"
EXIT_CODES = {OK: 0, NOTE: 0, WARNING: 1, FAILURE: 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """`level` note: worth knowing, and nothing to do at once. All but what is ok have a `fix`."""

    check: str
    level: str
    what: str
    fix: str = ""


def exit_code(findings: Iterable[Finding]) -> int:
    """0: well. 1: warnings. 2: something must be mended before this box does its work."""
    return max((EXIT_CODES[finding.level] for finding in findings), default=0)
