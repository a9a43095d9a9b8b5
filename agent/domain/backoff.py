"""How long to wait after the n-th failure in a row. Called by the reconcile state machine.

No jitter: one box retries alone, so there is no herd to spread; and a fixed sequence is what an
operator can recognise in the events.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """Delays in seconds: first, then doubled up to the most."""

    first_s: float
    most_s: float

    def delay_s(self, failures: int) -> float:
        """The wait after this many failures in a row; 0 without one."""
        if failures <= 0:
            return 0.0
        return min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 32))


# A crash is often a race at start-up that the next try wins: the first restart comes soon.
CRASH = Policy(0.5, 300.0)
IMAGE = Policy(2.0, 300.0)
# A host port is freed by something that ends; five minutes of not looking would be felt.
SANDBOX = Policy(1.0, 30.0)
# A disk that was full may have room soon.
FILES = Policy(2.0, 60.0)
# A container that ran this long has proved itself: its next crash is the first again.
CRASH_RESET_S = 600.0


@dataclass(slots=True)
class Retry:
    """Failures in a row of one thing, when it may be tried again, and what went wrong last."""

    policy: Policy
    failures: int = 0
    until: float = 0.0
    reason: str = ""
    message: str = ""

    def failed(self, now: float, reason: str, message: str) -> float:
        """Count one more failure; returns the delay in seconds."""
        self.failures += 1
        delay = self.policy.delay_s(self.failures)
        self.until = now + delay
        self.reason, self.message = reason, message
        return delay

    def succeeded(self) -> None:
        self.failures, self.until, self.reason, self.message = 0, 0.0, "", ""

    def hurry(self, now: float) -> None:
        """What failed may work now: try at once; the next failure waits as long again."""
        self.until = min(self.until, now)

    def waits(self, now: float) -> bool:
        return now < self.until
