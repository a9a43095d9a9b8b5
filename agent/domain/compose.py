"""From an Assignment to what the runtime is asked to run. Called by the reconcile state machine.

Pure: the same assignment, secrets and settings always give the same specs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from agent.domain import labels
from agent.domain.plan import Assignment, Secret
from agent.runtime.port import (
    ContainerSpec,
    Device,
    PodSpec,
    PortMapping,
    RegistryAuth,
    Resources,
)
from polder.manifest import Container, PodTemplate

DOCKER_HUB = "docker.io"
_DOCKER_ALIASES = {"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
# A container that reserved memory is killed after those that did not, when the box runs out.
OOM_SCORE_RESERVED = 200
OOM_SCORE_UNRESERVED = 900

Secrets = Mapping[tuple[str, str], Secret]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the node adds to every pod."""

    node: str
    site: str
    log_root: str
    cgroup_parent: str = ""
    dns_servers: tuple[str, ...] = ()


class Unresolved(Exception):
    """The template names something that the plan does not bring. `reason` is SecretMissing."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.reason = "SecretMissing"
        self.message = message


def log_directory(settings: Settings, namespace: str, replica: str, uid: str) -> str:
    """One per replica: the logs of earlier pods of the same replica stay readable."""
    return f"{settings.log_root}/{namespace}_{replica}_{uid}"


def pod_spec(
    settings: Settings, assignment: Assignment, template: PodTemplate, pod_uid: str
) -> PodSpec:
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
        },
        annotations={
            labels.STOP_DELAY: str(round(template.stop_delay * 1000)),
            labels.STOP_GRACE: str(round(template.stop_grace * 1000)),
        },
        log_directory=log_directory(
            settings, assignment.namespace, assignment.replica, assignment.replica_uid
        ),
        ports=tuple(
            PortMapping(port.container_port, port.host_port, port.protocol)
            for port in template.host_ports()
        ),
        hostname=assignment.replica[:63].rstrip("-."),
        dns_servers=settings.dns_servers,
        cgroup_parent=settings.cgroup_parent,
    )


def container_spec(
    settings: Settings,
    assignment: Assignment,
    container: Container,
    *,
    image: str,
    attempt: int,
    restarts: int,
    secrets: Secrets,
    devices: tuple[str, ...] = (),
    init: bool = False,
) -> ContainerSpec:
    """Raises Unresolved for a secret that the plan does not bring."""
    request = container.resources
    return ContainerSpec(
        name=container.name,
        image=image,
        attempt=attempt,
        command=container.command,
        args=container.args,
        env=environment(settings, assignment, container, secrets),
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
        run_as_user=container.security.run_as_user,
        read_only_root=container.security.read_only_root_filesystem is True,
        stop_signal=container.stop_signal,
    )


def environment(
    settings: Settings, assignment: Assignment, container: Container, secrets: Secrets
) -> tuple[tuple[str, str], ...]:
    """The template's variables and ours; ours win, as an application may fence by the epoch.

    Raises Unresolved.
    """
    given = {
        variable.name: (
            _secret_value(assignment.namespace, variable.secret.name, variable.secret.key, secrets)
            if variable.secret is not None
            else variable.value
        )
        for variable in container.env
    }
    given |= {
        "POLDER_NODE": settings.node,
        "POLDER_SITE": settings.site,
        "POLDER_NAMESPACE": assignment.namespace,
        "POLDER_WORKLOAD": assignment.workload,
        "POLDER_REPLICA": assignment.replica,
        "POLDER_EPOCH": str(assignment.epoch),
    }
    index = assignment.replica.removeprefix(assignment.workload + "-")
    if index.isascii() and index.isdigit():
        given["POLDER_REPLICA_INDEX"] = index
    return tuple(given.items())


def _secret_value(namespace: str, name: str, key: str, secrets: Secrets) -> str:
    secret = secrets.get((namespace, name))
    if secret is None:
        raise Unresolved(f"there is no secret {name!r} in namespace {namespace!r}")
    if key not in secret.data:
        raise Unresolved(f"secret {name!r} has no key {key!r}")
    try:
        return secret.data[key].decode()
    except UnicodeDecodeError:
        raise Unresolved(f"secret {name!r}, key {key!r}: a variable needs UTF-8 text") from None


def check_secrets(
    settings: Settings, assignment: Assignment, template: PodTemplate, secrets: Secrets
) -> None:
    """Whether all that the template names is there. Raises Unresolved."""
    for container in (*template.init_containers, *template.containers):
        environment(settings, assignment, container, secrets)
        registry_auth(container.image, assignment.namespace, template, secrets)


def registry_auth(
    image: str, namespace: str, template: PodTemplate, secrets: Secrets
) -> RegistryAuth | None:
    """The first of the template's pull secrets that is for the image's registry.

    Raises Unresolved when one is missing, or is no Registry secret.
    """
    chosen: RegistryAuth | None = None
    for name in template.image_pull_secrets:
        secret = secrets.get((namespace, name))
        if secret is None:
            raise Unresolved(f"there is no secret {name!r} in namespace {namespace!r}")
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
