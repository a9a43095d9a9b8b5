"""What a template may not have: beyond what its namespace allows, or Polder's own. Called by apply.

Only a changed spec is checked: what an earlier version took is neither stopped nor unreadable.
"""

from collections.abc import Collection, Iterator

from orchestrator.scheduling.reasons import forbidden_reason
from polder.manifest import WorkloadSpec
from polder.manifest.pod import Container, SecurityContext
from polder.manifest.volumes import OWN_DIRECTORY, is_taken


def not_allowed(
    spec: WorkloadSpec, allow: Collection[str], namespace: str
) -> list[tuple[str, str]]:
    """(field, text) for everything that the namespace's `spec.allow` does not list."""
    demanded = [name for name in spec.template.demands() if name not in allow]
    return [
        (path, forbidden_reason(namespace, name).text)
        for name in demanded
        for path in _fields(spec, name)
    ]


def taken(spec: WorkloadSpec) -> list[tuple[str, str]]:
    """(field, text) for everything that it mounts where the agent tells containers something."""
    return [
        (
            f"spec.template.{kind}[{index}].volumeMounts[{number}].mountPath",
            f"is {mount.mount_path!r}, and {OWN_DIRECTORY} is Polder's: choose another path",
        )
        for kind, index, container in _containers(spec)
        for number, mount in enumerate(container.volume_mounts)
        if is_taken(mount.mount_path)
    ]


def powerless(spec: WorkloadSpec) -> list[str]:
    """Warnings: capabilities that may not reach the processes that are to have them."""
    return [
        f"spec.template.{kind}[{index}].security.capabilities: containerd before 1.7 gives "
        "capabilities to user 0 only; add runAsUser: 0, or run it on nodes with 1.7 or later"
        for kind, index, security in _rights(spec)
        if security.capabilities and security.run_as_user != 0
    ]


def _rights(spec: WorkloadSpec) -> Iterator[tuple[str, int, SecurityContext]]:
    for kind, index, container in _containers(spec):
        yield kind, index, container.security


def _containers(spec: WorkloadSpec) -> Iterator[tuple[str, int, Container]]:
    """Each with the list that it is in, and where there."""
    template = spec.template
    for kind, containers in (
        ("containers", template.containers),
        ("initContainers", template.init_containers),
    ):
        for index, container in enumerate(containers):
            yield kind, index, container


def _fields(spec: WorkloadSpec, demand: str) -> Iterator[str]:
    """Where the template says so. `demand` is in the words of `NamespaceSpec.allow`."""
    template = spec.template
    if demand == "hostPath":
        for index, volume in enumerate(template.volumes):
            if volume.host_path is not None:
                yield f"spec.template.volumes[{index}].hostPath"
        return
    if demand not in ("capabilities", "unconfined"):
        yield f"spec.template.{demand}"
        return
    for kind, index, security in _rights(spec):
        where = f"spec.template.{kind}[{index}].security"
        if demand == "capabilities" and security.capabilities:
            yield f"{where}.capabilities"
        elif demand == "unconfined" and security.seccomp == "Unconfined":
            yield f"{where}.seccomp"
