"""A voter that grants everything: what the site must notice, and what it must not believe.

One node's machine is as all are, but for its word as a voter: where another's lease kept it from
granting, it grants. Two may hold a replica by that, which nobody can prevent; but who holds it
meets the other sooner or later, stops, and says who lied. Nobody who is honest is ever accused.
"""

from dataclasses import replace

from agent.domain.roster import Key
from agent.domain.site.messages import Event, Instruction, LeaseAnswer, Send
from polder.overrides import Override
from tests.sim.site_box import Process
from tests.sim.site_checks import Checks
from tests.sim.site_node import Machine, Node
from tests.sim.site_world import Violation

LIES = ("Held", "Promised")


def lying(node: Node) -> Node:
    """From its first start on."""
    make = node.make
    node.make = lambda name: Liar(make(name))
    return node


class Liar:
    """As `Machine` in site_node.py."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def handle(self, event: Event, now: float) -> list[Instruction]:
        return [_lie(instruction) for instruction in self._machine.handle(event, now)]

    def next_due(self) -> float | None:
        return self._machine.next_due()

    def overrides(self) -> tuple[Override, ...]:
        return self._machine.overrides()


def _lie(instruction: Instruction) -> Instruction:
    match instruction:
        case Send(node, LeaseAnswer(granted=False, reason=reason) as answer) if reason in LIES:
            agreed = replace(answer, granted=True, reason="", holder="", remaining_s=0.0)
            return Send(node, agreed)
    return instruction


class LiarChecks(Checks):
    """Two at once, and epochs that fall, are noted: the register refuses what is behind them."""

    liar = ""

    def both(self, key: Key, process: Process, other: Process) -> None:
        self.world.tell(f"two of {key[1]}: on {other.node} and on {process.node}")

    def fell(self, text: str) -> None:
        self.world.tell(text)

    def told(self, node: str, reason: str, message: str) -> None:
        if reason == "VoterLied" and not message.startswith(f"{self.liar} "):
            raise Violation(f"{node} accuses an honest voter: {message}")
