"""What a plain apply takes back that an operator did by hand. Called by apply.

A file states a whole spec. What it leaves out returns to its default, also where somebody set it
since. Who reads first and writes at that revision (`rollout resume`, `edit`) knows what is changed.
"""

from orchestrator.records import StoredResource


def taken_back(
    existing: StoredResource | None, record: StoredResource, expected_revision: int
) -> list[str]:
    """For who applies a Workload without saying which revision of it was read."""
    if existing is None or record.kind != "Workload" or expected_revision:
        return []
    if not _is_paused(existing) or _is_paused(record):
        return []
    who = f" ({existing.changed_by} changed it last)" if existing.changed_by else ""
    return [
        f"its rollout was paused{who} and goes on with this; to keep it paused, apply with "
        "spec.update.paused: true"
    ]


def _is_paused(record: StoredResource) -> bool:
    update = record.spec.get("update")
    return isinstance(update, dict) and update.get("paused") is True
