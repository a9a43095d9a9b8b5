"""PutRelease, Releases and DeleteRelease: which versions of the agent this installation holds.

A release counts for its signature, not for who brings it: it is believed when a CA of this
installation signed it (ADR 31). Its packages follow in parts; a part that stands needs not come
again as a whole, since a package is complete or begun anew.
"""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace

from orchestrator.authz import Caller
from orchestrator.cache import Cache
from orchestrator.catching_up import catch_up
from orchestrator.domain.releases import PART_BYTES, Releases, StoredRelease, read, releases_in
from orchestrator.domain.upgrade_state import Upgrade, upgrades_in
from orchestrator.events import Recorder
from orchestrator.fleet import Fleet
from orchestrator.identity.authority import Authority
from orchestrator.refusals import (
    Refused,
    conflict,
    exhausted,
    in_use,
    invalid,
    not_found,
    unavailable,
)
from orchestrator.store import keys
from orchestrator.store.port import Compare, CompareTarget, Delete, Put, Store, StoreError
from polder.manifest.quantity import format_duration
from polder.release import Package, Release, SignedRelease, version_order
from polder.release_proofs import verify_release
from polder.signing import UntrustedSignature
from polder.v1 import common_pb2, operator_pb2

RELEASES_MAX = 20
UPLOADS_MAX = 2
HEAR_OUT_S = 5.0
AHEAD_S_MAX = 86_400
"""Of the clock of the machine that signs, which may have no network, before ours."""
PAUSE_S_MAX = 60.0
"""Between two messages of an upload."""
_ATTEMPTS = 8
_DELETED_AT_ONCE = 8
_NORMAL = common_pb2.EVENT_TYPE_NORMAL

Requests = AsyncIterator[operator_pb2.PutReleaseRequest]


@dataclass(slots=True)
class ReleaseDesk:
    """Serves the three RPCs. `version` is this member's own."""

    store: Store
    cache: Cache
    fleet: Fleet
    authority: Authority
    events: Recorder
    clock: Callable[[], float]
    version: str
    _uploads: int = field(default=0, init=False)

    # --- taking ----------------------------------------------------------------------------------

    async def put(self, caller: Caller, requests: Requests) -> operator_pb2.PutReleaseResponse:
        """Raises Refused and StoreError."""
        first = await _next(requests)
        if first is None or not first.HasField("release"):
            raise invalid("the first message of an upload must be its release")
        if self._uploads >= UPLOADS_MAX:
            raise exhausted("TooManyUploads", f"{UPLOADS_MAX} uploads run", "try again later")
        self._uploads += 1
        try:
            sent = first.release
            signed = SignedRelease(sent.release, sent.signature)
            release = self._verified(signed)
            self._check_clock(release)
            created = await self._take(caller, release, signed)
            await self._take_packages(release, requests)
        except (Refused, StoreError):
            await _hear_out(requests)
            raise
        finally:
            self._uploads -= 1
        return operator_pb2.PutReleaseResponse(version=release.version, created=created)

    def _verified(self, signed: SignedRelease) -> Release:
        authority = self.authority
        try:
            return verify_release(signed, authority.roots_der, authority.trust_domain)
        except UntrustedSignature as error:
            hint = "edge-orchestrator ca sign-release, where the root's key is"
            raise invalid(f"the release is not believed: {error}", hint, error.reason) from error

    def _check_clock(self, release: Release) -> None:
        """Boxes take no downgrade that was signed before what they run: one version that is signed
        in the far future would spoil that for good. Raises Refused."""
        ahead_s = release.issued_at_ms / 1000 - self.clock()
        if ahead_s > AHEAD_S_MAX:
            raise invalid(
                f"the release was signed {format_duration(round(ahead_s))} ahead of our clock",
                "set the clock where the root's key is kept, and sign it anew",
                "SignedInTheFuture",
            )

    async def _take(self, caller: Caller, release: Release, signed: SignedRelease) -> bool:
        """Whether it is new; signed anew it replaces what was signed before."""
        for _ in range(_ATTEMPTS):
            known = releases_in(self.cache.kept(keys.RELEASES))
            before = known.get(release.version)
            stored = StoredRelease(release, signed, caller.source)
            if before is None and len(known) >= RELEASES_MAX:
                hint = "edgectl agent delete VERSION of one that no box needs"
                raise exhausted("TooManyReleases", f"{len(known)} releases are here", hint)
            if before is not None:
                _check_same(before.release, release)
                _check_later(before.release, release)
                stored = replace(
                    stored, complete=before.complete, store_revision=before.store_revision
                )
                if before.signed == signed:
                    return False
            if await self._write(stored):
                self._record(caller, "ReleaseTaken", f"agent {release.version}: {_listed(release)}")
                return before is None
        raise conflict("the release kept changing", "try again")

    async def _take_packages(self, release: Release, requests: Requests) -> None:
        """What is here as a whole is not written again: boxes may be fetching it."""
        packages = {package.sha256: package for package in release.packages}
        upload: _Upload | None = None
        is_here = False
        while (request := await _next(requests)) is not None:
            part = request.part
            if upload is None:
                package = packages.get(part.sha256)
                if package is None or part.offset:
                    raise invalid("the part is of no package of this release, or not its beginning")
                upload = _Upload(package)
                known = read_at(self.cache, release.version)
                is_here = known is not None and package.sha256 in known.complete
            for number, data in upload.take(part):
                put = Put(keys.package_part(part.sha256, number), data)
                if not is_here:
                    await self.store.txn([], [put])
            if upload.is_whole:
                await self._complete(release.version, upload.checked())
                upload = None
        if upload is not None:
            raise invalid(f"the package for {upload.package.arch} ended early", "upload it again")

    async def _complete(self, version: str, package: Package) -> None:
        for _ in range(_ATTEMPTS):
            stored = read_at(self.cache, version)
            if stored is None:
                raise not_found(f"release {version} was deleted meanwhile")
            if package.sha256 in stored.complete:
                return
            if await self._write(replace(stored, complete=stored.complete | {package.sha256})):
                return
        raise conflict("the release kept changing", "try again")

    async def _write(self, stored: StoredRelease) -> bool:
        """Whether it was still as the mirror showed it."""
        record = stored.record()
        compare = Compare(record.key, CompareTarget.MOD_REVISION, record.store_revision)
        result = await self.store.txn([compare], [Put(record.key, record.to_bytes())])
        await catch_up(self.cache, result.revision)
        return result.committed

    # --- telling ---------------------------------------------------------------------------------

    def releases(self) -> operator_pb2.ReleasesResponse:
        """Latest version first."""
        known = releases_in(self.cache.kept(keys.RELEASES))
        ordered = sorted(known.values(), key=lambda s: version_order(s.release.version))
        return operator_pb2.ReleasesResponse(
            releases=[_told(stored) for stored in reversed(ordered)],
            nodes_by_version=self.nodes_by_version(),
            member_version=self.version,
        )

    def nodes_by_version(self) -> Counter[str]:
        """As they said last; the empty version is of those that never said."""
        return Counter(self._version(node.name) for node in self.cache.resources("Node"))

    def _version(self, node: str) -> str:
        seen = self.fleet.get(node)
        if seen is not None and seen.agent_version:
            return seen.agent_version
        reported = self.cache.node_status(node)
        return reported.agent_version if reported is not None else ""

    # --- deleting --------------------------------------------------------------------------------

    async def delete(
        self, caller: Caller, request: operator_pb2.DeleteReleaseRequest
    ) -> operator_pb2.DeleteReleaseResponse:
        """First it is said to be incomplete, then its bytes go, then it: whoever is stopped in
        between can do it again. Raises Refused (NotFound, InUse, Conflict) and StoreError."""
        stored = read_at(self.cache, request.version)
        if stored is None:
            raise not_found(
                f"there is no release {request.version[:80]!r}", "edgectl agent releases"
            )
        self._check_unused(stored.release.version)
        if not await self._write(replace(stored, complete=frozenset())):
            raise conflict("the release changed at the same moment", "try again")
        others = releases_in(self.cache.kept(keys.RELEASES))
        for package in stored.release.packages:
            if not _is_shared(package, stored, others):
                await self._delete_parts(package.sha256)
        key = keys.release(stored.release.version)
        result = await self.store.txn([], [Delete(key)])
        await catch_up(self.cache, result.revision)
        text = f"agent {stored.release.version}: deleted"
        self._record(caller, "ReleaseDeleted", text)
        return operator_pb2.DeleteReleaseResponse(message=text)

    def _check_unused(self, version: str) -> None:
        active = next((u for u in upgrades_in(self.cache.kept(keys.UPGRADES)) if u.is_active), None)
        if active is None:
            return
        hint = f"wait for it, or edgectl agent abort {active.id}"
        if active.version == version:
            raise in_use(f"upgrade {active.id} is on its way to {version}", hint)
        nodes = self._at_version(active, version)
        if nodes:
            text = f"{len(nodes)} nodes of upgrade {active.id} run {version}, and may go back to it"
            raise in_use(f"{text}, such as {nodes[0]}", hint)

    def _at_version(self, upgrade: Upgrade, version: str) -> list[str]:
        return [
            node.name
            for node in self.cache.resources("Node")
            if upgrade.chooses(node.name, str(node.spec.get("site", "")))
            and self._version(node.name) == version
        ]

    async def _delete_parts(self, sha256: str) -> None:
        while True:
            page = await self.store.range(keys.packages_of(sha256), limit=_DELETED_AT_ONCE)
            if not page.entries:
                return
            await self.store.txn([], [Delete(entry.key) for entry in page.entries])

    def _record(self, caller: Caller, reason: str, text: str) -> None:
        self.events.record("Installation", "", "everything", _NORMAL, reason, text, caller.source)


async def _next(requests: Requests) -> operator_pb2.PutReleaseRequest | None:
    """None: that was all. Raises Refused when nothing comes for long: others wait for the place."""
    try:
        async with asyncio.timeout(PAUSE_S_MAX):
            return await anext(requests, None)
    except TimeoutError:
        raise unavailable("UploadStopped", "nothing came for long", "upload it again") from None


async def _hear_out(requests: Requests) -> None:
    """What is still on its way: a gRPC client that is refused while it writes may tell of the write
    that failed, and not of the reason."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HEAR_OUT_S):
            async for _ in requests:
                pass


class _Upload:
    """One package on its way: cut into the Store's parts, and hashed."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self._hash = hashlib.sha256()
        self._size = 0
        self._number = 0
        self._rest = bytearray()

    def take(self, part: operator_pb2.PackagePart) -> Iterator[tuple[int, bytes]]:
        """What is to be stored now: (number, bytes). Raises Refused."""
        if part.sha256 != self.package.sha256 or part.offset != self._size or not part.data:
            raise invalid("a part is out of order", "upload it again")
        self._size += len(part.data)
        if self._size > self.package.size:
            raise invalid(f"the package for {self.package.arch} is larger than its release says")
        self._hash.update(part.data)
        self._rest += part.data
        while len(self._rest) >= PART_BYTES or (self._rest and self.is_whole):
            data = bytes(self._rest[:PART_BYTES])
            del self._rest[:PART_BYTES]
            yield self._number, data
            self._number += 1

    @property
    def is_whole(self) -> bool:
        return self._size == self.package.size

    def checked(self) -> Package:
        """Raises Refused when it is another package than was signed."""
        if self._hash.hexdigest() != self.package.sha256:
            text = f"the package for {self.package.arch} is not the one that was signed"
            raise invalid(text, "upload it again", "WrongPackage")
        return self.package


def read_at(cache: Cache, version: str) -> StoredRelease | None:
    record = cache.kept_at(keys.release(version))
    return read(record) if record is not None else None


def _check_same(before: Release, after: Release) -> None:
    """A version is one thing: packages may be added to it, and none replaced. Raises Refused."""
    for package in before.packages:
        if after.package_for(package.arch) != package:
            raise in_use(
                f"another package of {before.version} for {package.arch} is here already",
                f"give it another version, or edgectl agent delete {before.version}",
            )


def _check_later(before: Release, after: Release) -> None:
    """Who uploads a file from before once more takes nothing back of what was signed since, such
    as a downgrade. Raises Refused."""
    if after.issued_at_ms < before.issued_at_ms:
        raise invalid(
            f"{before.version} as it was signed later is here already",
            "upload what ca sign-release wrote last",
            "SignedLater",
        )


def _is_shared(package: Package, stored: StoredRelease, others: Releases) -> bool:
    return any(
        other.release.version != stored.release.version and package in other.release.packages
        for other in others.values()
    )


def _listed(release: Release) -> str:
    return ", ".join(sorted(package.arch for package in release.packages))


def _told(stored: StoredRelease) -> operator_pb2.Release:
    release = stored.release
    return operator_pb2.Release(
        version=release.version,
        issued_at_ms=release.issued_at_ms,
        downgrade=release.downgrade,
        packages=[
            operator_pb2.ReleasePackage(
                arch=package.arch,
                sha256=package.sha256,
                size=package.size,
                complete=package.sha256 in stored.complete,
            )
            for package in release.packages
        ],
    )
