"""What asyncio tasks wait for: told by a stop that takes too long, and by a test that hangs."""

from collections.abc import Iterable
from typing import Any, Protocol


class Task(Protocol):
    """What is asked of an `asyncio.Task`."""

    def get_name(self) -> str: ...

    def get_coro(self) -> Any: ...


def what_waits(tasks: Iterable[Task]) -> list[str]:
    """A line for each, by name."""
    return sorted(filter(None, map(_where, tasks)))


def _where(task: Task) -> str:
    """Its name, and what waits for what in it; empty for a task of gRPC's own."""
    waits: list[str] = []
    coroutine = task.get_coro()
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        if frame.f_code.co_filename.endswith(".pxi"):
            break
        waits.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        coroutine = coroutine.cr_await
    return f"{task.get_name()} in {' > '.join(waits)}" if waits else ""
