"""An entry of a node's journal of local operators in the words of an event. Pure.

edgectl shows it at the site, and the orchestrator when it was uploaded: both say the same.
"""

from typing import NamedTuple

from polder.v1 import agent_pb2

ENTER = "enter"
_DONE = {
    ENTER: "entered",
    "exec": "ran",
    "logs": "read its logs",
    "stop": "stopped it",
    "start": "lets it run again",
    "restart": "restarted it",
    "move": "moved it to",
    "freeze": "froze the site",
    "unfreeze": "let the site go on",
}


class JournalWords(NamedTuple):
    """`reason` is CamelCase. `warning`: somebody should look at it."""

    reason: str
    message: str
    warning: bool


def words(entry: agent_pb2.JournalEntry) -> JournalWords:
    """What was done, or refused; the use of a break-glass token with what it was issued for."""
    verb = entry.verb or "call"
    if entry.refused:
        told = " ".join(word for word in (verb, entry.detail) if word)
        message = f"refused: {told}: {entry.refused}"
    else:
        message = " ".join(word for word in (_DONE.get(verb, verb), entry.detail) if word)
    if entry.reason:
        message += f", because: {entry.reason}"
    if entry.purpose:
        message += f" (break-glass token, issued for: {entry.purpose})"
    suffix = "Refused" if entry.refused else ""
    reason = f"Local{verb[:1].upper()}{verb[1:]}{suffix}"
    return JournalWords(reason, message, bool(entry.refused or entry.purpose))
