"""What the operator points at: `nodes,workloads`, `workload hello other`, `node/edge-1`. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgectl.errors import UsageError
from polder.manifest import KINDS, KindInfo, kind_named


@dataclass(frozen=True, slots=True)
class Target:
    """An empty name means every resource of the kind."""

    info: KindInfo
    name: str = ""

    @property
    def label(self) -> str:
        return f"{self.info.name.lower()}/{self.name}"


def parse(words: Sequence[str], *, names_needed: bool = False) -> list[Target]:
    """Raises UsageError. With `names_needed`, a whole kind is no target."""
    if not words:
        raise UsageError("name a resource, such as workload/hello")
    if any("/" in word for word in words):
        targets = [_slashed(word) for word in words]
    else:
        kinds = [known_kind(word) for word in words[0].split(",") if word]
        if not kinds:
            raise UsageError("name a kind, such as nodes")
        if len(kinds) > 1 and len(words) > 1:
            raise UsageError("give names to one kind, or write KIND/NAME for each")
        targets = [Target(kind, name) for kind in kinds for name in words[1:] or [""]]
    if names_needed and not all(target.name for target in targets):
        raise UsageError("name the resource, as in workload/hello")
    return list(dict.fromkeys(targets))


def known_kind(word: str) -> KindInfo:
    """Raises UsageError with the kinds there are."""
    info = kind_named(word)
    if info is None:
        kinds = ", ".join(sorted(item.plural for item in KINDS.values()))
        raise UsageError(f"{word!r} is not a kind", f"kinds: {kinds}")
    return info


def node_name(word: str) -> str:
    """`edge-1` or `node/edge-1`. Raises UsageError for another kind."""
    if "/" not in word:
        return word
    target = _slashed(word)
    if target.info.name != "Node":
        raise UsageError(f"{word!r} is not a node")
    return target.name


def _slashed(word: str) -> Target:
    kind, _, name = word.partition("/")
    if not kind or not name or "/" in name:
        raise UsageError(f"{word!r} is not KIND/NAME, such as workload/hello")
    return Target(known_kind(kind), name)
