"""Each filter, by table: the mask that places and the words that explain are one rule."""

import numpy as np
import pytest

from orchestrator.domain.liveness import Liveness
from orchestrator.scheduling import filters
from orchestrator.scheduling.filters import Need
from orchestrator.scheduling.rules import tolerates
from orchestrator.scheduling.snapshot import Node, Resources, Template
from orchestrator.scheduling.table import NodeTable
from polder.manifest import Placement, Taint, Toleration

ROOMY = Resources(4000, 8 << 30, 100 << 30, {"polder.eu/gpu": 2})
EVERY = (*filters.RULES, *filters.CONDITIONS, *filters.ROOM)


def node(**facts: object) -> Node:
    return Node(**{"name": "n", "arch": "arm64", "allocatable": ROOMY, **facts})  # type: ignore[arg-type]


ANYWHERE = Placement()


def need(placement: Placement = ANYWHERE, **request: object) -> Need:
    return Need(placement, Template(Resources(**request)))  # type: ignore[arg-type]


NO_SCHEDULE = Taint("dirty", "NoSchedule", "yes")
NO_EXECUTE = Taint("flood", "NoExecute")

CASES = [
    ("fits", node(), need(cpu_millis=4000), []),
    ("arch", node(), need(Placement(arch=("amd64",))), ["WrongArchitecture"]),
    ("arch unknown", node(arch=""), need(Placement(arch=("amd64",))), ["WrongArchitecture"]),
    ("arch any of", node(), need(Placement(arch=("amd64", "arm64"))), []),
    ("label missing", node(), need(Placement(node_selector={"a": "b"})), ["SelectorMismatch"]),
    (
        "label differs",
        node(labels={"a": "c"}),
        need(Placement(node_selector={"a": "b"})),
        ["SelectorMismatch"],
    ),
    ("label", node(labels={"a": "b"}), need(Placement(node_selector={"a": "b"})), []),
    ("tainted", node(taints=(NO_SCHEDULE,)), need(), ["Untolerated"]),
    (
        "tolerated",
        node(taints=(NO_SCHEDULE,)),
        need(Placement(tolerations=(Toleration("dirty", "yes", "NoSchedule"),))),
        [],
    ),
    (
        "one of two tolerated",
        node(taints=(NO_SCHEDULE, NO_EXECUTE)),
        need(Placement(tolerations=(Toleration("dirty"),))),
        ["Untolerated"],
    ),
    ("silent", node(liveness=Liveness.SILENT), need(), ["NodeSilent"]),
    ("lost", node(liveness=Liveness.LOST), need(), ["NodeLost"]),
    (
        "never seen",
        node(liveness=Liveness.NEVER_SEEN, allocatable=None),
        need(cpu_millis=1),
        ["NodeNeverSeen", "InsufficientCpu"],
    ),
    ("cordoned", node(unschedulable=True), need(), ["NodeUnschedulable"]),
    ("runtime down", node(not_ready=True), need(), ["NodeNotReady"]),
    ("draining", node(draining=True), need(), ["NodeDraining"]),
    ("deleting", node(deleting=True), need(), ["NodeDeleting"]),
    ("cpu", node(), need(cpu_millis=4001), ["InsufficientCpu"]),
    ("memory", node(), need(memory_bytes=9 << 30), ["InsufficientMemory"]),
    ("disk", node(), need(disk_bytes=101 << 30), ["InsufficientDisk"]),
    ("devices", node(), need(devices={"polder.eu/gpu": 3}), ["InsufficientDevices"]),
    ("unknown device", node(), need(devices={"polder.eu/fpga": 1}), ["InsufficientDevices"]),
    (
        "every reason, not only the first",
        node(arch="amd64", unschedulable=True),
        need(Placement(arch=("arm64",)), cpu_millis=5000, memory_bytes=9 << 30),
        ["WrongArchitecture", "NodeUnschedulable", "InsufficientCpu", "InsufficientMemory"],
    ),
]


@pytest.mark.parametrize(("name", "given", "asked", "expected"), CASES)
def test_filter(name: str, given: Node, asked: Need, expected: list[str]) -> None:
    table = NodeTable([given])
    found = filters.reasons(EVERY, table, asked, 0)
    assert [reason.code for reason in found] == expected
    assert all(reason.text for reason in found)
    assert filters.passing(EVERY, table, asked)[0] == (not expected)
    counted = filters.count(EVERY, table, asked, np.ones(1, dtype=np.bool_))
    assert {c.code for c in counted} == set(expected)


def test_host_port_is_held_and_given_back() -> None:
    table = NodeTable([node()])
    template = Template(host_ports=((8080, "TCP"),))
    asked = Need(Placement(), template)
    table.hold(0, template)
    (reason,) = filters.reasons(EVERY, table, asked, 0)
    assert reason.code == "HostPortTaken" and "8080/TCP" in reason.text
    other = Need(Placement(), Template(host_ports=((8080, "UDP"),)))
    assert filters.reasons(EVERY, table, other, 0) == []
    table.release(0, template)
    assert filters.reasons(EVERY, table, asked, 0) == []


def test_who_asks_for_nothing_fits_on_a_node_that_promised_too_much() -> None:
    table = NodeTable([node()])
    table.hold(0, Template(Resources(cpu_millis=5000)))
    assert filters.reasons(EVERY, table, need(), 0) == []
    assert [r.code for r in filters.reasons(EVERY, table, need(cpu_millis=1), 0)] == [
        "InsufficientCpu"
    ]


@pytest.mark.parametrize(
    ("toleration", "expected"),
    [
        (Toleration(), True),
        (Toleration("dirty"), True),
        (Toleration("dirty", "no"), False),
        (Toleration("dirty", effect="NoExecute"), False),
        (Toleration(effect="NoSchedule"), True),
        (Toleration("other"), False),
    ],
)
def test_tolerates(toleration: Toleration, expected: bool) -> None:
    assert tolerates(toleration, NO_SCHEDULE) is expected
