"""Which orchestrator to try next, how long to wait before that, and when to renew.

Pure: clocks and dice are arguments.

`agent/session.py` asks after every failed or finished session. The jitter is "full jitter"
(Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): a wait is drawn from
zero to the ceiling, so that ten thousand agents that lost one region do not come back in waves.
"""

from dataclasses import dataclass, replace

BASE_S = 0.2
CEILING_S = 30.0
RETRY_AFTER_MAX_S = 600.0  # a server's mistake must not send an agent away for days
REFUSALS_SOON = 4  # rounds over the list
STABLE_S = 10.0  # a session that lived this long was no failure


@dataclass(frozen=True, slots=True)
class Attempts:
    """Where the agent stands in its list. `failures` counts those since the last stable session."""

    endpoints: tuple[str, ...]
    index: int = 0
    failures: int = 0

    @property
    def endpoint(self) -> str:
        """The address to try now."""
        return self.endpoints[self.index % len(self.endpoints)]


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait this long, then try `attempts.endpoint`."""

    seconds: float
    attempts: Attempts


def after_failure(attempts: Attempts, *, dice: float) -> Wait:
    """No session, or one that died young. `dice` is uniform in [0, 1).

    The first round over the list goes quickly (the base wait for each), since another endpoint is
    news; the exponent grows with every full round.
    """
    failures = attempts.failures + 1
    rounds = failures // len(attempts.endpoints) if len(attempts.endpoints) > 1 else failures - 1
    ceiling = min(CEILING_S, BASE_S * 2 ** min(rounds, 16))
    moved = replace(
        attempts, index=(attempts.index + 1) % len(attempts.endpoints), failures=failures
    )
    return Wait(dice * ceiling, moved)


def after_session(attempts: Attempts, *, lived_s: float, dice: float) -> Wait:
    """A session that had been welcomed broke without a goodbye."""
    if lived_s < STABLE_S:
        return after_failure(attempts, dice=dice)
    return after_failure(replace(attempts, failures=0), dice=dice)


def after_goodbye(attempts: Attempts, *, reason: str, retry_after_s: float, dice: float) -> Wait:
    """The server ended the session and said when to come back.

    Its wish is a minimum, with a tenth of jitter on top. Without one, a goodbye is a failure of
    that endpoint. "Superseded" means that another process holds our identity: hurrying would
    fight it.
    """
    wait = after_failure(attempts, dice=dice)
    floor = min(max(0.0, retry_after_s), RETRY_AFTER_MAX_S)
    if reason == "Superseded":
        floor = max(floor, 5.0)
    if floor:
        return Wait(floor * (1 + dice / 10), wait.attempts)
    return wait


def after_refusal(attempts: Attempts, *, dice: float) -> Wait:
    """An orchestrator does not accept who we are (revoked, expired, unknown).

    They are asked again soon, since a node that has just joined may not be known everywhere yet;
    when all of them stay with it, seldom: only a person can help, and that person should not have
    to restart the agent.
    """
    wait = after_failure(attempts, dice=dice)
    if wait.attempts.failures < REFUSALS_SOON * len(attempts.endpoints):
        return wait
    return Wait(CEILING_S * (1 + dice), wait.attempts)


def with_endpoints(attempts: Attempts, endpoints: tuple[str, ...]) -> Attempts:
    """The list changed: stay at the address in use if it is still in, else start with the first."""
    if not endpoints or endpoints == attempts.endpoints:
        return attempts
    current = attempts.endpoint
    index = endpoints.index(current) if current in endpoints else 0
    return replace(attempts, endpoints=endpoints, index=index)


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


def certificate_trouble(not_before: float, not_after: float, now: float) -> str:
    """What an operator must know about the certificate at `now`; empty when it is well.

    Two thirds of its life without a renewal is trouble while there is still time to act.
    """
    if now < not_before - 300:
        return "the certificate is not valid yet: is this box's clock right?"
    if now > not_after:
        return (
            f"the certificate ran out {int(now - not_after)} s ago: orchestrators will refuse this "
            "node (join again with a new token and --force); containers keep running"
        )
    if now > not_before + (not_after - not_before) * 2 / 3:
        return f"the certificate runs out in {int(not_after - now)} s and was not renewed"
    return ""
