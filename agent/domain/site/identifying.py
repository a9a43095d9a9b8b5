"""The uid of a stay that a site decided on. Used by `takeover.py` and for leases."""

import hashlib

from agent.domain.roster import Key


def stay_uid(key: Key, node: str, epoch: int) -> str:
    """The same for the same stay, whoever works it out; one for each epoch and node."""
    text = "\0".join((*key, node, str(epoch)))
    return "s" + hashlib.sha256(text.encode()).hexdigest()[:20]
