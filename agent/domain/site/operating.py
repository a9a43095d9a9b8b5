"""What local operators decide, on its way: refused or taken up, written down, told to peers.

Part of `machine.py`, which is asked whether a change can be made. What is in force then changes is
in `operators.py`.
"""

from collections.abc import Callable, Iterable, Iterator

from agent.domain.site.messages import (
    Answer,
    Booted,
    Condition,
    Event,
    Instruction,
    OperatorDecided,
    Overrides,
    PeerOpened,
    PeerSaid,
    PlanInUse,
    Refusal,
    Saved,
    Send,
)
from agent.domain.site.operators import told
from agent.domain.site.overrides import NAME, OVERTAKEN, Decisions
from agent.domain.site.peers import Peers
from polder.overrides import Override

Look = Callable[[Override, float], Refusal | Override]
"""Why a change is refused; or the change, with what is known of its replica."""


class Operating:
    """`decisions` are what the others read."""

    def __init__(self, node: str, tokens: Iterator[int], peers: Peers) -> None:
        self.decisions = Decisions(node)
        self.frozen = ""  # by whom
        self._tokens = tokens
        self._peers = peers

    def handle(self, event: Event, now: float, look: Look) -> tuple[list[Instruction], bool]:
        """What is to be done, and whether all is to be looked at anew. After `peers` heard it."""
        out: list[Instruction] = []
        news = False
        match event:
            case Booted(_, kept):
                self.decisions.read(kept.get(NAME, {}), now)
            case PlanInUse(plan):
                news = self.decisions.planned(plan.overrides, now)
            case PeerOpened(node):
                out += self.tell([node])
            case PeerSaid(node, Overrides(overrides)) if node in self._peers.names:
                self.decisions.heard(overrides, now)
            case OperatorDecided(wanted):
                out += self._decide(wanted, now, look)
            case Saved(token, ok):
                news, answers = self.decisions.saved(token, now, ok=ok)
                out += answers
            case _:
                pass
        self.decisions.forget(now)
        save = self.decisions.save(next(self._tokens), now)
        out += [save] if save is not None else []
        if news:
            out += self.tell(self._peers.open())
        return out, self._show(out) or news

    def draft(self, wanted: Override, now: float, look: Look) -> Override | Refusal:
        """As `OperatorDecided` would have it written down now, or why it would not."""
        if (made := self.decisions.made(wanted.id)) is not None:
            return made
        looked = look(wanted, now)
        return looked if isinstance(looked, Refusal) else self.decisions.draft(looked)

    def _decide(self, wanted: Override, now: float, look: Look) -> list[Instruction]:
        """One that was made already is answered as it was then. What is signed must still rest on
        what it rested on when it was drafted."""
        made = self.decisions.made(wanted.id)
        looked = look(wanted, now) if made is None else wanted
        if isinstance(looked, Refusal):
            return [Answer(wanted.id, None, looked)]
        if wanted.proof is not None and looked != wanted:
            return [Answer(wanted.id, None, OVERTAKEN)]
        answer = self.decisions.decide(looked, now)
        return [answer] if answer is not None else []

    def tell(self, nodes: Iterable[str]) -> list[Instruction]:
        """All of it, to those peers."""
        known = Overrides(self.decisions.all())
        return [Send(node, known) for node in nodes] if known.overrides else []

    def _show(self, out: list[Instruction]) -> bool:
        """That the site is frozen is a condition of the node."""
        found = self.decisions.frozen()
        text = told(found, "froze the site") if found is not None else ""
        if text == self.frozen:
            return False
        self.frozen = text
        out.append(Condition("Frozen", text))
        return True
