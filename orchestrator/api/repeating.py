"""What the steps of an apply came to, as its mark tells it to a later try. Called by apply.

The answer to a repeated request is that of the try that wrote: created stays created, and the
generation is the one that it gave, whatever others have done since. Pure.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from orchestrator.api.steps import Step, Wanted
from orchestrator.records import StoredResource
from orchestrator.store.port import Entry

Find = Callable[[str, str, str], StoredResource | None]


def fingerprint_of(document: bytes) -> bytes:
    return hashlib.blake2b(document, digest_size=16).digest()


def step_name(batch: int, request: Sequence[Wanted]) -> str:
    """Of a request's batch, in every try. Another operator's request, or other documents under the
    same id, are another step: nobody is told of what is not theirs, or passes a check by it."""
    prints = b"".join(item.fingerprint for item in request) + request[0].by.encode()
    return f"apply-{batch}-{fingerprint_of(prints).hex()}"


def outcome_of(steps: Sequence[Step]) -> bytes:
    """For the mark."""
    said = [[int(s.outcome), s.record.uid, s.record.generation, bool(s.ops)] for s in steps]
    return json.dumps(said, separators=(",", ":")).encode()


def steps_told(batch: Sequence[Wanted], mark: Entry, find: Find) -> list[Step]:
    """As the try that wrote the mark decided them."""
    told = json.loads(mark.value)
    return [
        _step(item, outcome, uid, generation, mark.mod_revision if wrote else 0, find)
        for item, (outcome, uid, generation, wrote) in zip(batch, told, strict=True)
    ]


def _step(item: Wanted, outcome: int, uid: str, generation: int, revision: int, find: Find) -> Step:
    manifest = item.manifest
    record = find(*manifest.ref)
    if record is None or (record.uid, record.generation) != (uid, generation):
        kind, namespace, name = manifest.ref  # others have changed it since, or deleted it
        record = StoredResource(
            kind=kind,
            namespace=namespace,
            name=name,
            uid=uid,
            spec=manifest.raw_spec,
            labels=dict(manifest.metadata.labels),
            annotations=dict(manifest.metadata.annotations),
            generation=generation,
            changed_by=item.by,
        )
    if revision:
        record = replace(record, store_revision=revision)
    return Step(item, outcome, record)  # type: ignore[arg-type]  # protobuf's enums are ints
