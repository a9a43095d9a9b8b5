"""What a template demands beyond the safe defaults, held against its namespace. Called by apply."""

from collections.abc import Collection, Iterator

from orchestrator.scheduling.reasons import forbidden_reason
from polder.manifest import WorkloadSpec


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
    for kind, containers in (
        ("containers", template.containers),
        ("initContainers", template.init_containers),
    ):
        for index, container in enumerate(containers):
            security, where = container.security, f"spec.template.{kind}[{index}].security"
            if demand == "capabilities" and security.capabilities:
                yield f"{where}.capabilities"
            elif demand == "unconfined" and security.seccomp == "Unconfined":
                yield f"{where}.seccomp"
