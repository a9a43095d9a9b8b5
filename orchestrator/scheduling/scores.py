"""Which of the nodes that fit is best: a vector over the table, higher is better.

    score = balance - replicas of the workload on the node - their density at the site
            - SPREAD_WEIGHT * replicas in the node's spread domain

`balance` is the share of cpu and memory that stays free ("least allocated", as in kube-scheduler's
NodeResourcesFit), from 0 to 1, so that spreading over nodes counts before evening out load, and a
spread that was asked for counts before all.
"""

import numpy as np
import numpy.typing as npt

from orchestrator.scheduling.snapshot import Template
from orchestrator.scheduling.table import CPU, MEMORY, Ints, Mask, NodeTable

Scores = npt.NDArray[np.float64]
SPREAD_WEIGHT = 1000.0
_TOLERANCE = 1e-9
LOAD_WEIGHT = 1e-4
"""A neighbour counts a little even when it asked for nothing, so that such replicas spread too."""


def balance(table: NodeTable, template: Template, rows: slice | int | Ints = slice(None)) -> Scores:
    """Mean free share of cpu and memory after the template would be placed. Disk does not slow
    neighbours down."""
    cpu, memory = table.free[CPU, rows], table.free[MEMORY, rows]
    share: Scores = (cpu - template.request.cpu_millis) * table.share_of_one[CPU, rows]
    share = share + (memory - template.request.memory_bytes) * table.share_of_one[MEMORY, rows]
    return share - LOAD_WEIGHT * table.load[rows]


def density(codes: Ints, counts: Ints) -> Scores:
    """Replicas per node of each row's domain; rows without a domain count as empty."""
    known = codes >= 0
    sizes = np.bincount(codes[known], minlength=len(counts))
    per_domain = counts / np.maximum(sizes, 1)
    return np.where(known, per_domain[codes], 0.0) if len(counts) else np.zeros(len(codes))


def best(scores: Scores, allowed: Mask, ties: npt.NDArray[np.uint64]) -> int | None:
    """The allowed row with the highest score; among equals the one with the highest tie number."""
    if not allowed.any():
        return None
    masked = np.where(allowed, scores, -np.inf)
    equals = np.flatnonzero(masked >= masked.max() - _TOLERANCE)
    return int(equals[np.argmax(ties[equals])])
