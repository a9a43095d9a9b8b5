"""The transition table, row by row: every combination of facts has one situation."""

import itertools
import re
from pathlib import Path

import pytest

from agent.domain import situation as table
from agent.domain.situation import (
    FOLLOWS,
    NO_POD,
    SERVED,
    ContainerSituation,
    Situation,
    classify,
    classify_container,
)
from agent.runtime.port import ContainerPhase

FACTS = (
    "doomed", "has_pod", "assigned", "blocked", "images_missing", "waits", "same_template",
    "finished",
)  # fmt: skip


@pytest.mark.parametrize(
    ("true", "situation"),
    [
        ("", Situation.GONE),
        ("assigned blocked", Situation.BLOCKED),
        ("assigned blocked images_missing waits", Situation.BLOCKED),
        ("assigned images_missing", Situation.FETCHING),
        ("assigned images_missing waits", Situation.FETCHING),
        ("assigned waits", Situation.WAITING),
        ("assigned", Situation.CREATING),
        ("has_pod assigned same_template", Situation.SERVING),
        ("has_pod assigned same_template blocked", Situation.SERVING),
        ("has_pod assigned", Situation.REPLACING),
        ("has_pod assigned blocked", Situation.KEPT),
        ("has_pod", Situation.KEPT),
        ("has_pod same_template", Situation.KEPT),
        ("has_pod assigned same_template finished", Situation.FINISHED),
        ("has_pod assigned finished blocked", Situation.FINISHED),
        ("has_pod finished", Situation.KEPT),
        ("doomed finished assigned", Situation.RETIRING),
        ("doomed", Situation.RETIRING),
        ("doomed assigned", Situation.RETIRING),
    ],
)
def test_situation(true: str, situation: Situation) -> None:
    assert classify(**{fact: fact in true.split() for fact in FACTS}) is situation


def test_every_combination_has_a_row() -> None:
    for values in itertools.product((False, True), repeat=len(FACTS)):
        facts = dict(zip(FACTS, values, strict=True))
        situation = classify(**facts)
        assert situation in FOLLOWS
        if facts["has_pod"] and not facts["doomed"]:
            assert situation in SERVED, "a pod that nobody wants gone is served"
        if not facts["doomed"] and not facts["has_pod"]:
            assert situation in NO_POD


def test_the_documentation_shows_the_tables_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "replica-lifecycle.md").read_text()
    for text in (str(table.__doc__), page):
        rows = re.findall(r"^    ([A-Z]+) ", text, re.MULTILINE)
        wanted = [s.name for s in Situation] + [s.name for s in ContainerSituation]
        assert sorted(row for row in rows if row != "SIGKILL") == sorted(wanted)
    for line in str(table.__doc__).splitlines():
        if line.startswith("    "):
            assert line in page, f"docs/replica-lifecycle.md lacks: {line.strip()}"


def test_what_must_go_never_serves_again() -> None:
    assert FOLLOWS[Situation.RETIRING].isdisjoint(SERVED)


@pytest.mark.parametrize(
    ("phase", "true", "situation"),
    [
        (None, "", ContainerSituation.ABSENT),
        (None, "once", ContainerSituation.ABSENT),
        (ContainerPhase.RUNNING, "waits", ContainerSituation.UP),
        (ContainerPhase.RUNNING, "unhealthy once", ContainerSituation.UNHEALTHY),
        (ContainerPhase.RUNNING, "unhealthy", ContainerSituation.UNHEALTHY),
        (ContainerPhase.EXITED, "unhealthy waits", ContainerSituation.UNCOUNTED),
        (ContainerPhase.EXITED, "once", ContainerSituation.UNCOUNTED),
        (ContainerPhase.EXITED, "counted waits", ContainerSituation.BACKOFF),
        (ContainerPhase.EXITED, "counted", ContainerSituation.ENDED),
        (ContainerPhase.EXITED, "counted once waits", ContainerSituation.DONE),
        (ContainerPhase.EXITED, "counted once", ContainerSituation.DONE),
        (ContainerPhase.CREATED, "", ContainerSituation.LEFTOVER),
        (ContainerPhase.CREATED, "once", ContainerSituation.LEFTOVER),
        (ContainerPhase.UNKNOWN, "", ContainerSituation.LEFTOVER),
    ],
)
def test_container_situation(
    phase: ContainerPhase | None, true: str, situation: ContainerSituation
) -> None:
    facts = {fact: fact in true.split() for fact in ("unhealthy", "counted", "waits", "once")}
    assert classify_container(phase, **facts) is situation
