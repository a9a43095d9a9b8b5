"""From the state machine's values to the protobuf messages of a session.

Called by `agent/supervisor.py`, and only for what changed: building messages is what costs.
"""

from agent.domain.instructions import Emit
from agent.domain.view import ContainerView, Exit, Phase, ReplicaView
from polder.v1 import agent_pb2, common_pb2

MAX_EVENT_MESSAGE = 1024

_PHASES = {
    Phase.PENDING: agent_pb2.REPLICA_PHASE_PENDING,
    Phase.RUNNING: agent_pb2.REPLICA_PHASE_RUNNING,
    Phase.STOPPING: agent_pb2.REPLICA_PHASE_STOPPING,
    Phase.STOPPED: agent_pb2.REPLICA_PHASE_STOPPED,
    Phase.ORPHANED: agent_pb2.REPLICA_PHASE_ORPHANED,
    Phase.SUCCEEDED: agent_pb2.REPLICA_PHASE_SUCCEEDED,
    Phase.FAILED: agent_pb2.REPLICA_PHASE_FAILED,
}


def ms(seconds: float) -> int:
    return int(seconds * 1000)


def replica_status(view: ReplicaView, observed_at: float, steady: float) -> agent_pb2.ReplicaStatus:
    """`observed_at` in unix seconds, by the box's own clock; `steady` at the same moment."""
    ready_for_s = steady - view.ready_since
    return agent_pb2.ReplicaStatus(
        namespace=view.namespace,
        workload=view.workload,
        workload_uid=view.workload_uid,
        replica=view.replica,
        replica_uid=view.uid,
        phase=_PHASES[view.phase],
        ready=view.ready,
        reason=view.reason,
        message=view.message,
        revision=view.revision,
        epoch=view.epoch,
        restarts=view.restarts,
        pod_ip=view.pod_ip,
        started_at_ms=ms(view.started_at),
        containers=[_container(c) for c in view.containers],
        observed_at_ms=ms(observed_at),
        template_digest=view.digest,
        ready_since_ms=ms(observed_at - ready_for_s) if view.ready else 0,
        takes_over=view.takes_over,
    )


def _container(view: ContainerView) -> agent_pb2.ContainerStatus:
    return agent_pb2.ContainerStatus(
        name=view.name,
        id=view.id,
        state=view.state,
        ready=view.ready,
        restarts=view.restarts,
        reason=view.reason,
        message=view.message,
        started_at_ms=ms(view.started_at),
        finished_at_ms=ms(view.finished_at),
        exit_code=view.exit_code,
        last_exit=_exit(view.last_exit) if view.last_exit is not None else None,
        image=view.image,
    )


def _exit(end: Exit) -> agent_pb2.ContainerExit:
    return agent_pb2.ContainerExit(
        exit_code=end.exit_code,
        reason=end.reason,
        message=end.message,
        started_at_ms=ms(end.started_at),
        finished_at_ms=ms(end.finished_at),
        last_log=end.last_log,
    )


def event(emit: Emit, node: str, at: float) -> common_pb2.Event:
    """`at` in unix seconds. The object is the Replica."""
    return common_pb2.Event(
        object=common_pb2.ResourceRef(kind="Replica", namespace=emit.namespace, name=emit.replica),
        type=common_pb2.EVENT_TYPE_WARNING if emit.warning else common_pb2.EVENT_TYPE_NORMAL,
        reason=emit.reason,
        message=emit.message[:MAX_EVENT_MESSAGE],
        source=f"agent/{node}",
        first_at_ms=ms(at),
        last_at_ms=ms(at),
        count=1,
    )


def node_event(
    node: str, reason: str, message: str, at: float, *, warning: bool = True
) -> common_pb2.Event:
    """About the node itself: a refused plan, a disk that fills up."""
    return common_pb2.Event(
        object=common_pb2.ResourceRef(kind="Node", name=node),
        type=common_pb2.EVENT_TYPE_WARNING if warning else common_pb2.EVENT_TYPE_NORMAL,
        reason=reason,
        message=message[:MAX_EVENT_MESSAGE],
        source=f"agent/{node}",
        first_at_ms=ms(at),
        last_at_ms=ms(at),
        count=1,
    )
