"""A rollout in words: one line of how far it is, and how it ended. Pure. Called by verbs/rollout.

What the phases mean is in docs/operating.md; a phase of a newer server is shown as it is called.
"""

import re
from collections.abc import Sequence

from edgectl.text import age, moment
from polder.manifest.quantity import format_duration
from polder.v1 import operator_pb2

_SITES_SHOWN = 3
AVAILABLE_PHASES = ("Proving", "Proven")
"""All replicas run the newest revision and are available."""
_COUNTED = re.compile(r"\b\d+ ([A-Z]\w+)\b")  # the reasons in "... for 10m: 2 ImagePull"
BACK_PHASES = ("RollingBack", "RolledBack")


def line(status: operator_pb2.RolloutStatus) -> str:
    """Such as `revision 5 soaking (canary: nl-utr-1): 1 of 6 updated, 6 available, 24s left`."""
    text = f"revision {_subject(status)}{_wave(status)}: {counts(status)}"
    if status.seconds_left > 0:
        text += f", {format_duration(status.seconds_left)} left"
    return f"{text}; {status.message}" if status.message else text


def counts(status: operator_pb2.RolloutStatus) -> str:
    text = f"{status.replicas_updated} of {status.replicas_wanted} updated"
    if status.replicas_updating:
        text += f" ({status.replicas_updating} not ready)"
    return f"{text}, {status.replicas_available} available"


def news(status: operator_pb2.RolloutStatus) -> tuple[object, ...]:
    """What makes another line of it: not the seconds that are left, nor words that have them."""
    return (
        status.phase,
        status.wave,
        tuple(status.sites),
        status.newest_revision,
        status.target_revision,
        status.replicas_wanted,
        status.replicas_updated,
        status.replicas_updating,
        status.replicas_available,
        status.paused,
    )


def ended(status: operator_pb2.RolloutStatus, until: str) -> bool:
    """Whether there is nothing more to wait for."""
    if status.settled or status.paused:
        return True
    return until == "available" and status.phase in AVAILABLE_PHASES


def succeeded(status: operator_pb2.RolloutStatus, until: str) -> bool:
    if status.succeeded:
        return True
    return until == "available" and status.phase in AVAILABLE_PHASES


def success(status: operator_pb2.RolloutStatus) -> str:
    wanted = status.replicas_wanted
    if not wanted:
        return f"no replicas are asked for; the next ones run revision {status.target_revision}"
    text = f"revision {status.newest_revision} runs on {status.replicas_updated} of {wanted}"
    text += " replica" if wanted == 1 else " replicas"
    if status.replicas_available < wanted:
        text += f", of which {status.replicas_available} are known to be ready"
    if status.phase == "Proving":
        left = format_duration(status.seconds_left)
        return f"{text}; it counts as proven in {left}, if nothing fails until then"
    return f"{text} and is proven" if status.phase == "Proven" else text


def failure(label: str, status: operator_pb2.RolloutStatus) -> tuple[str, list[str]]:
    """Why it did not end as asked, and what to do next. `label`: as commands are to name it."""
    newest, why = status.newest_revision, status.message
    if status.paused:
        resume = f"edgectl rollout resume {label} goes on"
        undo = f"edgectl rollout undo {label} returns to an earlier revision"
        return f"the rollout of revision {newest} is paused: {counts(status)}", [resume, undo]
    hints = [f"edgectl describe {label} tells what happened, in order", *_logs(label, status)]
    if status.phase in BACK_PHASES:
        text = f"revision {newest} failed and was rolled back to revision {status.target_revision}"
        hints.append("fix the template and apply it: this revision is not tried again")
    else:
        text = f"revision {newest} failed"
        hints.append("its replicas go on trying: apply a better template, or what this one lacks")
        if newest > 1:
            hints.append(f"edgectl rollout undo {label} returns to an earlier revision")
    return f"{text}: {why}" if why else text, hints


def _logs(label: str, status: operator_pb2.RolloutStatus) -> list[str]:
    """Where there is something to read: not of pods that a way back has replaced, nor of containers
    that never came to be for want of an image."""
    reasons = _COUNTED.findall(status.message)
    never_ran = bool(reasons) and all(reason.startswith("Image") for reason in reasons)
    if never_ran or status.phase in BACK_PHASES:
        return []
    previous = " --previous" if "crash" in status.message.lower() else ""
    return [f"edgectl logs {label}{previous} --all-replicas shows the last words of its containers"]


def _subject(status: operator_pb2.RolloutStatus) -> str:
    newest, target = status.newest_revision, status.target_revision
    if status.phase in BACK_PHASES:
        word = "rolling back" if status.phase == "RollingBack" else "rolled back"
        return f"{newest} {word} to revision {target}"
    return f"{newest} {_words(status.phase)}"


def _words(phase: str) -> str:
    """`RollingBack` as `rolling back`."""
    spaced = "".join(f" {c.lower()}" if c.isupper() else c for c in phase)
    return spaced.strip() or "unknown"


def _wave(status: operator_pb2.RolloutStatus) -> str:
    if not status.wave or status.phase in (*BACK_PHASES, *AVAILABLE_PHASES, "Failed"):
        return ""
    shown = list(status.sites[:_SITES_SHOWN])
    more = len(status.sites) - len(shown)
    where = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    return f" ({status.wave}: {where})" if where else ""


# --- history ----------------------------------------------------------------------------------


def history_headers(*, wide: bool) -> list[str]:
    extra = ["REPLICAS", "DIGEST"] if wide else []
    return ["REVISION", "STATE", "AGE", "BY", *extra, "IMAGES", "CAUSE"]


def history_row(info: operator_pb2.RevisionInfo, now_ms: int, *, wide: bool) -> list[str]:
    extra = [str(info.replicas), info.template_digest[:12] or "<none>"] if wide else []
    return [
        str(info.number),
        info.state or "<unknown>",
        age(info.created_at_ms, now_ms),
        info.created_by or "<unknown>",
        *extra,
        ",".join(info.images) or "<none>",
        info.cause or "<none>",
    ]


def revision_heading(info: operator_pb2.RevisionInfo, now_ms: int) -> list[str]:
    """Comment lines above a template."""
    by = f" by {info.created_by}" if info.created_by else ""
    lines = [f"revision {info.number}: {info.state}, made {moment(info.created_at_ms, now_ms)}{by}"]
    if info.cause:
        lines.append(f"because: {info.cause}")
    if info.replicas:
        lines.append(f"{info.replicas} replica{'s' if info.replicas > 1 else ''} run it now")
    return lines


def find(
    revisions: Sequence[operator_pb2.RevisionInfo], number: int
) -> operator_pb2.RevisionInfo | None:
    return next((info for info in revisions if info.number == number), None)
