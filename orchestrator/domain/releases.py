"""Releases of the agent as they stand in the Store: what was signed, and what of it is here. Pure.

Written by the operator API (`orchestrator/api/releases.py`), read by whoever decides which box can
become which version: the API, the leader (`upgrades_step.py`) and gateways.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.records import KeptRecord
from orchestrator.store import keys
from polder.release import (
    InvalidRelease,
    Package,
    Release,
    SignedRelease,
    read_release,
    read_signed,
)
from polder.release_floor import Floor

PART_BYTES = 256 << 10
"""Of a package in the Store."""
OLDER_RELEASE = "OlderRelease"
"""As boxes say it, too."""


@dataclass(frozen=True, slots=True)
class StoredRelease:
    """`complete`: hashes of the packages of which all is here."""

    release: Release
    signed: SignedRelease
    uploaded_by: str
    complete: frozenset[str] = frozenset()
    store_revision: int = field(default=0, compare=False)  # not part of the value

    def package_for(self, arch: str) -> Package | None:
        """None: there is none, or not all of it is here."""
        package = self.release.package_for(arch)
        return package if package is not None and package.sha256 in self.complete else None

    def record(self) -> KeptRecord:
        body = {
            "signed": str(self.signed),
            "uploaded_by": self.uploaded_by,
            "complete": sorted(self.complete),
        }
        return KeptRecord(keys.release(self.release.version), body, self.store_revision)


Releases = Mapping[str, StoredRelease]
"""By version."""


def read(record: KeptRecord) -> StoredRelease | None:
    """None: there is none that is understood."""
    body = record.body
    try:
        signed = read_signed(str(body["signed"]))
        return StoredRelease(
            read_release(signed.release),
            signed,
            str(body["uploaded_by"]),
            frozenset(str(sha256) for sha256 in body["complete"]),
            record.store_revision,
        )
    except (InvalidRelease, KeyError, TypeError):
        return None


def releases_in(kept: Iterable[KeptRecord]) -> Releases:
    found = [read(record) for record in kept if record.key.startswith(keys.RELEASES)]
    return {stored.release.version: stored for stored in found if stored is not None}


def obstacle(releases: Releases, wanted: str, version: str, arch: str) -> tuple[str, str] | None:
    """Why a box of `arch` that runs `version` cannot become `wanted` and, if need be, go back:
    (reason, message). None: it can."""
    if not version or not arch:
        return "NotReported", "has not said yet what it runs"
    release = releases.get(wanted)
    if release is None or release.package_for(arch) is None:
        return "NoPackage", f"no package of {wanted} for {arch} is here"
    present = releases.get(version)
    if present is None or present.package_for(arch) is None:
        return "NoWayBack", f"no package of {version} for {arch} is here, to go back to"
    # What the box itself remembers is not known here; it may refuse more.
    if why := Floor().refuses(release.release, present.release):
        return OLDER_RELEASE, why
    return None
