"""Who is meant by a CancelledError: the task that gets it, or something that it waited for.

gRPC raises one from a call whose channel was closed on this side, by whoever; a future that its
owner gave up does the same. A task that takes it for its own end is gone without a word, and its
caller waits for ever. So whoever must go on, or must answer, asks here.
"""

import asyncio


def is_cancelled() -> bool:
    """Whether it is the running task that shall end."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
