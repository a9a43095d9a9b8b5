"""Epochs after a Store was restored from a backup: above all that was decided since. Pure.

What the leader decides is numbered by the Store's revision (`polder/epochs.py`), and so are the
groups that vote on exclusive replicas. A restored Store counts revisions a second time that agents
already know numbers of: two holders would have one epoch, or two groups one number, and what a site
adopted would count as newer than what is decided after it. `leader_epochs.py` asks in each tick by
how much the count must be raised; nothing is ever lowered.
"""

from polder import epochs

LEAP = 1_000_000
"""Revisions that are passed over beyond the highest that is known: nodes that are away, or voters
of a group that no running replica tells of, may know later ones."""
LEAD_MAX = 1_000_000_000
"""Revisions. An agent that claims to be further ahead of the Store is broken: following it would
run out of numbers."""


def is_credible(epoch: int, counted: int) -> bool:
    """Whether a Store that counts to `counted` now can have given that epoch before."""
    return epochs.revision_of(epoch) - counted <= LEAD_MAX


def to_raise(counted: int, placed: int, heard: int, *, ahead: bool, leapt: bool) -> int:
    """By how many revisions.

    `counted`: what epochs are decided at now. `placed`, `heard`: the highest epochs in the Store's
    own records, and of what agents say that they run. `ahead`: a node uses a plan that the Store
    has never made; `leapt`: this process has raised the count for that before.
    """
    above_records = max(counted, epochs.revision_of(placed) + 1)
    highest = epochs.revision_of(heard)
    if highest >= above_records:
        above_records = highest + LEAP
    elif ahead and not leapt:
        above_records += LEAP
    return above_records - counted
