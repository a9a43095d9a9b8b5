"""`edgectl diff -f`: what apply would change, by asking for a dry run and comparing."""

import sys
from collections.abc import Sequence

from edgectl import differences
from edgectl.errors import CallError, CliError
from edgectl.invocation import Invocation
from edgectl.manifests import Document, ManifestFile
from edgectl.requests import bundles
from edgectl.resources import Item, reference
from edgectl.verbs.apply import read_files, send
from polder.v1 import operator_pb2

DIFFERENT, TROUBLE = 1, 2


def run(invocation: Invocation) -> int:
    """0: nothing would change; 1: something would; 2: an error."""
    try:
        changed = False
        for files in bundles(read_files(invocation)):
            changed = _diff(invocation, files) or changed
    except CliError as error:
        error.exit_code = TROUBLE
        raise
    return DIFFERENT if changed else 0


def _diff(invocation: Invocation, files: Sequence[ManifestFile]) -> bool:
    response = send(invocation, files, dry_run=True)
    documents = [document for file in files for document in file.documents]
    changed = False
    for document, result in zip(documents, response.results, strict=True):
        if result.outcome == operator_pb2.APPLY_OUTCOME_UNCHANGED:
            continue
        changed = True
        live = _live(invocation, document)
        after = Item(result.resource, 0).manifest()
        before = live.manifest() if live is not None else None
        sys.stdout.write(differences.unified(document.label, before, after))
    return changed


def _live(invocation: Invocation, document: Document) -> Item | None:
    ref = reference(document.kind, document.namespace, document.name)
    try:
        answer = invocation.client.get(ref)
    except CallError as error:
        if error.code == "NOT_FOUND":
            return None
        raise
    return Item(answer.resource, answer.now_ms)
