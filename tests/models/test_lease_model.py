"""lease.pml, checked by spin: every order of steps of a small group and its successor.

A check that finds nothing proves nothing by itself, so broken variants of the model must fail, and
what it is about must be reachable in it.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("lease.pml")
TIMEOUT_S = 600
MEMORY_MB = 4000

pytestmark = [pytest.mark.spin, pytest.mark.timeout(TIMEOUT_S)]


@dataclass(frozen=True)
class Found:
    """`error` is the first assertion that does not hold; empty: all states were seen, and none."""

    error: str
    states: int


def check(tmp_path: Path, defines: str, search: str = "") -> Found:
    options = [f"-D{define}" for define in defines.split()]
    run(tmp_path, "spin", "-a", *options, str(MODEL))
    flags = ["-O1", "-w", "-DSAFETY", f"-DMEMLIM={MEMORY_MB}", *search.split()]
    run(tmp_path, "gcc", *flags, "-o", "pan", "pan.c")
    output = run(tmp_path, "./pan", "-m100000")
    assert "Search not completed" not in output or "errors: 1" in output, output
    assert "max search depth too small" not in output, output
    error = re.search(r"pan:1: (.*)", output)
    states = re.search(r"(\d+) states, stored", output)
    errors = re.search(r"errors: (\d+)", output)
    assert states and errors, output
    assert bool(error) == (errors[1] != "0"), output
    return Found(error[1] if error else "", int(states[1]))


def run(directory: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


@pytest.mark.parametrize(
    ("defines", "states_min"),
    [
        ("RIVAL=3", 200_000),
        ("RIVAL=1", 500_000),
        ("RIVAL=1 ONE_GROUP TRIES=2", 3_000),
        ("RIVAL=1 ONE_GROUP TRIES=2 BOUND", 3_000_000),
    ],
)
def test_no_two_hold_it_and_epochs_rise(tmp_path: Path, defines: str, states_min: int) -> None:
    found = check(tmp_path, defines)
    assert found.error == ""
    assert found.states > states_min, "the model has lost most of its states"


@pytest.mark.parametrize(
    "defines",
    [
        "SKIP_SEAL RIVAL=3",
        "NO_WAIT RIVAL=3",
        "FORGET RIVAL=1 ONE_GROUP",
        "GIVE_BACK RIVAL=1 ONE_GROUP TRIES=2",
        "UNARMED RIVAL=1 ONE_GROUP TRIES=2 BOUND",
        "LATE RIVAL=1 ONE_GROUP TRIES=2 BOUND",
    ],
)
def test_a_broken_variant_is_found(tmp_path: Path, defines: str) -> None:
    found = check(tmp_path, f"{defines} TWO_HOLDERS", "-DBFS")
    assert found.error.startswith("assertion violated")


@pytest.mark.parametrize("ballot", [1, 6])
def test_the_next_group_is_held_in(tmp_path: Path, ballot: int) -> None:
    found = check(tmp_path, f"REACH={ballot} RIVAL=3", "-DBFS")
    assert f"grants_n[{ballot}]" in found.error
