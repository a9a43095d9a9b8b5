"""Numbers of this member among the others, read when Prometheus asks. Registered by `server.py`.

Every member exports the same names: who leads is where `polder_leading` is 1, and two of those for
longer than a lease are worth an alert, like none at all.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.mesh.link import LinkStatus

MEMBERS_MAX = 100


class Leads(Protocol):
    """The leader of this process."""

    @property
    def is_leading(self) -> bool: ...


class Speaks(Protocol):
    """What is known of the leader, here or elsewhere."""

    @property
    def term(self) -> int: ...

    @property
    def told_ago_s(self) -> float: ...


class MemberCollector(Collector):
    """`links`: of every other member; `here` and `elsewhere`: relays that are open, by where the
    node is connected."""

    def __init__(
        self,
        leader: Leads,
        voice: Speaks,
        links: Callable[[], Sequence[LinkStatus]],
        here: Callable[[], int],
        elsewhere: Callable[[], int],
    ) -> None:
        self._leader = leader
        self._voice = voice
        self._links = links
        self._here = here
        self._elsewhere = elsewhere

    def describe(self) -> Iterable[Metric]:
        return ()  # registering must not read the members

    def collect(self) -> Iterator[Metric]:
        yield _gauge("polder_leading", "1: this member leads.", float(self._leader.is_leading))
        yield _gauge("polder_leader_term", "Of the leader last heard.", self._voice.term)
        # +Inf: no leader has said anything.
        said = "Since the leader last said anything."
        yield _gauge("polder_leader_words_age_seconds", said, self._voice.told_ago_s)
        links = self._links()[:MEMBERS_MAX]
        up = sum(1 for link in links if link.reachable)
        yield _gauge("polder_member_links_up", "Other members that are heard.", up)
        gone = sum(1 for link in links if link.present and not link.reachable)
        what = "Members that are there by the Store and cannot be heard."
        yield _gauge("polder_member_links_broken", what, gone)
        yield from _of_links(links)
        relays = GaugeMetricFamily("polder_relays", "Open logs and execs.", labels=("node",))
        relays.add_metric(("here",), self._here())
        relays.add_metric(("elsewhere",), self._elsewhere())
        yield relays


def _of_links(links: Sequence[LinkStatus]) -> Iterator[Metric]:
    reachable = GaugeMetricFamily(
        "polder_member_reachable", "1: the other member is heard.", labels=("peer", "region")
    )
    skew = GaugeMetricFamily(
        "polder_member_clock_skew_seconds",
        "How far the other member's clock is ahead, as last heard.",
        labels=("peer", "region"),
    )
    for link in links:
        reachable.add_metric((link.member, link.region), float(link.reachable))
        if link.pulse_at:
            skew.add_metric((link.member, link.region), link.clock_skew_s)
    yield reachable
    yield skew


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help_text)
    family.add_metric((), value)
    return family
