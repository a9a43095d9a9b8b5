"""Label selectors: what they match, and what is no selector."""

import pytest

from orchestrator.api.selectors import parse_selector
from orchestrator.refusals import Refused

LABELS = {"app": "triage", "zone": "a", "example.eu/tier": "1"}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("app=triage", True),
        ("app==triage", True),
        ("app = triage", True),
        ("app=other", False),
        ("app!=other", True),
        ("missing!=x", True),
        ("app!=triage", False),
        ("zone in (a,b)", True),
        ("zone in (b, c)", False),
        ("zone notin (b,c)", True),
        ("missing notin (b)", True),
        ("missing in (b)", False),
        ("app", True),
        ("!app", False),
        ("! missing", True),
        ("app=triage,zone in (a,b),!canary", True),
        ("app=triage,zone in (b,c)", False),
        ("example.eu/tier=1", True),
        ("app=", False),
    ],
)
def test_matching(text: str, matches: bool) -> None:
    assert parse_selector(text).matches(LABELS) is matches


@pytest.mark.parametrize(
    "text", [",", "a,", "a=b,,c", "a in", "a in b", "a in (b", "=x", "a=b=c", "a=b c", "x" * 5000]
)
def test_what_is_no_selector(text: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_selector(text)
    assert caught.value.reason == "BadSelector"
