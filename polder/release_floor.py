"""How far back a box still goes: not to a version just because the root signed that one day.

Members choose among the releases that the root signed, and one that was broken into would choose
the version of which it knows the hole. So a box becomes no lower version than it runs, unless the
root signed the release as a downgrade, and later than all that ran: a downgrade that is left over
from years ago is none any more. What was signed before a downgrade that came through is past, too.
See ADR 31.

Asked by the agent (`agent/domain/upgrade.py`), by `agent/upgrade/command.py`, which verifies once
more and has the installer note what came through, and by the orchestrator
(`orchestrator/domain/releases.py`), so that nobody is told what boxes would refuse. The automatic
way back is not asked: it undoes an upgrade that never came through.
"""

from dataclasses import dataclass

from polder.release import Release, version_order


@dataclass(frozen=True, slots=True)
class Floor:
    """What a box remembers, in unix ms by the clock where the root's key is kept, and of no other.

    `signed_ms`: when that was signed which was signed last of all that ran. `since_ms`: when the
    last downgrade was signed that came through. 0: nothing of the kind.
    """

    signed_ms: int = 0
    since_ms: int = 0

    def refuses(self, wanted: Release, present: Release) -> str:
        """Why a box that runs `present` must not become `wanted`; empty: it may."""
        if wanted.issued_at_ms < self.since_ms:
            return f"{wanted.version} was signed before the last downgrade: it must be signed anew"
        if not _is_lower(wanted, present):
            return ""
        if not wanted.downgrade:
            return (
                f"{wanted.version} is lower than {present.version}, and not signed as a downgrade"
            )
        if wanted.issued_at_ms <= self._newest_ms(present):
            return (
                f"{wanted.version} was signed as a downgrade before {present.version} was signed: "
                "it must be signed anew"
            )
        return ""

    def after(self, wanted: Release, present: Release) -> "Floor":
        """Once a release that was not refused has come through."""
        goes_down = _is_lower(wanted, present)
        return Floor(
            max(self._newest_ms(present), wanted.issued_at_ms),
            wanted.issued_at_ms if goes_down else self.since_ms,
        )

    def _newest_ms(self, present: Release) -> int:
        """A version that came by hand left no note, and counts for when it was signed."""
        return max(self.signed_ms, present.issued_at_ms)


def _is_lower(one: Release, other: Release) -> bool:
    return version_order(one.version) < version_order(other.version)
