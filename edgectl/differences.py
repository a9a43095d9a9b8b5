"""A manifest before and after, as a unified diff. Pure, but for YAML being imported late."""

import copy
import difflib
from typing import Any

HIDDEN = "***"


def unified(
    label: str,
    before: dict[str, Any] | None,
    after: dict[str, Any],
    names: tuple[str, str] = ("now", "after apply"),
) -> str:
    """Empty when both say the same. A secret's values are never shown. `names` tell the sides."""
    old, new = _masked(before, after)
    from edgectl.config_file import render

    lines = difflib.unified_diff(
        render(_sorted(old)).splitlines() if old is not None else [],
        render(_sorted(new)).splitlines(),
        fromfile=f"{label} ({names[0]})" if old is not None else "/dev/null",
        tofile=f"{label} ({names[1]})",
        lineterm="",
    )
    return "".join(f"{line}\n" for line in lines)


def _sorted(value: Any) -> Any:
    """The order of keys means nothing, and the server keeps another one than the file."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value


def _masked(
    before: dict[str, Any] | None, after: dict[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    if after.get("kind") != "Secret":
        return before, after
    old, new = copy.deepcopy(before), copy.deepcopy(after)
    old_data = _data(old) if old is not None else {}
    new_data = _data(new)
    for key in {*old_data, *new_data}:
        same = old_data.get(key) == new_data.get(key)
        for data, suffix in ((old_data, " (now)"), (new_data, " (after)")):
            if key in data:
                data[key] = HIDDEN if same else HIDDEN + suffix
    return old, new


def _data(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest.get("spec")
    data = spec.get("data") if isinstance(spec, dict) else None
    return data if isinstance(data, dict) else {}
