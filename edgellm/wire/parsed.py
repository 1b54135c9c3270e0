"""Values of a board's report, each as it should be or None: a report is hostile, and must still be shown."""

from typing import Any

from edgellm.wire.printable import printable

_MAX_TEXT = 60  # characters of a text that is shown
_MAX_REASON = 300  # the same, of why something failed
_MAX_CORES = 64


def object_of(value: object) -> dict[str, Any]:
    """Return a JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def count(value: object) -> int | None:
    """Return a whole number from 0 on."""
    return value if type(value) is int and 0 <= value < 1 << 60 else None


def number(value: object) -> float | None:
    """Return a number."""
    # The comparison is false for NaN, and never turns a huge integer into a float.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if -1e12 < value < 1e12 else None


def seconds(value: object) -> float | None:
    """Return a number from 0 on."""
    found = number(value)
    return found if found is not None and found >= 0 else None


def flag(value: object) -> bool | None:
    """Return a bool."""
    return value if isinstance(value, bool) else None


def cores(value: object) -> tuple[int, ...] | None:
    """Return a list of cores."""
    if not isinstance(value, (list, tuple)) or len(value) > _MAX_CORES or not all(count(n) is not None for n in value):
        return None
    return tuple(value)


def text(value: object) -> str | None:
    """Return a text that can be shown: a few characters, none of which moves a cursor or changes a colour."""
    if not isinstance(value, str):
        return None
    return printable(value, _MAX_TEXT) or None


def reason(value: object) -> str | None:
    """Return a sentence that can be shown."""
    return printable(value, _MAX_REASON) if isinstance(value, str) else None
