"""Runs work in a thread that ends with it, beside the event loop."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_own_thread(function: Callable[..., T], *args: object) -> T:
    """Return `function(*args)`, run in a thread that ends with it.

    OpenMP keeps a team of helpers for each thread that has computed, as long as that thread lives, and makes all teams
    wait less eagerly once together they are more than the cores: a pool's idle thread would slow every step.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(put: Callable[..., None], value: object) -> None:
        if not done.cancelled():
            put(value)

    def run() -> None:
        put: Callable[..., None]
        value: object
        try:
            put, value = done.set_result, function(*args)
        except BaseException as e:
            put, value = done.set_exception, e
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, put, value)

    threading.Thread(target=run, name="work", daemon=True).start()
    return await done
