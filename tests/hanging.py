"""What every asyncio task waits for, in the report of a test that ran into its time limit.

A plugin of `conftest.py`. pytest-timeout shows threads, and those of a test that hangs in an await
all show the same: the event loop.
"""

import asyncio
import gc
from collections.abc import Generator
from typing import Any

import pytest

from polder.tasks import what_waits


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: "pytest.CallInfo[Any]",
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.excinfo is not None and "from pytest-timeout" in str(call.excinfo.value):
        # Of any loop: the test's own does not run any more, and no call tells of another's.
        left = (found for found in gc.get_objects() if isinstance(found, asyncio.Task))
        text = "\n".join(what_waits(task for task in left if not task.done()))
        report.sections.append(("asyncio tasks", text))
    return report
