"""From an Assignment to what the runtime is asked to run. Called by the reconcile state machine.

Pure: the same assignment, settings and values always give the same specs.
"""

import re
from dataclasses import dataclass, replace

from agent.domain import cgroups, labels
from agent.domain.files import mounts_of, pod_files
from agent.domain.given import Given, Unresolved
from agent.domain.plan import Assignment, Secret
from agent.runtime.port import (
    ContainerSpec,
    Device,
    ImageUser,
    PodSpec,
    PortMapping,
    RegistryAuth,
    Resources,
)
from polder.manifest import Container, PodTemplate
from polder.manifest.pod import EnvVar

DEFAULT_USER = 65532
"""As whom a container runs whose image wants root and whose template does not say: `nonroot`."""
DOCKER_HUB = "docker.io"
_DOCKER_ALIASES = {"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
# A container that reserved memory is killed after those that did not, when the box runs out.
OOM_SCORE_RESERVED = 200
OOM_SCORE_UNRESERVED = 900

__all__ = ["Given", "Settings", "Unresolved"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the node adds to every pod. `host_paths` are what pods may see of the box."""

    node: str
    site: str
    log_root: str
    cgroup_parent: str = ""
    dns_servers: tuple[str, ...] = ()
    host_paths: tuple[str, ...] = ()


def log_directory(settings: Settings, namespace: str, replica: str, uid: str) -> str:
    """One per replica: the logs of earlier pods of the same replica stay readable."""
    return f"{settings.log_root}/{namespace}_{replica}_{uid}"


def guarded_parent(settings: Settings, assignment: Assignment) -> str:
    """The cgroup of an exclusive replica, which the dead-man's switch kills; empty for others."""
    if assignment.group is None or not assignment.group.exclusive:
        return ""
    return cgroups.own_parent(settings.cgroup_parent, assignment.replica_uid)


def pod_spec(
    settings: Settings, assignment: Assignment, template: PodTemplate, pod_uid: str
) -> PodSpec:
    guarded = guarded_parent(settings, assignment)
    return PodSpec(
        name=assignment.replica,
        namespace=assignment.namespace,
        uid=pod_uid,
        labels={
            labels.NAMESPACE: assignment.namespace,
            labels.WORKLOAD: assignment.workload,
            labels.WORKLOAD_UID: assignment.workload_uid,
            labels.REPLICA: assignment.replica,
            labels.REPLICA_UID: assignment.replica_uid,
            labels.REVISION: str(assignment.revision),
            labels.TEMPLATE_DIGEST: assignment.digest,
            labels.EPOCH: str(assignment.epoch),
            **({labels.TAKES_OVER: assignment.takes_over} if assignment.takes_over else {}),
        },
        annotations={
            labels.STOP_DELAY: str(round(template.stop_delay * 1000)),
            labels.STOP_GRACE: str(round(template.stop_grace * 1000)),
            **({labels.CGROUP_PARENT: guarded} if guarded else {}),
        },
        log_directory=log_directory(
            settings, assignment.namespace, assignment.replica, assignment.replica_uid
        ),
        ports=tuple(
            PortMapping(port.container_port, port.host_port, port.protocol)
            for port in template.host_ports()
        ),
        # With the node's network it has the node's name too.
        hostname="" if template.host_network else assignment.replica[:63].rstrip("-."),
        dns_servers=settings.dns_servers,
        cgroup_parent=guarded or settings.cgroup_parent,
        host_network=template.host_network,
        host_pid=template.host_pid,
        host_ipc=template.host_ipc,
    )


def container_spec(
    settings: Settings,
    assignment: Assignment,
    container: Container,
    *,
    image: str,
    attempt: int,
    restarts: int,
    given: Given,
    devices: tuple[str, ...] = (),
    init: bool = False,
) -> ContainerSpec:
    """Raises Unresolved for a value that the plan does not bring."""
    request, security = container.resources, container.security
    return ContainerSpec(
        name=container.name,
        image=image,
        attempt=attempt,
        command=container.command,
        args=container.args,
        env=environment(settings, assignment, container, given),
        working_dir=container.working_dir,
        resources=Resources(
            cpu_millis=request.cpu,
            cpu_limit_millis=request.cpu_limit,
            memory_bytes=request.memory,
            oom_score_adj=OOM_SCORE_RESERVED if request.memory else OOM_SCORE_UNRESERVED,
        ),
        devices=tuple(Device(d, d) for d in devices if d.startswith("/")),
        cdi_devices=tuple(d for d in devices if not d.startswith("/")),
        labels={
            labels.REPLICA_UID: assignment.replica_uid,
            labels.RESTARTS: str(restarts),
            **({labels.INIT: "1"} if init else {}),
        },
        annotations={labels.DEVICES: ",".join(devices)} if devices else {},
        run_as_user=security.run_as_user,
        run_as_group=security.run_as_group,
        capabilities=security.capabilities,
        unconfined=security.seccomp == "Unconfined",
        read_only_root=security.read_only_root,
        stop_signal=container.stop_signal,
    )


def as_user(spec: ContainerSpec, image: ImageUser) -> ContainerSpec:
    """With the user that it is to run as: the template's, or the image's unless that is root.

    The group of a number that is given is the same number: without one it would be root's. Where
    the image has said the user, it has said the group too.
    """
    user, group = spec.run_as_user, spec.run_as_group
    if user is None and (image.uid or image.name not in ("", "root")):
        if group is None:
            return spec
        return replace(spec, run_as_user=image.uid, run_as_username=image.name)
    user = DEFAULT_USER if user is None else user
    return replace(spec, run_as_user=user, run_as_group=user if group is None else group)


def environment(
    settings: Settings, assignment: Assignment, container: Container, given: Given
) -> tuple[tuple[str, str], ...]:
    """The template's variables and ours; ours win, as an application may fence by the epoch.

    Raises Unresolved.
    """
    values = {
        variable.name: _value(settings, assignment, variable, given) for variable in container.env
    }
    values |= {
        "POLDER_NODE": settings.node,
        "POLDER_SITE": settings.site,
        "POLDER_NAMESPACE": assignment.namespace,
        "POLDER_WORKLOAD": assignment.workload,
        "POLDER_REPLICA": assignment.replica,
        "POLDER_EPOCH": str(assignment.epoch),
    }
    index = _index(assignment)
    if index:
        values["POLDER_REPLICA_INDEX"] = index
    return tuple(values.items())


def _value(settings: Settings, assignment: Assignment, variable: EnvVar, given: Given) -> str:
    namespace = assignment.namespace
    if variable.secret is not None:
        return given.secret_text(namespace, variable.secret.name, variable.secret.key)
    if variable.config is not None:
        return given.config_text(namespace, variable.config.name, variable.config.key)
    if not variable.fact:
        return variable.value
    own = {
        "node.name": settings.node,
        "replica.name": assignment.replica,
        "replica.epoch": str(assignment.epoch),
    }
    if variable.fact == "replica.index":
        index = _index(assignment)
        if not index:
            text = f"{assignment.replica} has no index: replicas per site or node have none"
            raise Unresolved(text, "FactMissing")
        return index
    return own.get(variable.fact) or given.fact(variable.fact)


def _index(assignment: Assignment) -> str:
    """The replica's number; empty for one that is named after its node or site."""
    index = assignment.replica.removeprefix(assignment.workload + "-")
    return index if index.isascii() and index.isdigit() else ""


def check(settings: Settings, assignment: Assignment, template: PodTemplate, given: Given) -> None:
    """Whether all that the template names is there, and allowed. Raises Unresolved."""
    pod_files(assignment, template, given, settings.host_paths)
    for container in (*template.init_containers, *template.containers):
        mounts_of(assignment, container)
        environment(settings, assignment, container, given)
        registry_auth(container.image, assignment.namespace, template, given)


def registry_auth(
    image: str, namespace: str, template: PodTemplate, given: Given
) -> RegistryAuth | None:
    """The first of the template's pull secrets that is for the image's registry.

    Raises Unresolved when one is missing, or is no Registry secret.
    """
    chosen: RegistryAuth | None = None
    for name in template.image_pull_secrets:
        secret = given.secret(namespace, name)
        if secret.type != "Registry":
            raise Unresolved(f"secret {name!r} is of type {secret.type}; Registry is needed")
        if chosen is None and server_host(_text(secret, "server")) == registry_host(image):
            chosen = RegistryAuth(_text(secret, "username"), _text(secret, "password"))
    return chosen


def _text(secret: Secret, key: str) -> str:
    return secret.data.get(key, b"").decode(errors="replace")


def registry_host(image: str) -> str:
    """`registry.example:5000/a/b:1` -> `registry.example:5000`; names without a host: Docker Hub.

    The rule is that of the distribution reference grammar: the first part is a host if it has a dot
    or a port, or is `localhost`.
    """
    first, slash, _ = image.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        return _canonical_host(first)
    return DOCKER_HUB


def server_host(server: str) -> str:
    """The host of a Registry secret's `server`, which people also write as a URL."""
    return _canonical_host(re.sub(r"^[a-z]+://", "", server.strip()).partition("/")[0])


def _canonical_host(host: str) -> str:
    host = host.lower().removesuffix(":443")
    return DOCKER_HUB if host in _DOCKER_ALIASES else host
