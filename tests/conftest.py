"""What all tests share: fixtures, and an honest account of what this machine could not run.

Tests marked with what they need (`containerd`, `netns`, `firewall`, `etcd`, `registry`, `spin`,
`dpkg`, `emulation`, `helm`, `images`, `kubernetes`) are left out where the machine lacks it. The
last lines of every run say how many were left out, where and why, so that green never hides a gap.

Property tests replay the same examples in every run, so that a change and not luck decides whether
they pass; `HYPOTHESIS_PROFILE=explore` draws new ones, and `emulated` takes a quarter of them. On a
CI machine (`CI` is set) a test of real processes or containers that fails is run once more, since a
busy machine can miss a deadline; the summary then shows it as RERUN.

`make test` runs in four processes (`tools/side_by_side.py`): what is marked `machine` (all of
tests/e2e), `containerd` or `netns` stays together in one of them.
"""

import os
import signal
from collections.abc import Iterable

import hypothesis
import pytest

from devcluster import preflight

# No deadline for an example: it would be about the machine.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", derandomize=False, deadline=None)
hypothesis.settings.register_profile("emulated", derandomize=True, deadline=None, max_examples=25)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

pytest_plugins = ["tests.containerd_fixtures", "tests.hanging"]


def pytest_configure() -> None:
    """A shell starts background jobs with SIGINT ignored, and what they start inherits it: a
    `make test &` would fail the tests that interrupt a program."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "e2e":
            item.add_marker(pytest.mark.machine)
    if os.environ.get("CI"):
        for item in items:
            if item.path.parent.name in ("e2e", "integration"):
                item.add_marker(pytest.mark.flaky(reruns=1))
    lacking = {
        "containerd": preflight.missing(),
        "netns": preflight.missing_netns(),
        "firewall": preflight.missing_firewall(),
        "etcd": preflight.missing_etcd(),
        "registry": preflight.missing_registry(),
        "spin": preflight.missing_spin(),
        "faketime": preflight.missing_faketime(),
        "dpkg": preflight.missing_dpkg(),
        "emulation": preflight.missing_emulation(),
        "helm": preflight.missing_helm(),
        "images": preflight.missing_images(),
        "kubernetes": preflight.missing_kubernetes(),
    }
    for item in items:
        for mark, missing in lacking.items():
            if missing and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=preflight.reason(missing)))
                break


def pytest_unconfigure(config: pytest.Config) -> None:
    """Comes after pytest's own last line."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        for line in left_out(terminal.stats.get("skipped", ())):
            terminal.write_line(line, yellow=True)


def left_out(skipped: Iterable[pytest.TestReport]) -> list[str]:
    """One line for each reason: how many tests, why, and in which files."""
    by_reason: dict[str, list[str]] = {}
    for report in skipped:
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        by_reason.setdefault(text.removeprefix("Skipped: "), []).append(report.nodeid)
    return [
        f"left out {len(ids)} test{'s' * (len(ids) > 1)}: {reason}"
        f" [{', '.join(sorted({i.partition('::')[0] for i in ids}))}]"
        for reason, ids in sorted(by_reason.items())
    ]
