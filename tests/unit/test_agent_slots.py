"""Slots go to the lower rank first, and are never lost."""

import asyncio
import contextlib
import random

from agent.slots import Slots


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_is_half_started_comes_before_what_is_not_begun() -> None:
    """Two hundred pods on one box: none of their containers started before the last sandbox."""
    slots, began = Slots(1), []

    async def work(name: str, rank: int) -> None:
        async with slots.taken(rank):
            began.append(name)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for name, rank in (("pod-0", 1), ("pod-1", 1), ("container-0", 0), ("pod-2", 1)):
            group.create_task(work(name, rank))
    assert began == ["pod-0", "container-0", "pod-1", "pod-2"]


async def test_never_more_than_the_number_and_none_is_lost() -> None:
    slots, at_once, most = Slots(3), 0, 0
    dice = random.Random(1)

    async def work() -> None:
        nonlocal at_once, most
        async with slots.taken(dice.randrange(2)):
            at_once += 1
            most = max(most, at_once)
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            at_once -= 1

    tasks = [asyncio.create_task(work()) for _ in range(60)]
    await settle()
    for task in dice.sample(tasks, 20):
        task.cancel()
        await settle()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert most <= 3
    async with asyncio.timeout(30):
        async with slots.taken(0), slots.taken(0), slots.taken(0):
            pass


async def test_who_is_cancelled_while_being_served_gives_the_slot_on() -> None:
    slots = Slots(1)
    first = slots.taken(0)
    await first.__aenter__()

    async def wait() -> None:
        async with slots.taken(0):
            pass

    waiter = asyncio.create_task(wait())
    await settle()
    await first.__aexit__(None, None, None)  # the slot is the waiter's, who has not run yet
    waiter.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiter
    async with asyncio.timeout(30), slots.taken(0):
        pass
