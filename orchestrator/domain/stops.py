"""When a replica that was to stop is gone: the rule behind pruning a placement's stops."""

from collections.abc import Collection

from orchestrator.records import NodePlacement, StopRecord

SETTLED_AFTER_S = 60.0


def is_gone(
    stop: StopRecord,
    placement: NodePlacement,
    *,
    said_gone: Collection[str],
    reported: Collection[str],
    complete: bool,
    acked_generation: int,
    now: float,
) -> bool:
    """The agent said so; or it has had the order for a minute and reports no such replica.

    The second covers a word that was lost in a crash on either side. `reported` are the replica
    uids that the agent reports, `complete` whether that is everything on the node.
    """
    if stop.replica_uid in said_gone:
        return True
    return (
        complete
        and acked_generation >= placement.generation
        and stop.replica_uid not in reported
        and now - stop.requested_at_ms / 1000 >= SETTLED_AFTER_S
    )
