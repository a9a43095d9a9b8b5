"""`edgectl drill region`: begins a drill, tells how it goes, and prints the report.

The drill does not need us: it goes on, and ends by itself, when the terminal is gone. When the
member that tells goes away, another one is asked for the rest.
"""

import sys
import time
from typing import Any

from edgectl.durations import option_seconds
from edgectl.errors import CallError, CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.output import structured
from edgectl.text import moment, safe
from polder.manifest.quantity import format_duration
from polder.v1 import operator_pb2

_AGAIN_EVERY_S = 1.0
_PATIENCE_S = 60.0
"""How long nobody may answer, or have a report after the end, before we give up watching."""
_TEMPORARY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL", "UNKNOWN")


def region(invocation: Invocation) -> int:
    options = invocation.options
    name = options.region.removeprefix("region/")
    if options.output not in ("", "json", "yaml"):
        raise UsageError(f"-o {options.output!r} is not a format", "formats: json, yaml")
    chosen = [bool(options.duration), options.end, options.follow]
    if sum(chosen) != 1:
        raise UsageError(
            "give one of --for TIME, --follow and --end", f"edgectl drill region {name} --for 2m"
        )
    if options.end:
        print(safe(f"region/{name}: {invocation.client.end_drill(name).message}"))
        return 0
    request = operator_pb2.DrillRequest(region=name, follow_only=options.follow)
    if options.duration:
        request.duration_ms = round(option_seconds(options.duration, "--for") * 1000)
        request.reason, request.dry_run = options.reason, options.dry_run
    report = _watch(invocation, request)
    if report is None:
        return 0  # a dry run
    return _show(report, options.output)


def _watch(
    invocation: Invocation, request: operator_pb2.DrillRequest
) -> operator_pb2.DrillReport | None:
    """Until there is a report; None after a dry run."""
    begun = False
    give_up_at = time.monotonic() + _PATIENCE_S
    while True:
        try:
            for response in invocation.client.drill(request):
                if response.HasField("report"):
                    return response.report
                begun = True
                give_up_at = time.monotonic() + _PATIENCE_S
                _tell(response.progress, dry_run=request.dry_run)
            if request.dry_run:
                return None
        except CallError as error:
            if not begun or error.code not in _TEMPORARY or time.monotonic() > give_up_at:
                raise
            print(f"warning: {safe(error.message)}; asking another member", file=sys.stderr)
        except KeyboardInterrupt:
            if begun:
                _say_goes_on(request.region)
            raise
        if time.monotonic() > give_up_at:
            raise CliError(
                "nobody tells how the drill went", f"edgectl drill region {request.region} --follow"
            )
        request = operator_pb2.DrillRequest(region=request.region, follow_only=True)
        time.sleep(_AGAIN_EVERY_S)


def _say_goes_on(name: str) -> None:
    print(
        f"The drill goes on and ends by itself; edgectl drill region {name} --follow watches it, "
        "--end ends it",
        file=sys.stderr,
    )


def _tell(progress: operator_pb2.DrillProgress, *, dry_run: bool) -> None:
    if dry_run:
        print(safe(progress.message))
        return
    parts = [progress.message] if progress.message else []
    if progress.nodes:
        parts.append(f"{progress.nodes_back} of {progress.nodes} nodes are connected elsewhere")
    if progress.left_ms:
        parts.append(f"{format_duration(round(progress.left_ms / 1000))} left")
    if parts:
        print(safe(f"{progress.elapsed_ms / 1000:6.1f}s  {'; '.join(parts)}"), file=sys.stderr)
        sys.stderr.flush()


# --- the report -----------------------------------------------------------------------------------


def failures(report: operator_pb2.DrillReport) -> list[str]:
    """What did not go as a region's loss should; none: nobody outside noticed."""
    if not report.measured_by:
        return ["no member saw the whole drill: nothing was measured"]
    found = []
    missing = report.nodes - report.nodes_back
    if missing:
        names = ", ".join(report.not_back[:5])
        more = f" and {missing - 5} more" if missing > 5 else ""
        found.append(f"{missing} nodes did not connect elsewhere: {names}{more}")
    if report.plan_changes:
        found.append(f"the leader changed {report.plan_changes} assignments")
    if report.restarts:
        found.append(f"containers of {report.restarts} replicas were restarted or stopped")
    if report.had_leader and report.leader_s < 0:
        found.append("no other member led")
    if report.write_s < 0:
        found.append("no write was accepted elsewhere")
    return found


def _show(report: operator_pb2.DrillReport, output: str) -> int:
    wrong = failures(report)
    if output:
        sys.stdout.write(structured(output, _view(report, wrong)))
    else:
        for name, value in _rows(report):
            print(safe(f"{name + ':':<22}{value}"))
    for text in wrong:
        print(f"failed: {safe(text)}", file=sys.stderr)
    return 1 if wrong else 0


def _rows(report: operator_pb2.DrillReport) -> list[tuple[str, str]]:
    now_ms = int(time.time() * 1000)
    early = ", ended early" if report.ended_early else ""
    leader = "was elsewhere"
    if report.had_leader:
        leader = f"{report.leader} led after {_seconds(report.leader_s)}"
        if report.leader_s < 0:
            leader = "was there, and no other member led"
    reconnect = "-"
    if report.nodes_back:
        reconnect = (
            f"p50 {_seconds(report.reconnect_p50_s)}, p99 {_seconds(report.reconnect_p99_s)}, "
            f"last {_seconds(report.reconnect_last_s)}"
        )
    return [
        ("Region", f"{report.region} ({', '.join(report.members)})"),
        ("Began", f"{moment(report.started_at_ms, now_ms)} by {report.started_by}"),
        *([("Reason", report.reason)] if report.reason else []),
        ("Silent for", f"{_seconds(report.duration_s)}{early}"),
        ("Known to be gone", _after(report.detected_s)),
        ("Leader", leader),
        ("Write elsewhere", _after(report.write_s)),
        ("Nodes back", f"{report.nodes_back} of {report.nodes}"),
        ("Reconnected", reconnect),
        ("Plan changes", str(report.plan_changes)),
        ("Restarted replicas", str(report.restarts)),
        ("Measured by", report.measured_by or "nobody"),
        ("Scope", "the orchestrators of the region, not its etcd"),
    ]


def _after(seconds: float) -> str:
    return f"after {_seconds(seconds)}" if seconds >= 0 else "not within the drill"


def _seconds(value: float) -> str:
    return f"{value:.1f}s" if value < 60 else format_duration(round(value))


def _view(report: operator_pb2.DrillReport, wrong: list[str]) -> dict[str, Any]:
    """Times in seconds; null: it did not happen."""

    def at(value: float) -> float | None:
        return round(value, 3) if value >= 0 else None

    return {
        "region": report.region,
        "startedAt": report.started_at_ms,
        "startedBy": report.started_by,
        "reason": report.reason,
        "durationS": round(report.duration_s, 3),
        "endedEarly": report.ended_early,
        "members": list(report.members),
        "detectedS": at(report.detected_s),
        "hadLeader": report.had_leader,
        "leader": report.leader,
        "leaderS": at(report.leader_s),
        "writeS": at(report.write_s),
        "nodes": report.nodes,
        "nodesBack": report.nodes_back,
        "notBack": list(report.not_back),
        "reconnectP50S": at(report.reconnect_p50_s),
        "reconnectP99S": at(report.reconnect_p99_s),
        "reconnectLastS": at(report.reconnect_last_s),
        "planChanges": report.plan_changes,
        "restarts": report.restarts,
        "measuredBy": report.measured_by,
        "passed": not wrong,
        "failures": wrong,
    }
