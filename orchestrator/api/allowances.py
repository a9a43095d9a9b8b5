"""What a template demands beyond the safe defaults, held against its namespace. Called by apply."""

from collections.abc import Collection, Iterator

from orchestrator.scheduling.reasons import forbidden_reason
from polder.manifest import WorkloadSpec
from polder.manifest.pod import SecurityContext


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


def powerless(spec: WorkloadSpec) -> list[str]:
    """Warnings: capabilities that may not reach the processes that are to have them."""
    return [
        f"spec.template.{kind}[{index}].security.capabilities: containerd before 1.7 gives "
        "capabilities to user 0 only; add runAsUser: 0, or run it on nodes with 1.7 or later"
        for kind, index, security in _rights(spec)
        if security.capabilities and security.run_as_user != 0
    ]


def _rights(spec: WorkloadSpec) -> Iterator[tuple[str, int, SecurityContext]]:
    """Of each container: the list that it is in, and where there."""
    template = spec.template
    for kind, containers in (
        ("containers", template.containers),
        ("initContainers", template.init_containers),
    ):
        for index, container in enumerate(containers):
            yield kind, index, container.security


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
