"""The kinds and their fields: the schema that files, wire, store, scheduler and agent share.

`KINDS` is the one table of them. A field's sentence is what `edgectl explain` prints. Checks that
need more than one field are in `violations()` of the class that holds them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from polder.manifest.facts import ProviderSpec, SiteSpec
from polder.manifest.names import (
    FILE_NAME,
    FILE_NAME_HELP,
    HOST_NAME,
    HOST_NAME_HELP,
    LABEL,
    LABEL_HELP,
    LABEL_VALUE,
    LABEL_VALUE_HELP,
    QUALIFIED,
    QUALIFIED_HELP,
)
from polder.manifest.policy import SovereigntySpec
from polder.manifest.quantity import cpu_millis, memory_bytes, timestamp_s
from polder.manifest.schema import Violation, spec
from polder.manifest.workload import WorkloadSpec

__all__ = [
    "HOST_NAME",
    "HOST_NAME_HELP",
    "KINDS",
    "LABEL",
    "LABEL_HELP",
    "LABEL_VALUE",
    "QUALIFIED",
    "ConfigSpec",
    "KindInfo",
    "NamespaceSpec",
    "NodeSpec",
    "OperatorSpec",
    "ProviderSpec",
    "ReplicaSpec",
    "SecretSpec",
    "SiteSpec",
    "Taint",
    "VolumeSpec",
    "WorkloadSpec",
    "kind_named",
]


CONFIG_BYTES_MAX = 512 * 1024


@dataclass(frozen=True, slots=True)
class Taint:
    """Keeps replicas away that do not tolerate it."""

    key: str = spec("Such as maintenance.", pattern=QUALIFIED, pattern_help=QUALIFIED_HELP)
    effect: str = spec(
        "NoSchedule: no new replicas. NoExecute: also moves those that are there.",
        choices=("NoSchedule", "NoExecute"),
    )
    value: str = spec(
        "Compared by tolerations.", default="", pattern=LABEL_VALUE, pattern_help=LABEL_VALUE_HELP
    )


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One box. Nodes come into being by joining, not by apply."""

    site: str = spec(
        "Where it stands; fixed when it joins.", pattern=LABEL, pattern_help=LABEL_HELP
    )
    unschedulable: bool = spec("No new replicas (`edgectl cordon`).", default=False)
    draining: bool = spec("Its replicas move away (`edgectl drain`).", default=False)
    drain_deadline: float | None = spec(
        "What has not moved by then is stopped all the same. Default: it is waited for.",
        default=None,
        parse=timestamp_s,
        shown_type="time such as 2026-11-22T03:00:00Z",
    )
    taints: tuple[Taint, ...] = spec("What keeps replicas away.", default=(), max_items=50)


@dataclass(frozen=True, slots=True)
class QuotaSpec:
    """What a namespace may use in total. What is left out is not limited."""

    replicas: int | None = spec("Replicas with a node.", default=None, minimum=0)
    cpu: int | None = spec(
        "Cores that are reserved.",
        default=None,
        parse=cpu_millis,
        shown_type="quantity such as 500m",
    )
    memory: int | None = spec(
        "Memory that is reserved.",
        default=None,
        parse=memory_bytes,
        shown_type="quantity such as 256Mi",
    )
    disk: int | None = spec(
        "Disk that is reserved.",
        default=None,
        parse=memory_bytes,
        shown_type="quantity such as 1Gi",
    )
    devices: dict[str, int] = spec(
        "Devices by resource name.",
        default_factory=dict,
        minimum=0,
        max_items=16,
        key_pattern=QUALIFIED,
        key_help=QUALIFIED_HELP,
    )


# In the words of `PodTemplate.demands`.
ALLOWANCES = ("hostNetwork", "hostPID", "hostIPC", "hostPath", "capabilities", "unconfined")


@dataclass(frozen=True, slots=True)
class NamespaceSpec:
    """A tenant's part of the installation."""

    description: str = spec("For people.", default="", max_length=1024)
    floor: SovereigntySpec = spec(
        "What all its workloads demand at least. They can tighten it, never loosen it.",
        default=SovereigntySpec(),
    )
    quota: QuotaSpec = spec("What it may use in total.", default=QuotaSpec())
    packing: str = spec(
        "spread: emptier nodes first. pack: fill nodes up, so that others stay empty.",
        default="spread",
        choices=("spread", "pack"),
    )
    preemptible: bool = spec(
        "Whether its replicas may be moved or stopped for workloads of higher priority.",
        default=True,
    )
    allow: tuple[str, ...] = spec(
        "What its pods may ask for beyond the safe defaults.",
        default=(),
        max_items=len(ALLOWANCES),
        choices=ALLOWANCES,
    )


@dataclass(frozen=True, slots=True)
class SecretSpec:
    """Small confidential values. Only nodes that run a workload which names it receive it."""

    type: str = spec(
        "Opaque, or Registry with the keys server, username and password.",
        default="Opaque",
        choices=("Opaque", "Registry"),
    )
    data: dict[str, str] = spec(
        "Values by key, as text.", default_factory=dict, max_items=100, max_length=262_144
    )

    def violations(self) -> Iterator[Violation]:
        if self.type == "Registry":
            for key in ("server", "username", "password"):
                if not self.data.get(key):
                    yield Violation("data", f"a Registry secret needs the key {key!r}")


@dataclass(frozen=True, slots=True)
class ConfigSpec:
    """Values that are not confidential, for the variables and files of containers."""

    data: dict[str, str] = spec(
        "Values by key, as text.",
        default_factory=dict,
        max_items=100,
        max_length=262_144,
        key_pattern=FILE_NAME,
        key_help=FILE_NAME_HELP,
    )

    def violations(self) -> Iterator[Violation]:
        size = sum(len(value.encode()) for value in self.data.values())
        if size > CONFIG_BYTES_MAX:
            yield Violation("data", f"has {size} bytes; at most {CONFIG_BYTES_MAX} are allowed")


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """Data of one replica on one node. Read-only: made when the replica is first placed."""

    replica: str = spec("Whose data it is.")
    volume: str = spec("What its template calls it.")
    node: str = spec("The node that has it.")


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One numbered instance of a Workload. Read-only: the scheduler makes them."""

    workload: str = spec("Whose instance it is.")
    node: str = spec("Where it is assigned. Empty: nowhere yet.", default="")
    epoch: int = spec("Fencing number of its holder.", default=0)
    revision: int = spec("The workload's revision that it should run.", default=0)


@dataclass(frozen=True, slots=True)
class OperatorSpec:
    """A person or program with an operator certificate. Read-only: `edgectl operator create`."""

    roles: tuple[str, ...] = spec("admin, operator:NAMESPACE, viewer:NAMESPACE.", default=())


@dataclass(frozen=True, slots=True)
class KindInfo:
    """`applyable`: operators may create it by apply. `editable`: only change it."""

    name: str
    plural: str
    short: tuple[str, ...]
    namespaced: bool
    spec_class: type
    applyable: bool = True
    editable: bool = True
    names: re.Pattern[str] = LABEL
    names_help: str = LABEL_HELP


KINDS: dict[str, KindInfo] = {
    info.name: info
    for info in (
        KindInfo("Provider", "providers", ("prov",), False, ProviderSpec),
        KindInfo("Site", "sites", (), False, SiteSpec),
        KindInfo(
            "Node",
            "nodes",
            ("no",),
            False,
            NodeSpec,
            applyable=False,
            names=HOST_NAME,
            names_help=HOST_NAME_HELP,
        ),
        KindInfo("Namespace", "namespaces", ("ns",), False, NamespaceSpec),
        KindInfo("Workload", "workloads", ("wl",), True, WorkloadSpec),
        KindInfo("Secret", "secrets", (), True, SecretSpec),
        KindInfo("Config", "configs", ("cfg",), True, ConfigSpec),
        KindInfo(
            "Volume",
            "volumes",
            ("vol",),
            True,
            VolumeSpec,
            applyable=False,
            editable=False,
            names=HOST_NAME,
            names_help=HOST_NAME_HELP,
        ),
        KindInfo(
            "Replica",
            "replicas",
            ("rep",),
            True,
            ReplicaSpec,
            applyable=False,
            editable=False,
            names=HOST_NAME,
            names_help=HOST_NAME_HELP,
        ),
        KindInfo(
            "Operator", "operators", ("op",), False, OperatorSpec, applyable=False, editable=False
        ),
    )
}


def kind_named(word: str) -> KindInfo | None:
    """The kind for what an operator types: `Workload`, `workload`, `workloads` or `wl`."""
    folded = word.lower()
    for info in KINDS.values():
        if folded in (info.name.lower(), info.plural, *info.short):
            return info
    return None
