"""How many agents may come in at once, and what the others are told. Pure.

`orchestrator/gateway/service.py` asks for every new session before it reads its Hello, and
`tests/sim/storm.py` asks for ten thousand. A session costs work when it begins (its handshake, its
complete state, often its plan), so sessions begin at a rate, one after the other:

    within LINE_S of its turn        it waits in line, and costs nothing but a connection
    beyond                           "Overloaded", with the time at which its turn would come

Everybody who is sent away is given another time, so that they come back as evenly as they can be
served, and not in a second wave. Who comes back when told may wait in line for longer: nobody is
sent away again and again while newer ones get in. An appointment holds no place, since whoever has
one may well find another member meanwhile.
"""

from dataclasses import dataclass
from itertools import islice

LINE_S = 5.0
LINE_RETURNED_S = 7.0
"""Less than an agent's patience with a member that has let it in and says nothing."""
BURST_S = 0.25
RETRY_MIN_S = 1.0
RETRY_MAX_S = 30.0
_EARLY_S = 1.0
_MISSED_S = 60.0
_APPOINTMENTS_MAX = 50_000


@dataclass(frozen=True, slots=True)
class Enter:
    """Its turn comes after `wait_s`."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class ComeBack:
    """Not now. Its turn would come after `retry_s`."""

    retry_s: float


class Admission:
    """One per member. Times are seconds of one steady clock; `rate` in sessions per second."""

    def __init__(self, rate: float, line_max: int) -> None:
        self._rate = rate
        self._line_max = line_max
        self._next_turn = 0.0
        self._next_return = 0.0
        self._appointments: dict[str, float] = {}

    def slow_down(self, rate: float) -> None:
        """From now on so many per second; those who were told a time keep it."""
        self._rate = rate

    def ask(self, node: str, now: float, *, dice: float) -> Enter | ComeBack:
        """`dice` is uniform in [0, 1)."""
        self._forget_missed(now)
        appointment = self._appointments.pop(node, None)
        kept = appointment is not None and now >= appointment - _EARLY_S
        turn = max(self._next_turn, now - BURST_S)
        wait = max(0.0, turn - now)
        if wait <= min(LINE_RETURNED_S if kept else LINE_S, self._line_max / self._rate):
            self._next_turn = turn + 1 / self._rate
            return Enter(wait)
        return ComeBack(self._appoint(node, now, dice))

    def _appoint(self, node: str, now: float, dice: float) -> float:
        """After all who wait in line and all who were sent away before."""
        self._next_return = max(self._next_return, self._next_turn) + 1 / self._rate
        if self._next_return > now + RETRY_MAX_S:
            # Longer than anybody waits: they come back as a steady stream, and ask again.
            self._next_return = now + RETRY_MAX_S
            retry = RETRY_MAX_S * (1 + dice) / 2
        else:
            # A turn's length of jitter: clocks and networks are not exact either.
            retry = max(RETRY_MIN_S, self._next_return - now) + dice / self._rate
        if len(self._appointments) >= _APPOINTMENTS_MAX:
            del self._appointments[next(iter(self._appointments))]
        self._appointments[node] = now + retry
        return retry

    def _forget_missed(self, now: float) -> None:
        """A few at a time, the oldest first: their agents found another member."""
        for node in list(islice(self._appointments, 4)):
            if self._appointments[node] < now - _MISSED_S:
                del self._appointments[node]
