"""Where in the cgroup tree an exclusive replica lives: known before it starts, and all of it below.

Pure. `compose.py` asks the runtime for this parent; `agent/site/switch_client.py` tells the
dead-man's switch which directories that makes. A parent of its own means that the switch need not
know what the runtime calls its containers, nor hear of one that starts late.

    cgroup_parent of the node    parent of the replica         directory below the hierarchy
    "" (cgroupfs)                /polder/TOKEN                 polder/TOKEN
    /edge (cgroupfs)             /edge/TOKEN                   edge/TOKEN
    polder.slice (systemd)       polder-TOKEN.slice            polder.slice/polder-TOKEN.slice
"""

import re
from hashlib import sha256

DEFAULT_PARENT = "/polder"
SLICE = ".slice"
_PLAIN = re.compile(r"[a-z0-9]{1,64}")


def own_parent(base: str, uid: str) -> str:
    """For the runtime. `base` is the node's setting, which says whose driver it is by its form."""
    token = uid if _PLAIN.fullmatch(uid) else sha256(uid.encode()).hexdigest()[:32]
    if base.endswith(SLICE):
        return f"{base.rpartition('/')[2].removesuffix(SLICE)}-{token}{SLICE}"
    return f"/{(base or DEFAULT_PARENT).strip('/')}/{token}"


def directory(parent: str) -> str:
    """Below each hierarchy's root. Of a slice as systemd.slice(5) nests it: `a-b` is in `a`."""
    if not parent.endswith(SLICE):
        return parent.strip("/")
    words = parent.removesuffix(SLICE).split("-")
    return "/".join("-".join(words[: n + 1]) + SLICE for n in range(len(words)))
