"""What is said of a member is the worst that is known of it."""

import dataclasses
from typing import Any

import pytest

from orchestrator.api.regions import Regions
from orchestrator.mesh.link import LinkStatus
from orchestrator.records import MemberRecord, PresenceRecord
from polder.v1 import operator_pb2

HEARD = LinkStatus(
    member="b", region="eu", present=True, reachable=True, since=0.0, version="1.0", pulse_at=100.0,
    store_healthy=True,
)  # fmt: skip


class Mirror:
    healthy, revision = True, 7

    def members(self) -> list[MemberRecord]:
        return [MemberRecord(name, "eu", "1.0", (), (), "x:1") for name in ("a", "b")]

    def present(self, name: str) -> PresenceRecord:
        return PresenceRecord(name, "eu", "1.0", "i", 0)

    def kept(self, _: str) -> dict[str, Any]:
        return {}

    def age_s(self) -> float:
        return 0.0


class Store:
    async def get(self, _: str) -> None:
        return None

    async def revision(self) -> int:
        return 7


async def told_of_b(link: LinkStatus) -> operator_pb2.MemberInfo:
    store: Any = Store()
    mirror: Any = Mirror()
    events: Any = None
    regions = Regions(
        "a", store, None, mirror, lambda: [link], lambda: 0, lambda: 0.0, events, lambda: 100.0
    )
    return (await regions.regions()).regions[0].members[1]


@pytest.mark.parametrize(
    ("ahead_s", "said"),
    [
        (0.4, ""),
        (-29.0, ""),
        (3600.0, "its clock is 3600 s ahead of that of member a"),
        (-3600.0, "its clock is 3600 s behind that of member a"),
    ],
)
async def test_a_clock_that_is_wrong_is_said(ahead_s: float, said: str) -> None:
    message = (await told_of_b(dataclasses.replace(HEARD, clock_skew_s=ahead_s))).message
    assert message.startswith(said) and bool(message) == bool(said)


async def test_a_store_that_it_cannot_read_is_worse() -> None:
    worse = dataclasses.replace(HEARD, clock_skew_s=3600.0, store_healthy=False)
    assert (await told_of_b(worse)).message == "it cannot read the store"
