"""The fencing numbers of who holds a replica: what orchestrators and the nodes of a site count by.

An orchestrator decides at a revision of its Store; a site without one counts on from the last that
it knows. Each revision has room for 65,535 takeovers below the next one, so that what an
orchestrator decides later is newer than all that a site did before, and nobody has to ask.
"""

LOCAL_BITS = 16
LOCAL_MAX = (1 << LOCAL_BITS) - 1


class EpochsUsedUp(Exception):
    """A site counted through all that it had: an orchestrator has to decide."""


def decided_at(revision: int) -> int:
    """The epoch of a holder that the orchestrator chose at a revision of the Store."""
    return revision << LOCAL_BITS


def revision_of(epoch: int) -> int:
    """Of the Store, at which it was decided, or from which a site counted on."""
    return epoch >> LOCAL_BITS


def after(*epochs: int) -> int:
    """The next one that a site may use, above all of these. Raises EpochsUsedUp."""
    last = max(epochs)
    if last & LOCAL_MAX == LOCAL_MAX:
        raise EpochsUsedUp(f"no epoch is left after {shown(last)}")
    return last + 1


def is_local(epoch: int) -> bool:
    """Whether a site counted it, and no orchestrator decided it."""
    return epoch & LOCAL_MAX > 0


def shown(epoch: int) -> str:
    """For people: the revision, and how many takeovers the site counted since.

    One of before there were takeovers is the revision itself."""
    if epoch <= LOCAL_MAX:
        return str(epoch)
    local = epoch & LOCAL_MAX
    return f"{epoch >> LOCAL_BITS}+{local}" if local else f"{epoch >> LOCAL_BITS}"
