"""Waiting for a Store at start: how often it says so, and what ends it."""

import pytest

from orchestrator import patience
from orchestrator.patience import patiently
from orchestrator.store.port import StoreUnavailable, StoreUnusable


class Clock:
    """Sleeping passes its time at once."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What systemd heard."""
    said: list[str] = []
    monkeypatch.setattr(patience, "notify", said.append)
    return said


async def test_it_says_so_once_per_doubling_and_systemd_each_time(
    told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    tries = 0

    async def attempt() -> str:
        nonlocal tries
        tries += 1
        if tries <= 200:
            raise StoreUnavailable("no endpoint\nof etcd")
        return "there"

    clock = Clock()
    found = await patiently(attempt, monotonic=clock.monotonic, sleep=clock.sleep)
    assert found == "there"
    assert len(told) == 200
    assert all("EXTEND_TIMEOUT_USEC=" in one and one.count("\n") == 1 for one in told)
    assert told[-1].startswith("STATUS=waiting for the store (39")
    logged = [record for record in caplog.records if "waiting for the store" in record.message]
    assert 8 <= len(logged) <= 11


async def test_what_waiting_cannot_mend_is_raised_at_once(told: list[str]) -> None:
    async def attempt() -> None:
        raise StoreUnusable("the certificate is refused")

    with pytest.raises(StoreUnusable):
        await patiently(attempt)
    assert told == []
