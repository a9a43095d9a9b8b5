"""Names of runs of a process: only one that is certainly over counts as over."""

import os
import subprocess

import pytest

from orchestrator import instance
from orchestrator.instance import has_ended, new_instance_id


def test_this_process_runs() -> None:
    assert not has_ended(new_instance_id())
    assert new_instance_id() != new_instance_id()


def test_a_process_that_died_has_ended_and_a_zombie_too() -> None:
    child = subprocess.Popen(["sleep", "60"])
    machine, _, _, chance = new_instance_id().split(".")
    name = f"{machine}.{child.pid}.{instance._started(child.pid)}.{chance}"
    assert not has_ended(name)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(name)
    child.wait()
    assert has_ended(name)


def test_a_process_that_got_the_number_of_a_dead_one_is_not_it() -> None:
    machine, pid, started, chance = new_instance_id().split(".")
    assert has_ended(f"{machine}.{pid}.{int(started) - 1}.{chance}")


@pytest.mark.parametrize("name", ["", "a", "x.1.2.3", ".1.2.3", "a.b.c.d", "uuid-of-another-kind"])
def test_of_other_machines_nothing_is_known(name: str) -> None:
    assert not has_ended(name)


def test_without_proc_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "_machine", lambda: "")
    assert not has_ended(new_instance_id())
