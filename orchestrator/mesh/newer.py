"""Which of two sessions of one node is newer: both members that hold one come to one answer. Pure.

`nodes_heard.py` asks when a member hears that another has a session with a node that it has one
with itself; the gateway when an agent connects whose node is known to be elsewhere. No clock
decides, and no order of arrival: who hears what first differs between members.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionName:
    """What is said of a session everywhere.

    `instance_id` is the agent process's and `number` counts its sessions, from 1 (0: not told).
    `session_id` was drawn by the member; `supersedes` is the session that the member knew the node
    to have when it opened this one.
    """

    instance_id: str
    number: int
    session_id: str
    supersedes: str = ""


def is_newer(one: SessionName, other: SessionName) -> bool:
    """Whether `one` stays and `other` is closed; of two different sessions exactly one is newer.

    An agent counts its own sessions. Of two agents with one identity the one stays whose member
    knew of the other's session; where neither knew, drawing lots by `session_id` is as good as
    anything.
    """
    if one.instance_id == other.instance_id and one.number != other.number:
        return one.number > other.number
    knew, known = one.supersedes == other.session_id, other.supersedes == one.session_id
    if knew != known:
        return knew
    return one.session_id > other.session_id
