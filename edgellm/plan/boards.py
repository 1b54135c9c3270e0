"""Boards typed on a command line: "pi1=3.1GB", "pi1=3.1GB@25ms" with the measured time of a layer, or "pi1=3.1GB@9GB/s"
with how fast its memory is."""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal

from edgellm.errors import PlanError, UsageError
from edgellm.plan.types import BOARD_NAME, Capacity
from edgellm.shards.manifest import Manifest

# Guesses for a board that was not measured: an Orange Pi 5 class board reads weights at about 6 GB/s from its four
# big cores; a hop over gigabit Ethernet, with TLS and a wake-up at each end, takes about half a millisecond.
GUESSED_BYTES_PER_S = 6e9
GUESSED_HOP_S = 0.0005

_BOARD = re.compile(r"(?P<name>[^=@]*)=(?P<size>[^=@]*)(?:@(?P<time>[^=@]*))?\Z")
_QUANTITY = re.compile(r"(?P<number>[0-9]{1,16}(?:\.[0-9]{1,9})?)\s*(?P<unit>[A-Za-z]+(?:/s)?)\Z")
_SIZES = {"gb": Decimal(10**9), "gib": Decimal(2**30), "mb": Decimal(10**6), "mib": Decimal(2**20), "b": Decimal(1)}
_RATES = {f"{unit}/s": size for unit, size in _SIZES.items()}
_TIMES = {"s": Decimal(1), "ms": Decimal("0.001"), "us": Decimal("0.000001")}


def parse_boards(texts: Iterable[str], manifest: Manifest) -> tuple[Capacity, ...]:
    """Parse boards from comma-separated texts. Raises UsageError for an invalid board, or a name given twice."""
    capacities = [parse_board(part, manifest) for text in texts for part in text.split(",")]
    names = [c.board for c in capacities]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--board: {name} is given {names.count(name)} times, expected once")
    return tuple(capacities)


def parse_board(text: str, manifest: Manifest) -> Capacity:
    """Parse one board: NAME=SIZE, NAME=SIZE@TIME or NAME=SIZE@RATE, SIZE in GB, GiB, MB or MiB, TIME of one token
    through one layer in s, ms or us, RATE of reading weights in GB/s or the like.

    Without a time, it is that of reading the bytes of a layer that a token touches, at RATE or a guessed one. Raises
    UsageError for anything else.
    """
    text = text.strip()
    shown = text if len(text) <= 60 and text.isprintable() else repr(text[:60])
    if not (match := _BOARD.match(text)):
        raise UsageError(
            f"--board: {shown} is not a board, expected NAME=SIZE, NAME=SIZE@TIME or NAME=SIZE@RATE, like "
            "pi1=3.1GB@25ms or pi1=3.1GB@9GB/s"
        )
    name = match["name"].strip()
    if not BOARD_NAME.match(name):
        raise UsageError(f"--board: {shown} has no valid name, expected letters, digits, '.', '_' or '-', at most 63")
    ram_bytes = parse_size(match["size"], f"--board: {name}'s size")
    layer_bytes = max(1, sum(manifest.touched_bytes_per_token) / manifest.num_layers)
    if match["time"] is None:
        layer_s = layer_bytes / GUESSED_BYTES_PER_S
    elif match["time"].strip().lower().endswith("b/s"):
        rate = _quantity(match["time"], _RATES, f"--board: {name}'s memory rate", "GB/s or MB/s, like 9GB/s")
        layer_s = layer_bytes / float(rate)
    else:
        layer_s = float(_quantity(match["time"], _TIMES, f"--board: {name}'s time a layer", "s, ms or us, like 25ms"))
    head_s = layer_s * manifest.head_touched_bytes / layer_bytes
    try:
        return Capacity(name, ram_bytes, layer_s, head_s, GUESSED_HOP_S)
    except PlanError as e:
        raise UsageError(f"--board: {e}") from None


def parse_size(text: str, what: str) -> int:
    """Return the bytes of "3.1GB", "3GiB", "512MB", "512MiB" or "1000B". Raises UsageError, opening with `what`, for
    anything else."""
    return int(_quantity(text, _SIZES, what, "GB, GiB, MB or MiB, like 3.1GB"))


def _quantity(text: str, units: Mapping[str, Decimal], what: str, expected: str) -> Decimal:
    match = _QUANTITY.match(text.strip())
    unit = units.get(match["unit"].lower()) if match else None
    if match is None or unit is None:
        raise UsageError(f"{what} is {text.strip()[:40]!r}, expected a number with {expected}")
    if not (value := Decimal(match["number"]) * unit):
        raise UsageError(f"{what} is {text.strip()[:40]!r}, expected more than 0")
    return value
