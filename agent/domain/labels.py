"""What the agent writes on pods and containers so that it knows them again after its own restart.

Written by `compose.py`, read by `reconcile.py` for pods that it adopts. The runtime is the only
place where these facts live: nothing on the agent's disk says which pods exist.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from agent.runtime.port import PodState

PREFIX = "polder.eu/"
NAMESPACE = PREFIX + "namespace"
WORKLOAD = PREFIX + "workload"
WORKLOAD_UID = PREFIX + "workload-uid"
REPLICA = PREFIX + "replica"
REPLICA_UID = PREFIX + "replica-uid"
REVISION = PREFIX + "revision"
TEMPLATE_DIGEST = PREFIX + "template-digest"
EPOCH = PREFIX + "epoch"
TAKES_OVER = PREFIX + "takes-over"  # only where the site itself decided
RESTARTS = PREFIX + "restarts"  # on containers
INIT = PREFIX + "init"  # on containers: "1" on those that run before the others
DEVICES = PREFIX + "devices"  # annotation of containers: ids, comma-separated
STOP_DELAY = PREFIX + "stop-delay-ms"  # annotations of pods: how it wants to be stopped, for when
STOP_GRACE = PREFIX + "stop-grace-ms"  # no plan tells its template any more
CGROUP_PARENT = PREFIX + "cgroup-parent"  # annotation of pods that the dead-man's switch guards


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """Whose pod it is, as its labels say."""

    namespace: str
    workload: str
    workload_uid: str
    replica: str
    replica_uid: str
    revision: int
    epoch: int
    digest: str


def identity_of(pod: PodState) -> PodIdentity | None:
    """None for a pod that is not ours: it is left alone."""
    labels = pod.labels
    if not labels.get(REPLICA_UID):
        return None
    return PodIdentity(
        namespace=labels.get(NAMESPACE, pod.namespace),
        workload=labels.get(WORKLOAD, ""),
        workload_uid=labels.get(WORKLOAD_UID, ""),
        replica=labels.get(REPLICA, pod.name),
        replica_uid=labels[REPLICA_UID],
        revision=number(labels, REVISION),
        epoch=number(labels, EPOCH),
        digest=labels.get(TEMPLATE_DIGEST, ""),
    )


def number(labels: Mapping[str, str], key: str) -> int:
    """A label as a number; 0 when it is missing or was damaged by someone's hand."""
    text = labels.get(key, "")
    return int(text) if text.isascii() and text.isdigit() else 0
