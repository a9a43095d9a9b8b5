"""`edgectl version`: every program of the installation, and a warning where two do not fit."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edgectl.errors import CallError, CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.output import structured
from edgectl.text import safe
from polder import __version__
from polder.release import version_order
from polder.skew import supported, warnings
from polder.v1 import operator_pb2

_UNKNOWN = "<unknown>"


@dataclass(slots=True)
class Versions:
    """What was found out. `answer` None: nobody was asked, or nobody answered; `missing`: what an
    orchestrator did not say, and why."""

    answer: operator_pb2.WhoAmIResponse | None = None
    members: list[operator_pb2.MemberInfo] = field(default_factory=list)
    agents: Mapping[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def by_member(self) -> dict[str, str]:
        """Of those that are there."""
        return {member.name: member.version for member in self.members}

    @property
    def warnings(self) -> list[str]:
        if self.answer is None:
            return []
        found = warnings(__version__, self.by_member, self.agents)
        return found + [f"{what}: not known: {why}" for what, why in self.missing.items()]


def run(invocation: Invocation) -> int:
    options = invocation.options
    if options.output not in ("", "json", "yaml"):
        raise UsageError(f"-o {options.output!r} is not a format", "formats: json, yaml")
    found = Versions()
    failure: CliError | None = None
    if not options.client:
        try:
            found.answer = invocation.client.whoami()
            _ask(invocation, found)
        except CliError as error:
            failure = error
    if options.output:
        sys.stdout.write(structured(options.output, _document(found)))
    else:
        for name, value in _lines(found):
            print(f"{name:<11}{safe(value)}")
    for text in found.warnings:
        print(f"warning: {safe(text)}", file=sys.stderr)
    if failure is not None:
        raise failure
    return 0


def _ask(invocation: Invocation, found: Versions) -> None:
    """An orchestrator of another version may not know a call: the rest is shown all the same."""
    assert found.answer is not None
    try:
        regions = invocation.client.regions().regions
        found.members = [m for region in regions for m in region.members if m.present]
    except CallError as error:
        found.missing["members"] = error.message
    if all(member.name != found.answer.member for member in found.members):
        own = operator_pb2.MemberInfo(
            name=found.answer.member,
            region=found.answer.region,
            version=found.answer.server_version,
        )
        found.members.append(own)
    try:
        found.agents = dict(invocation.client.releases().nodes_by_version)
    except CallError as error:
        found.missing["agents"] = error.message


def _document(found: Versions) -> dict[str, object]:
    document: dict[str, object] = {"client": __version__}
    answer = found.answer
    if answer is None:
        return document
    fitting = supported(found.by_member.values())
    spans = {"edgectl": fitting.edgectl, "members": fitting.members, "agents": fitting.agents}
    document |= {
        "server": answer.server_version,
        "member": f"{answer.region}/{answer.member}",
        "identity": answer.identity,
        "roles": list(answer.roles),
        "members": [
            {"name": member.name, "region": member.region, "version": member.version}
            for member in found.members
        ],
        "supported": {name: str(span) for name, span in spans.items() if span is not None},
        "warnings": found.warnings,
    }
    if "agents" not in found.missing:
        document["agents"] = dict(sorted(found.agents.items()))
    return document


def _lines(found: Versions) -> Iterator[tuple[str, str]]:
    yield "client:", __version__
    answer = found.answer
    if answer is None:
        return
    yield "server:", answer.server_version
    yield "member:", f"{answer.region}/{answer.member}"
    yield "identity:", answer.identity
    yield "roles:", ", ".join(answer.roles)
    names: defaultdict[str, list[str]] = defaultdict(list)
    for member in found.members:
        names[member.version].append(f"{member.region}/{member.name}")
    yield from _by_version("members:", {v: ", ".join(sorted(which)) for v, which in names.items()})
    if "agents" in found.missing:
        yield "agents:", _UNKNOWN
    else:
        counts = {v: f"{n} node{'s' * (n != 1)}" for v, n in found.agents.items()}
        yield from _by_version("agents:", counts or {"none": ""})
    fitting = supported(found.by_member.values())
    spans = (("edgectl", fitting.edgectl), ("members", fitting.members), ("agents", fitting.agents))
    texts = [f"{name} {span}" for name, span in spans if span is not None]
    yield "supported:", ", ".join(texts) or _UNKNOWN


def _by_version(name: str, what: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """A line for each version, the name before the first."""
    width = max((len(version or _UNKNOWN) for version in what), default=0)
    for version, text in sorted(what.items(), key=lambda item: version_order(item[0])):
        yield name, f"{version or _UNKNOWN:<{width}}  {text}".rstrip()
        name = ""
