"""Several things at once, each in a thread that nobody waits for when edgectl ends.

A box that is switched off answers nothing for seconds: neither the other answers nor an interrupt
wait for it.
"""

import queue
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar

from edgectl.errors import CallError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


def together(tasks: Mapping[K, Callable[[], T]]) -> Iterator[tuple[K, T | CallError]]:
    """What each gave, or how it failed, in the order in which they are done. Raises what a task
    raises that is no CallError."""
    done: queue.SimpleQueue[tuple[K, T | Exception]] = queue.SimpleQueue()

    def run(key: K, task: Callable[[], T]) -> None:
        try:
            done.put((key, task()))
        except Exception as error:
            done.put((key, error))

    for key, task in tasks.items():
        threading.Thread(target=run, args=(key, task), daemon=True).start()
    for _ in tasks:
        key, found = done.get()
        if isinstance(found, Exception) and not isinstance(found, CallError):
            raise found
        yield key, found
