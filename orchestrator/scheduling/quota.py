"""What a namespace may use in total: counted over its assignments, checked before each placement.

A quota that is lowered stops nothing; it keeps new replicas, and updates that ask for more, away.
A replica that moves counts once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.scheduling.reasons import Reason
from orchestrator.scheduling.snapshot import Namespace, Quota, Template


@dataclass(slots=True)
class _Used:
    replicas: int = 0
    cpu_millis: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    devices: dict[str, int] = field(default_factory=dict)


_AMOUNTS = ("cpu_millis", "memory_bytes", "disk_bytes")
_NAMES = {"cpu_millis": "cpu", "memory_bytes": "memory", "disk_bytes": "disk"}


class Quotas:
    """Of all namespaces; those without a quota cost nothing."""

    def __init__(self, namespaces: Mapping[str, Namespace]) -> None:
        self._limits = {
            name: namespace.quota
            for name, namespace in namespaces.items()
            if namespace.quota is not None
        }
        self._used = {name: _Used() for name in self._limits}

    def is_limited(self, namespace: str) -> bool:
        """Whether it has a quota at all."""
        return namespace in self._limits

    def use(self, namespace: str, template: Template, times: int = 1) -> None:
        """Count replicas in, or out with a negative number."""
        used = self._used.get(namespace)
        if used is None:
            return
        used.replicas += times
        for amount in _AMOUNTS:
            more = times * getattr(template.request, amount)
            setattr(used, amount, getattr(used, amount) + more)
        for name, count in template.request.devices.items():
            used.devices[name] = used.devices.get(name, 0) + times * count

    def room(self, namespace: str, template: Template, wanted: int) -> int:
        """How many more replicas of the template the quota allows, at most `wanted`."""
        limits = self._limits.get(namespace)
        if limits is None:
            return wanted
        room = wanted
        for left, asked in self._lefts(namespace, limits, template):
            if asked > 0:
                room = min(room, max(0, left) // asked)
        return room

    def allows_update(self, namespace: str, before: Template, after: Template) -> bool:
        """Whether a replica may change its template; what it asks less of, it always may."""
        limits = self._limits.get(namespace)
        if limits is None:
            return True
        old = dict(zip(self._kinds(limits), self._lefts(namespace, limits, before), strict=True))
        new = dict(zip(self._kinds(limits), self._lefts(namespace, limits, after), strict=True))
        return all(
            new[kind][1] <= old[kind][1] or new[kind][1] - old[kind][1] <= new[kind][0]
            for kind in new
            if kind != "replicas"
        )

    def over(self, namespace: str, template: Template) -> tuple[Reason, ...]:
        """What one more replica would exceed."""
        limits = self._limits.get(namespace)
        if limits is None:
            return ()
        found = []
        for kind, (left, asked) in zip(
            self._kinds(limits), self._lefts(namespace, limits, template), strict=True
        ):
            if asked > max(0, left):
                text = f"namespace {namespace} has {max(0, left)} of its quota of {kind} left; "
                text += f"a replica asks for {asked}"
                found.append(Reason("QuotaExceeded", text, f"namespace.quota.{kind}"))
        return tuple(found)

    def _kinds(self, limits: Quota) -> list[str]:
        kinds = ["replicas"] if limits.replicas is not None else []
        kinds += [_NAMES[a] for a in _AMOUNTS if getattr(limits, a) is not None]
        return kinds + [f"devices.{name}" for name in sorted(limits.devices)]

    def _lefts(self, namespace: str, limits: Quota, template: Template) -> list[tuple[int, int]]:
        """(left, asked) per limit, in the order of `_kinds`."""
        used = self._used[namespace]
        found = []
        if limits.replicas is not None:
            found.append((limits.replicas - used.replicas, 1))
        for amount in _AMOUNTS:
            limit = getattr(limits, amount)
            if limit is not None:
                left = limit - getattr(used, amount)
                found.append((left, getattr(template.request, amount)))
        for name in sorted(limits.devices):
            left = limits.devices[name] - used.devices.get(name, 0)
            found.append((left, template.request.devices.get(name, 0)))
        return found
