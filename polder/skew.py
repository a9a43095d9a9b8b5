"""Which versions of Polder's programs are supported together.

Asked by `edgectl version`, which warns, and by the orchestrator's `domain/skew.py`, which keeps
members apart that do not fit. A patch never counts, and two major versions never fit.

    members   the same minor version, or the one next to it
    edgectl   likewise, to every member
    agents    no newer than any member, and up to AGENT_MINORS_BEHIND older than each: members are
              upgraded first, then the fleet in waves, and a box may be switched off meanwhile
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

AGENT_MINORS_BEHIND = 2
MEMBER_MINORS_APART = 1


@dataclass(frozen=True, slots=True, order=True)
class Minor:
    """`0.4` of `0.4.2`."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


@dataclass(frozen=True, slots=True)
class Span:
    """Minor versions of one major version, both ends included."""

    oldest: Minor
    newest: Minor

    def __contains__(self, version: object) -> bool:
        return isinstance(version, Minor) and self.oldest <= version <= self.newest

    def __str__(self) -> str:
        if self.oldest == self.newest:
            return str(self.oldest)
        return f"{self.oldest} to {self.newest}"


@dataclass(frozen=True, slots=True)
class Supported:
    """Beside the members that there are; None: nothing fits all of them."""

    members: Span | None
    edgectl: Span | None
    agents: Span | None


def minor_of(version: str) -> Minor | None:
    """None: the text is not a release's version (a source tree), and nothing is known of it."""
    parts = version.partition("+")[0].partition("-")[0].split(".")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts[:2]):
        return None
    return Minor(int(parts[0]), int(parts[1]))


def adjacent(one: Minor, other: Minor) -> bool:
    """Whether members of these versions work together."""
    return one.major == other.major and abs(one.minor - other.minor) <= MEMBER_MINORS_APART


def supported(members: Iterable[str]) -> Supported:
    """By the versions of the members."""
    known = [minor for minor in map(minor_of, members) if minor is not None]
    if not known or len({minor.major for minor in known}) > 1:
        return Supported(None, None, None)
    oldest, newest = min(known), max(known)
    beside = _span(newest, MEMBER_MINORS_APART, oldest.minor + MEMBER_MINORS_APART)
    return Supported(beside, beside, _span(newest, AGENT_MINORS_BEHIND, oldest.minor))


def _span(newest: Minor, behind: int, last: int) -> Span | None:
    first = max(0, newest.minor - behind)
    if first > last:
        return None
    return Span(Minor(newest.major, first), Minor(newest.major, last))


def warnings(edgectl: str, members: Mapping[str, str], agents: Mapping[str, int]) -> list[str]:
    """What is not supported together, one sentence for each kind of program.

    `members`: version by name; `agents`: how many nodes by version.
    """
    fitting = supported(members.values())
    found = [_of_members(members), _of_edgectl(edgectl, members), _of_agents(agents, fitting)]
    return [text for text in found if text]


def _of_members(members: Mapping[str, str]) -> str:
    unknown = sorted(name for name, version in members.items() if minor_of(version) is None)
    if unknown:
        return f"of {_names(unknown)} the version is not a release's: nothing is known of it"
    minors = {name: minor for name, v in members.items() if (minor := minor_of(v)) is not None}
    if not minors:
        return ""
    oldest, newest = min(minors, key=minors.__getitem__), max(minors, key=minors.__getitem__)
    if adjacent(minors[oldest], minors[newest]):
        return ""
    return (
        f"member {oldest} runs {members[oldest]} and member {newest} {members[newest]}: "
        "they work together only with the same minor version or the one next to it"
    )


def _of_edgectl(edgectl: str, members: Mapping[str, str]) -> str:
    ours = minor_of(edgectl)
    if ours is None:
        return f"edgectl {edgectl} is not a release: nothing is known of it"
    apart = {
        name: theirs
        for name, version in sorted(members.items())
        if (theirs := minor_of(version)) is not None and not adjacent(ours, theirs)
    }
    if not apart:
        return ""
    name = max(apart, key=lambda name: _distance(ours, apart[name]))
    older = "edgectl" if ours < apart[name] else "the orchestrator"
    return (
        f"edgectl {edgectl} and member {name} ({members[name]}) are too far apart: upgrade {older}"
    )


def _distance(one: Minor, other: Minor) -> tuple[int, int]:
    return abs(one.major - other.major), abs(one.minor - other.minor)


def _of_agents(agents: Mapping[str, int], fitting: Supported) -> str:
    """Nothing where members do not fit each other: they come first."""
    if fitting.agents is None:
        return ""
    wrong: defaultdict[str, list[str]] = defaultdict(list)
    for version, count in sorted(agents.items()):
        minor = minor_of(version)
        if not version:
            continue  # joined, and not heard of yet
        if minor is None:
            wrong["not a release's version"].append(_counted(version, count))
        elif minor not in fitting.agents:
            newer = minor > fitting.agents.newest
            way = "upgrade the members first" if newer else "edgectl agent upgrade"
            wrong[way].append(_counted(version, count))
    texts = [f"{', '.join(which)} ({way})" for way, which in wrong.items()]
    if not texts:
        return ""
    return f"agents are supported at {fitting.agents}, and there are {'; '.join(texts)}"


def _counted(version: str, count: int) -> str:
    return f"{count} at {version}"


def _names(names: list[str]) -> str:
    return f"member{'s' * (len(names) > 1)} {', '.join(names)}"
