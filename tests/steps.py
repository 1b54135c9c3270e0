"""How much work something is, in calls of functions: the same number on a fast machine, a slow one and a busy one."""

import sys
from collections.abc import Callable


def calls_of(work: Callable[[], object], limit: int | None = None) -> int:
    """The calls that `work` makes in this thread, of Python's functions and of builtin ones; an AssertionError as soon
    as they are more than `limit`."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        if event in ("call", "c_call"):
            count += 1
            assert limit is None or count <= limit, f"more than {limit} calls"

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count
