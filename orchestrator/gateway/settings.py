"""Limits of the gateway. The server's main may change them; tests make them smaller."""

from dataclasses import dataclass

from orchestrator.domain.liveness import DEFAULT_PERIODS, Periods


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Times in seconds unless the name says otherwise."""

    member: str
    region: str
    version: str
    heartbeat_s: float = 5.0
    # A stream without a message for so many intervals is half open: nobody is there.
    heartbeats_missed_max: int = 3
    # Another box is let in as a node whose former box was silent for so many intervals: who only
    # lost its member has tried others by then, and its waits have not grown beyond 30 s.
    heartbeats_former_max: int = 6
    # And a box that is known to have a copy of its disk, as both were heard at once.
    copy_patience_s: float = 3600.0
    hello_timeout_s: float = 10.0
    write_timeout_s: float = 20.0
    sessions_max: int = 20_000
    # Streams that wait for their turn or have not said Hello yet.
    greeting_max: int = 2_000
    # New sessions per second.
    accept_rate: float = 300.0
    # Plans per second: a box works for each, and answers.
    plans_per_s: float = 300.0
    plans_burst: int = 100
    # After about so long an agent opens its next session at its nearest member. 0: never.
    session_age_s: float = 3600.0
    # Messages per second, heartbeats apart; beyond it the node's own stream is read slower.
    messages_per_s: float = 50.0
    messages_burst: int = 200
    # For so long without an orchestrator sites take replicas over.
    autonomy_s: float = 7 * 86_400.0
    retry_store_s: float = 2.0
    refused_retry_after_ms: int = 30_000
    # Of the grace at shutdown, how much goes by while agents are sent away one after the other.
    drain_share: float = 0.6
    periods: Periods = DEFAULT_PERIODS
