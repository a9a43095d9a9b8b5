"""Plans for tests of the agent: short to write, complete as an orchestrator would send them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agent.domain.plan import Accepted, ParsedPlan, consider
from polder.identity import NodeId
from polder.v1 import plan_pb2

# Keys of the pod rather than of its container.
POD_KEYS = ("stopGrace", "stopDelay", "imagePullSecrets", "initContainers", "volumes")
IDENTITY = NodeId("polder.test", "nl-utr-1", "box-1")


def template(image: str = "app:1", **container: Any) -> dict[str, Any]:
    pod = {key: container.pop(key) for key in POD_KEYS if key in container}
    return {"containers": [{"name": "app", "image": image, **container}], **pod}


def assignment(
    uid: str,
    pod: Mapping[str, Any] | bytes | None = None,
    *,
    replica: str = "",
    revision: int = 1,
    epoch: int = 1,
    namespace: str = "default",
    replaces: str = "",
    run_once: bool = False,
    group: plan_pb2.FailoverGroup | None = None,
) -> plan_pb2.Assignment:
    name = replica or f"{uid}-0"
    raw = pod if isinstance(pod, bytes) else json.dumps(pod or template()).encode()
    return plan_pb2.Assignment(
        namespace=namespace,
        workload=name.rpartition("-")[0],
        workload_uid="w-" + name.rpartition("-")[0],
        replica=name,
        replica_uid=uid,
        epoch=epoch,
        revision=revision,
        template_json=raw,
        replaces=replaces,
        run_once=run_once,
        group=group,
    )


def stop(uid: str, cause: str = "ScaledDown", replica: str = "") -> plan_pb2.Stop:
    return plan_pb2.Stop(
        namespace="default", replica=replica or f"{uid}-0", replica_uid=uid, cause=cause
    )


def node_plan(
    generation: int,
    assignments: Sequence[plan_pb2.Assignment] = (),
    stops: Sequence[plan_pb2.Stop] = (),
    secrets: Sequence[plan_pb2.SecretData] = (),
    configs: Sequence[plan_pb2.ConfigData] = (),
    facts: Mapping[str, str] | None = None,
    **changes: Any,
) -> plan_pb2.NodePlan:
    message = plan_pb2.NodePlan(
        node=IDENTITY.node,
        site=IDENTITY.site,
        trust_domain=IDENTITY.trust_domain,
        generation=generation,
        issued_at_ms=1_700_000_000_000 + generation,
        assignments=assignments,
        stops=stops,
        assignment_count=len(assignments),
        stop_count=len(stops),
        secrets=secrets,
        configs=configs,
        facts=facts or {},
        endpoints=["127.0.0.1:7443"],
    )
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def parsed(message: plan_pb2.NodePlan) -> ParsedPlan:
    answer = consider(None, IDENTITY, message.SerializeToString())
    assert isinstance(answer, Accepted), answer
    return answer.plan


def plan(generation: int, *args: Any, **kwargs: Any) -> ParsedPlan:
    return parsed(node_plan(generation, *args, **kwargs))
