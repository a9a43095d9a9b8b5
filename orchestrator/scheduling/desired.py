"""Which replicas a workload should have, by name, and what a stay of one is called.

Names are unique within a workload whatever its nodes and sites are called: the second replica of a
node has `--` before its number, and no node's or site's name begins with a dash.
"""

from collections.abc import Iterable, Iterator
from hashlib import blake2b

from orchestrator.scheduling.snapshot import Mode, Workload


def index_names(workload: Workload) -> Iterator[str]:
    """`hello-0`, `hello-1`, ... of `replicas: N`."""
    indexes = range(workload.count) if workload.indexes is None else workload.indexes
    return (f"{workload.name}-{index}" for index in indexes)


def place_names(workload: Workload, places: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(replica, place) for `perSite` and `perNode`: `hello-<place>`, then `hello--1-<place>`."""
    for place in places:
        for number in range(workload.count):
            tail = f"-{place}" if number == 0 else f"--{number}-{place}"
            yield workload.name + tail, place


def is_indexed(workload: Workload, replica: str) -> bool:
    """Whether `index_names` contains it, without building them all."""
    prefix, _, index = replica.rpartition("-")
    if workload.mode is not Mode.REPLICAS or prefix != workload.name or not index.isdecimal():
        return False
    if str(int(index)) != index:
        return False
    if workload.indexes is not None:
        return int(index) in workload.indexes
    return int(index) < workload.count


def replica_uid(workload_uid: str, replica: str, epoch: int) -> str:
    """Names one stay of a replica on one node: derived, so that a repeated plan says the same."""
    text = f"{workload_uid}\0{replica}\0{epoch}".encode()
    return blake2b(text, digest_size=16).hexdigest()
