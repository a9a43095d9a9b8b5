"""What a box does about an upgrade of its agent: the table of `agent/domain/upgrade.py`."""

from dataclasses import replace

import pytest

from agent.domain.upgrade import (
    Ended,
    Event,
    Failed,
    Fetched,
    Here,
    Outcome,
    Phase,
    State,
    Telling,
    Told,
    Verified,
    Withdrawn,
    step,
)
from agent.upgrade.order import UnreadableOrder, floor_of, half_of, order_of, telling_of
from polder.release import Package, Release, SignedRelease, release_bytes
from polder.release_floor import Floor

HERE = Here("0.1.0-1", "amd64", 1)


def release(version: str, schema: int = 1, *arches: str) -> Release:
    packages = tuple(
        Package(arch, f"{number:064x}", 1000) for number, arch in enumerate(arches or ("amd64",), 1)
    )
    return Release("test", version, schema, packages, 1)


def signed(what: Release) -> SignedRelease:
    return SignedRelease(release_bytes(what), b"signature")


PRESENT = release("0.1.0-1")
WANTED = replace(release("0.2.0-1"), packages=(Package("amd64", "a" * 64, 2000),))


def telling(id_: str = "u1", attempt: int = 1) -> Telling:
    return Telling(id_, attempt, signed(WANTED), signed(PRESENT), 60)


def after(*events: Event, state: State | None = None, here: Here = HERE) -> State:
    found = state or State()
    for number, event in enumerate(events):
        found = step(found, event, here, number)
    return found


def ended(phase: str = "Done", id_: str = "u1", attempt: int = 1) -> Outcome:
    return Outcome(id_, attempt, "0.2.0-1", phase, "" if phase == "Done" else "NotWell", "", 7)


def test_the_way_of_one_that_goes_well() -> None:
    state = after(Told(telling()))
    assert state.phase is Phase.VERIFYING
    state = after(Verified(WANTED, PRESENT), state=state)
    assert state.phase is Phase.DOWNLOADING and state.version == "0.2.0-1"
    assert state.wanted == WANTED.packages[0] and state.present == PRESENT.packages[0]
    state = after(Fetched(), state=state)
    assert state.phase is Phase.INSTALLING
    assert after(Ended(ended()), state=state) == State(
        Phase.ENDED, version="0.2.0-1", outcome=ended()
    )


@pytest.mark.parametrize(
    ("wanted", "present", "here", "reason"),
    [
        (WANTED, release("0.0.9-1"), HERE, "OtherPresent"),
        (release("0.2.0-1", 1, "arm64"), PRESENT, HERE, "OtherArchitecture"),
        (WANTED, release("0.1.0-1", 1, "arm64"), HERE, "OtherArchitecture"),
        (WANTED, PRESENT, replace(HERE, state_schema=2), "OlderState"),
        (release("0.0.9-1"), PRESENT, HERE, "OlderRelease"),
        (WANTED, PRESENT, replace(HERE, floor=Floor(2, 2)), "OlderRelease"),
    ],
)
def test_what_does_not_fit_the_box_is_refused_before_anything_is_fetched(
    wanted: Release, present: Release, here: Here, reason: str
) -> None:
    state = after(Told(telling()), Verified(wanted, present), here=here)
    assert state.phase is Phase.ENDED and state.outcome is not None
    assert (state.outcome.phase, state.outcome.reason) == ("Refused", reason)
    assert state.outcome.version == wanted.version and state.outcome.message


def test_a_box_that_is_no_package_refuses_at_once() -> None:
    state = after(Told(telling()), here=replace(HERE, unfit="no package"))
    assert state.outcome is not None and state.outcome.reason == "NotPackaged"


def test_a_version_that_runs_already_is_done() -> None:
    state = after(Told(telling()), Verified(release("0.1.0-1"), PRESENT))
    assert state.outcome is not None and state.outcome.phase == "Done"


@pytest.mark.parametrize(
    "events", [(), (Verified(WANTED, PRESENT),), (Verified(WANTED, PRESENT), Fetched())]
)
def test_being_told_the_same_again_changes_nothing(events: tuple[Event, ...]) -> None:
    state = after(Told(telling()), *events)
    assert after(Told(telling()), state=state) is state


def test_an_outcome_is_final_until_a_higher_attempt() -> None:
    state = after(Ended(ended("RolledBack")), state=State(Phase.INSTALLING, telling()))
    assert after(Told(telling()), state=state) is state
    assert after(Told(telling(attempt=2)), state=state).phase is Phase.VERIFYING
    assert after(Told(telling("u2")), state=state).phase is Phase.VERIFYING


def test_another_telling_takes_the_place_of_one_that_has_touched_nothing() -> None:
    state = after(Told(telling()), Verified(WANTED, PRESENT), Told(telling("u2")))
    assert state == State(Phase.VERIFYING, telling("u2"))


def test_another_telling_waits_for_the_installer() -> None:
    state = after(Told(telling("u2")), state=State(Phase.INSTALLING, telling()))
    assert state.phase is Phase.INSTALLING and state.telling == telling()
    assert after(Ended(ended()), state=state) == State(Phase.VERIFYING, telling("u2"))
    assert after(Failed("NoInstaller", ""), state=state) == State(Phase.VERIFYING, telling("u2"))
    assert after(Withdrawn("u2"), state=state).waiting is None


@pytest.mark.parametrize(
    ("phase", "then"),
    [
        (Phase.VERIFYING, Phase.IDLE),
        (Phase.DOWNLOADING, Phase.IDLE),
        (Phase.INSTALLING, Phase.INSTALLING),
        (Phase.ENDED, Phase.ENDED),
        (Phase.IDLE, Phase.IDLE),
    ],
)
def test_it_is_withdrawn_only_before_anything_is_touched(phase: Phase, then: Phase) -> None:
    outcome = ended() if phase is Phase.ENDED else None
    state = State(phase, telling(), outcome=outcome)
    assert after(Withdrawn("other"), state=state) is state
    assert after(Withdrawn("u1"), state=state).phase is then


@pytest.mark.parametrize("phase", list(Phase))
def test_what_does_not_fit_the_phase_changes_nothing(phase: Phase) -> None:
    outcome = ended() if phase is Phase.ENDED else None
    state = State(phase, telling(), outcome=outcome)
    unfit: dict[Phase, list[Event]] = {
        Phase.VERIFYING: [Fetched(), Ended(ended())],
        Phase.DOWNLOADING: [Verified(WANTED, PRESENT), Ended(ended())],
        Phase.INSTALLING: [Verified(WANTED, PRESENT), Fetched()],
    }
    everything: list[Event] = [
        Verified(WANTED, PRESENT),
        Fetched(),
        Failed("X", ""),
        Ended(ended()),
    ]
    for event in unfit.get(phase, everything):
        assert after(event, state=state) is state


def test_an_order_holds_what_the_installer_and_its_verification_need() -> None:
    state = after(Told(telling()), Verified(WANTED, PRESENT), Fetched())
    order = order_of(state)
    assert telling_of(order) == telling()
    half = half_of(order, "wanted", "amd64")
    assert half.release == WANTED and half.package == WANTED.packages[0]
    assert order["present"]["sha256"] == PRESENT.packages[0].sha256


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "b" * 64},
        {"version": "0.3.0-1"},
        {"release": "!"},
        {"release": "e30="},
        {"signature": None},
    ],
)
def test_an_order_that_does_not_fit_its_releases_is_none(change: dict[str, object]) -> None:
    order = order_of(after(Told(telling()), Verified(WANTED, PRESENT), Fetched()))
    order["wanted"] |= change
    with pytest.raises(UnreadableOrder):
        half_of(order, "wanted", "amd64")


def test_an_order_for_another_architecture_is_none() -> None:
    order = order_of(after(Told(telling()), Verified(WANTED, PRESENT), Fetched()))
    with pytest.raises(UnreadableOrder, match="arm64"):
        half_of(order, "wanted", "arm64")


@pytest.mark.parametrize("body", [None, {}, {"signed_ms": 5, "later": 1}])
def test_a_floor_that_cannot_be_read_is_none(body: dict[str, object] | None) -> None:
    assert floor_of(body) == Floor()
    assert floor_of({"signed_ms": 5, "since_ms": 3}) == Floor(5, 3)
