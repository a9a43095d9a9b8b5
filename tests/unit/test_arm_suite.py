"""Which tests run on arm64: found by what they import, themselves and by their helpers."""

from pathlib import Path

import pytest

from tests import conftest
from tests.arm.suite import FOREIGN, agent_tests, used_by

ROOT = Path(__file__).resolve().parents[2]


def test_it_is_the_agents_tests_and_not_the_orchestrators() -> None:
    found = set(agent_tests(ROOT))
    assert {
        "tests/unit/test_supervisor.py",
        "tests/unit/test_site_machine.py",  # by its helper only
        "tests/unit/test_hardware_profiles.py",
        "tests/integration/test_agent_session_process.py",
        "tests/integration/test_switch.py",
    } <= found
    others = ("test_members", "test_edgectl_verbs", "test_package", "test_package_boots")
    assert found.isdisjoint({f"tests/integration/{name}.py" for name in others})
    assert len(found) > 50


@pytest.mark.parametrize(
    ("helper", "belongs"),
    [
        ("from agent.domain import plan", True),
        ("import agent.main", True),
        ("def late() -> None:\n    from agent import inventory", True),
        ("from agent import main\nfrom orchestrator import fleet", False),
        ("import agency", False),
        ("from tests.unit import test_one", False),
    ],
)
def test_helpers_are_followed(tmp_path: Path, helper: str, belongs: bool) -> None:
    folder = tmp_path / "tests" / "unit"
    folder.mkdir(parents=True)
    (folder / "test_one.py").write_text("from tests.unit import helper\n")
    (folder / "helper.py").write_text(f"{helper}\n")
    assert agent_tests(tmp_path) == (["tests/unit/test_one.py"] if belongs else [])


@pytest.mark.parametrize("module", ["tests.conftest", *conftest.pytest_plugins])
def test_what_every_run_loads_is_there_without_an_orchestrator(module: str) -> None:
    assert used_by(ROOT, module, {}).isdisjoint(FOREIGN)
