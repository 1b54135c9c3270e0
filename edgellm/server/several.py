"""Several answers to one question at once, for OpenAI's `n`."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from edgellm.server.asking import Ask, Event, answer, primed
from edgellm.server.models import Models

_AHEAD = 16  # events that wait for their reader
_MAX_SEED = (1 << 63) - 1


async def answers(models: Models, asks: list[Ask]) -> AsyncGenerator[tuple[int, Event], None]:
    """Yield the events of all answers, each with the number of its question, in the order in which they come.

    Raises what any of them raises, and then ends all; what refuses a question is raised first.
    """
    if len(asks) == 1:
        async with aclosing(primed(answer(models, asks[0]))) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event | BaseException | None]] = asyncio.Queue(_AHEAD)

    async def follow(i: int) -> None:
        try:
            async with aclosing(primed(answer(models, asks[i]))) as events:
                async for event in events:
                    await queue.put((i, event))
            await queue.put((i, None))
        except Exception as e:
            await queue.put((i, e))

    tasks = [asyncio.create_task(follow(i)) for i in range(len(asks))]
    try:
        running = len(asks)
        while running:
            i, happened = await queue.get()
            if isinstance(happened, BaseException):
                raise happened
            if happened is None:
                running -= 1
            else:
                yield i, happened
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def copies(ask: Ask, n: int) -> list[Ask]:
    """Return the same question `n` times; with a seed, each has another one."""
    seed = ask.options.get("seed")
    if seed is None:
        return [ask] * n
    return [replace(ask, options={**ask.options, "seed": (seed + i) & _MAX_SEED}) for i in range(n)]
