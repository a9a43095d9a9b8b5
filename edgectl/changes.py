"""The change syntax of label and taint: `key=value`, `key-`, `key=value:Effect`. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgectl.errors import CliError, UsageError
from polder.manifest.names import LABEL_VALUE, QUALIFIED

EFFECTS = ("NoSchedule", "NoExecute")


@dataclass(frozen=True, slots=True)
class LabelChange:
    """`value` None: remove."""

    key: str
    value: str | None


@dataclass(frozen=True, slots=True)
class TaintChange:
    """`effect` is empty only to remove every taint of the key."""

    key: str
    value: str
    effect: str
    remove: bool


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Targets, then changes. Raises UsageError when either is missing or they are mixed."""
    first = next((i for i, word in enumerate(words) if _is_change(word)), len(words))
    targets, changes = list(words[:first]), list(words[first:])
    if not targets:
        raise UsageError("name a resource before the changes")
    if not changes:
        raise UsageError("give at least one change, such as key=value or key-")
    return targets, changes


def _is_change(word: str) -> bool:
    return "=" in word or word.endswith("-") or ":" in word


def parse_label(word: str) -> LabelChange:
    """Raises UsageError."""
    if "=" not in word and word.endswith("-"):
        return LabelChange(_key(word[:-1], word), None)
    key, equals, value = word.partition("=")
    if not equals:
        raise UsageError(f"{word!r} is neither key=value nor key-")
    if LABEL_VALUE.fullmatch(value) is None:
        raise UsageError(f"{word!r}: {value!r} is not a label value")
    return LabelChange(_key(key, word), value)


def apply_labels(
    labels: dict[str, str], changes: Sequence[LabelChange], *, overwrite: bool, what: str
) -> None:
    """In place. Raises CliError where a label exists with another value."""
    for change in changes:
        current = labels.get(change.key)
        if change.value is None:
            labels.pop(change.key, None)
        elif current is not None and current != change.value and not overwrite:
            raise CliError(
                f"{what} already has {change.key}={current}", "use --overwrite to change it"
            )
        else:
            labels[change.key] = change.value


def parse_taint(word: str) -> TaintChange:
    """`key[=value]:Effect`, `key-` or `key[=value]:Effect-`. Raises UsageError."""
    remove = word.endswith("-")
    body, _, effect = (word[:-1] if remove else word).partition(":")
    key, _, value = body.partition("=")
    if effect not in EFFECTS and not (remove and not effect):
        raise UsageError(
            f"{word!r} is not a taint",
            "write key=value:NoSchedule, key:NoExecute, or key- to remove it",
        )
    if LABEL_VALUE.fullmatch(value) is None:
        raise UsageError(f"{word!r}: {value!r} is not a taint value")
    return TaintChange(_key(key, word), value, effect, remove)


def apply_taints(
    taints: Sequence[dict[str, Any]],
    changes: Sequence[TaintChange],
    *,
    overwrite: bool,
    what: str,
) -> list[dict[str, Any]]:
    """The new list. Raises CliError for a taint that exists with another value."""
    result = [dict(taint) for taint in taints]
    for change in changes:
        same = [t for t in result if _concerns(change, t)]
        if change.remove:
            if not same:
                raise CliError(f"{what} has no taint {change.key}")
            result = [t for t in result if t not in same]
            continue
        if any((t.get("value") or "") != change.value for t in same) and not overwrite:
            raise CliError(
                f"{what} already has the taint {change.key} with another value",
                "use --overwrite to change it",
            )
        wanted = {"key": change.key, "effect": change.effect}
        if change.value:
            wanted["value"] = change.value
        if same:
            result[result.index(same[0])] = wanted
        else:
            result.append(wanted)
    return result


def _concerns(change: TaintChange, taint: dict[str, Any]) -> bool:
    return taint.get("key") == change.key and change.effect in ("", taint.get("effect"))


def _key(key: str, word: str) -> str:
    if QUALIFIED.fullmatch(key) is None:
        raise UsageError(f"{word!r}: {key!r} is not a key such as zone or example.eu/zone")
    return key
