"""Which of the box's countable devices a container gets. Called by the reconcile state machine.

What is taken is read from the annotations of the containers that run: after an agent restart the
answer is the same.
"""

from collections.abc import Iterable, Mapping

from agent.domain import labels
from agent.runtime.port import ContainerPhase, ContainerState


class DevicesTaken(Exception):
    """Not enough devices are free. `reason` is DeviceUnavailable."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.reason = "DeviceUnavailable"
        self.message = message


def taken(containers: Iterable[ContainerState]) -> set[str]:
    """Ids that containers hold which have not ended."""
    return {
        device
        for container in containers
        if container.phase is not ContainerPhase.EXITED
        for device in container.annotations.get(labels.DEVICES, "").split(",")
        if device
    }


def allocate(
    wanted: Mapping[str, int], found: Mapping[str, tuple[str, ...]], held: set[str]
) -> tuple[str, ...]:
    """Ids for a container, lowest first. Raises DevicesTaken."""
    chosen: list[str] = []
    for resource, count in sorted(wanted.items()):
        free = [d for d in sorted(found.get(resource, ())) if d not in held and d not in chosen]
        if len(free) < count:
            raise DevicesTaken(
                f"{resource}: {count} wanted, {len(free)} free of {len(found.get(resource, ()))}"
            )
        chosen += free[:count]
    return tuple(chosen)
