"""`edgectl agent`: releases of the agent, and upgrades of the fleet in waves (ADR 31)."""

import sys
import time
from typing import Any, NoReturn

from edgectl.durations import option_seconds
from edgectl.errors import CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.output import structured
from edgectl.plain import plain
from edgectl.progress import Progress
from edgectl.text import NONE, Table, age, clock, safe
from polder.v1 import operator_pb2

_LOOK_EVERY_S = 2.0
_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1
_FORMATS = ("", "json", "yaml")
_NODES = ("NODE", "SITE", "STANDING", "VERSION", "TOLD", "REASON")
_PAST = ("ID", "VERSION", "PHASE", "NODES", "DONE", "FAILED", "BEGAN")


# --- releases -------------------------------------------------------------------------------------


def upload(invocation: Invocation) -> int:
    from edgectl.uploading import read_files, upload_missing

    files = read_files(invocation.options.release, invocation.options.deb)
    with Progress() as progress:
        created = upload_missing(invocation.client, files, progress)
    version = safe(files.release.version)
    print(f"release {version} {'created' if created else 'is here'}", flush=True)
    lacking = files.not_given(invocation.client.releases())
    if lacking:
        text = ", ".join(lacking)
        print(
            f"warning: the package for {text} is not here: boxes of {text} cannot be upgraded "
            f"before edgectl agent upload {invocation.options.release} --deb FILE",
            file=sys.stderr,
        )
    print(f"Next: edgectl agent upgrade --version {version} --dry-run", file=sys.stderr)
    return 0


def releases(invocation: Invocation) -> int:
    _check_format(invocation)
    answer = invocation.client.releases()
    if invocation.options.output:
        sys.stdout.write(structured(invocation.options.output, _view(answer)))
        return 0
    now_ms = int(time.time() * 1000)
    counts = dict(answer.nodes_by_version)
    rows = [
        (
            release.version,
            ", ".join(_package(package) for package in release.packages),
            "yes" if release.downgrade else "no",
            counts.pop(release.version, 0),
            age(release.issued_at_ms, now_ms),
        )
        for release in answer.releases
    ]
    rows += [(version or "<unknown>", NONE, "", n, "") for version, n in sorted(counts.items())]
    if not rows:
        print("There are no releases, and no nodes.", file=sys.stderr)
        return 0
    for line in Table(("VERSION", "PACKAGES", "DOWNGRADE", "NODES", "AGE")).lines(rows):
        print(line)
    if any(counts):
        print(
            "A box can be upgraded when the version that it runs is here, too: its way back.",
            file=sys.stderr,
        )
    return 0


def delete(invocation: Invocation) -> int:
    print(safe(invocation.client.delete_release(invocation.options.version).message), flush=True)
    return 0


def _package(package: operator_pb2.ReleasePackage) -> str:
    return package.arch if package.complete else f"{package.arch} (not here)"


def _view(answer: operator_pb2.ReleasesResponse) -> dict[str, Any]:
    return {
        "releases": [plain(release) for release in answer.releases],
        "nodesByVersion": dict(answer.nodes_by_version),
        "memberVersion": answer.member_version,
    }


# --- upgrades -------------------------------------------------------------------------------------


def upgrade(invocation: Invocation) -> int:
    options = invocation.options
    begin = operator_pb2.BeginUpgrade(
        version=options.version,
        waves_permille=[permille(share, "--waves") for share in options.waves.split(",")],
        at_once_permille=permille(options.at_once, "--at-once"),
        soak_s=_whole(option_seconds(options.soak, "--soak")),
        failures_max=_whole(options.failures),
        sites=[name.removeprefix("site/") for name in options.site],
        nodes=[name.removeprefix("node/") for name in options.node],
    )
    if options.patience:
        begin.patience_s = _whole(option_seconds(options.patience, "--patience"))
    request = operator_pb2.UpgradeAgentsRequest(begin=begin, dry_run=options.dry_run)
    answer = invocation.client.upgrade_agents(request)
    for text in answer.warnings:
        print(f"warning: {safe(text)}", file=sys.stderr)
    state = answer.state
    left, waves = state.nodes - state.done, len(state.waves_permille)
    in_waves = f"in {waves} wave{'s' * (waves != 1)}"
    what = f"{left} of {state.nodes} nodes to {safe(state.version)}, {in_waves}"
    if options.dry_run:
        print(f"would upgrade {what}", flush=True)
        _show_nodes(state)
        return 0
    print(f"upgrade {state.id} begins: {what}", flush=True)
    print(
        "Boxes that do not come through go back by themselves, and containers run on. To watch, "
        f"stop or end it:\n  edgectl agent status -w\n  edgectl agent pause {state.id}\n"
        f"  edgectl agent abort {state.id}",
        file=sys.stderr,
    )
    return 0


def permille(text: str, option: str) -> int:
    """`10%` or `0.5%` in thousandths. Raises UsageError."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) * 10
    except ValueError:
        raise UsageError(f"{option}: {text!r} is no share", f"{option} 5%") from None
    if not 0 <= share <= 1000 or abs(share - round(share)) > 1e-6:
        raise UsageError(f"{option}: {text!r} is not 0% to 100%, in steps of 0.1%")
    return round(share)


def _whole(number: float) -> int:
    """As the request can carry it; what is more than that the server refuses with its limit."""
    return round(min(max(number, _INT32_MIN), _INT32_MAX))


def status(invocation: Invocation) -> int:
    options = invocation.options
    _check_format(invocation)
    if options.watch:
        if options.output:
            raise UsageError("-w shows progress; it has no -o")
        return _watch(invocation)
    known = invocation.client.agent_upgrades().upgrades
    chosen = [found for found in known if options.id in ("", found.id)]
    if options.output:
        sys.stdout.write(structured(options.output, {"upgrades": [plain(u) for u in chosen]}))
        return 0
    if not chosen:
        _none(options.id)
    _show(chosen[0])
    if len(chosen) > 1:
        now_ms = int(time.time() * 1000)
        print()
        for line in Table(_PAST).lines([_past(found, now_ms) for found in chosen[1:]]):
            print(line)
    return 0


def pause(invocation: Invocation) -> int:
    request = operator_pb2.UpgradeAgentsRequest(pause=invocation.options.id)
    return _steer(invocation, request, "paused", f"edgectl agent resume {invocation.options.id}")


def resume(invocation: Invocation) -> int:
    request = operator_pb2.UpgradeAgentsRequest(resume=invocation.options.id)
    return _steer(invocation, request, "goes on", "edgectl agent status -w")


def abort(invocation: Invocation) -> int:
    request = operator_pb2.UpgradeAgentsRequest(abort=invocation.options.id)
    return _steer(invocation, request, "aborted", "")


def _steer(
    invocation: Invocation, request: operator_pb2.UpgradeAgentsRequest, said: str, follows: str
) -> int:
    state = invocation.client.upgrade_agents(request).state
    print(f"upgrade {safe(state.id)} to {safe(state.version)} {said}: {_counts(state)}", flush=True)
    if follows:
        print(f"Next: {follows}", file=sys.stderr)
    return 0


def _watch(invocation: Invocation) -> int:
    """0 when it ended as it should, 1 when it paused, failed somewhere or was aborted."""
    wanted = invocation.options.id
    with Progress() as progress:
        while True:
            known = invocation.client.agent_upgrades().upgrades
            state = next((found for found in known if wanted in ("", found.id)), None)
            if state is None:
                _none(wanted)
            wanted = state.id
            line = f"{state.phase}, {_wave(state)}: {_counts(state)}"
            if state.phase == "Running" and state.reason != "Frozen":
                progress.show(line, key=line)
                time.sleep(_LOOK_EVERY_S)
                continue
            break
    _show(state)
    return 0 if state.phase == "Done" and not state.failed else 1


def _none(identifier: str) -> NoReturn:
    if identifier:
        raise CliError(f"there is no upgrade {identifier!r}", "edgectl agent status")
    raise CliError("there has been no upgrade", "edgectl agent upgrade --version VERSION")


def _show(state: operator_pb2.AgentUpgradeState) -> None:
    now_ms = int(time.time() * 1000)
    rows = [
        ("Upgrade", f"{state.id} to {state.version}"),
        ("Phase", state.phase + (f" ({state.reason})" if state.reason else "")),
        *([("Message", state.message)] if state.message else []),
        ("Began", f"{age(state.started_at_ms, now_ms)} ago by {state.by}"),
        *([("Ended", f"{age(state.ended_at_ms, now_ms)} ago")] if state.ended_at_ms else []),
        ("Wave", _wave(state)),
        ("Nodes", _counts(state)),
    ]
    for name, value in rows:
        print(safe(f"{name + ':':<10}{value}"))
    if state.phase == "Paused":
        print(f"Next: edgectl agent resume {state.id}, or edgectl agent abort {state.id}")
    _show_nodes(state)


def _show_nodes(state: operator_pb2.AgentUpgradeState) -> None:
    if not state.shown:
        return
    now_ms = int(time.time() * 1000)
    rows = [
        (
            node.node,
            node.site or NONE,
            node.phase,
            node.version or NONE,
            f"{age(node.at_ms, now_ms)} ago" if node.at_ms else NONE,
            ": ".join(part for part in (node.reason, node.message) if part),
        )
        for node in state.shown
    ]
    print()
    for line in Table(_NODES).lines(rows):
        print(line)


def _wave(state: operator_pb2.AgentUpgradeState) -> str:
    shares = ", ".join(f"{share / 10:g}%" for share in state.waves_permille)
    text = f"wave {min(state.wave + 1, len(state.waves_permille))} of {shares}"
    if state.phase == "Running" and state.wave_over_at_ms:
        now_ms = int(time.time() * 1000)
        text += f", soaks until {clock(state.wave_over_at_ms, now_ms)}"
    return text


def _counts(state: operator_pb2.AgentUpgradeState) -> str:
    return (
        f"{state.done} of {state.nodes} done, {state.under_way} under way, "
        f"{state.failed} failed, {state.waiting} waiting"
    )


def _past(state: operator_pb2.AgentUpgradeState, now_ms: int) -> tuple[object, ...]:
    began = f"{age(state.started_at_ms, now_ms)} ago"
    return state.id, state.version, state.phase, state.nodes, state.done, state.failed, began


def _check_format(invocation: Invocation) -> None:
    output = invocation.options.output
    if output not in _FORMATS:
        raise UsageError(f"-o {output!r} is not a format", "formats: json, yaml")
