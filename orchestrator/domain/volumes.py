"""Local volumes as records: which node has the data of which replica. Pure; the leader writes them.

A record is made when a replica with local volumes gets a node, in the transaction that places it.
It stays when the replica or its workload goes, as the data does, and ties the next replica of that
name to the node. Deleting the record, or the node, releases it.
"""

from collections.abc import Iterable
from hashlib import blake2b

from orchestrator.records import StoredResource
from orchestrator.scheduling.decisions import Bind, Unbind

LEADER = "leader"


def volume_records(bind: Bind, revision: int, now_ms: int) -> list[StoredResource]:
    """One record per volume, named `<replica>-<volume>`. `revision`: the Store's at the decision,
    so that a volume that was released and bound again is another one."""
    return [
        StoredResource(
            kind="Volume",
            namespace=bind.namespace,
            name=f"{bind.replica}-{volume}",
            uid=_uid(bind, volume, revision),
            spec={"replica": bind.replica, "volume": volume, "node": bind.node},
            created_at_ms=now_ms,
            changed_by=LEADER,
            changed_at_ms=now_ms,
        )
        for volume in bind.volumes
    ]


def released(unbind: Unbind, records: Iterable[StoredResource]) -> list[StoredResource]:
    """Of these Volume records, those of the replica that name the node which is gone."""
    return [
        record
        for record in records
        if record.namespace == unbind.namespace
        and record.spec.get("replica") == unbind.replica
        and record.spec.get("node") == unbind.node
    ]


def _uid(bind: Bind, volume: str, revision: int) -> str:
    text = f"{bind.namespace}\0{bind.replica}\0{volume}\0{bind.node}\0{revision}"
    return blake2b(text.encode(), digest_size=16).hexdigest()
