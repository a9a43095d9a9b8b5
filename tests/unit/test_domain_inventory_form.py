"""How a node's inventory is stored: numbers stay numbers, and it comes back as it was."""

from orchestrator.domain.inventory import from_stored, stored_form
from polder.v1 import agent_pb2

INVENTORY = agent_pb2.NodeInventory(
    arch="arm64",
    addresses=["192.0.2.7", "2001:db8::7"],
    capacity=agent_pb2.Resources(
        cpu_millis=4000, memory_bytes=8 << 30, devices={"polder.eu/gpu": 2}
    ),
    accelerators=[
        agent_pb2.Accelerator(
            resource="polder.eu/gpu", id="/dev/dri/renderD128", attributes={"a": "b"}
        )
    ],
)


def test_sixty_four_bit_numbers_are_numbers() -> None:
    capacity = stored_form(INVENTORY)["capacity"]
    assert capacity == {
        "cpuMillis": 4000,
        "memoryBytes": 8 << 30,
        "devices": {"polder.eu/gpu": 2},
    }


def test_it_comes_back_as_it_was() -> None:
    assert from_stored(stored_form(INVENTORY)) == INVENTORY
