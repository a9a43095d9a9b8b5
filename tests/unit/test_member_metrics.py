"""What Prometheus hears of a member among the others."""

from math import inf
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from orchestrator.member_metrics import MemberCollector
from orchestrator.mesh.link import LinkStatus


def shown(leading: bool, term: int, ago_s: float, *links: LinkStatus) -> list[str]:
    leader: Any = SimpleNamespace(is_leading=leading)
    voice: Any = SimpleNamespace(term=term, told_ago_s=ago_s)
    registry = CollectorRegistry()
    registry.register(MemberCollector(leader, voice, lambda: links, lambda: 2, lambda: 3))
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_a_member_tells_who_leads_and_whom_it_hears() -> None:
    up = LinkStatus("m2", "eu-west", True, True, 1.0, pulse_at=2.0, clock_skew_s=3600.0)
    broken = LinkStatus("m3", "eu-north", True, False, 1.0)
    stopped = LinkStatus("m4", "eu-north", False, False, 1.0)
    found = shown(True, 42, 1.5, up, broken, stopped)
    for line in (
        "polder_leading 1.0",
        "polder_leader_term 42.0",
        "polder_leader_words_age_seconds 1.5",
        "polder_member_links_up 1.0",
        "polder_member_links_broken 1.0",
        'polder_member_reachable{peer="m2",region="eu-west"} 1.0',
        'polder_member_reachable{peer="m4",region="eu-north"} 0.0',
        'polder_member_clock_skew_seconds{peer="m2",region="eu-west"} 3600.0',
        'polder_relays{node="elsewhere"} 3.0',
    ):
        assert line in found
    assert not any("skew" in line and "m3" in line for line in found), "it was never heard"


def test_a_member_that_has_heard_no_leader_says_so() -> None:
    assert "polder_leader_words_age_seconds +Inf" in shown(False, 0, inf)
