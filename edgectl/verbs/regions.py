"""`edgectl get regions`, `get members`, `describe region/NAME` and `delete member/NAME`.

Regions and members are no resources: nobody applies them. `get`, `describe` and `delete` hand over
to here when `of` finds that one is meant.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from edgectl import region_tables as tables
from edgectl.errors import CallError, CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.output import structured
from edgectl.text import Table, safe
from polder.manifest import API_VERSION
from polder.v1 import common_pb2, operator_pb2

_WORDS = {"region": "region", "regions": "region", "member": "member", "members": "member"}
_FORMATS = ("", "wide", "json", "yaml", "name")
_EVENTS_MAX = 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """`kind` is `region` or `member`; no names: all."""

    kind: str
    names: tuple[str, ...] = ()


def of(words: Sequence[str]) -> Wanted | None:
    """None: something else is meant. Raises UsageError when both are."""
    if not words:
        return None
    kinds = {_WORDS.get(word.partition("/")[0].lower()) for word in words}
    if "/" in words[0]:
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is not None and all(word.partition("/")[2] for word in words):
            return Wanted(kind, tuple(word.partition("/")[2] for word in words))
        if kind is not None or kinds & set(_WORDS.values()):
            raise UsageError(
                "regions and members are shown alone: region/NAME... or member/NAME..."
            )
        return None
    first = words[0].lower()
    if first in _WORDS:
        return Wanted(_WORDS[first], tuple(words[1:]))
    if _WORDS.keys() & set(first.split(",")):
        raise UsageError("regions and members are shown alone: edgectl get regions")
    return None


def get(invocation: Invocation, wanted: Wanted) -> int:
    options = invocation.options
    if options.output not in _FORMATS:
        raise UsageError(
            f"-o {options.output!r} is not a format", "formats: wide, json, yaml, name"
        )
    if options.selector:
        raise UsageError(f"{wanted.kind}s have no labels")
    if options.watch:
        raise UsageError(
            f"{wanted.kind}s cannot be watched", f"try: watch -n 2 edgectl get {wanted.kind}s"
        )
    answer = invocation.client.regions()
    regions, members = _chosen(answer, wanted)
    if options.output in ("json", "yaml"):
        sys.stdout.write(structured(options.output, _document(answer, wanted, regions, members)))
        return 0
    if options.output == "name":
        for found in regions if wanted.kind == "region" else members:
            print(f"{wanted.kind}/{safe(found.name)}")
        return 0
    _print_tables(invocation, answer, wanted, regions, members)
    for text in tables.warnings(answer):
        print(f"warning: {safe(text)}", file=sys.stderr)
    return 0


def describe(invocation: Invocation, wanted: Wanted) -> int:
    answer = invocation.client.regions()
    regions, members = _chosen(answer, wanted)
    if wanted.kind == "member":
        names = {member.region for member in members}
        regions = [region for region in regions if region.name in names]
    for number, region in enumerate(regions):
        if number:
            print()
        for line in tables.describe_region(region, answer):
            print(safe(line))
        for line in _events(invocation, region, answer.now_ms):
            print(line)
    return 0


def delete(invocation: Invocation, wanted: Wanted) -> int:
    """Of members, their records; the server refuses while one is present."""
    options = invocation.options
    if wanted.kind != "member" or not wanted.names:
        raise UsageError("name the member, as in member/eu-central-1")
    for name in wanted.names:
        if options.dry_run:
            known = _members(invocation.client.regions())
            if not any(member.name == name for member in known):
                raise CliError(f"no member {name}")
            if any(member.name == name and member.present for member in known):
                raise CliError(f"member {name} is present", "stop its process first")
            print(f"member/{safe(name)} deleted (dry run)")
            continue
        try:
            answer = invocation.client.forget_member(name)
        except CallError as error:
            if error.code == "NOT_FOUND" and options.ignore_not_found:
                print(f"member/{safe(name)} not found")
                continue
            raise
        print(f"member/{safe(name)} deleted: {safe(answer.message)}")
    return 0


def _members(answer: operator_pb2.RegionsResponse) -> list[operator_pb2.MemberInfo]:
    return [member for region in answer.regions for member in region.members]


def _chosen(
    answer: operator_pb2.RegionsResponse, wanted: Wanted
) -> tuple[list[operator_pb2.RegionInfo], list[operator_pb2.MemberInfo]]:
    """Raises CliError for a name that nothing has."""
    regions, members = list(answer.regions), _members(answer)
    known = {found.name for found in (regions if wanted.kind == "region" else members)}
    for name in wanted.names:
        if name not in known:
            hint = f"there are: {', '.join(sorted(known))}" if known else ""
            raise CliError(f"there is no {wanted.kind} {name!r}", *([hint] if hint else []))
    if not wanted.names:
        return regions, members
    if wanted.kind == "region":
        return [r for r in regions if r.name in wanted.names], members
    return regions, [m for m in members if m.name in wanted.names]


def _document(
    answer: operator_pb2.RegionsResponse,
    wanted: Wanted,
    regions: list[operator_pb2.RegionInfo],
    members: list[operator_pb2.MemberInfo],
) -> dict[str, object]:
    items = [tables.region_view(region) for region in regions]
    if wanted.kind == "member":
        items = [tables.member_view(member) for member in members]
    document: dict[str, object] = {
        "apiVersion": API_VERSION,
        "kind": f"{wanted.kind.title()}List",
        "items": items,
        "toldBy": answer.member,
        "nowAt": answer.now_ms,
        "store": tables.store_view(answer),
    }
    return {**document, "leader": answer.leader} if answer.leader else document


def _print_tables(
    invocation: Invocation,
    answer: operator_pb2.RegionsResponse,
    wanted: Wanted,
    regions: list[operator_pb2.RegionInfo],
    members: list[operator_pb2.MemberInfo],
) -> None:
    options = invocation.options
    wide = options.output == "wide"
    if wanted.kind == "region":
        headers = (*tables.REGION_HEADERS, *tables.REGION_WIDE * wide)
        rows = [tables.region_row(region, answer, wide=wide) for region in regions]
    else:
        headers = (*tables.MEMBER_HEADERS, *tables.MEMBER_WIDE * wide)
        rows = [tables.member_row(member, answer, wide=wide) for member in members]
    if not rows:
        print(f"No {wanted.kind}s.", file=sys.stderr)
        return
    for line in Table(headers, show_headers=not options.no_headers).lines(rows):
        print(line)
    if wide and wanted.kind == "region" and answer.store:
        print()
        rows = [tables.store_row(one) for one in answer.store]
        for line in Table(tables.STORE_HEADERS, show_headers=not options.no_headers).lines(rows):
            print(line)


def _events(invocation: Invocation, region: tables.Region, now_ms: int) -> list[str]:
    """Its own and those of its members."""
    from edgectl.verbs.events import lines_of

    refs = [common_pb2.ResourceRef(kind="Region", name=region.name)]
    refs += [common_pb2.ResourceRef(kind="Member", name=one.name) for one in region.members]
    events: list[common_pb2.Event] = []
    try:
        for ref in refs:
            request = operator_pb2.EventsRequest(object=ref, limit=_EVENTS_MAX)
            for response in invocation.client.events(request):
                events.extend(response.events)
    except CallError as error:
        return [f"Events: not available: {error.message}"]
    if not events:
        return ["Events: none"]
    events.sort(key=lambda event: event.last_at_ms)
    return ["Events:", *(f"  {line}" for line in lines_of(events[-_EVENTS_MAX:], now_ms))]
