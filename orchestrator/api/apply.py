"""Apply: what operators write becomes records, all of a request's documents or none.

Everything is validated before anything is written. Up to `BATCH_DOCUMENTS` documents go into one
transaction and are atomic; a larger request is validated whole, and then written in batches, in an
order in which what is referred to comes first. Writes compare on what the mirror showed: a race
costs a retry and never a lost update.
"""

import asyncio
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import grpc

from orchestrator.api.allowances import not_allowed, powerless, taken
from orchestrator.api.failover_checks import unkept
from orchestrator.api.index import PlacementIndex
from orchestrator.api.job_checks import ended_warnings, not_schedulable
from orchestrator.api.overwriting import taken_back
from orchestrator.api.repeating import fingerprint_of, outcome_of, step_name, steps_told
from orchestrator.api.sovereignty_checks import Changing, SovereigntyChecks
from orchestrator.api.steps import Step, Wanted, batches
from orchestrator.api.wire import to_wire
from orchestrator.authz import Caller, require_write, sees_secrets
from orchestrator.cache import Cache
from orchestrator.catching_up import catch_up
from orchestrator.domain.rollout_state import needed_revisions
from orchestrator.records import KeptRecord, StoredResource, TemplateRevision
from orchestrator.refusals import FieldViolation, Refused, conflict, exhausted, invalid
from orchestrator.settling import SettlingStore
from orchestrator.store import keys
from orchestrator.store.port import Compare, CompareTarget, Delete, Entry, Put
from polder.manifest import (
    InvalidManifest,
    Manifest,
    NamespaceSpec,
    Violation,
    WorkloadSpec,
    decode_document,
)
from polder.manifest.quantity import format_timestamp
from polder.v1 import operator_pb2

DOCUMENTS_MAX = 2_000
# A workload's template is stored twice, in its spec and as a revision, in one transaction.
DOCUMENT_BYTES_MAX = 700_000
REVISIONS_KEPT = 10
_ATTEMPTS = 16
_RESERVED = "polder.eu/"

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Decided:
    """A request's documents as steps, in its order; `warnings` by number of the document."""

    steps: Sequence[Step]
    warnings: Mapping[int, Sequence[str]]


class Applier:
    """Serves Apply."""

    def __init__(
        self, store: SettlingStore, cache: Cache, index: PlacementIndex, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._cache = cache
        self._index = index
        self._clock = clock
        self._contended = asyncio.Lock()
        self._checks = SovereigntyChecks(cache, clock)

    async def apply(
        self, caller: Caller, request: operator_pb2.ApplyRequest
    ) -> operator_pb2.ApplyResponse:
        """Raises Refused (InvalidManifest, Forbidden, Conflict, BeingDeleted, TooLarge,
        OutcomeUnknown) and StoreError."""
        if self._store.is_repeated and not request.dry_run:
            return await self._repeat(caller, request)
        decided = await self.decide(caller, request.documents)
        steps = list(decided.steps)
        if not request.dry_run:
            steps = await self._write_all(steps)
        return operator_pb2.ApplyResponse(results=results_of(caller, steps, decided.warnings))

    async def _repeat(
        self, caller: Caller, request: operator_pb2.ApplyRequest
    ) -> operator_pb2.ApplyResponse:
        """The client asked before, perhaps another member, and got no answer. What its earlier try
        wrote is told and not written again, whatever has become of it since."""
        wanted = decode_request(request.documents, caller.source)
        for item in wanted:
            require_write(caller, *item.manifest.ref)
        told = await self._store.told(step_name(0, wanted))
        if told is None:
            try:
                decided = await self.decide(caller, request.documents)
                steps = await self._write_all(list(decided.steps))
                return operator_pb2.ApplyResponse(
                    results=results_of(caller, steps, decided.warnings)
                )
            except Refused:
                # Perhaps only because the earlier try was made a moment ago.
                if await self._store.leave_alone(step_name(0, wanted)) is None:
                    raise
        written = await self._write_batches(wanted, None)
        return operator_pb2.ApplyResponse(results=results_of(caller, written, {}))

    async def _write_all(self, steps: list[Step]) -> list[Step]:
        return await self._write_batches([step.wanted for step in steps], steps)

    async def _write_batches(
        self, wanted: Sequence[Wanted], decided: Sequence[Step] | None
    ) -> list[Step]:
        written: dict[int, Step] = {}
        for number, batch in enumerate(batches(wanted)):
            # What was decided before still holds for the first; later ones see its effect.
            first = _only(batch, decided) if decided is not None and not number else None
            for step in await self._write(batch, wanted, first, step_name(number, wanted)):
                written[step.wanted.number] = step
        return [written[item.number] for item in wanted]

    async def decide(
        self,
        caller: Caller,
        documents: Sequence[operator_pb2.Document],
        *,
        strict: bool = True,
    ) -> "Decided":
        """What the documents come to, without writing. Raises Refused, as `apply` does.

        Not strict: what sovereignty has against them is a warning, for those who ask why.
        """
        wanted = decode_request(documents, caller.source)
        for item in wanted:
            require_write(caller, *item.manifest.ref)
        steps = self._plan(wanted, wanted)
        found = await self._checks.check([_changing(step) for step in steps])
        if found.violations and strict:
            raise _invalid_manifest(found.violations)
        for number, path, text in found.violations:
            found.warnings[number].append(f"apply would refuse it: {path}: {text}")
        for step in steps:
            kept = self._cache.kept_at(keys.job(step.record.uid))
            warnings = found.warnings[step.wanted.number]
            warnings += ended_warnings(step.existing, step.record, kept)
            expected = step.wanted.expected_revision
            warnings += taken_back(step.existing, step.record, expected)
            if isinstance(spec := step.wanted.manifest.spec, WorkloadSpec):
                warnings += powerless(spec)
                warnings += unkept(spec)
        return Decided(steps, found.warnings)

    async def _write(
        self,
        batch: Sequence[Wanted],
        request: Sequence[Wanted],
        decided: list[Step] | None,
        name: str,
    ) -> list[Step]:
        told = await self._store.told(name)
        if told is not None:
            return await self._as_told(batch, told)
        steps = await self._commit(decided or self._plan(batch, request), name)
        if steps is not None:
            return steps
        # Those that lost a race queue up: together they would only make each other lose again.
        async with self._contended:
            for _ in range(_ATTEMPTS):
                steps = await self._commit(self._plan(batch, request), name)
                if steps is not None:
                    return steps
        raise conflict("the resources kept changing under this apply", "try again")

    async def _commit(self, steps: list[Step], name: str) -> list[Step] | None:
        """The steps as they stand; None when something has changed under them. Either way the
        mirror then holds what decided that."""
        batch = [step.wanted for step in steps]
        ops = [op for step in steps for op in step.ops]
        if not ops:
            made = await self._store.leave_alone(name)
            return steps if made is None else await self._as_told(batch, made)
        compares = {c.key: c for step in steps for c in step.compares}
        result, told = await self._store.step(name, list(compares.values()), ops, outcome_of(steps))
        if told is not None:
            return await self._as_told(batch, told)
        await catch_up(self._cache, result.revision)
        for step in steps:
            if step.ops:
                step.record = replace(step.record, store_revision=result.revision)
        return steps if result.committed else None

    async def _as_told(self, batch: Sequence[Wanted], mark: Entry) -> list[Step]:
        await catch_up(self._cache, mark.mod_revision)
        return steps_told(batch, mark, self._cache.resource)

    # --- deciding ------------------------------------------------------------------------------

    def _plan(self, batch: Sequence[Wanted], request: Sequence[Wanted]) -> list[Step]:
        """Raises Refused with everything that stands against the documents."""
        coming = {item.manifest.ref: item for item in request}
        violations: list[FieldViolation] = []
        steps = []
        for item in batch:
            existing = self._cache.resource(*item.manifest.ref)
            _check_expected(item, existing)
            violations += self._violations(item, existing, coming)
            step = self._step(item, existing)
            step.existing = existing
            steps.append(step)
        if violations:
            raise _invalid_manifest(violations)
        return steps

    def _violations(
        self, item: Wanted, existing: StoredResource | None, coming: Mapping[Key, Wanted]
    ) -> list[FieldViolation]:
        manifest = item.manifest
        kind, namespace, name = manifest.ref
        found: list[tuple[str, str]] = []
        if kind == "Node" and existing is None:
            found.append(
                ("metadata.name", f"there is no node {name}: nodes join, they are not applied")
            )
        if kind == "Node" and existing and manifest.spec.site != existing.spec.get("site"):
            found.append(("spec.site", f"is fixed when a node joins: {existing.spec.get('site')}"))
        if namespace and not self._exists("Namespace", namespace, coming):
            found.append(("metadata.namespace", f"there is no namespace {namespace}"))
        if isinstance(manifest.spec, WorkloadSpec) and (
            existing is None or manifest.raw_spec != existing.spec
        ):
            found += not_allowed(manifest.spec, self._allowed(namespace, coming), namespace)
            found += taken(manifest.spec)
            found += not_schedulable(manifest.spec, existing, self._clock())
        if kind == "Site" and not self._exists("Provider", manifest.spec.provider, coming):
            found.append(("spec.provider", f"there is no provider {manifest.spec.provider}"))
        return [(item.number, path, text) for path, text in found]

    def _allowed(self, name: str, coming: Mapping[Key, Wanted]) -> tuple[str, ...]:
        """What pods of the namespace may demand, as it will be after this request."""
        key = ("Namespace", "", name)
        stored = self._cache.resource(*key)
        if key in coming:
            spec = coming[key].manifest.spec
        else:
            try:
                spec = stored.decoded if stored is not None else None
            except InvalidManifest:
                spec = None
        return spec.allow if isinstance(spec, NamespaceSpec) else ()

    def _exists(self, kind: str, name: str, coming: Mapping[Key, Wanted]) -> bool:
        found = self._cache.resource(kind, "", name)
        if found is not None:
            return not found.deletion_requested_at_ms
        return (kind, "", name) in coming

    def _step(self, item: Wanted, existing: StoredResource | None) -> Step:
        if existing is None:
            return self._create(item)
        if existing.deletion_requested_at_ms:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                "BeingDeleted",
                f"{existing.kind} {existing.name} is being deleted",
                "wait until it is gone, then apply again",
            )
        manifest = item.manifest
        labels = _labels(manifest, existing)
        spec_changed = manifest.raw_spec != existing.spec
        annotations = manifest.metadata.annotations
        if not spec_changed and (labels, annotations) == (existing.labels, existing.annotations):
            return Step(item, operator_pb2.APPLY_OUTCOME_UNCHANGED, existing)
        record = replace(
            existing,
            labels=labels,
            annotations=annotations,
            changed_by=item.by,
            changed_at_ms=self._now_ms(),
        )
        step = Step(item, operator_pb2.APPLY_OUTCOME_CONFIGURED, record)
        if spec_changed:
            generation = existing.generation + 1
            step.record = replace(record, spec=manifest.raw_spec, generation=generation)
            self._revise(step)
        return self._finish(step, existing.store_revision)

    def _create(self, item: Wanted) -> Step:
        manifest = item.manifest
        kind, namespace, name = manifest.ref
        now_ms = self._now_ms()
        record = StoredResource(
            kind=kind,
            namespace=namespace,
            name=name,
            uid=str(uuid.uuid4()),
            spec=manifest.raw_spec,
            labels=dict(manifest.metadata.labels),
            annotations=dict(manifest.metadata.annotations),
            created_at_ms=now_ms,
            changed_by=item.by,
            changed_at_ms=now_ms,
        )
        step = Step(item, operator_pb2.APPLY_OUTCOME_CREATED, record)
        self._revise(step)
        # What it refers to must still be there when it is written; see deletion.py.
        owner = ("Namespace", namespace) if namespace else ("Provider", "")
        if kind == "Site":
            owner = ("Provider", manifest.spec.provider)
        found = self._cache.resource(owner[0], "", owner[1]) if owner[1] else None
        if found is not None:
            key = keys.spec(owner[0], "", owner[1])
            step.compares.append(_compare(key, found.store_revision))
        return self._finish(step, 0)

    def _revise(self, step: Step) -> None:
        """A changed template becomes a new, immutable revision; an old one is forgotten."""
        record, manifest = step.record, step.wanted.manifest
        if record.kind != "Workload":
            return
        fingerprint = step.wanted.template_digest
        current = self._cache.revision_of(record.uid, record.template_revision)
        if current is not None and current.digest == fingerprint:
            return
        number = record.template_revision + 1
        step.record = replace(record, template_revision=number)
        revision = TemplateRevision(
            record.uid,
            number,
            manifest.raw_spec["template"],
            fingerprint,
            self._now_ms(),
            step.wanted.by,
        )
        revision.__dict__["decoded"] = manifest.spec.template
        step.revision = revision
        key, raw = keys.revision(record.uid, number), revision.to_bytes()
        self._cache.expect(key, raw, revision)
        step.ops.append(Put(key, raw))
        old = number - REVISIONS_KEPT
        rollout = self._cache.kept_at(keys.rollout(record.uid))
        if old > 0 and self._is_useless(record, old, rollout):
            step.ops.append(Delete(keys.revision(record.uid, old)))
            # A rollout that turns back meanwhile may have chosen it.
            seen = rollout.store_revision if rollout is not None else 0
            step.compares.append(_compare(keys.rollout(record.uid), seen))

    def _is_useless(self, record: StoredResource, number: int, rollout: KeptRecord | None) -> bool:
        """Whether nobody runs the revision, is led to it, or may be led back to it."""
        placed = self._index.workload(record.namespace, record.name)
        in_use = {item.assignment.revision for item in placed.placed.values()}
        in_use |= {item.stop.revision for item in placed.stopping.values()}
        needed = needed_revisions(rollout)
        return needed is not None and number not in in_use | needed

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _finish(self, step: Step, store_revision: int) -> Step:
        key, raw = keys.spec(*step.record.ref), step.record.to_bytes()
        decoded = step.wanted.manifest.spec
        self._cache.expect(key, raw, step.record.known(decoded, store_revision))
        step.compares.append(_compare(key, store_revision))
        step.ops.append(Put(key, raw))
        return step


def decode_request(documents: Sequence[operator_pb2.Document], by: str) -> list[Wanted]:
    """The documents, checked without looking at the Store; `by` wants them. Raises Refused."""
    if not documents:
        raise invalid("the request has no documents", reason="InvalidManifest")
    if len(documents) > DOCUMENTS_MAX:
        raise exhausted("TooLarge", f"more than {DOCUMENTS_MAX} documents", "apply them in parts")
    wanted: list[Wanted] = []
    violations: list[FieldViolation] = []
    seen: dict[Key, int] = {}
    for number, document in enumerate(documents):
        try:
            manifest = _decode(document.json)
        except InvalidManifest as error:
            violations += [(number, v.path, v.message) for v in error.violations]
            continue
        if not manifest.info.editable:
            text = f"a {manifest.kind} is made by the system and cannot be applied"
            violations.append((number, "kind", text))
        first = seen.setdefault(manifest.ref, number)
        if first != number:
            text = f"{manifest.kind} {manifest.metadata.name} is in document {first} too"
            violations.append((number, "metadata.name", text))
        size = len(document.json)
        wanted.append(
            Wanted(
                number,
                manifest,
                document.expected_revision,
                size,
                by,
                fingerprint_of(document.json),
            )
        )
    if violations:
        raise _invalid_manifest(violations)
    return wanted


def _decode(raw: bytes) -> Manifest:
    if len(raw) > DOCUMENT_BYTES_MAX:
        text = f"the document has {len(raw)} bytes; at most {DOCUMENT_BYTES_MAX} are allowed"
        raise _unreadable(text)
    try:
        parsed = json.loads(raw)
    except RecursionError:
        raise _unreadable("the document is nested too deeply") from None
    except ValueError as error:  # also invalid UTF-8
        raise _unreadable(f"the document is not JSON: {error}") from error
    try:
        return decode_document(parsed)
    except RecursionError:
        raise _unreadable("the document is nested too deeply") from None


def _unreadable(text: str) -> InvalidManifest:
    return InvalidManifest([Violation(".", text)])


def _invalid_manifest(violations: Sequence[FieldViolation]) -> Refused:
    number, path, text = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return Refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        "InvalidManifest",
        f"document {number}: {path}: {text}{more}",
        "nothing was written",
        violations,
    )


def _check_expected(item: Wanted, existing: StoredResource | None) -> None:
    current = existing.store_revision if existing is not None else 0
    kind, _, name = item.manifest.ref
    if item.expected_revision == -1 and existing is not None:
        raise conflict(f"{kind} {name} exists already", "apply without expecting it to be new")
    if item.expected_revision > 0 and current != item.expected_revision:
        now = _changed_since(existing) if existing is not None else "does not exist"
        raise conflict(
            f"{kind} {name} {now}, not at {item.expected_revision}",
            "get it again, make the change again, and retry",
        )


def _changed_since(existing: StoredResource) -> str:
    """By whom and when, since the other has to be asked."""
    by = f", changed by {existing.changed_by}" if existing.changed_by else ""
    if by and existing.changed_at_ms:
        by += f" at {format_timestamp(existing.changed_at_ms / 1000)}"
    return f"is at revision {existing.store_revision}{by}"


def _labels(manifest: Manifest, existing: StoredResource) -> dict[str, str]:
    """As in the document. A node keeps what joining said of it."""
    kept = {}
    if existing.kind == "Node":
        kept = {k: v for k, v in existing.labels.items() if k.startswith(_RESERVED)}
    return {**manifest.metadata.labels, **kept}


def _compare(key: str, store_revision: int) -> Compare:
    return Compare(key, CompareTarget.MOD_REVISION, store_revision)


def _only(batch: Sequence[Wanted], steps: Sequence[Step]) -> list[Step]:
    by_number = {step.wanted.number: step for step in steps}
    return [by_number[item.number] for item in batch]


def _changing(step: Step) -> Changing:
    manifest, existing = step.wanted.manifest, step.existing
    changed = existing is None or existing.spec != manifest.raw_spec
    return Changing(step.wanted.number, manifest.ref, manifest.spec, changed)


def results_of(
    caller: Caller, steps: Iterable[Step], warnings: Mapping[int, Sequence[str]]
) -> list[operator_pb2.ApplyResult]:
    """What the caller is told of each document."""
    return [
        operator_pb2.ApplyResult(
            outcome=step.outcome,
            resource=to_wire(step.record, secrets=sees_secrets(caller, step.record.namespace)),
            warnings=warnings.get(step.wanted.number, ()),
        )
        for step in steps
    ]
