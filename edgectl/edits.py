"""Changing a resource that is there: read, edit, write back only if nobody else did meanwhile.

Called by cordon, uncordon, drain, label and taint.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from edgectl.client import Client
from edgectl.errors import CallError
from edgectl.resources import Item
from edgectl.text import safe
from polder.v1 import common_pb2, operator_pb2

MAX_ATTEMPTS = 8

Edit = Callable[[dict[str, Any]], None]


def edit(
    client: Client, ref: common_pb2.ResourceRef, change: Edit, *, dry_run: bool = False
) -> bool:
    """`change` alters the manifest in place. True if that altered anything.

    Raises CallError, also when others keep changing it; and what `change` raises.
    """
    for attempt in range(MAX_ATTEMPTS):
        answer = client.get(ref)
        item = Item(answer.resource, answer.now_ms)
        before = json.dumps(item.manifest(), sort_keys=True)
        manifest: dict[str, Any] = json.loads(before)
        change(manifest)
        if json.dumps(manifest, sort_keys=True) == before:
            return False
        document = operator_pb2.Document(
            json=json.dumps(manifest).encode(),
            expected_revision=answer.resource.metadata.revision,
        )
        try:
            answered = client.apply([document], dry_run=dry_run)
        except CallError as error:
            if error.reason != "Conflict" or attempt == MAX_ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0.01, 0.1 * 2**attempt))
        else:
            for warning in (text for result in answered.results for text in result.warnings):
                print(f"warning: {item.label}: {safe(warning)}", file=sys.stderr)
            return True
    raise AssertionError("unreachable")
