"""Which orchestrator to try next, how long to wait before that, and when to renew.

Pure: clocks and dice are arguments. `now` is in seconds of a clock that does not jump; `dice` is
uniform in [0, 1).

`agent/session.py` asks after every failed or finished session; `tests/sim/storm.py` asks for ten
thousand agents at once. The list is nearest first, and every round over it begins at its top.
Waits have "full jitter" (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015):
they are drawn from zero to a ceiling, so that agents that lost one region do not come in waves.

What a goodbye means depends on whose trouble it is:

    Shutdown, Overloaded, Drill   that member's: its `retry after` is obeyed there, and another
                                  member may be tried meanwhile
    anything else                 ours or everybody's (Superseded, InvalidInventory, what a newer
                                  version will say): nobody is tried before
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

BASE_S = 0.2
CEILING_S = 30.0
FIRST_S = 2.0  # a session broke: nobody knows yet how many others did
HOP_S = 1.0  # a member is full: another one, soon
APPOINTMENTS_MAX = 2  # so many full members are asked before the first one's time is awaited
FULL_MIN_S = 1.0  # a full member is not asked again sooner
SOON_S = 1.0  # whoever ends a session and wants it back so soon is not left for another
RETRY_AFTER_MAX_S = 600.0  # a server's mistake must not send an agent away for days
REFUSALS_SOON = 4  # rounds over the list
STABLE_S = 10.0  # a session that lived this long was no failure
FLAPPING_S = 3.0  # after a session that began, and died young
DIAL_S, DIAL_MAX_S = 3.0, 20.0
WELCOME_S, WELCOME_MAX_S = 10.0, 40.0  # more than a member lets anybody wait in line
SUPERSEDED_S, SUPERSEDED_MAX_S = 5.0, 300.0
UNDISPUTED_S = 900.0  # whoever was heard alone for so long has no twin
AGE_MIN_S = 0.5
ENDPOINTS_MAX = 64
_ADDRESS_MAX = 300
MEMBERS_OWN = frozenset(("Shutdown", "Overloaded", "Drill"))


@dataclass(frozen=True, slots=True)
class Appointment:
    """When a member that sent us away wants to be asked again. `full`: it was Overloaded."""

    endpoint: str
    at: float
    full: bool


@dataclass(frozen=True, slots=True)
class Attempts:
    """Where the agent stands in its list.

    `rounds`, `failures` and `tried` (in this round) count since the last stable session;
    `superseded` since one that nobody disputed.
    """

    endpoints: tuple[str, ...]
    index: int = 0
    rounds: int = 0
    failures: int = 0
    superseded: int = 0
    tried: frozenset[str] = frozenset()
    slow: bool = False  # somebody in this round did not answer in time
    appointments: tuple[Appointment, ...] = ()

    @property
    def endpoint(self) -> str:
        """The address to try now, or in use."""
        return self.endpoints[self.index % len(self.endpoints)]

    @property
    def welcome_s(self) -> float:
        """How long a member may say nothing once it is connected, in the same way."""
        return min(WELCOME_MAX_S, WELCOME_S * float(1 << min(self.rounds, 8)))

    @property
    def dial_s(self) -> float:
        """How long a connection may take. Longer with each round: where all are slow because all
        come at once, giving up early would only make more work."""
        return min(DIAL_MAX_S, DIAL_S * float(1 << min(self.rounds, 8)))


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait this long, then try `attempts.endpoint`."""

    seconds: float
    attempts: Attempts


def after_failure(attempts: Attempts, *, now: float, dice: float, slow: bool = False) -> Wait:
    """No session. `slow`: our patience ended the attempt.

    The first round over the list goes quickly (the base wait for each), since another endpoint is
    news; the exponent grows with every full round.
    """
    failed = _failed(attempts)
    return _next(replace(failed, slow=failed.slow or slow), 0.0, now=now, dice=dice)


def after_session(attempts: Attempts, *, lived_s: float, now: float, dice: float) -> Wait:
    """A session that had been welcomed broke without a goodbye.

    One that died young is a failure, but no sign that all are busy or away: on a line that flaps
    the waits stay short, or the node would be taken for lost.
    """
    if lived_s < STABLE_S:
        young = replace(_failed(attempts), rounds=0, slow=False)
        return _next(young, FLAPPING_S, now=now, dice=dice)
    return _next(_failed(_rested(attempts, lived_s)), FIRST_S, now=now, dice=dice)


def after_goodbye(
    attempts: Attempts,
    *,
    reason: str,
    retry_after_s: float,
    lived_s: float,
    now: float,
    dice: float,
) -> Wait:
    """The server ended the session (`lived_s` negative: did not begin one) and said when to come.

    Its wish is a minimum, with a tenth of jitter on top; without one, a goodbye is a failure of
    that endpoint. "Superseded" means that another process holds our identity: hurrying would fight
    it, so each time it is waited for longer.
    """
    asked = min(max(0.0, retry_after_s), RETRY_AFTER_MAX_S) * (1 + dice / 10)
    if lived_s >= STABLE_S:
        attempts = _rested(attempts, lived_s)
    if reason not in MEMBERS_OWN:
        if reason == "Superseded":
            hold = SUPERSEDED_S * 2 ** min(attempts.superseded, 16)
            asked = max(asked, min(SUPERSEDED_MAX_S, hold) * (1 + dice))
            attempts = replace(attempts, superseded=attempts.superseded + 1)
        wait = after_failure(attempts, now=now, dice=dice)
        return replace(wait, seconds=max(wait.seconds, asked))
    attempts = _failed(attempts)
    full = reason == "Overloaded"
    if asked:
        at = now + (max(FULL_MIN_S, asked) if full else asked)
        mine = Appointment(attempts.endpoint, at, full)
        attempts = replace(attempts, appointments=(*attempts.appointments, mine))
        if asked <= SOON_S and lived_s >= STABLE_S:
            return _await(mine, attempts, now=now)  # another process serves the address
    return _next(attempts, HOP_S if lived_s < 0 else 0.0, now=now, dice=dice)


def after_refusal(attempts: Attempts, *, now: float, dice: float) -> Wait:
    """An orchestrator does not accept who we are (revoked, expired, unknown).

    They are asked again soon, since a node that has just joined may not be known everywhere yet;
    when all of them stay with it, seldom: only a person can help, and that person should not have
    to restart the agent.
    """
    wait = after_failure(attempts, now=now, dice=dice)
    if wait.attempts.failures < REFUSALS_SOON * len(attempts.endpoints):
        return wait
    return Wait(CEILING_S * (1 + dice), wait.attempts)


def _failed(attempts: Attempts) -> Attempts:
    here = attempts.endpoint
    return replace(
        attempts,
        tried=attempts.tried | {here},
        failures=attempts.failures + 1,
        appointments=tuple(one for one in attempts.appointments if one.endpoint != here),
    )


def _rested(attempts: Attempts, lived_s: float) -> Attempts:
    superseded = attempts.superseded if lived_s < UNDISPUTED_S else 0
    return replace(
        attempts, rounds=0, failures=0, tried=frozenset(), slow=False, superseded=superseded
    )


def _next(attempts: Attempts, window_s: float, *, now: float, dice: float) -> Wait:
    """The nearest that was not tried in this round and does not want to be left alone; but nothing
    that could make us late for a full member that has told us when to come, and nobody else once
    two have."""
    full = [one for one in attempts.appointments if one.full]
    if full:
        first = min(full, key=_at)
        if len(full) >= APPOINTMENTS_MAX or first.at <= now + window_s + attempts.dial_s:
            return _await(first, attempts, now=now)
    if attempts.tried.issuperset(attempts.endpoints):
        if attempts.slow:
            # They may be slow because all come at once: rest for as long as was waited for one.
            window_s = max(window_s, attempts.dial_s)
        rounds = attempts.rounds + 1
        attempts = replace(attempts, tried=frozenset(), rounds=rounds, slow=False)
    ceiling = min(CEILING_S, BASE_S * 2 ** min(attempts.rounds, 16))
    seconds = dice * max(window_s, ceiling)
    closed = {one.endpoint for one in attempts.appointments if one.at > now + seconds}
    for index, endpoint in enumerate(attempts.endpoints):
        if endpoint not in attempts.tried and endpoint not in closed:
            return Wait(seconds, replace(attempts, index=index))
    wait = _await(min(attempts.appointments, key=_at), attempts, now=now)
    return replace(wait, seconds=max(wait.seconds, seconds))


def _await(appointment: Appointment, attempts: Attempts, *, now: float) -> Wait:
    index = attempts.endpoints.index(appointment.endpoint)
    return Wait(max(0.0, appointment.at - now), replace(attempts, index=index))


def _at(appointment: Appointment) -> float:
    return appointment.at


# --- the list -------------------------------------------------------------------------------------


def usable(told: Sequence[str]) -> tuple[str, ...]:
    """What of a list can be dialled, host:port, each once: one bad entry must not cost the rest."""
    return tuple(dict.fromkeys(e for e in told if _is_address(e)))[:ENDPOINTS_MAX]


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    plain = len(text) <= _ADDRESS_MAX and text.isascii() and text.isprintable()
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host.replace(":", "/")
    return plain and bool(bare) and not set(bare) & set(" /,@%[]") and port.isdecimal()


def pinned(told: tuple[str, ...], in_use: str) -> tuple[str, ...]:
    """The list to keep. The address over which it came is not forgotten while it is all that is
    known to work: what members advertise may be wrong for this box."""
    if not told or in_use in told or not in_use:
        return told
    return (*told[: ENDPOINTS_MAX - 1], in_use)


def with_endpoints(attempts: Attempts, endpoints: tuple[str, ...]) -> Attempts:
    """The list changed: stay at the address in use if it is still in, else start with the first."""
    if not endpoints or endpoints == attempts.endpoints:
        return attempts
    current = attempts.endpoint
    return replace(
        attempts,
        endpoints=endpoints,
        index=endpoints.index(current) if current in endpoints else 0,
        tried=attempts.tried & set(endpoints),
        appointments=tuple(a for a in attempts.appointments if a.endpoint in endpoints),
    )


def at(attempts: Attempts, endpoint: str) -> Attempts:
    """A session is open there."""
    if endpoint not in attempts.endpoints:
        return attempts
    return replace(attempts, index=attempts.endpoints.index(endpoint))


# --- the age of a session -------------------------------------------------------------------------


def nearer(attempts: Attempts) -> tuple[str, ...]:
    """Where to open the next session of one that is old: the nearest that answers, and the address
    in use at last. That too is dialled anew, so that processes that share it, or were started
    again, get their share."""
    return attempts.endpoints[: attempts.index % len(attempts.endpoints) + 1]


def renewal_due_at(not_before: float, not_after: float, *, dice: float) -> float:
    """Unix seconds: a third of the certificate's life, give or take a thirtieth of it."""
    life = not_after - not_before
    return not_before + life / 3 + (dice - 0.5) * life / 15


def renewal_pause_s(not_before: float, not_after: float) -> float:
    """The least time between two renewals, by a clock that does not jump.

    On a box whose clock is days ahead every new certificate is due for renewal at once.
    """
    return (not_after - not_before) / 12


def renewal_retry_s(not_after: float, now: float, failures: int, *, dice: float) -> float:
    """How long to wait after a failed renewal: longer with each, at most half of what is left."""
    ceiling: float = min(3600.0, 10.0 * 2 ** min(failures, 10))
    return max(1.0, min(ceiling, (not_after - now) / 2)) * (0.5 + dice / 2)


CERTIFICATE_CONDITIONS = ("CertificateNotYetValid", "CertificateExpired", "CertificateExpiring")


@dataclass(frozen=True, slots=True)
class CertificateTrouble:
    """`condition`: one of CERTIFICATE_CONDITIONS; `reason` as a condition has it."""

    condition: str
    reason: str
    message: str


def certificate_trouble(
    not_before: float, not_after: float, now: float
) -> CertificateTrouble | None:
    """What an operator must know about the certificate at `now`; None when it is well.

    Two thirds of its life without a renewal is trouble while there is still time to act.
    """
    if now < not_before - 300:
        text = "the certificate is not valid yet: is this box's clock right?"
        return CertificateTrouble("CertificateNotYetValid", "ClockBehind", text)
    if now > not_after:
        text = f"the certificate ran out {int(now - not_after)} s ago: orchestrators will refuse "
        text += "this node (join again with a new token and --force); containers keep running"
        return CertificateTrouble("CertificateExpired", "Expired", text)
    if now > not_before + (not_after - not_before) * 2 / 3:
        text = f"the certificate runs out in {int(not_after - now)} s and was not renewed"
        return CertificateTrouble("CertificateExpiring", "NotRenewed", text)
    return None
