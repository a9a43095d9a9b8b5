"""What the site's loop asks of the rest of the agent. Made by `assembly.py`, used by `loop.py`."""

from collections.abc import Callable
from dataclasses import dataclass

from agent.inventory import Amounts
from polder.v1 import agent_pb2


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the loop asks of the rest of the agent.

    `allocatable`: what the box has for replicas. `hears_orchestrator`: a session is open, with a
    member that is not itself cut off. `publish`: what could be taken over has changed. `boot_id`:
    of the kernel.
    """

    allocatable: Callable[[], Amounts]
    hears_orchestrator: Callable[[], bool]
    publish: Callable[[list[agent_pb2.StandbyStatus]], None]
    boot_id: str
